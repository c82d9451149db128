"""A run of very many events costs its pages no more than one of many: what they read is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from app import create_app
from app.index import Index, trace_path
from emulator.check import NA, check_trace
from emulator.evidence import MAX_EVENTS
from emulator.records import MAX_FACT_ROWS
from emulator.trace import ImageFile, TraceReader, TraceWriter
from emulator.verdict import MAX_TOUCHES, SHOWN_TOUCHES, verdict
from tests import fabricated

FLOOD = 24_000
MOST_ROWS = 12_000
"""Of the table of events, for the first look at all pages of a run whose flag is touched so often;
5,249 are read, of 24,000 as of more."""
ROWS: dict[str, dict[str, Any]] = {
    "flag-write": {"addr": fabricated.KERNEL_ADDR + 0x5C, "size": 4, "value": 1},
    "flag-read": {"addr": fabricated.KERNEL_ADDR + 0x5C, "size": 4, "value": 1},
    "low-write": {"addr": 0x40, "size": 8, "value": 1},
    "stage": {"text": "hold"},
}


def _hex(value: int) -> str:
    return f"0x{value:016x}"


def _facts() -> dict[str, Any]:
    """As many arrivals as a trace may hold, the last ones after all low writes."""
    row = {"nip": _hex(0x60), "msr": _hex(0x8000000000001002), "text": "00" * 256}
    row |= {name: _hex(1) for name in ("r3", "r4", "r5", "r6", "r7")}
    entries = [
        {"tick": 120, "cpu": 0, "place": "purgatory", **row, "text": ""},
        {"tick": 1_508_330_044, "cpu": 0, "place": "kernel", **row, "text": "valid"},
    ]
    entries += [{"tick": 1_400_000_000 + n, "cpu": 1, "place": "low", **row} for n in range(126)]
    access = {"cpu": 0, "write": True, "at": 0x5C, "size": 4, "value": _hex(1), "old": "0x00000001"}
    access |= {"nip": _hex(0x1EFF08F0), "stage": "purgatory", "symbol": "master+0xf0/0x110"}
    accesses = [{"tick": 2000 + n, "le": True, **access} for n in range(MAX_FACT_ROWS["access"])]
    return {"t": "facts", "entry": entries, "access": accesses, "changed": [], "stray": []}


def flooded(path: Path, kind: str, count: int) -> None:
    """Write the fabricated run with so many more events of a kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = TraceWriter(path)
    writer.start(fabricated.SPEC, [ImageFile("kernel", "k", b"k")])
    records = list(fabricated.records())
    records[0] = records[0] | {"kernel_low": "00" * 256, "cpu_ids": [0, 1, 2, 3]}
    base = {"t": "event", "kind": kind, "nip": 0x1EFF08F0, "symbol": "master+0xf0/0x110"}
    flood = [{**base, **ROWS[kind], "tick": 2000 + n, "cpu": n % 4} for n in range(count)]
    if kind == "stage":
        flood = [{**row, "text": ("hold", "purgatory")[n // 4 % 2]} for n, row in enumerate(flood)]
    events = [row for row in records if row["t"] == "event"]
    for record in [row for row in records if row["t"] != "event"]:
        writer.apply(record)
    for record in sorted(events + flood, key=itemgetter("tick")):
        writer.apply(record)
    writer.apply(_facts())
    writer.apply(fabricated.end())
    writer.finish()


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows of events that are read."""
    count = [0]
    original = TraceReader._rows

    def counting(self: TraceReader, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        for row in original(self, sql, *values):
            count[0] += "FROM event" in sql
            yield row

    monkeypatch.setattr(TraceReader, "_rows", counting)
    return count


@pytest.mark.parametrize("kind", ["flag-write", "flag-read"])
def test_pages_read_a_bounded_part(kind: str, tmp_path: Path, rows_read: list[int]) -> None:
    index = Index(tmp_path)
    run, _ = index.add(spec=fabricated.SPEC, files={}, title="flood", listed=True)
    flooded(trace_path(tmp_path, run.id), kind, FLOOD)
    index.set_status(run.id, "finished", word="STAYS")
    index.close()
    app = create_app({"DATA_DIR": tmp_path, "QUERY": lambda run_id, q: fabricated.answer(q)})
    client = app.test_client()
    for path in ("", "check/", "check.txt", "story/", f"{fabricated.FLAG_TICK}/"):
        address = f"/t/{run.id}/{path}"
        assert client.get(address, headers={"Accept": "text/html"}).status_code == 200
    app.extensions["bootflow.index"].close()
    assert 1_000 < rows_read[0] < MOST_ROWS


def test_flag_shows_both_ends_of_a_flood(tmp_path: Path) -> None:
    flooded(tmp_path / "t", "flag-write", FLOOD)
    with TraceReader(tmp_path / "t") as reader:
        told = verdict(reader)
    steps = [step for step in told.custody if step.number > 0]
    assert len(steps) == SHOWN_TOUCHES
    assert [step.number for step in steps] == list(range(1, SHOWN_TOUCHES + 1))
    assert steps[0].tick < 2010
    assert [step.title for step in steps[-2:]] == ["read by", "read by"]  # the kernel's own
    assert "read it twice" in told.sentence
    assert FLOOD > 2 * MAX_TOUCHES


@pytest.mark.parametrize(
    ("kind", "rules"),
    [("low-write", {"low-copy", "bounds"}), ("stage", {"outcome", "secondaries"})],
)
def test_what_was_not_looked_at_is_not_passed(kind: str, rules: set[str], tmp_path: Path) -> None:
    flooded(tmp_path / "t", kind, FLOOD)
    with TraceReader(tmp_path / "t") as reader:
        report = check_trace(reader)
    said = {row.rule.id: row.found for row in report.rows if "was not looked at" in row.found.text}
    assert {found.status for found in said.values()} == {NA}
    assert said.keys() <= rules
    assert said.keys() & rules
    assert all(f"{MAX_EVENTS:,}" in found.text for found in said.values())
