"""The trace file: what is written is read, forged files are refused, a killed writer is seen."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emulator import trace_schema
from emulator.errors import LimitError, TraceCorruptError, TraceError, TraceVersionError
from emulator.trace import (
    APPLICATION_ID,
    SCHEMA,
    TRACE_VERSION,
    ImageFile,
    TraceReader,
    TraceWriter,
)

SPEC = {"mode": "load-panic", "cpus": 2, "seed": 0}
IMAGES = [ImageFile("kernel", "/a/vmlinux", b"K" * 5000), ImageFile("purgatory", "p.ro", b"\0P")]
RECORDS = [
    {"t": "placement", "kernel_addr": 0x2000000, "debug": ["kernel is 2000000"]},
    {"t": "slice", "tick": 0, "cpu": 0, "ticks": 100, "nip": 0x60, "stage": "purgatory"},
    {"t": "event", "tick": 7, "cpu": 0, "kind": "flag-write", "addr": "0x000000000200005c",
     "size": 4, "value": "0x1", "nip": 0xC000000000000000, "symbol": "master+0x10/0x110"},
    {"t": "console", "tick": 50, "cpu": 0, "data": b"I'm in purgatory\n".hex()},
    {"t": "slice", "tick": 100, "cpu": 1, "ticks": 10, "nip": 0xFFFFFFFFFFFFFFFF, "stage": "hold"},
    {"t": "checkpoint", "tick": 110, "digest": "ab" * 32},
    {"t": "event", "tick": 110, "kind": "end", "text": "complete"},
    {"t": "end", "reason": "complete", "text": "done", "tick": 110, "cpu": 0, "nip": 0, "ok": True},
]  # fmt: skip


def write(path: Path, records: list[dict] = RECORDS, **kwargs: object) -> str:
    writer = TraceWriter(path, **kwargs)
    writer.start(SPEC, IMAGES, title="a run", created_utc="2026-01-01T00:00:00Z")
    for record in records:
        writer.apply(record)
    return writer.finish()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    digest = write(tmp_path / "t.bootflow")
    with TraceReader(tmp_path / "t.bootflow") as trace:
        assert trace.status == "finished"
        assert trace.spec == SPEC
        assert trace.placement["kernel_addr"] == 0x2000000
        assert [s.nip for s in trace.slices()] == ["0x0000000000000060", "0xffffffffffffffff"]
        flag, end = trace.events()
        assert flag[:6] == (7, 0, "flag-write", "0x000000000200005c", 4, "0x1")
        assert (end.cpu, end.addr) == (None, None)
        assert trace.console() == b"I'm in purgatory\n"
        assert trace.console(49) == b""
        assert trace.images() == {"kernel": b"K" * 5000, "purgatory": b"\0P"}
        assert trace.image_infos()["kernel"].name == "vmlinux"
        assert trace.end is not None
        assert trace.end["ok"] is True
        assert trace.last_tick == 110
        assert trace.check() == trace.digest == digest


def test_digest_depends_on_content_only(tmp_path: Path) -> None:
    first = write(tmp_path / "1")
    slow = write(tmp_path / "2", interval_seconds=0.0)
    reordered = write(tmp_path / "3", [RECORDS[1], RECORDS[0], *RECORDS[2:]])
    changed = [*RECORDS]
    changed[3] = RECORDS[3] | {"tick": 51}
    assert first == slow == reordered
    assert write(tmp_path / "4", changed) != first


def test_windows_of_slices_and_events(tmp_path: Path) -> None:
    write(tmp_path / "t")
    with TraceReader(tmp_path / "t") as trace:
        assert [s.tick for s in trace.slices(99)] == [0, 100]
        assert [s.tick for s in trace.slices(100)] == [100]
        assert [s.tick for s in trace.slices(0, 100)] == [0]
        assert [e.kind for e in trace.events("end")] == ["end"]
        assert [e.kind for e in trace.events(hi=110)] == ["flag-write"]
        assert [e.kind for e in trace.events(limit=1)] == ["flag-write"]


def test_readable_while_it_grows(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t")
    writer.start(SPEC, IMAGES)
    for record in RECORDS[:3]:
        writer.apply(record)
    writer.flush()
    with TraceReader(tmp_path / "t") as trace:
        assert trace.status == "running"
        assert [e.kind for e in trace.events()] == ["flag-write"]
        writer.apply(RECORDS[3])
        writer.flush()
        assert trace.console() == b"I'm in purgatory\n"
    writer.abort("cancelled", "asked by the user")
    with TraceReader(tmp_path / "t") as trace:
        assert (trace.status, trace.why, trace.digest) == (
            "cancelled",
            "asked by the user",
            None,
        )
        assert set(trace.images()) == {"kernel", "purgatory"}


_ENDLESS_WRITER = """
import sys, itertools
from emulator.trace import ImageFile, TraceWriter
w = TraceWriter(sys.argv[1], interval_seconds=0.005)
w.start({"mode": "load"}, [ImageFile("kernel", "k", bytes(3_000_000))])
for n in itertools.count():
    w.apply({"t": "slice", "tick": n * 10, "cpu": 0, "ticks": 10, "nip": n, "stage": "head"})
    if n == 10:
        w.flush()
        print("going", flush=True)
"""


@pytest.mark.parametrize("after_seconds", [0.0, 0.03, 0.2])
def test_killed_writer_leaves_a_readable_trace_that_says_so(
    tmp_path: Path, after_seconds: float
) -> None:
    path = tmp_path / "t"
    command = [sys.executable, "-c", _ENDLESS_WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(after_seconds)
        with TraceReader(path) as trace:
            assert trace.status == "running"
        child.send_signal(signal.SIGKILL)
        child.wait()
    with TraceReader(path) as trace:
        assert trace.status == "killed"
        assert len(list(trace.slices())) >= 11
        trace.check()


def test_stream_without_end_is_a_failed_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="without an end"):
        write(tmp_path / "t", RECORDS[:3])
    with TraceReader(tmp_path / "t") as trace:
        assert trace.status == "failed"


def test_error_record_is_kept(tmp_path: Path) -> None:
    error = {"t": "error", "slug": "not-elf", "message": "no ELF\x1b[31m", "hint": "give one"}
    with pytest.raises(TraceError, match="no ELF"):
        write(tmp_path / "t", [error])
    with TraceReader(tmp_path / "t") as trace:
        assert trace.error == {"slug": "not-elf", "message": "no ELF?[31m", "hint": "give one"}


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"t": "pickle"},
        {"t": ["slice"]},
        RECORDS[1] | {"tick": -1},
        RECORDS[1] | {"tick": True},
        RECORDS[1] | {"tick": 1 << 60},
        RECORDS[1] | {"cpu": 16},
        RECORDS[1] | {"ticks": 0},
        RECORDS[1] | {"nip": "0x1"},
        RECORDS[1] | {"stage": "<script>"},
        RECORDS[2] | {"kind": "other"},
        RECORDS[2] | {"value": "0X1"},
        RECORDS[3] | {"data": "zz"},
        RECORDS[3] | {"data": "00" * 100_000},
        RECORDS[5] | {"digest": "ab"},
        {"t": "placement", "x": float("nan")},
        {"t": "placement", "x": "x" * 2_000_000},
        {"t": "end", "reason": "complete", "tick": 1},
    ],
)
def test_bad_records_are_refused(tmp_path: Path, record: dict) -> None:
    writer = TraceWriter(tmp_path / "t")
    writer.start(SPEC, [])
    with pytest.raises(TraceCorruptError):
        writer.apply(record)
    writer.abort("failed", "bad record")


def test_order_is_enforced(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t")
    writer.start(SPEC, [])
    writer.apply(RECORDS[1])
    with pytest.raises(TraceCorruptError, match="ticks reach 100"):
        writer.apply(RECORDS[1])
    writer.apply(RECORDS[7])
    with pytest.raises(TraceCorruptError, match="after the end"):
        writer.apply(RECORDS[3])
    writer.finish()


def test_rows_and_console_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.trace.MAX_CONSOLE_BYTES", 20)
    monkeypatch.setitem(trace_schema.MAX_ROWS, "event", 1)
    writer = TraceWriter(tmp_path / "t")
    writer.start(SPEC, [])
    for record in RECORDS[2:4]:
        writer.apply(record)
    for record in RECORDS[2:4]:
        with pytest.raises(LimitError):
            writer.apply(record)
    writer.abort("failed", "limit")


def test_both_versions_are_named(tmp_path: Path) -> None:
    write(tmp_path / "t")
    db = sqlite3.connect(tmp_path / "t")
    db.execute(f"PRAGMA user_version={TRACE_VERSION + 6}")
    db.close()
    with pytest.raises(
        TraceVersionError, match=f"version {TRACE_VERSION + 6}; this bootflow reads {TRACE_VERSION}"
    ):
        TraceReader(tmp_path / "t")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such trace"):
        TraceReader(tmp_path / "missing")
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises(TraceCorruptError):
        TraceReader(tmp_path / "text")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)")
    with pytest.raises(TraceError, match="not a bootflow trace"):
        TraceReader(tmp_path / "other")


def _forge(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={TRACE_VERSION}")
    for statement in statements:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    "extra",
    [
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER g AFTER INSERT ON meta BEGIN SELECT 1; END",
        "CREATE TABLE more (x)",
    ],
)
def test_foreign_schema_is_refused(tmp_path: Path, extra: str) -> None:
    _forge(tmp_path / "t", *SCHEMA, extra)
    with pytest.raises(TraceCorruptError, match="schema"):
        TraceReader(tmp_path / "t")


def test_view_in_place_of_a_table_is_refused(tmp_path: Path) -> None:
    _forge(
        tmp_path / "t",
        *[s for s in SCHEMA if "TABLE checkpoint" not in s],
        "CREATE VIEW checkpoint AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n)"
        " SELECT i AS tick, 'x' AS digest FROM n",
    )
    with pytest.raises(TraceCorruptError, match="schema"):
        TraceReader(tmp_path / "t")


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t")
    db = sqlite3.connect(tmp_path / "t")
    db.execute("UPDATE image SET size_bytes = 10 WHERE role = 'kernel'")
    db.commit()
    db.close()
    with TraceReader(tmp_path / "t") as trace, pytest.raises(TraceCorruptError, match="size"):
        trace.images()


def test_reader_cannot_write(tmp_path: Path) -> None:
    write(tmp_path / "t")
    with TraceReader(tmp_path / "t") as trace, pytest.raises(sqlite3.DatabaseError):
        trace._db.execute("DELETE FROM event")


def test_schema_has_a_comment_for_each_column() -> None:
    for statement in SCHEMA:
        if statement.startswith("CREATE TABLE"):
            for line in statement.splitlines()[1:-1]:
                assert "--" in line, line


def test_a_trace_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "t")
    with pytest.raises(TraceError, match="exists"):
        TraceWriter(tmp_path / "t")


def test_finished_file_stands_alone_though_someone_reads(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t")
    writer.start(SPEC, IMAGES)
    for record in RECORDS[:3]:
        writer.apply(record)
    writer.flush()
    with TraceReader(tmp_path / "t") as early:
        reading = early.slices()
        next(reading)  # holds a snapshot
        for record in RECORDS[3:]:
            writer.apply(record)
        digest = writer.finish()
        assert list(tmp_path.iterdir()) == [tmp_path / "t"]
        assert [s.tick for s in reading] == []
    moved = (tmp_path / "t").rename(tmp_path / "moved")
    with TraceReader(moved) as trace:
        assert trace.status == "finished"
        assert trace.check() == digest


def test_finished_file_stands_alone(tmp_path: Path) -> None:
    write(tmp_path / "t")
    assert list(tmp_path.iterdir()) == [tmp_path / "t"]
    assert json.loads(sqlite3.connect(tmp_path / "t").execute(
        "SELECT value FROM meta WHERE key='spec'").fetchone()[0]) == SPEC  # fmt: skip
