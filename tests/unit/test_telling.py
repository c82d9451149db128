"""Runs whose guest floods the trace: what pages read of them is bounded, and read once."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app import panels
from app.index import Run
from app.story import Story, story
from app.telling import KEPT, Stories
from emulator import lanes
from emulator.lanes import Lanes, Stay
from emulator.trace import ConsoleChunk, Event, ImageFile, Slice, TraceReader, TraceWriter


def _trace(path: Path, *records: dict[str, Any], finish: bool = True) -> Path:
    writer = TraceWriter(path)
    writer.start({"mode": "load"}, [ImageFile("kernel", "k", b"k")])
    for record in records:
        writer.apply(record)
    if finish:
        writer.apply({"t": "end", "reason": "limit", "tick": 1 << 30, "ok": False})
        writer.finish()
    else:
        writer.flush()
    return path


def _console(tick: int, data: bytes) -> dict[str, Any]:
    return {"t": "console", "tick": tick, "cpu": 0, "data": data.hex()}


def test_a_console_of_newlines_costs_no_lines(tmp_path: Path) -> None:
    records = [_console(1, b"first\n"), *(_console(2, b"\n" * 60_000) for _ in range(40))]
    path = _trace(tmp_path / "t", *records, _console(3, b"la"), _console(4, b"st\r\n"))
    with TraceReader(path) as reader:
        told = story(reader)
    assert [line.tick for line in told.console] == [3, 3]
    cut = 6 + 23 * 60_000  # of the last 2^20 bytes, 17 whole chunks are read
    said = f"[{cut:,} bytes of console before this are not shown; the trace has them]"
    assert [line.text for line in told.console] == [said, "last"]


def test_only_the_last_lines_of_a_console_are_kept() -> None:
    most = panels.MAX_CONSOLE_LINES
    chunks = [ConsoleChunk(tick, 0, b"line %d\n" % tick) for tick in range(most + 7)]
    lines = panels.console_lines(chunks)
    assert len(lines) == most + 1
    assert lines[0].text == "[7 lines of console before this are not shown; the trace has them]"
    assert (lines[1].tick, lines[1].text) == (7, "line 7")


def test_a_short_console_is_whole() -> None:
    chunks = [
        ConsoleChunk(5, 1, b"a\n\n\tb"),
        ConsoleChunk(6, 2, b"c\n\0"),
        ConsoleChunk(7, 3, b"d"),
    ]
    assert [(line.tick, line.cpu, line.text) for line in panels.console_lines(chunks)] == [
        (5, 1, "a"),
        (5, 1, "        bc"),
        (7, 3, "d"),
    ]


def test_a_stay_is_found_without_a_list_of_all() -> None:
    looked = 0

    class Counted(Stay):
        def __getattribute__(self, name: str) -> Any:
            nonlocal looked
            looked += name == "lo"
            return super().__getattribute__(name)

    row = tuple(Counted(0, lo, lo + 10, "head", "", "") for lo in range(0, 40_960, 10))
    found = Lanes({0: row}, 40_960).at(0, 12_345)
    assert looked < 20
    assert found is not None
    assert found.lo == 12_340


def test_lanes_look_at_so_many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_SLICES", 3)
    slices = iter([Slice(at, 0, 1, "", ("head", "hold")[at & 1], "") for at in range(100)])
    made = lanes.lanes([], slices, 1, 100)
    assert [stay.lo for stay in made.stays[0]] == [0, 1, 2]
    assert next(slices).tick == 3


def test_the_last_slices_are_read_from_the_end(tmp_path: Path) -> None:
    rows = [{"t": "slice", "tick": 5 * n, "cpu": 0, "ticks": 5, "nip": n} for n in range(10)]
    with TraceReader(_trace(tmp_path / "t", *rows)) as reader:
        assert [row.tick for row in reader.last_slices(3)] == [35, 40, 45]


class _Slow:
    """Counts how often a story is made."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.made = seconds, 0

    def __call__(self, reader: TraceReader) -> Story:
        self.made += 1
        time.sleep(self.seconds)
        return story(reader)


def test_a_story_is_made_once_for_all_who_ask_at_once(tmp_path: Path) -> None:
    path, make = _trace(tmp_path / "t"), _Slow(0.2)
    stories, run = Stories(make), Run(status="finished")

    def ask() -> None:
        with TraceReader(path) as reader:
            stories.told_by(run, reader)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.made == 1


def test_a_live_story_is_kept_for_a_moment(tmp_path: Path) -> None:
    now = 100.0
    make = _Slow()
    stories = Stories(make, lambda: now)
    with TraceReader(_trace(tmp_path / "t", finish=False)) as reader:
        for at, made in ((100.0, 1), (100.15, 1), (100.25, 2), (100.3, 2)):
            now = at
            stories.told_by(Run(status="running"), reader)
            assert make.made == made


def test_an_ended_story_is_kept_until_others_push_it_out(tmp_path: Path) -> None:
    now = 0.0
    make = _Slow()
    stories = Stories(make, lambda: now)
    paths = [_trace(tmp_path / f"t{n}") for n in range(KEPT + 1)]
    for n, made in ((0, 1), (0, 1), *((n, n + 1) for n in range(1, KEPT + 1)), (0, KEPT + 2)):
        now += 100
        with TraceReader(paths[n]) as reader:
            stories.told_by(Run(status="finished"), reader)
        assert make.made == made


def test_events_read_for_low_memory_are_bounded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("app.story.MAX_LOW_WRITES", 5)
    row = {"t": "event", "cpu": 0, "kind": "low-write", "addr": 0, "size": 4, "value": 1}
    with TraceReader(_trace(tmp_path / "t", *({**row, "tick": n} for n in range(9)))) as reader:
        low = story(reader).low_writes
    assert [type(event) for event in low] == [Event] * 5
