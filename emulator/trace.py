"""THE trace format: one SQLite file with a run's inputs and the index that makes it browsable.

    images + spec + placement     what is needed to run again, bit for bit
    slice event console           what happened, in ticks (retired instructions of all CPUs)
    checkpoint                    digests of the machine's state, by which a replay proves itself

Readable while it is written (write-ahead log), whole after `kill -9`, open to anyone's SQL. Never
in here: bytes of the engine (its contexts hold host pointers). Never in the digest: the clock.
Nobody else knows the bytes: everything goes through `TraceWriter` and `TraceReader`.

The columns are in `trace_schema.py`, the reader is in `trace_reader.py`; import both from here.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from emulator.errors import LimitError, TraceCorruptError, TraceError
from emulator.records import (
    EVENT_KINDS,
    Json,
    canonical_json,
    check_facts,
    check_fields,
    check_placement,
    clean_text,
    parse_document,
)
from emulator.trace_reader import TraceReader
from emulator.trace_schema import (
    APPLICATION_ID,
    DOCUMENTS,
    INSERT,
    MAX_CONSOLE_BYTES,
    MAX_IMAGE_BYTES,
    MAX_ROWS,
    ROLES,
    SCHEMA,
    STATUSES,
    TABLES_SINCE,
    TRACE_VERSION,
    Checkpoint,
    ConsoleChunk,
    Event,
    ImageFile,
    ImageInfo,
    LoopRow,
    Slice,
    TraceDigest,
    writer_identity,
)

__all__ = [
    "APPLICATION_ID",
    "EVENT_KINDS",
    "ROLES",
    "SCHEMA",
    "STATUSES",
    "TABLES_SINCE",
    "TRACE_VERSION",
    "Checkpoint",
    "ConsoleChunk",
    "Event",
    "ImageFile",
    "ImageInfo",
    "LoopRow",
    "Slice",
    "TraceReader",
    "TraceWriter",
]


class TraceWriter:
    """Writes one trace from a stream of records; at any moment the file is a readable trace.

    Rows are committed every `interval_seconds` or 1,000 rows. Images are compressed by a thread, so
    that a recording is not slowed; a trace killed in its first moments may lack them.
    """

    BATCH_ROWS = 1000

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        interval_seconds: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and self.path.stat().st_size:
            raise TraceError(f"{self.path} exists", hint="Remove it, or choose another file.")
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._interval, self._clock = interval_seconds, clock
        self._rows: dict[str, list[tuple[Any, ...]]] = {kind: [] for kind in INSERT}
        self._count = dict.fromkeys(INSERT, 0)
        self._meta: dict[str, str] = {}
        self._digest = TraceDigest()
        self._spec: Json = {}
        self._placement: Json | None = None
        self._facts: Json | None = None
        self._images: dict[str, str] = {}
        self._packed: list[tuple[Any, ...]] = []
        self._packing: threading.Thread | None = None
        self._pending = self._console_bytes = self._next_tick = 0
        self._last_checkpoint = -1
        self._last_commit = clock()
        self.end: Json | None = None
        self.error: Json | None = None
        self.tick = 0

    def start(
        self,
        spec: Mapping[str, Any],
        images: Sequence[ImageFile],
        *,
        title: str = "",
        created_utc: str = "",
    ) -> None:
        """Create the file with status "running"; the images follow when they are compressed."""
        self._check_images(images)
        self._spec = parse_document(canonical_json(dict(spec)))
        for pragma in (
            f"application_id={APPLICATION_ID}",
            f"user_version={TRACE_VERSION}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("BEGIN")
        for statement in SCHEMA:
            self._db.execute(statement)
        self._meta |= {
            "spec": canonical_json(self._spec),
            "status": "running",
            "title": clean_text(title, 200),
            "created_utc": clean_text(created_utc, 40),
            "writer": canonical_json(writer_identity()),
        }
        self._write_pending()
        self._db.execute("COMMIT")
        self._packing = threading.Thread(target=self._pack, args=(tuple(images),), daemon=True)
        self._packing.start()

    @staticmethod
    def _check_images(images: Sequence[ImageFile]) -> None:
        roles = [image.role for image in images]
        if len(set(roles)) != len(roles) or not set(roles) <= set(ROLES):
            raise TraceError(f"images of roles {roles}; each of {ROLES} at most once")
        for image in images:
            if len(image.data) > MAX_IMAGE_BYTES:
                raise LimitError(
                    f"{image.name}: {len(image.data)} bytes; {MAX_IMAGE_BYTES} allowed"
                )

    def _pack(self, images: tuple[ImageFile, ...]) -> None:
        """Compress and hash the images; runs in its own thread and touches no database."""
        for image in images:
            packed = zstandard.ZstdCompressor(level=1).compress(image.data)
            sha256 = hashlib.sha256(image.data).hexdigest()
            name = clean_text(Path(image.name).name, 200)
            self._packed.append((image.role, name, sha256, len(image.data), packed))

    def apply(self, record: Mapping[str, Any]) -> None:
        """Check one record of the stream and take it in.

        Raises:
            TraceCorruptError: the record is not what `records.RECORDS` says, or out of order.
            LimitError: more rows or console bytes than a trace may hold.
        """
        kind = record.get("t")
        if self.end is not None and kind not in ("progress", "error"):
            raise TraceCorruptError(f"a {kind!r} record after the end")
        if kind == "slice":
            self._add_slice(check_fields("slice", record))
        elif kind in ("event", "console", "checkpoint", "loop"):
            self._add_ordered(kind, check_fields(kind, record))
        elif kind == "progress":
            self.tick = max(self.tick, check_fields("progress", record)[0])
            self._meta["progress"] = str(self.tick)
        elif kind in ("placement", "facts", "end", "error"):
            self._add_document(kind, record)
        else:
            raise TraceCorruptError(f"a record of unknown type {clean_text(repr(kind), 40)}")
        if self._pending >= self.BATCH_ROWS or self._clock() - self._last_commit > self._interval:
            self.flush()

    def _add_slice(self, row: tuple[Any, ...]) -> None:
        if row[0] < self._next_tick:
            raise TraceCorruptError(f"slice at tick {row[0]}, but ticks reach {self._next_tick}")
        self._next_tick = row[0] + row[2]
        self.tick = max(self.tick, self._next_tick)
        self._add_row("slice", row)

    def _add_ordered(self, kind: str, row: tuple[Any, ...]) -> None:
        if kind == "console":
            self._console_bytes += len(row[2])
            if self._console_bytes > MAX_CONSOLE_BYTES:
                raise LimitError(f"more than {MAX_CONSOLE_BYTES} bytes of console output")
        if kind == "checkpoint":
            if row[0] <= self._last_checkpoint:
                raise TraceCorruptError(
                    f"checkpoint at tick {row[0]} after {self._last_checkpoint}"
                )
            self._last_checkpoint = row[0]
        self._add_row(kind, row)

    def _add_row(self, kind: str, row: tuple[Any, ...]) -> None:
        if self._count[kind] >= MAX_ROWS[kind]:
            raise LimitError(f"more than {MAX_ROWS[kind]} rows of table {kind}")
        self._count[kind] += 1
        self._digest.add(kind, row)
        self._rows[kind].append(row)
        self._pending += 1

    def _add_document(self, kind: str, record: Mapping[str, Any]) -> None:
        if kind == "placement":
            if self._placement is not None:
                raise TraceCorruptError("a second placement record")
            document = {key: value for key, value in record.items() if key != "t"}
            check_placement(document)
            self._meta["placement"] = canonical_json(document)
            self._placement = document
            return
        if kind == "facts":
            if self._facts is not None:
                raise TraceCorruptError("a second record of facts")
            self._facts = check_facts(record)
            self._meta["facts"] = canonical_json(self._facts)
            return
        values = check_fields(kind, record)
        document = dict(zip(DOCUMENTS[kind], values, strict=True))
        self._meta[kind] = canonical_json(document)
        if kind == "end":
            self.end = document
        else:
            self.error = document

    def flush(self) -> None:
        """Commit what has come so far; call it too when the stream is silent."""
        packed = bool(self._packed)
        self._db.execute("BEGIN")
        self._write_pending()
        self._db.execute("COMMIT")
        if packed:  # the file takes them in while the run goes on, not at its end
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._last_commit = self._clock()

    def _write_pending(self) -> None:
        for kind, rows in self._rows.items():
            if rows:
                self._db.executemany(INSERT[kind], rows)
                rows.clear()
        while self._packed:
            row = self._packed.pop(0)
            self._images[row[0]] = row[2]
            self._db.execute("INSERT INTO image VALUES (?,?,?,?,?)", row)
        if self._meta:
            rows_of_meta = list(self._meta.items())
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?,?)", rows_of_meta)
            self._meta.clear()
        self._pending = 0

    def finish(self) -> str:
        """Close a run that has its end record; returns the trace digest.

        Raises:
            TraceError: no end record came; the trace is closed with status "failed".
        """
        if self.end is None or self.error is not None:
            why = self.error["message"] if self.error else "the session ended without an end record"
            self.abort("failed", why)
            raise TraceError(why, hint="" if self.error is None else self.error["hint"])
        self._join_packing()
        digest = self._digest.hexdigest(
            self._spec, self._images, self._placement or {}, self.end, self._facts
        )
        self._meta |= {"digest": digest, "status": "finished"}
        self._close()
        return digest

    def abort(self, status: str, why: str) -> None:
        """Close a run that did not come to its end; status is killed, cancelled or failed."""
        if status not in STATUSES[2:]:
            raise TraceError(f"status {status!r} is not one of {STATUSES[2:]}")
        if self._packing is None:  # never started: there is no trace
            self._db.close()
            self.path.unlink(missing_ok=True)
            return
        self._join_packing()
        self._meta |= {"status": status, "why": clean_text(why, 1024)}
        self._close()

    def _join_packing(self) -> None:
        if self._packing is not None:
            self._packing.join()
        self.flush()

    def _close(self) -> None:
        """Fold the log into the file, so that the one file is the whole trace."""
        self.flush()
        for _ in range(5):
            try:
                self._db.execute("PRAGMA journal_mode=DELETE")
                self._db.close()
                return
            except sqlite3.OperationalError:  # someone reads
                time.sleep(0.02)
        self._close_beside_readers()

    def _close_beside_readers(self) -> None:
        """Put a whole copy into the file's place; readers of the old one are not disturbed."""
        copy = self.path.with_name(f"{self.path.name}-copy")
        copy.unlink(missing_ok=True)
        target = sqlite3.connect(copy)
        self._db.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
        target.close()
        self._db.close()
        copy.replace(self.path)
        for ending in ("-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
