"""The census: which function every CPU was in, at every tick of the run.

What it is: rows (tick, cpu, function) in memory that a session and all its forks share. Once a
run has ended, one process asks checkpoint after checkpoint to run its stretch again and note each
change of function; from then on a timeline of any stretch is exact. What it is not: in the trace,
which needs it not.
"""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np
import numpy.typing as npt

from emulator import native
from emulator.run import Run
from emulator.spans import Span
from emulator.symbols import AddressMap

MAX_ROWS: Final = 6_000_000
"""96 MB, touched as far as they are used; the Debian pair needs 2.3 million."""
_ROW_BYTES: Final = 16


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
        """Functions during [begin, end), in at most `width` spans a CPU."""
        rows = self._rows[: 2 * self.count].reshape(-1, 2)
        first = max(0, int(np.searchsorted(rows[:, 0], begin, "right")) - 1)
        last = int(np.searchsorted(rows[:, 0], end, "left"))
        ticks = np.append(np.clip(rows[first:last, 0], begin, end), end)
        cpus = rows[first:last, 1] >> native.CENSUS_CPU_SHIFT
        functions = rows[first:last, 1] & ((1 << native.CENSUS_CPU_SHIFT) - 1)
        result: list[Span] = []
        for cpu in np.unique(cpus).tolist():
            own = cpus == cpu
            pieces = (ticks[:-1][own], ticks[1:][own], functions[own])
            result += _columns(int(cpu), *pieces, begin, end, width)
        for span in result:
            index = span.pop("function")
            where = names.name_at(int(self._starts[index - 1])) if index else ""
            span["symbol"] = where.partition("+")[0]
        return sorted(result, key=lambda span: (span["from"], span["cpu"]))


def _columns(
    cpu: int,
    lo: npt.NDArray[np.int64],
    hi: npt.NDArray[np.int64],
    function: npt.NDArray[np.int64],
    begin: int,
    end: int,
    width: int,
) -> list[Span]:
    """Spans of one CPU: the pieces themselves if they are few, else one a column."""
    change = np.ones(len(lo), bool)
    change[1:] = (function[1:] != function[:-1]) | (lo[1:] != hi[:-1])
    at = np.flatnonzero(change)
    if len(at) <= width:
        ends = hi[np.append(at[1:] - 1, len(hi) - 1)]
        return [
            {"cpu": cpu, "from": int(a), "to": int(b), "function": int(f), "others": 0}
            for a, b, f in zip(lo[at], ends, function[at], strict=True)
            if b > a
        ]
    edges = begin + (np.arange(width) * (end - begin)) // width
    at = np.searchsorted(lo, edges)
    starts = np.insert(lo, at, edges)
    piece = np.insert(np.arange(len(lo)), at, at - 1)
    inside = piece >= 0
    stops = np.minimum(np.append(starts[1:], end), np.where(inside, hi[np.maximum(piece, 0)], 0))
    kept = inside & (stops > starts)
    starts, stops, owner = starts[kept], stops[kept], function[piece[kept]]
    column = np.searchsorted(edges, starts, "right") - 1
    return _dominant(cpu, column, owner, starts, stops)


def _dominant(
    cpu: int,
    column: npt.NDArray[np.int64],
    function: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
) -> list[Span]:
    """For each column the function that took most of it, merged with equal neighbours."""
    if not len(column):
        return []
    known = np.flatnonzero(np.bincount(function))
    number = np.zeros(int(known[-1]) + 1, np.int64)
    number[known] = np.arange(len(known))
    first_column = int(column[0])
    key = (column - first_column) * len(known) + number[function]
    size = (int(column[-1]) - first_column + 1) * len(known)
    shares = np.bincount(key, stops - starts, size).reshape(-1, len(known))
    present = np.flatnonzero(shares.any(axis=1))
    best = known[shares[present].argmax(axis=1)]
    counts = (shares[present] > 0).sum(axis=1)
    bounds = np.flatnonzero(np.append(True, np.diff(column) != 0))
    first, last = starts[bounds], stops[np.append(bounds[1:] - 1, len(stops) - 1)]
    spans: list[Span] = []
    for name, others, a, b in zip(best, counts - 1, first, last, strict=True):
        lo, hi, more = int(a), int(b), int(others)
        if spans and spans[-1]["function"] == int(name) and spans[-1]["to"] == lo:
            spans[-1]["to"] = hi
            spans[-1]["others"] = max(spans[-1]["others"], more)
        else:
            row = {"cpu": cpu, "from": lo, "to": hi, "function": int(name), "others": more}
            spans.append(row)
    return spans
