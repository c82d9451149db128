"""The trace format, version by version: the schema with its columns, the rows, the digest.

Log of versions (did you bump TRACE_VERSION? is README.md updated? is an old trace refused by name?)
    1   first released format; meta may hold "facts" (JSON), which older traces do not have
    2   table loop; a trace of version 1 is read as one without loops

Not here: writing (`trace.py`) and reading what a stranger may have made (`trace_reader.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from emulator.records import Json, canonical_json

TRACE_VERSION = 2
READABLE = (1, 2)
TABLES_SINCE = {"loop": 2}
"""Table -> the version that it came with; those that are not named came with the first."""
APPLICATION_ID = 0x626F6F74  # "boot"

MAX_IMAGE_BYTES = 512 << 20
MAX_BESIDE = 500_000
"""Slices that are looked through for one of a CPU."""
MAX_ROWS = {
    "slice": 4_000_000,
    "event": 1_000_000,
    "console": 1_000_000,
    "checkpoint": 100_000,
    "loop": 50_000,
}
MAX_CONSOLE_BYTES = 16 << 20
ROLES = ("kernel", "purgatory", "dtb", "initrd")
STATUSES = ("running", "finished", "killed", "cancelled", "failed")

SCHEMA = (
    """CREATE TABLE meta (
    key TEXT PRIMARY KEY,       -- JSON: spec placement end error writer;
                                -- text: status why digest title progress created_utc
    value TEXT NOT NULL         -- writer is the process that writes: pid, start time, boot
) STRICT""",
    """CREATE TABLE image (
    role TEXT PRIMARY KEY,      -- kernel, purgatory, dtb or initrd
    name TEXT NOT NULL,         -- file name as the user gave it; not in the digest
    sha256 TEXT NOT NULL,       -- of the file as given, 64 hex digits
    size_bytes INTEGER NOT NULL,-- of the file as given
    data BLOB NOT NULL          -- the file as given, one zstd frame
) STRICT""",
    """CREATE TABLE slice (
    tick INTEGER PRIMARY KEY,   -- first tick: the state before the slice's first instruction
    cpu INTEGER NOT NULL,       -- index of the CPU, 0..15
    ticks INTEGER NOT NULL,     -- instructions retired in the slice, at least 1
    nip TEXT NOT NULL,          -- next instruction address at the slice's end, 0x and 16 digits
    stage TEXT NOT NULL,        -- id of the CPU's stage at the slice's end
    symbol TEXT NOT NULL        -- sym+0xoff/0xsize of nip, or empty
) STRICT""",
    """CREATE TABLE event (
    id INTEGER PRIMARY KEY,     -- order of arrival, from 1
    tick INTEGER NOT NULL,      -- first tick at which the effect is visible
    cpu INTEGER,                -- index of the CPU, or null where none did it (the loader, the end)
    kind TEXT NOT NULL,         -- one of records.EVENT_KINDS
    addr TEXT,                  -- physical address of the access, 0x and 16 digits
    size INTEGER,               -- bytes of the access
    value TEXT,                 -- value read or written, number of the call or exception, 0x..
    nip TEXT,                   -- address of the instruction that did it, 0x and 16 digits
    symbol TEXT NOT NULL,       -- sym+0xoff/0xsize of nip, or empty
    text TEXT NOT NULL          -- one line in words, or empty
) STRICT""",
    "CREATE INDEX event_by_tick ON event (tick)",
    "CREATE INDEX event_by_kind ON event (kind, tick)",
    """CREATE TABLE console (
    id INTEGER PRIMARY KEY,     -- order of output, from 1
    tick INTEGER NOT NULL,      -- first tick at which the bytes are out
    cpu INTEGER NOT NULL,       -- index of the CPU that wrote them
    data BLOB NOT NULL          -- the bytes, as the guest sent them
) STRICT""",
    """CREATE TABLE checkpoint (
    tick INTEGER PRIMARY KEY,   -- the tick of the state
    digest TEXT NOT NULL        -- of the state of the whole machine (Machine.state_digest), hex
) STRICT""",
    """CREATE TABLE loop (
    id INTEGER PRIMARY KEY,     -- order of arrival, from 1: a loop before those in it
    cpu INTEGER NOT NULL,       -- index of the CPU
    level INTEGER NOT NULL,     -- 0, or in how many of the loops before it this one lies
    begin INTEGER NOT NULL,     -- tick before the first instruction of its first turn
    "end" INTEGER NOT NULL,     -- tick after its last instruction
    ticks INTEGER NOT NULL,     -- instructions that the CPU retired in it, called functions too
    turns INTEGER NOT NULL,     -- of all entries, each entry's first turn counted
    entries INTEGER NOT NULL,   -- how often it was entered, within the loop around it
    head TEXT NOT NULL,         -- address where a turn begins, 0x and 16 digits
    tail TEXT NOT NULL,         -- address of the last branch back there
    kind TEXT NOT NULL,         -- one of loopkinds.KINDS
    symbol TEXT NOT NULL        -- sym+0xoff/0xsize of head, or empty
) STRICT""",
)


def schema_of(version: int) -> tuple[str, ...]:
    """Return the statements that make a trace of a version."""
    later = [table for table, since in TABLES_SINCE.items() if since > version]
    return tuple(text for text in SCHEMA if not any(f"TABLE {table} " in text for table in later))


# One statement a table; also the order of the tables in the digest.
INSERT = {
    "slice": "INSERT INTO slice VALUES (?,?,?,?,?,?)",
    "event": "INSERT INTO event (tick,cpu,kind,addr,size,value,nip,symbol,text)"
    " VALUES (?,?,?,?,?,?,?,?,?)",
    "console": "INSERT INTO console (tick,cpu,data) VALUES (?,?,?)",
    "checkpoint": "INSERT INTO checkpoint VALUES (?,?)",
    "loop": 'INSERT INTO loop (cpu,level,begin,"end",ticks,turns,entries,head,tail,kind,symbol)'
    " VALUES (?,?,?,?,?,?,?,?,?,?,?)",
}

DOCUMENTS = {
    "end": ("reason", "text", "tick", "cpu", "nip", "symbol", "ok"),
    "error": ("slug", "message", "hint"),
}


class ImageFile(NamedTuple):
    """One input of a run, as the user gave it."""

    role: str
    name: str
    data: bytes


class ImageInfo(NamedTuple):
    """What a trace says of one of its images, without the bytes."""

    role: str
    name: str
    sha256: str
    size_bytes: int


class Slice(NamedTuple):
    """A run of consecutive ticks on one CPU; nip, stage and symbol are those at its end."""

    tick: int
    cpu: int
    ticks: int
    nip: str
    stage: str
    symbol: str


class Event(NamedTuple):
    """Something worth naming at a tick; 64-bit values are "0x.." strings, None where unknown."""

    tick: int
    cpu: int | None
    kind: str
    addr: str | None
    size: int | None
    value: str | None
    nip: str | None
    symbol: str
    text: str


class ConsoleChunk(NamedTuple):
    """Bytes that the guest sent to its console, out at `tick`."""

    tick: int
    cpu: int
    data: bytes


class Checkpoint(NamedTuple):
    """The digest of the whole machine's state at a tick."""

    tick: int
    digest: str


class LoopRow(NamedTuple):
    """A loop that a CPU ran through, all its entries within the loop around it together."""

    cpu: int
    level: int
    begin: int
    end: int
    ticks: int
    turns: int
    entries: int
    head: str
    tail: str
    kind: str
    symbol: str

    @property
    def tick(self) -> int:
        """Where it is in the run."""
        return self.begin


class TraceDigest:
    """The trace digest: one running hash a table, so that the order between tables is no matter."""

    def __init__(self, version: int = TRACE_VERSION) -> None:
        self._version = version
        kinds = [kind for kind in INSERT if TABLES_SINCE.get(kind, 1) <= version]
        self._tables = {kind: hashlib.sha256() for kind in kinds}
        self._rows = dict.fromkeys(kinds, 0)

    def add(self, kind: str, row: Sequence[Any]) -> None:
        """Add one row of a table, in the table's order."""
        cells = [cell.hex() if isinstance(cell, bytes) else cell for cell in row]
        self._tables[kind].update(canonical_json(cells).encode() + b"\n")
        self._rows[kind] += 1

    def hexdigest(
        self,
        spec: Json,
        images: Mapping[str, str],
        placement: Json,
        end: Json,
        facts: Json | None = None,
    ) -> str:
        """Return the digest of the whole trace; `images` maps a role to its sha256."""
        whole = hashlib.sha256()
        lines: list[Any] = [{"version": self._version}, spec, dict(images), placement]
        lines += [[kind, self._rows[kind], self._tables[kind].hexdigest()] for kind in self._tables]
        lines += [facts] if facts else []
        for line in [*lines, end]:
            whole.update(canonical_json(line).encode() + b"\n")
        return whole.hexdigest()


def _process_start(pid: int) -> str | None:
    """Return the start time of a living process in clock ticks since boot, or None."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rfind(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def writer_identity() -> Json:
    """Return what tells this process from any other, before and after."""
    return {"pid": os.getpid(), "start": _process_start(os.getpid()), "boot": _boot_id()}


def writer_lives(writer: Json) -> bool:
    """Say whether the process that writes a trace is still there (same boot, same start time)."""
    pid = writer.get("pid")
    if type(pid) is not int or not 0 < pid < 1 << 31 or writer.get("boot") != _boot_id():
        return False
    return writer.get("start") is not None and _process_start(pid) == writer["start"]
