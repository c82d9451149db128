"""Which CPU was in which stage when: a lane a CPU, made from the stage events of a trace.

What it is not: geometry (`app/drawing.py`) or a judgement (`verdict.py`). A stage event tick is the
tick at which the CPU's NIP stands at the stage's first instruction; a stage lasts to the next one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from emulator.handoff import STAGES
from emulator.trace import Event, Slice

FIRST_STAGE = "hand-over"
MAX_CHANGES = 5_000
"""Stage changes that are looked at; a run with more is a flood, and its first part must do."""
MAX_SLICES = 50_000
"""Slices that are looked at where stage events are missing; a trace may hold 4,000,000."""
_BY_ID = {stage.id: stage for stage in STAGES}
_BY_LETTER = {stage.letter: stage for stage in STAGES}


def stage_id(text: str) -> str:
    """Return the id of a stage that is given as id or as letter; the text itself if unknown."""
    return _BY_LETTER[text].id if text in _BY_LETTER else text


def stage_letter(identifier: str) -> str:
    """Return a stage's letter; X for one that the table does not know."""
    stage = _BY_ID.get(identifier)
    return stage.letter if stage else "X"


def stage_name(identifier: str) -> str:
    """Return a stage's name; the id itself for one that the table does not know."""
    stage = _BY_ID.get(identifier)
    return stage.name if stage else identifier


@dataclass(frozen=True)
class Stay:
    """One CPU in one stage, for the ticks lo <= t < hi."""

    cpu: int
    lo: int
    hi: int
    stage: str
    nip: str
    symbol: str

    @property
    def letter(self) -> str:
        """The stage's letter."""
        return stage_letter(self.stage)

    @property
    def name(self) -> str:
        """The stage's name."""
        return stage_name(self.stage)


@dataclass(frozen=True)
class Lanes:
    """All stays of a run, by CPU and in order."""

    stays: dict[int, tuple[Stay, ...]]
    last_tick: int

    def at(self, cpu: int | None, tick: int) -> Stay | None:
        """Return the stay of a CPU in the state at a tick; None before its first stage."""
        row = self.stays.get(-1 if cpu is None else cpu, ())
        index = bisect_right(row, tick, key=lambda stay: stay.lo) - 1
        return row[index] if index >= 0 else None

    def letter_of(self, cpu: int | None, tick: int) -> str:
        """Return the letter of the stage that retired the instruction number `tick`."""
        stay = self.at(cpu, max(tick - 1, 0))
        return stay.letter if stay else ""

    def first(self, stage: str) -> Stay | None:
        """Return the first stay of any CPU in a stage."""
        found = [s for row in self.stays.values() for s in row if s.stage == stage]
        return min(found, key=lambda stay: stay.lo) if found else None


def lanes(events: Iterable[Event], slices: Iterable[Slice], cpus: int, last_tick: int) -> Lanes:
    """Make the lanes from the stage events, or from the slices of a CPU that has none.

    Args:
        events: those of kind "stage", in order.
        slices: the schedule; its first MAX_SLICES are looked at, where a CPU has no stage event.
        cpus: how many lanes there are.
        last_tick: where the last stay of each CPU ends.
    """
    marks: dict[int, list[tuple[int, str, str, str]]] = {cpu: [] for cpu in range(cpus)}
    for event in events:
        if event.cpu is not None and event.cpu in marks:
            entry = (event.tick, stage_id(event.text), event.nip or "", event.symbol)
            row = marks[event.cpu]
            if not row or row[-1][1] != entry[1]:
                row.append(entry)
    without = {cpu for cpu, row in marks.items() if not row}
    if without:
        for item in islice(slices, MAX_SLICES):
            row = marks.get(item.cpu, [])
            stage = stage_id(item.stage)
            if item.cpu in without and stage and (not row or row[-1][1] != stage):
                row.append((item.tick, stage, item.nip, item.symbol))
    return Lanes({cpu: _stays(cpu, row, last_tick) for cpu, row in marks.items()}, last_tick)


def _stays(cpu: int, row: list[tuple[int, str, str, str]], last_tick: int) -> tuple[Stay, ...]:
    """Make stays of the changes; before its first change a CPU is in the old kernel's hand-over."""
    stays = []
    if not row or row[0][0] > 0:
        row = [(0, FIRST_STAGE, "", ""), *row]
    for index, (tick, stage, nip, symbol) in enumerate(row):
        end = row[index + 1][0] if index + 1 < len(row) else max(last_tick, tick)
        stays.append(Stay(cpu, tick, end, stage, nip, symbol))
    return tuple(stays)
