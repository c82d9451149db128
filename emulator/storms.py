"""Tells a CPU that only takes exceptions from one that gets on, and a trace that grows too long.

What it is: `Storms` looks at the exceptions of a run; a CPU that takes the same exception at
the same instruction again and again, with hardly an instruction between, will do so for ever.
`Room` counts the rows of a trace, so that a run ends with a named reason before the file is full.
What it is not: a judgement on the guest: a storm is how it ended, not why.
"""

from __future__ import annotations

from typing import Final

from emulator.trace_schema import MAX_ROWS

STORM_COUNT: Final = 64
"""So many times the same exception at the same instruction, for the same address,"""
STORM_TICKS: Final = 4096
"""with no stretch between two exceptions that is longer than this: no handler does its work so.

A handler that mends what it was called for (a page put into the page table, a WARN_ON printed) lets
the instruction go on; 4,096 is four slices of the default quantum.
"""
_SPARE_ROWS: Final = 10_000
"""Rows that may still come within the slice in which the room ends."""


class Storms:
    """Follows the exceptions of every CPU."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._seen: dict[int, dict[tuple[str, int], int]] = {}

    def note(self, cpu: int, tick: int, name: str, nip: int) -> str:
        """Take in an exception; what is wrong, in words, once the CPU gets nowhere, else ""."""
        seen, last = self._seen.setdefault(cpu, {}), self._last.get(cpu, -1)
        if tick - last > STORM_TICKS:
            seen.clear()
        self._last[cpu] = tick
        if tick == last and (name, nip) in seen:
            return ""  # nothing ran since: a replay that stopped here takes it once more
        seen[name, nip] = seen.get((name, nip), 0) + 1
        if seen[name, nip] < STORM_COUNT:
            return ""
        return f"{name}, {STORM_COUNT} times over: its handler does not get on"


class Room:
    """Counts the rows of each table of a trace."""

    def __init__(self) -> None:
        self._left = {kind: rows - _SPARE_ROWS for kind, rows in MAX_ROWS.items()}

    def note(self, kind: str) -> None:
        """A row of that table was emitted."""
        if kind in self._left:
            self._left[kind] -= 1

    @property
    def full(self) -> str:
        """The table that has no room left, "" while there is room."""
        return next((kind for kind, left in self._left.items() if left <= 0), "")
