"""The explorations of runs: a row each, for the page that shows one and the worker that does it.

What it is: what was asked, how far it has come, what was found. One a run: a new one takes the
place of the old. What it is not: the search (`emulator.explore`), or the worker's job
(`explorer.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import JSON, String, Text, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from app.index import Base, Index, Run, new_id, utc_now
from emulator.errors import LimitError

UNENDED: Final = ("queued", "running")


@dataclass(frozen=True)
class Limits:
    """What one server does for all who ask."""

    seeds: int = 256
    """Random orders of one exploration, beside the schedules round every write."""
    waiting: int = 4
    """Explorations that wait or go on."""
    seconds: float = 900.0
    """After which an exploration ends with what it has found."""
    attempts: int = 2
    """After so many, one that was going on when the worker ended is not begun again."""


LIMITS: Final = Limits()


class TooManyExplorations(LimitError):
    """This run is being explored, or too many others are."""

    slug = "too-many-runs"


class Exploration(Base):
    """One exploration: who asked for what, and where it stands."""

    __tablename__ = "exploration"

    id: Mapped[str] = mapped_column(String(26), primary_key=True, comment="128 random bits, base32")
    run_id: Mapped[str] = mapped_column(
        String(26), unique=True, comment="the run that is explored; it has one"
    )
    asked_utc: Mapped[str] = mapped_column(String(20), comment="when, ISO 8601, UTC, ends in Z")
    seeds: Mapped[int] = mapped_column(comment="random orders that are tried")
    status: Mapped[str] = mapped_column(
        String(12), comment="queued | running | finished | cancelled | failed | killed"
    )
    attempts: Mapped[int] = mapped_column(default=0, comment="how often a worker has begun it")
    tried: Mapped[int] = mapped_column(default=0, comment="schedules that have run")
    planned: Mapped[int] = mapped_column(default=0, comment="schedules in all, 0 until known")
    text: Mapped[str] = mapped_column(Text, default="", comment="why it ended early, or empty")
    found: Mapped[list[dict[str, Any]]] = mapped_column(
        JSON,
        comment='[{"kind": "race" | "held", "rules", "schedule", "write_tick", "run"}]: rules that'
        " fail, or hold, in a schedule; run: the id of the race's recording",
    )
    token_sha256: Mapped[str] = mapped_column(
        String(64), comment="hash of the token that cancels it; the token is not kept"
    )

    @property
    def ended(self) -> bool:
        """Nothing about it will change any more."""
        return self.status not in UNENDED


class Explorations:
    """Reads and writes the rows; safe to make in every process."""

    def __init__(self, index: Index) -> None:
        self._index = index
        Base.metadata.tables[Exploration.__tablename__].create(index.engine, checkfirst=True)

    def add(self, run: Run, seeds: int, limits: Limits = LIMITS) -> tuple[Exploration, str]:
        """Add a queued exploration; return it and the token that cancels it.

        Raises:
            TooManyExplorations: one of this run waits or goes on, or too many do.
        """
        token = secrets.token_urlsafe(18)
        row = Exploration(
            id=new_id(), run_id=run.id, asked_utc=utc_now(), seeds=seeds, status="queued",
            attempts=0, tried=0, planned=0, text="", found=[], token_sha256=_hash(token),
        )  # fmt: skip
        with self._index.session() as session:
            open_rows = list(
                session.scalars(select(Exploration).where(Exploration.status.in_(UNENDED)))
            )
            if any(other.run_id == run.id for other in open_rows):
                raise TooManyExplorations(
                    "this run is being explored", hint=f"See /t/{run.id}/check/"
                )
            if len(open_rows) >= limits.waiting:
                raise TooManyExplorations(
                    f"{len(open_rows)} explorations wait or go on; {limits.waiting} may",
                    hint="Try again in a few minutes.",
                )
            earlier = session.scalars(
                select(Exploration).where(Exploration.run_id == run.id)
            ).first()
            row.found = [] if earlier is None else list(earlier.found)
            session.execute(delete(Exploration).where(Exploration.run_id == run.id))
            session.add(row)
            try:
                session.commit()
            except IntegrityError as exc:  # somebody else was quicker
                raise TooManyExplorations(
                    "this run is being explored", hint=f"See /t/{run.id}/check/"
                ) from exc
        return row, token

    def get(self, identifier: str) -> Exploration | None:
        """Return a row, None if it is gone: with its run, or for a newer one."""
        with self._index.session() as session:
            return session.get(Exploration, identifier)

    def of_run(self, run_id: str) -> Exploration | None:
        """Return the exploration of a run, if there is one."""
        with self._index.session() as session:
            return session.scalars(select(Exploration).where(Exploration.run_id == run_id)).first()

    def unended(self) -> list[Exploration]:
        """Return those that wait or go on, oldest first."""
        query = select(Exploration).where(Exploration.status.in_(UNENDED))
        with self._index.session() as session:
            return list(session.scalars(query.order_by(Exploration.asked_utc, Exploration.id)))

    def change(self, identifier: str, **fields: Any) -> bool:
        """Write fields of one that has not ended; returns whether there was such a one."""
        query = update(Exploration).where(Exploration.id == identifier)
        with self._index.session() as session:
            done: Any = session.execute(
                query.where(Exploration.status.in_(UNENDED)).values(**fields)
            )
            session.commit()
        return bool(done.rowcount)

    @staticmethod
    def is_token(row: Exploration, token: str) -> bool:
        """Say whether a token is the one given out for an exploration."""
        return hmac.compare_digest(_hash(token), row.token_sha256)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
