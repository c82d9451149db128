"""The index of runs: one row a run, so that the gallery and the queue never open a trace file.

It is not the trace: whatever is in a trace file is read from there. SQLite by default, any
database that SQLAlchemy knows by URL. Every column is described by its comment.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import re
import secrets
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Engine,
    String,
    Text,
    create_engine,
    event,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from emulator.errors import BootflowError, LimitError

RUN_ID = re.compile(r"[a-z2-7]{26}\Z")
MAX_NOTES = 100
UNFINISHED = ("queued", "running", "verifying")
INDEX_NAME = "index.sqlite"


class NoSuchRun(BootflowError):
    """No run has this id, or its owner deleted it."""

    slug = "no-such-run"


class WrongToken(BootflowError):
    """The delete token does not belong to this run."""

    slug = "wrong-token"


class Base(DeclarativeBase):
    """Root of the tables of the index."""


class Run(Base):
    """One run: who asked for what, and where it stands."""

    __tablename__ = "run"

    id: Mapped[str] = mapped_column(
        String(26), primary_key=True, comment="128 random bits, base32: unguessable, in the URL"
    )
    title: Mapped[str] = mapped_column(String(200), comment="one line by the owner, may be empty")
    created_utc: Mapped[str] = mapped_column(
        String(20), index=True, comment="when it was asked for, ISO 8601, UTC, ends in Z"
    )
    status: Mapped[str] = mapped_column(
        String(12),
        comment="queued | running | verifying | finished | killed | cancelled | failed | deleted",
    )
    spec: Mapped[dict[str, Any]] = mapped_column(JSON, comment="what was asked: RunSpec as JSON")
    files: Mapped[dict[str, Any]] = mapped_column(
        JSON,
        comment='what was uploaded: {role: {"name", "sha256", "size_bytes"}};'
        " role trace until it is verified, then those of its images",
    )
    delete_token_sha256: Mapped[str] = mapped_column(
        String(64), comment="hash of the token that deletes the run; the token is not kept"
    )
    trace_file: Mapped[str] = mapped_column(String(80), comment="name of the file below traces/")
    listed: Mapped[bool] = mapped_column(Boolean, comment="in the gallery: its owner wishes so")
    word: Mapped[str] = mapped_column(
        String(12), default="", comment="verdict: STAYS MOVES ENDED STOPS SPINS, empty until ended"
    )
    asked: Mapped[str] = mapped_column(String(8), default="", comment="stay | move, as asked")
    verdict: Mapped[str] = mapped_column(
        Text, default="", comment="the verdict sentence, or the error that ended the run"
    )
    ticks: Mapped[int] = mapped_column(default=0, comment="last tick of the ended run")
    note: Mapped[str] = mapped_column(
        String(300), default="", server_default="", comment="one line by the owner, may be empty"
    )
    message_id: Mapped[str] = mapped_column(
        String(250), default="", server_default="",
        comment="Message-ID of the mail that the run belongs to, without < >, may be empty",
    )  # fmt: skip
    parent: Mapped[str] = mapped_column(
        String(26), default="", server_default="", index=True,
        comment="id of the run whose schedules were explored when this one was found, else empty",
    )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Nothing about this run will change any more."""
        return self.status not in UNFINISHED


class Note(Base):
    """A text that the owner of a run pinned to one of its ticks."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True, comment="order of writing")
    run_id: Mapped[str] = mapped_column(String(26), index=True, comment="the run's id")
    tick: Mapped[int] = mapped_column(BigInteger, comment="the moment that it speaks of")
    text: Mapped[str] = mapped_column(String(1000), comment="printable text of one paragraph")


def new_id() -> str:
    """Return 128 random bits as 26 letters and digits."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def utc_now() -> str:
    """Return the time as the index stores it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def asked_of(spec: dict[str, Any]) -> str:
    """Return what a run is asked to do with the kernel; empty until it is known."""
    return {"load-panic": "stay", "load": "move", "": ""}.get(str(spec.get("mode", "")), "move")


def trace_path(data_dir: Path, run_id: str) -> Path:
    """Return where the trace file of a run lies."""
    return Path(data_dir) / "traces" / f"{run_id}.bootflow"


def upload_path(data_dir: Path, run_id: str, role: str) -> Path:
    """Return where an uploaded file lies until it is in the trace: role is kernel, purgatory ..."""
    return Path(data_dir) / "uploads" / run_id / role


class Index:
    """Reads and writes the rows; safe to make in every process."""

    def __init__(self, data_dir: Path, url: str = "") -> None:
        self.data_dir = Path(data_dir)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(url or f"sqlite:///{self.data_dir / INDEX_NAME}")
        if self._engine.dialect.name == "sqlite":
            _wait_for_writers(self._engine)
        Base.metadata.create_all(self._engine)
        _add_new_columns(self._engine)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @property
    def engine(self) -> Engine:
        """The database, for tables beside that of the runs."""
        return self._engine

    def session(self) -> Session:
        """Return a session whose rows stay readable after it."""
        return Session(self._engine, expire_on_commit=False)

    def add(
        self,
        *,
        spec: dict[str, Any],
        files: dict[str, Any],
        title: str = "",
        listed: bool = False,
        run_id: str = "",
        note: str = "",
        message_id: str = "",
        parent: Run | None = None,
    ) -> tuple[Run, str]:
        """Add a queued run; return it and its delete token, which is shown once and not kept.

        A run that was found by exploring another one has its owner, and its token.
        """
        token = secrets.token_urlsafe(18)
        run_id = run_id or new_id()
        run = Run(
            id=run_id,
            title=title[:200],
            created_utc=utc_now(),
            status="queued",
            spec=spec,
            files=files,
            delete_token_sha256=parent.delete_token_sha256 if parent else _token_hash(token),
            trace_file=f"{run_id}.bootflow",
            listed=listed,
            asked=asked_of(spec),
            note=note[:300],
            message_id=message_id[:250],
            parent=parent.id if parent else "",
        )
        with self.session() as session:
            session.add(run)
            session.commit()
        return run, token

    def get(self, run_id: str) -> Run:
        """Return the row of a run.

        Raises:
            NoSuchRun: there is none of this id.
        """
        with self.session() as session:
            run = session.get(Run, run_id) if RUN_ID.match(run_id) else None
        if run is None:
            raise NoSuchRun(f"no run {run_id[:32]!r}", hint="Check the link; it is 26 characters.")
        return run

    def recent(
        self, *, limit: int = 50, words: str = "", ids: list[str] | None = None
    ) -> list[Run]:
        """Return runs, newest first: the listed ones, or those of the given ids.

        Args:
            limit: at most so many.
            words: every one of these words must occur in title, verdict, status or file names.
            ids: the reader's own runs, listed or not.
        """
        query = select(Run).order_by(Run.created_utc.desc(), Run.id)
        query = query.where(Run.status != "deleted")
        query = query.where(Run.listed) if ids is None else query.where(Run.id.in_(ids))
        found = []
        with self.session() as session:
            for run in session.scalars(query):
                if _matches(run, words):
                    found.append(run)
                if len(found) == limit:
                    break
        return found

    def unfinished(self) -> list[Run]:
        """Return the runs that a restarted worker has to queue again or mark."""
        with self.session() as session:
            return list(session.scalars(select(Run).where(Run.status.in_(UNFINISHED))))

    def set_status(self, run_id: str, status: str, **fields: Any) -> None:
        """Write a run's status, and what is known with it: word, verdict, ticks, spec ..."""
        with self.session() as session:
            run = session.get(Run, run_id)
            if run is None:
                return
            run.status = status
            for name in ("word", "asked", "verdict", "ticks", "spec", "files", "title"):
                if name in fields:
                    setattr(run, name, fields[name])
            session.commit()

    def describe(
        self, run_id: str, *, title: str, note: str, message_id: str, listed: bool
    ) -> None:
        """Write what the owner says about a run."""
        with self.session() as session:
            run = session.get(Run, run_id)
            if run is not None:
                run.title, run.note = title[:200], note[:300]
                run.message_id = message_id[:250]
                if run.listed != listed:  # what was found by exploring it is as public as it is
                    found = [child.id for child in self.descendants(run_id)]
                    session.execute(update(Run).where(Run.id.in_(found)).values(listed=listed))
                run.listed = listed
                session.commit()

    def set_listed(self, run_id: str, *, listed: bool) -> None:
        """Publish one run, or not."""
        with self.session() as session:
            session.execute(update(Run).where(Run.id == run_id).values(listed=listed))
            session.commit()

    def found_by_exploring(self, run_id: str) -> list[Run]:
        """Return the runs that were found by exploring the schedules of a run."""
        query = select(Run).where(Run.parent == run_id, Run.status != "deleted")
        with self.session() as session:
            return list(session.scalars(query.order_by(Run.created_utc, Run.id)))

    def descendants(self, run_id: str) -> list[Run]:
        """Return what was found by exploring a run, by exploring that, and so on."""
        found = self.found_by_exploring(run_id)
        for child in found:
            found.extend(self.found_by_exploring(child.id))
        return found

    def of_thread(self, message_id: str) -> list[Run]:
        """Return the listed runs that belong to a mail, oldest first."""
        query = select(Run).where(Run.message_id == message_id, Run.listed)
        query = query.where(Run.status != "deleted").order_by(Run.created_utc, Run.id).limit(50)
        with self.session() as session:
            return list(session.scalars(query))

    def check_token(self, run: Run, token: str) -> None:
        """Raise WrongToken unless the token is the one given out for this run."""
        if not hmac.compare_digest(_token_hash(token), run.delete_token_sha256):
            raise WrongToken(
                "this is not the delete token of the run",
                hint="The token was printed once, in the answer to the upload.",
            )

    def notes(self, run_id: str) -> list[Note]:
        """Return what was pinned to a run, by tick."""
        query = select(Note).where(Note.run_id == run_id).order_by(Note.tick, Note.id)
        with self.session() as session:
            return list(session.scalars(query))

    def pin(self, run_id: str, tick: int, text: str) -> None:
        """Pin a note to a tick; an empty text takes away what is there.

        Raises:
            LimitError: the run has as many as one may have.
        """
        with self.session() as session:
            mine = list(session.scalars(select(Note).where(Note.run_id == run_id)))
            for note in mine:
                if note.tick == tick:
                    session.delete(note)
            if text:
                if len(mine) >= MAX_NOTES:
                    raise LimitError(f"{MAX_NOTES} notes are pinned to this run, as many as may be")
                session.add(Note(run_id=run_id, tick=tick, text=text))
            session.commit()

    def delete(self, run_id: str) -> None:
        """Delete files; the row stays as a tombstone with title, hashes and verdict.

        What was found by exploring the run holds its images too, and goes with it.
        """
        for child in self.found_by_exploring(run_id):
            self.delete(child.id)
        self.set_status(run_id, "deleted")
        for note in self.notes(run_id):
            self.pin(run_id, note.tick, "")
        for role in ("kernel", "purgatory", "dtb", "initrd", "trace", "again"):
            upload_path(self.data_dir, run_id, role).unlink(missing_ok=True)
        path = trace_path(self.data_dir, run_id)
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)


def _token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _matches(run: Run, words: str) -> bool:
    """Say whether every word occurs; `asked:stay` and `moves` are words like any other."""
    told = f"{run.title} {run.note} {run.message_id} {run.word} asked:{run.asked} "
    told += f"{run.verdict} {run.status} "
    told += json.dumps(run.files) + f" --{run.spec.get('mode', '')}"
    return all(word in told.lower() for word in words.lower().split())


def _add_new_columns(engine: Engine) -> None:
    """Bring an index of an older bootflow up to date: columns are only ever added."""
    known = {column["name"] for column in inspect(engine).get_columns(Run.__tablename__)}
    for column in Run.__table__.columns:
        if column.name not in known:
            kind = column.type.compile(engine.dialect)
            words = f"ALTER TABLE {Run.__tablename__} ADD COLUMN {column.name} {kind}"
            with engine.begin() as connection:
                connection.execute(text(f"{words} NOT NULL DEFAULT ''"))


def _wait_for_writers(engine: Engine) -> None:
    """Let web and worker write to the same SQLite file: WAL, and wait instead of failing."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.close()
