"""Steps from every tick of a run: of all CPUs and of one, against a walk over all its slices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.moves import STEPS, moves, step
from app.story import Story, story
from emulator.trace import Slice, TraceReader
from tests import fabricated


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceReader]:
    path = tmp_path_factory.mktemp("moves") / "t"
    fabricated.write_trace(path)
    with TraceReader(path) as made:
        yield made


@pytest.fixture(scope="module")
def told(reader: TraceReader) -> Story:
    return story(reader)


def interesting(rows: list[Slice], last: int) -> list[int]:
    """The ticks round every end of a slice."""
    ends = {row.tick + n for row in rows for n in (-2, -1, 0, 1, 2, row.ticks)}
    return sorted(tick for tick in ends if 0 <= tick <= last)


def made_by(rows: list[Slice], cpu: int, tick: int) -> bool:
    return any(row.cpu == cpu and row.tick < tick <= row.tick + row.ticks for row in rows)


def test_slices(reader: TraceReader, told: Story) -> None:
    rows = list(reader.slices())
    assert len({row.cpu for row in rows}) == 4
    for tick in interesting(rows, told.lanes.last_tick):
        for cpu in (None, 0, 1, 2, 3):
            starts = [row.tick for row in rows if cpu in (None, row.cpu)]
            before = max((at for at in starts if at < tick), default=None)
            after = min((at for at in starts if at > tick), default=None)
            assert step(told, reader, tick, "previous-slice", cpu) == before
            assert step(told, reader, tick, "next-slice", cpu) == after


def test_instructions_of_one_cpu(reader: TraceReader, told: Story) -> None:
    """The tick between is another CPU's; forwards and back again is where one was."""
    rows = list(reader.slices())
    ticks = interesting(rows, told.lanes.last_tick)
    for cpu in range(4):
        own = [row for row in rows if row.cpu == cpu]
        for tick in ticks:
            after = step(told, reader, tick, "next-insn", cpu)
            coming = [max(tick, row.tick) + 1 for row in own if row.tick + row.ticks > tick]
            assert after == min(coming, default=None)
            before = step(told, reader, tick, "previous-insn", cpu)
            past = [min(tick - 1, row.tick + row.ticks) for row in own if row.tick < tick - 1]
            first = [row.tick for row in own if row.tick < tick]
            assert before == (max(past) if past else min(first, default=None))
            if made_by(rows, cpu, tick) and after is not None:
                assert step(told, reader, after, "previous-insn", cpu) == tick


def test_events_of_one_cpu(reader: TraceReader, told: Story) -> None:
    for cpu in (None, 0, 2):
        events = {row.tick for row in told.rows if cpu in (None, row.cpu)}
        tick, seen = 0, [0] if 0 in events else []
        while (after := step(told, reader, tick, "next-event", cpu)) is not None:
            seen.append(after)
            tick = after
        assert set(seen) == {at for at in events if at <= told.lanes.last_tick}
        assert step(told, reader, tick, "previous-event", cpu) == sorted(events)[-2]


def test_all_cpus_step_by_one(reader: TraceReader, told: Story) -> None:
    last = told.lanes.last_tick
    assert step(told, reader, 7, "next-insn", None) == 8
    assert step(told, reader, 7, "previous-insn", None) == 6
    assert step(told, reader, last, "next-insn", None) is None
    assert step(told, reader, 0, "previous-insn", None) is None
    assert {step(told, reader, 0, name, 3) for name in STEPS if "previous" in name} == {None}
    assert moves(told, reader, 7, 2).cpu == 2
