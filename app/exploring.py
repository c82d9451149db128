"""Explore the schedules of a recorded run in a locked-down process; record those that fail.

What it is: the shell around `emulator.explore`: starts the session process, hands it the trace's
images and spec, and lets the pool record a trace for each race that was found. What it is not: the
search itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.session_process import SessionProcess, error_from
from app.sessions import SessionPool
from emulator.adversary import Adversary
from emulator.errors import SessionError
from emulator.rules import RULE_BY_ID
from emulator.schedule import Schedule
from emulator.trace import ImageFile, TraceReader

ENGINE = "emulator.explore"
SILENCE_SECONDS = 600.0
"""A schedule that takes longer than this is a hang."""


@dataclass(frozen=True)
class Race:
    """A schedule under which rules fail that hold in the recorded run."""

    rules: tuple[str, ...]
    schedule: str
    trace: Path | None = None

    @property
    def in_words(self) -> str:
        """What the schedule does."""
        return Adversary(self.schedule, Schedule(1, 0)).in_words()


@dataclass(frozen=True)
class Explored:
    """What came of it."""

    tried: int
    races: tuple[Race, ...]


def images_of(reader: TraceReader) -> list[ImageFile]:
    """The images of a trace, as they were given."""
    infos = reader.image_infos()
    return [ImageFile(role, infos[role].name, data) for role, data in reader.images().items()]


def explore_trace(
    path: Path, seeds: int, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> Explored:
    """Run the hand-off of a trace under seeds and adversarial schedules.

    Args:
        path: the trace.
        seeds: how many random orders beside the adversarial schedules.
        on_progress: called with (schedules tried, schedules in all).
    """
    with TraceReader(path) as reader:
        images = images_of(reader)
        spec = reader.spec
        limit = 2 * reader.last_tick + 10_000_000
    spec["limit_ticks"] = min(int(spec.get("limit_ticks", limit)), limit)
    process = SessionProcess(ENGINE)
    try:
        process.await_ready(60.0)
        names = {image.role: image.name for image in images}
        process.start({"op": "explore", "spec": spec, "names": names, "seeds": seeds}, images)
        return _explored(_last_record(process, on_progress))
    finally:
        process.kill()


def _last_record(
    process: SessionProcess, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    while True:
        record = process.receive(SILENCE_SECONDS)
        if record is None:
            raise SessionError("a schedule does not come to an end", hint="Give --limit to record.")
        if record.get("t") == "progress":
            on_progress(int(record.get("tick", 0)), int(record.get("of", 0)))
        elif record.get("t") == "explored":
            return record
        else:
            raise error_from(record)


def _explored(record: dict[str, Any]) -> Explored:
    """The answer of the process, of which nothing is believed unchecked."""
    races = []
    try:
        for row in record["races"]:
            rules = tuple(str(rule) for rule in row["rules"] if rule in RULE_BY_ID)
            races.append(Race(rules, Adversary(str(row["schedule"]), Schedule(1, 0)).text))
        return Explored(int(record["tried"]), tuple(races))
    except (KeyError, TypeError, ValueError) as exc:
        raise SessionError(f"the exploration's answer lacks something: {exc!r}") from exc


def record_races(pool: SessionPool, path: Path, found: Explored) -> Explored:
    """Record a trace of each race, beside the trace it was found with."""
    with TraceReader(path) as reader:
        images, spec = images_of(reader), reader.spec
    races = []
    for number, race in enumerate(found.races, 1):
        target = path.with_name(f"{path.stem}-race-{number}.bootflow")
        target.unlink(missing_ok=True)
        pool.record(target.name, target, spec | {"schedule": race.schedule}, images)
        races.append(Race(race.rules, race.schedule, target))
    return Explored(found.tried, tuple(races))
