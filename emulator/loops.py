"""The loops of a machine, as `nativeloops` has found them: rows told of, and where each CPU is now.

What it is: the table that the compiled code works on, and its rows as dataclasses. What it is not:
the finding (`nativeloops`), or names for people (`app/looping.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import numpy.typing as npt

from emulator import nativeloops as n
from emulator.loopkinds import KINDS
from emulator.options import MAX_CPUS

WRAP: Final = 1 << 64


@dataclass(frozen=True)
class Loop:
    """A loop that has ended, all its entries within the loop around it taken together."""

    cpu: int
    level: int
    """0, or in how many loops it lies."""
    head: int
    """Effective address of T, where a turn begins."""
    tail: int
    """Of the last branch back."""
    first: int
    """Tick before the first instruction of the first turn."""
    last: int
    """Tick after the last instruction."""
    ticks: int
    """Instructions that this CPU retired in it, in functions that it called too."""
    turns: int
    entries: int
    kind: str
    """One of KINDS."""


@dataclass(frozen=True)
class Turn:
    """A loop that a CPU is in."""

    head: int
    tail: int
    turn: int
    """Which turn of this entry, from 1."""
    begun: int
    """Tick before that turn's first instruction."""
    since: int
    """Tick before this entry's first turn."""


class Loops:
    """The loops of all CPUs of a machine."""

    def __init__(self) -> None:
        self.table: npt.NDArray[np.int64] = np.zeros(n.SLOTS, np.int64)
        self.table[n.CPU] = -1
        for cpu in range(MAX_CPUS):
            own = self.table[n.CPUS + n.AREA * cpu :]
            own[n.PC] = own[n.TOP] = own[n.TAIL] = -1
            own[n.EXIT] = n.NEVER

    @property
    def full(self) -> bool:
        """Rows are to be taken before more can be told of."""
        return bool(self.table[n.OUT_COUNT] >= n.STOP_AT)

    def take(self) -> list[Loop]:
        """Loops that were told of since the last call, an outer one before those in it."""
        count = int(self.table[n.OUT_COUNT])
        if not count:
            return []
        self.table[n.OUT_COUNT] = 0
        rows = self.table[n.OUT : n.OUT + n.OUT_SLOTS * count].reshape(count, n.OUT_SLOTS).tolist()
        goes = groupby(rows, key=lambda row: int(row[0]))
        return [loop for _, go in goes for loop in _nested([row[1:] for row in go])]

    def begin_anew(self) -> None:
        """Forget what is open or not told of, and tell of all from here on, however small."""
        self.table[n.ALL] = 1
        self.table[n.OUT_COUNT] = 0
        areas = [self.table[n.CPUS + n.AREA * cpu :] for cpu in range(MAX_CPUS)]
        for own in (self.table, *areas):
            own[n.HEIGHT] = own[n.ROWS] = own[n.BASE] = 0
            own[n.TOP] = own[n.TAIL] = -1
            own[n.EXIT] = n.NEVER

    def interrupted(self, cpu: int) -> None:
        """A CPU is to go on with a handler, wherever it was."""
        at = 0 if self.table[n.CPU] == cpu else n.CPUS + n.AREA * cpu
        self.table[at + n.INTERRUPTED] = 1

    def close(self, words: npt.NDArray[np.uint32], tick: int) -> list[Loop]:
        """End every loop that is open when the run ends; `words` is RAM."""
        found = self.take()
        for cpu in range(MAX_CPUS):  # one by one: there is room for the rows of two
            n.close(self.table, words, tick, cpu)
            found += self.take()
        return found

    def standing(self, cpu: int) -> list[Turn]:
        """The loops that a CPU is in, from their second turn on, the outermost first."""
        area = n.CPUS + n.AREA * cpu
        own = self.table[area : area + n.NEST].tolist()
        if self.table[n.CPU] == cpu:
            own[: n.OWN_SLOTS] = self.table[: n.OWN_SLOTS].tolist()
        found = []
        for at in range(own[n.HEIGHT]):
            frame = own[n.FRAMES + n.FRAME * at : n.FRAMES + n.FRAME * (at + 1)]
            tail, turn, begun = frame[n.B], frame[n.COUNT], frame[n.LATEST]
            if at == own[n.HEIGHT] - 1:
                tail, turn, begun = own[n.TAIL], own[n.TURNS], own[n.BEGUN]
            found.append(Turn(frame[n.T] % WRAP, tail % WRAP, turn, begun, frame[n.SINCE]))
        return found


def _nested(rows: list[list[int]]) -> list[Loop]:
    """Loops that were told of in one go: by first tick, each before those in it."""
    known = {row[1] for row in rows}
    inner: dict[int, list[list[int]]] = {}
    for row in sorted(rows, key=lambda row: row[2 + n.FROM]):
        over = row[2 + n.PARENT]
        inner.setdefault(over if over in known else -1, []).append(row)
    found: list[Loop] = []

    def tell(over: int, level: int) -> None:
        for cpu, index, *row in inner.get(over, ()):
            found.append(
                Loop(
                    cpu, min(level, n.MAX_DEPTH), row[n.HEAD] % WRAP, row[n.LAST] % WRAP,
                    row[n.FROM], row[n.TO], min(row[n.TICKS], row[n.TO] - row[n.FROM]),
                    row[n.TURN], row[n.ENTRY], KINDS[row[n.KIND]],
                )
            )  # fmt: skip
            tell(index, level + 1)

    tell(-1, 0)
    return found
