"""Explore the schedules of a recorded run in a locked-down process; record those that fail.

What it is: the shell around `emulator.explore`: starts the session process, hands it the trace's
images and spec, hears what it finds; for the command line, lets the pool record a trace for each
race. What it is not: the search itself, or the worker's job (`explorer.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.session_process import SessionProcess, error_from
from app.sessions import SessionPool
from app.warden import MAX_PROCESSES, Warden
from emulator.adversary import words_of
from emulator.errors import BootflowError, LimitError, SessionError
from emulator.revision import check_engine
from emulator.rules import RULE_BY_ID
from emulator.trace import ImageFile, TraceReader

ENGINE = "emulator.explore"
SILENCE_SECONDS = 600.0
"""A schedule that takes longer than this is a hang."""
POLL_SECONDS = 0.5
NICENESS = 10
"""Recordings come first: somebody looks at them while they go on."""
MAX_FOUND = 32
"""Findings that are believed of one session; it sends some 8 races."""
KINDS = ("race", "held")


@dataclass(frozen=True)
class Race:
    """A schedule under which rules fail that hold as recorded, or hold that fail as recorded."""

    rules: tuple[str, ...]
    schedule: str
    write_tick: int | None = None
    """Tick of the write that the schedule names."""
    kind: str = "race"
    """race: they fail; held: they hold."""
    trace: Path | None = None

    @property
    def in_words(self) -> str:
        """What the schedule does."""
        return words_of(self.schedule, self.write_tick)

    @property
    def sentence(self) -> str:
        """What was found."""
        one = len(self.rules) == 1
        verb = ("fails" if one else "fail") if self.kind == "race" else "holds" if one else "hold"
        return f"{', '.join(self.rules)} {verb} when {self.in_words}"


@dataclass
class Explored:
    """What came of it, or has come of it so far."""

    tried: int = 0
    planned: int = 0
    found: list[Race] = field(default_factory=list)
    stopped: str = ""
    """Why it ended before all schedules were tried."""

    @property
    def races(self) -> list[Race]:
        """Schedules in which rules fail that hold as recorded."""
        return [race for race in self.found if race.kind == "race"]


def images_of(reader: TraceReader) -> list[ImageFile]:
    """The images of a trace, as they were given."""
    infos = reader.image_infos()
    return [ImageFile(role, infos[role].name, data) for role, data in reader.images().items()]


def explored_spec(reader: TraceReader) -> dict[str, Any]:
    """The spec of a trace, with a limit that only a hand-off that does not end comes to."""
    limit = 2 * reader.last_tick + 10_000_000
    return reader.spec | {"limit_ticks": min(int(reader.spec.get("limit_ticks", limit)), limit)}


def explore_trace(
    path: Path,
    seeds: int,
    on_change: Callable[[Explored], None] = lambda so_far: None,
    *,
    stop: Callable[[], str] = lambda: "",
    seconds: float = float("inf"),
) -> Explored:
    """Run the hand-off of a trace under seeds and adversarial schedules.

    Args:
        path: the trace.
        seeds: how many random orders beside the adversarial schedules.
        on_change: called with what there is so far, after each schedule and each finding.
        stop: asked every half second; a text ends the search, which says so.
        seconds: after which it ends with what it has.

    Raises:
        TraceVersionError: the trace is of another engine, so that no schedule means the same.
        SessionError: the search died, or a schedule does not end.
        LimitError: the machine ran out of memory.
    """
    with TraceReader(path) as reader:
        check_engine(reader.placement.get("engine"))
        images, spec = images_of(reader), explored_spec(reader)
    process = SessionProcess(ENGINE)
    ended: list[BootflowError] = []

    def end(why: str) -> None:
        ended.append(LimitError(why, hint="Try again later."))
        process.kill()

    warden = Warden(
        lambda: [process.pid],
        lambda pid: end(f"more than {MAX_PROCESSES} processes in one session"),
        lambda: end("the machine ran out of memory"),
        lambda pid, used_bytes: None,
    )
    try:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        process.await_ready(60.0)
        names = {image.role: image.name for image in images}
        process.start({"op": "explore", "spec": spec, "names": names, "seeds": seeds}, images)
        return _hear(process, on_change, stop, time.monotonic() + seconds)
    except SessionError as exc:
        raise (ended or [exc])[0] from exc
    finally:
        warden.stop()
        process.kill()


def _hear(
    process: SessionProcess,
    on_change: Callable[[Explored], None],
    stop: Callable[[], str],
    deadline: float,
) -> Explored:
    """Hear a search out, or end it; of what it sends nothing is believed unchecked."""
    so_far = Explored()
    heard = time.monotonic()
    while True:
        record = process.receive(POLL_SECONDS)
        now = time.monotonic()
        why = stop()
        if not why and now > deadline:
            why = "the time for it was over"
        if why:
            so_far.stopped = why
            return so_far
        if record is None:
            if now - heard > SILENCE_SECONDS:
                raise SessionError(
                    "a schedule does not come to an end", hint="Give --limit to record."
                )
            continue
        heard = now
        if record.get("t") == "explored":
            return so_far
        _take(so_far, record)
        on_change(so_far)


def _take(so_far: Explored, record: Mapping[str, Any]) -> None:
    kind = record.get("t")
    if kind == "ready":
        return
    if kind not in ("progress", *KINDS):
        raise error_from(dict(record))
    try:
        if kind == "progress":
            so_far.tried, so_far.planned = int(record["tick"]), int(record["of"])
            return
        rules = tuple(str(rule) for rule in record["rules"] if rule in RULE_BY_ID)
        tick = record.get("write_tick")
        race = Race(rules, str(record["schedule"]), tick if type(tick) is int else None, str(kind))
        race.in_words  # noqa: B018 -- raises for a schedule that is none
    except (KeyError, TypeError, ValueError, BootflowError) as exc:
        raise SessionError(f"the exploration's answer lacks something: {exc!r}") from exc
    if not rules or len(so_far.found) == MAX_FOUND:
        raise SessionError("the exploration's answer is none")
    so_far.found.append(race)


def record_races(pool: SessionPool, path: Path, found: Explored) -> Explored:
    """Record a trace of each race, beside the trace it was found with."""
    with TraceReader(path) as reader:
        images, spec = images_of(reader), explored_spec(reader)
    recorded = []
    for number, race in enumerate(found.races, 1):
        target = path.with_name(f"{path.stem}-race-{number}.bootflow")
        target.unlink(missing_ok=True)
        outcome = pool.record(target.name, target, spec | {"schedule": race.schedule}, images)
        if outcome.error is not None:
            raise outcome.error
        recorded.append(Race(race.rules, race.schedule, race.write_tick, race.kind, target))
    held = [race for race in found.found if race.kind == "held"]
    return Explored(found.tried, found.planned, recorded + held, found.stopped)
