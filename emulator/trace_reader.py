"""Reads a trace that is finished, still growing, cut off, or made by a stranger.

Source for the defences: SQLite, "Defense Against The Dark Arts" (sqlite.org/security.html).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import zstandard

from emulator.errors import TraceCorruptError, TraceError, TraceVersionError
from emulator.records import (
    Json,
    check_facts,
    check_fields,
    check_placement,
    check_row,
    clean_text,
    parse_document,
)
from emulator.trace_schema import (
    APPLICATION_ID,
    DOCUMENTS,
    MAX_BESIDE,
    MAX_CONSOLE_BYTES,
    MAX_IMAGE_BYTES,
    MAX_ROWS,
    READABLE,
    ROLES,
    STATUSES,
    TABLES_SINCE,
    TRACE_VERSION,
    Checkpoint,
    ConsoleChunk,
    Event,
    ImageInfo,
    LoopRow,
    Slice,
    TraceDigest,
    schema_of,
    writer_lives,
)

# UnicodeDecodeError: the sqlite3 module quotes damaged text in its own error messages.
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError, OverflowError, MemoryError)
_READ_ACTIONS = {
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_PRAGMA,
}
_READ_FUNCTIONS = {"max", "count", "sum", "length"}


def _authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    """Allow reading and nothing else, whatever the file's schema would like to do."""
    allowed = action in _READ_ACTIONS or (
        action == sqlite3.SQLITE_FUNCTION and second in _READ_FUNCTIONS
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


class TraceReader:
    """Reads a trace, finished or still growing, that a stranger may have made.

    The file is opened read-only with SQLite's documented defences; its schema must be exactly ours,
    so that no view, trigger or generated column of a stranger is ever run. Every row is checked.
    """

    BUDGET_STEPS = 2_000  # of a million SQLite operations each: ends a query over a looping b-tree

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise TraceError(f"{self.path}: no such trace", hint="Record one with bootflow record.")
        try:
            self._db = self._open()
        except _UNREADABLE as exc:
            raise TraceCorruptError(f"{self.path}: not readable as a trace: {exc}") from exc

    def _open(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path.resolve()))}?mode=ro"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
        try:
            self._defend(db)
            self._check_kind(db)
        except BaseException:
            db.close()
            raise
        return db

    def _defend(self, db: sqlite3.Connection) -> None:
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "query_only=ON"):
            db.execute(f"PRAGMA {pragma}")
        for limit, value in (
            (sqlite3.SQLITE_LIMIT_LENGTH, MAX_IMAGE_BYTES + (64 << 20)),
            (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000),
            (sqlite3.SQLITE_LIMIT_COLUMN, 100),
            (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 20),
            (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 3),
            (sqlite3.SQLITE_LIMIT_VDBE_OP, 25_000),
            (sqlite3.SQLITE_LIMIT_FUNCTION_ARG, 8),
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 50),
            (sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 10),
            (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 10),
        ):
            db.setlimit(limit, value)
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        db.set_authorizer(_authorize)
        self._steps = 0
        db.set_progress_handler(self._spend, 1_000_000)

    def _spend(self) -> int:
        self._steps += 1
        return int(self._steps > self.BUDGET_STEPS)

    def _check_kind(self, db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise TraceError(
                f"{self.path}: an SQLite file, but not a bootflow trace",
                hint="Give a file that bootflow record wrote.",
            )
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in READABLE:
            raise TraceVersionError(
                f"{self.path}: trace version {version}; this bootflow reads {TRACE_VERSION}",
                hint="Record the run again, or use the bootflow that wrote it.",
            )
        schema = db.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL LIMIT 50").fetchall()
        if sorted(row[0] for row in schema) != sorted(schema_of(version)):
            raise TraceCorruptError(f"{self.path}: the schema is not that of a trace")
        self.version = int(version)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        self._steps = 0
        try:
            # Row by row: `yield from` would close the cursor of a generator that outlives the file.
            for row in self._db.execute(sql, values):  # noqa: UP028
                yield row
        except _UNREADABLE as exc:
            raise TraceCorruptError(f"{self.path}: {exc}") from exc

    def _one(self, sql: str, *values: Any) -> Any:
        rows = list(self._rows(sql, *values))
        return rows[0][0] if rows else None

    def meta(self, key: str) -> str:
        """Return a plain text entry of the table meta, or the empty string."""
        value = self._one("SELECT value FROM meta WHERE key = ?", key)
        if value is not None and not isinstance(value, str):
            raise TraceCorruptError(f"{self.path}: meta {key!r} is not text")
        return value or ""

    def _document(self, key: str) -> Json:
        text = self.meta(key)
        return parse_document(text) if text else {}

    def _checked(self, key: str) -> Json | None:
        document = self._document(key)
        if not document:
            return None
        return dict(zip(DOCUMENTS[key], check_fields(key, document), strict=True))

    @property
    def spec(self) -> Json:
        """What was asked for (`recorder.RunSpec.to_json`)."""
        return self._document("spec")

    @property
    def placement(self) -> Json:
        """Where the loader put things; empty until the session has placed them."""
        document = self._document("placement")
        check_placement(document)
        return document

    @property
    def facts(self) -> Json | None:
        """What ran where the rules look (`facts.Facts`); None until the run has ended."""
        document = self._document("facts")
        return check_facts(document) if document else None

    @property
    def end(self) -> Json | None:
        """How the run ended: reason, text, tick, cpu, nip, symbol, ok; None while it runs."""
        return self._checked("end")

    @property
    def error(self) -> Json | None:
        """The error that stopped the session: slug, message, hint; None if none did."""
        return self._checked("error")

    @property
    def why(self) -> str:
        """Why the run was cut short, one line; empty if it was not."""
        return clean_text(self.meta("why"), 1024)

    @property
    def title(self) -> str:
        """The run's title, or empty."""
        return clean_text(self.meta("title"), 200)

    @property
    def status(self) -> str:
        """One of STATUSES; a trace whose writer died without closing it is "killed"."""
        status = self.meta("status")
        if status not in STATUSES:
            raise TraceCorruptError(f"{self.path}: unknown status {clean_text(status, 40)!r}")
        if status == "running" and not writer_lives(self._document("writer")):
            return "killed" if self.meta("status") == "running" else self.meta("status")
        return status

    @property
    def digest(self) -> str | None:
        """The trace digest as the file claims it (`check` proves it); None unless finished."""
        return self.meta("digest") or None

    @property
    def last_tick(self) -> int:
        """The last tick that the trace knows of."""
        last = list(self._rows("SELECT tick, ticks FROM slice ORDER BY tick DESC LIMIT 1"))
        ticks = [value for row in last for value in row]
        progress = self.meta("progress")
        if any(type(value) is not int for value in ticks) or not (progress or "0").isdecimal():
            raise TraceCorruptError(f"{self.path}: a tick that is not a number")
        end = self.end
        last_tick: int = max(sum(ticks), int(progress[:20] or 0), end["tick"] if end else 0)
        return last_tick

    def slices(self, lo: int = 0, hi: int | None = None) -> Iterator[Slice]:
        """Yield the slices that hold any of the ticks lo..hi (hi not included), in order."""
        start = self._one("SELECT max(tick) FROM slice WHERE tick <= ?", lo) if lo else 0
        sql = "SELECT * FROM slice WHERE tick >= ? AND tick < ? ORDER BY tick LIMIT ?"
        bound = (1 << 62) if hi is None else hi
        for row in self._rows(sql, start or 0, bound, MAX_ROWS["slice"]):
            item = Slice(*check_row("slice", row))
            if item.tick + item.ticks > lo:
                yield item

    def slice_before(self, tick: int, cpu: int | None = None) -> Slice | None:
        """Return the last slice that begins before a tick, of a CPU or of any, or None."""
        return self._slice_beside("< ? ORDER BY tick DESC", tick, cpu)

    def slice_from(self, tick: int, cpu: int | None = None) -> Slice | None:
        """Return the first slice that begins at a tick or later, of a CPU or of any."""
        return self._slice_beside(">= ? ORDER BY tick", tick, cpu)

    def _slice_beside(self, side: str, tick: int, cpu: int | None) -> Slice | None:
        """Look through MAX_BESIDE slices at most: some 0.1 s."""
        near = f"SELECT * FROM slice WHERE tick {side} LIMIT {MAX_BESIDE}"  # noqa: S608
        sql = f"SELECT * FROM ({near}) WHERE cpu = ? OR ? LIMIT 1"  # noqa: S608
        for row in self._rows(sql, tick, -1 if cpu is None else cpu, cpu is None):
            return Slice(*check_row("slice", row))
        return None

    def last_slices(self, count: int) -> list[Slice]:
        """Return the last slices, at most so many, in order."""
        rows = self._rows("SELECT * FROM slice ORDER BY tick DESC LIMIT ?", count)
        return [Slice(*check_row("slice", row)) for row in rows][::-1]

    def events(
        self,
        kind: str | None = None,
        lo: int | None = None,
        hi: int | None = None,
        limit: int | None = None,
    ) -> Generator[Event, None, None]:
        """Yield the events of ticks lo..hi (hi not included), by tick, then in order of arrival."""
        columns = "tick,cpu,kind,addr,size,value,nip,symbol,text"
        where = "tick >= ? AND tick < ?"
        values: list[Any] = [lo or 0, (1 << 62) if hi is None else hi]
        if kind is not None:
            where, values = f"kind = ? AND {where}", [kind, *values]
        sql = f"SELECT {columns} FROM event WHERE {where} ORDER BY tick, id LIMIT ?"  # noqa: S608
        count = MAX_ROWS["event"] if limit is None else limit
        for row in self._rows(sql, *values, count):
            yield Event(*check_row("event", row))

    def last_events(self, kind: str, count: int) -> list[Event]:
        """Return the last events of a kind, at most so many, in order."""
        columns = "tick,cpu,kind,addr,size,value,nip,symbol,text"
        sql = f"SELECT {columns} FROM event WHERE kind = ? ORDER BY tick DESC, id DESC LIMIT ?"  # noqa: S608
        return [Event(*check_row("event", row)) for row in self._rows(sql, kind, count)][::-1]

    def console_chunks(self, upto_tick: int | None = None) -> Iterator[ConsoleChunk]:
        """Yield what the guest had sent to its console at `upto_tick`, in order."""
        sql = "SELECT tick,cpu,data FROM console WHERE tick <= ? ORDER BY id LIMIT ?"
        bound = (1 << 62) if upto_tick is None else upto_tick
        for row in self._rows(sql, bound, MAX_ROWS["console"]):
            yield ConsoleChunk(*check_row("console", row))

    def console_tail(self, most_bytes: int) -> tuple[list[ConsoleChunk], int]:
        """Return the console's last chunks, in order, and how many bytes came before them.

        A guest sends up to 16 bytes a chunk; a chunk counts for at least so many here.
        """
        sql = "SELECT tick,cpu,data FROM console ORDER BY id DESC LIMIT ?"
        chunks: list[ConsoleChunk] = []
        taken = 0
        for row in self._rows(sql, max(most_bytes // 16, 1)):
            chunk = ConsoleChunk(*check_row("console", row))
            if taken + len(chunk.data) > most_bytes:
                break
            taken += len(chunk.data)
            chunks.append(chunk)
        whole = self._one("SELECT sum(length(data)) FROM console") or 0
        if type(whole) is not int:
            raise TraceCorruptError(f"{self.path}: console data that is none")
        return chunks[::-1], max(whole - taken, 0)

    def console(self, upto_tick: int | None = None) -> bytes:
        """Return the console's bytes up to and with `upto_tick` (all of them by default)."""
        data = bytearray()
        for chunk in self.console_chunks(upto_tick):
            data += chunk.data
            if len(data) > MAX_CONSOLE_BYTES:
                raise TraceCorruptError(f"{self.path}: more than {MAX_CONSOLE_BYTES} console bytes")
        return bytes(data)

    def checkpoints(self) -> list[Checkpoint]:
        """Return the recorded state digests, by tick."""
        sql = "SELECT tick, digest FROM checkpoint ORDER BY tick LIMIT ?"
        rows = self._rows(sql, MAX_ROWS["checkpoint"])
        return [Checkpoint(*check_row("checkpoint", row)) for row in rows]

    def loops(self, limit: int | None = None) -> Iterator[LoopRow]:
        """Yield the loops, in order of arrival: one before those in it, nests by CPU and tick."""
        if self.version < TABLES_SINCE["loop"]:
            return
        columns = 'cpu,level,begin,"end",ticks,turns,entries,head,tail,kind,symbol'
        sql = f"SELECT {columns} FROM loop ORDER BY id LIMIT ?"  # noqa: S608
        for row in self._rows(sql, MAX_ROWS["loop"] if limit is None else limit):
            yield LoopRow(*check_row("loop", row))

    def image_infos(self) -> dict[str, ImageInfo]:
        """Return name, sha256 and size of each image by its role, without reading the bytes."""
        infos = {}
        for row in self._rows("SELECT role, name, sha256, size_bytes FROM image LIMIT 10"):
            role, name, sha256, size = row
            if role not in ROLES or type(name) is not str or type(sha256) is not str:
                raise TraceCorruptError(f"{self.path}: an image row that is none")
            if type(size) is not int or not 0 <= size <= MAX_IMAGE_BYTES:
                raise TraceCorruptError(f"{self.path}: image {role!r} of {size!r} bytes")
            infos[role] = ImageInfo(role, clean_text(name, 200), sha256, size)
        return infos

    def images(self) -> dict[str, bytes]:
        """Return the bytes of each image by its role, proved by their sha256."""
        return {role: self._image(info) for role, info in self.image_infos().items()}

    def _image(self, info: ImageInfo) -> bytes:
        packed = self._one("SELECT data FROM image WHERE role = ?", info.role)
        where = f"{self.path}: image {info.role!r}"
        if not isinstance(packed, bytes):
            raise TraceCorruptError(f"{where} holds no bytes")
        try:
            if zstandard.get_frame_parameters(packed).content_size != info.size_bytes:
                raise TraceCorruptError(f"{where} is not of the size it claims")
            data = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(packed)
        except (zstandard.ZstdError, MemoryError) as exc:
            raise TraceCorruptError(f"{where}: {exc}") from exc
        if hashlib.sha256(data).hexdigest() != info.sha256:
            raise TraceCorruptError(f"{where} does not have the sha256 it claims")
        return data

    def check_file(self) -> None:
        """Prove that the file is whole, and the images what they claim.

        Raises:
            TraceCorruptError: SQLite finds the file damaged, or an image lacks its sha256.
        """
        found = self._one("PRAGMA integrity_check(1)")  # quick_check does not read the indices
        if found != "ok":
            raise TraceCorruptError(f"{self.path}: {clean_text(str(found), 200)}")
        self.images()

    def check(self) -> str:
        """Prove the file against itself and return its digest.

        Raises:
            TraceCorruptError: as `check_file`; or the digest of the rows is not the one recorded.
        """
        self.check_file()
        digest = self.compute_digest()
        if self.digest is not None and digest != self.digest:
            raise TraceCorruptError(f"{self.path}: digest {digest}, but {self.digest} is recorded")
        return digest

    def compute_digest(self, version: int | None = None) -> str:
        """Return the digest of the rows, as a trace of its own version or of another has it."""
        version = self.version if version is None else version
        digest = TraceDigest(version)
        for item in self.slices():
            digest.add("slice", item)
        sql = "SELECT tick,cpu,kind,addr,size,value,nip,symbol,text FROM event ORDER BY id LIMIT ?"
        for row in self._rows(sql, MAX_ROWS["event"]):
            digest.add("event", check_row("event", row))
        for chunk in self.console_chunks():
            digest.add("console", chunk)
        for checkpoint in self.checkpoints():
            digest.add("checkpoint", checkpoint)
        for loop in self.loops() if version >= TABLES_SINCE["loop"] else ():
            digest.add("loop", loop)
        images = {role: info.sha256 for role, info in self.image_infos().items()}
        return digest.hexdigest(self.spec, images, self.placement, self.end or {}, self.facts)
