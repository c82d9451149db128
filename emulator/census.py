"""The census: which function every CPU was in, at every tick of the run.

What it is: rows (tick, cpu, function) in memory that a session and all its forks share. Once a
run has ended, one process asks checkpoint after checkpoint to run its stretch again and note each
change of function; from then on a timeline of any stretch is exact. What it is not: in the trace,
which needs it not.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from emulator import native
from emulator.compiled import njit
from emulator.options import MAX_CPUS
from emulator.run import Run
from emulator.spans import Span
from emulator.symbols import AddressMap

MAX_ROWS: Final = 6_000_000
"""96 MB, touched as far as they are used; the Debian pair needs 2.3 million."""
_ROW_BYTES: Final = 16
_SHIFT: Final = native.CENSUS_CPU_SHIFT


class Census:
    """Rows shared between a session's processes.

    Args:
        starts: real addresses at which a named piece of code begins, ascending. All processes have
            the same ones: it is made before the first fork.
    """

    def __init__(self, starts: npt.NDArray[np.int64]) -> None:
        self._starts = starts
        self._head = np.frombuffer(mmap.mmap(-1, 4096), np.int64)
        self._rows = np.frombuffer(mmap.mmap(-1, MAX_ROWS * _ROW_BYTES), np.int64)

    @property
    def count(self) -> int:
        """Rows that are there."""
        return int(self._head[0])

    @property
    def complete(self) -> bool:
        """They cover the whole run."""
        return bool(self._head[1])

    def finish(self) -> None:
        """Say that the whole run is covered."""
        self._head[1] = 1

    def note(self, run: Run) -> None:
        """Have a run note its changes of function from here on."""
        s = run.machine.state
        s[native.STARTS_ADDR] = self._starts.ctypes.data
        s[native.STARTS_COUNT] = len(self._starts)
        free = self._rows[2 * self.count :]
        s[native.CENSUS_ADDR], s[native.CENSUS_MAX] = free.ctypes.data, len(free) // 2
        s[native.CENSUS_COUNT], s[native.FUNCTION_CPU] = 0, -1
        for cpu in run.machine.cpus:
            cpu.follow_blocks(native.on_block_function)

    def close(self, run: Run) -> bool:
        """Take in what was noted; False when it did not fit."""
        noted, room = (int(run.machine.state[n]) for n in (native.CENSUS_COUNT, native.CENSUS_MAX))
        if noted > room:
            return False
        self._head[0] += noted
        return True

    def spans(self, names: AddressMap, begin: int, end: int, width: int) -> list[Span]:
        """Functions during [begin, end), in at most `width` spans a CPU.

        Of a CPU with no more pieces than that, the pieces themselves; else for each of `width`
        columns the function that took most of it, with `others`: how many more were in it.
        """
        rows = self._rows[: 2 * self.count].reshape(-1, 2)
        first = max(0, int(np.searchsorted(rows[:, 0], begin, "right")) - 1)
        last = int(np.searchsorted(rows[:, 0], end, "left"))
        pieces = np.zeros((MAX_CPUS, width, 4), np.int64)
        columns = np.zeros((MAX_CPUS, width, 4), np.int64)
        counts = np.zeros(MAX_CPUS, np.int64)
        shares = np.zeros((MAX_CPUS, len(self._starts) + 1), np.int64)
        _fold(rows[first:last], begin, end, pieces, columns, counts, shares)
        named: dict[int, str] = {}
        result: list[Span] = []
        for cpu in np.flatnonzero(counts).tolist():
            few = int(counts[cpu]) <= width
            found = pieces[cpu, : counts[cpu]] if few else _merged(columns[cpu])
            for index, lo, hi, others in found.tolist():
                if index not in named:
                    where = names.name_at(int(self._starts[index - 1])) if index else ""
                    named[index] = where.partition("+")[0]
                span = {"cpu": cpu, "from": lo, "to": hi, "others": others}
                result.append(span | {"symbol": named[index]})
        return sorted(result, key=lambda span: (span["from"], span["cpu"]))


def _merged(columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The columns in which a CPU ran, equal neighbours made one."""
    columns = columns[columns[:, 2] > columns[:, 1]]
    begins = np.append(
        True, (columns[1:, 0] != columns[:-1, 0]) | (columns[1:, 1] != columns[:-1, 2])
    )
    at = np.flatnonzero(begins)
    merged = columns[at]
    merged[:, 2] = columns[np.append(at[1:] - 1, len(columns) - 1), 2]
    merged[:, 3] = np.maximum.reduceat(columns[:, 3], at)
    return merged


@njit(cache=True)
def _fold(
    rows: Any, begin: int, end: int, pieces: Any, columns: Any, counts: Any, shares: Any
) -> None:
    """One pass over the rows of [begin, end), the first of which may begin before it.

    Args:
        rows: (tick, cpu << 40 | function), ascending; each lasts until the next begins.
        begin: first tick shown.
        end: tick after the last.
        pieces: out, of each CPU its first pieces: (function, from, to, 0).
        columns: out, of each CPU and column: (function that took most, from, to, others).
        counts: out, how many pieces each CPU has, those that found no room too.
        shares: all 0; ticks of each CPU and function in the column at hand.
    """
    width = columns.shape[1]
    touched = np.zeros(shares.size, np.int64)
    met, column = 0, 0
    edge = begin + (end - begin) // width
    for at in range(len(rows)):
        lo = max(rows[at, 0], begin)
        stop = min(rows[at + 1, 0], end) if at + 1 < len(rows) else end
        if stop <= lo:
            continue
        cpu, function = rows[at, 1] >> _SHIFT, rows[at, 1] & ((1 << _SHIFT) - 1)
        count = counts[cpu]
        last = min(count, width) - 1
        if count and count <= width and _joins(pieces[cpu, last], function, lo):
            pieces[cpu, last, 2] = stop
        else:
            if count < width:
                pieces[cpu, count, 0] = function
                pieces[cpu, count, 1] = lo
                pieces[cpu, count, 2] = stop
            counts[cpu] = count + 1
        while lo < stop:
            while lo >= edge:
                _close_column(columns, column, shares, touched, met)
                met = 0
                column += 1
                edge = begin + ((column + 1) * (end - begin)) // width
            part = min(stop, edge)
            if not shares[cpu, function]:
                touched[met] = cpu * shares.shape[1] + function
                met += 1
            shares[cpu, function] += part - lo
            if columns[cpu, column, 2] == 0:
                columns[cpu, column, 1] = lo
            columns[cpu, column, 2] = part
            lo = part
    _close_column(columns, column, shares, touched, met)


@njit(cache=True)
def _joins(piece: Any, function: int, lo: int) -> bool:
    """A piece goes on at a tick."""
    return bool(piece[0] == function and piece[2] == lo)


@njit(cache=True)
def _close_column(columns: Any, column: int, shares: Any, touched: Any, met: int) -> None:
    """Name the function that took most of a column on each CPU; of equals the lowest."""
    most = np.zeros(columns.shape[0], np.int64)
    for n in range(met):
        cpu, function = touched[n] // shares.shape[1], touched[n] % shares.shape[1]
        share, shares[cpu, function] = shares[cpu, function], 0
        row = columns[cpu, column]
        row[3] += 1 if most[cpu] else 0
        if share > most[cpu] or (share == most[cpu] and function < row[0]):
            most[cpu], row[0] = share, function


def warm_up() -> None:
    """Compile what cannot be compiled later."""
    room = np.zeros((1, 2, 4), np.int64)
    _fold(np.zeros((1, 2), np.int64), 0, 4, room, room.copy(), np.zeros(1, np.int64), room[0])
