"""The ticks that the links beside a tick lead to: an instruction, an event, a slice, either way.

What it is: pure arithmetic over the story of a run and its slices, of all CPUs or of one. Where a
CPU does not run for long, its slices tell at once where it goes on; nothing is replayed. What it is
not: markup, or who accessed a byte (`seeking`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from app.story import Story
from emulator.trace import TraceReader


@dataclass(frozen=True)
class Moves:
    """Where the links beside the tick go; None where there is nothing."""

    previous_tick: int | None
    next_tick: int | None
    previous_event: int | None
    next_event: int | None
    previous_flag: int | None
    next_flag: int | None
    previous_slice: int | None
    next_slice: int | None
    cpu: int
    """Of the rest: the CPU whose registers and code are open."""
    previous_cpu_tick: int | None
    next_cpu_tick: int | None
    previous_cpu_event: int | None
    next_cpu_event: int | None
    previous_cpu_slice: int | None
    next_cpu_slice: int | None


STEPS = tuple(
    f"{way}-{what}" for what in ("insn", "event", "slice") for way in ("previous", "next")
)
"""What `step` takes."""


def moves(told: Story, reader: TraceReader, tick: int, cpu: int) -> Moves:
    """Find the neighbours of a tick, those of one CPU too."""
    last = told.lanes.last_tick
    events = sorted({row.tick for row in told.rows if row.tick <= last})
    flags = sorted({step.tick for step in told.verdict.custody if step.number > 0})
    own = sorted({row.tick for row in told.rows if row.tick <= last and row.cpu == cpu})
    return Moves(
        tick - 1 if tick else None,
        tick + 1 if tick < last else None,
        *_neighbours(events, tick),
        *_neighbours(flags, tick),
        *_slices(reader, tick, None),
        cpu,
        _before(reader, tick, cpu),
        _after(reader, tick, cpu),
        *_neighbours(own, tick),
        *_slices(reader, tick, cpu),
    )


def step(told: Story, reader: TraceReader, tick: int, what: str, cpu: int | None) -> int | None:
    """Return the tick that one step leads to, None if there is no such step.

    Args:
        told: the run's story.
        reader: its trace.
        tick: where the reader stands.
        what: one of STEPS.
        cpu: only what this CPU does; None for all.
    """
    found = moves(told, reader, tick, cpu or 0)
    way, kind = what.split("-")
    name = f"{way}_{'cpu_' if cpu is not None else ''}{'tick' if kind == 'insn' else kind}"
    tick_of: int | None = getattr(found, name)
    return tick_of


def _neighbours(ticks: Sequence[int], tick: int) -> tuple[int | None, int | None]:
    left, right = bisect_left(ticks, tick), bisect_right(ticks, tick)
    return (ticks[left - 1] if left else None), (ticks[right] if right < len(ticks) else None)


def _slices(reader: TraceReader, tick: int, cpu: int | None) -> tuple[int | None, int | None]:
    """Return the ticks at which the slices beside a tick begin."""
    before, after = reader.slice_before(tick, cpu), reader.slice_from(tick + 1, cpu)
    return before and before.tick, after and after.tick


def _after(reader: TraceReader, tick: int, cpu: int) -> int | None:
    """Return the tick that the next instruction of a CPU makes."""
    begun = reader.slice_before(tick + 1, cpu)
    if begun is not None and begun.tick + begun.ticks > tick:
        return tick + 1
    coming = reader.slice_from(tick + 1, cpu)
    return None if coming is None else coming.tick + 1


def _before(reader: TraceReader, tick: int, cpu: int) -> int | None:
    """Return the last tick before this one that a CPU made, or where it was to run first."""
    ran = reader.slice_before(tick - 1, cpu)
    if ran is not None:
        return min(tick - 1, ran.tick + ran.ticks)
    first = reader.slice_before(tick, cpu)
    return None if first is None else first.tick
