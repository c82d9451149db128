"""Proves a trace: its file is whole, and running it again gives every row of it.

What it is: `verify`, which reads a trace with `TraceReader`'s defences, records the run anew from
the trace's spec and images in a sandboxed session, into a file of its own, and compares the two row
by row. What it is not: a judge of what happened (that is the verdict), nor the replay that answers
questions (`emulator.session`): a replay follows the recorded slices, this derives them once more.
Nothing that the trace claims is used but its spec and its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

from app.sessions import SessionPool
from emulator.errors import (
    BootflowError,
    DivergenceError,
    LimitError,
    TraceCorruptError,
    TraceError,
)
from emulator.recorder import RunSpec
from emulator.records import Json, canonical_json, clean_text
from emulator.revision import check_engine
from emulator.run import MAX_LOOPS
from emulator.trace import TABLES_SINCE, ImageFile, LoopRow, TraceReader

TABLES: Final = ("slice", "event", "console", "checkpoint", "loop")
MAX_APPEND_CHARACTERS: Final = 2047


class Difference(NamedTuple):
    """The first place where a trace is not what running it again gives."""

    table: str
    """slice, event, console, checkpoint, loop, placement, end, error or digest."""
    tick: int
    """Where it is; 0 for the placement, the last tick for what speaks of the whole run."""
    cpu: int | None
    recorded: Json | None
    """What the trace says: all columns of the row; None where it has no row."""
    ran: Json | None
    """What ran; None where nothing did."""

    @property
    def words(self) -> str:
        """Return the difference in one line."""
        where = f"{self.table}, tick {self.tick}"
        where += "" if self.cpu is None else f", cpu {self.cpu}"
        if self.recorded is None or self.ran is None:
            shown = self.recorded or self.ran or {}
            had = "recorded, but did not run" if self.ran is None else "ran, but is not recorded"
            return clean_text(f"{where}: {had}: {_fields(shown, shown)}", 1000)
        names = [name for name in {**self.recorded, **self.ran} if self._differs(name)]
        recorded, ran = _fields(self.recorded, names), _fields(self.ran, names)
        return clean_text(f"{where}: recorded {recorded}; ran {ran}", 1000)

    def _differs(self, name: str) -> bool:
        recorded, ran = self.recorded or {}, self.ran or {}
        return recorded.get(name) != ran.get(name) or (name in recorded) != (name in ran)


def _fields(row: Mapping[str, Any], names: Any) -> str:
    return ", ".join(f"{name} {str(row.get(name, '(absent)'))[:200]}" for name in names)


@dataclass(frozen=True)
class Verification:
    """What came out."""

    status: str
    """The trace's: finished, killed, cancelled or failed. Of the last three a part was compared."""
    ticks: int
    """The last tick that the trace knows of."""
    rows: dict[str, int]
    """Rows compared, by table."""
    digest: str | None
    """Of the run again, where it came to the same end; None of a part."""
    difference: Difference | None

    @property
    def verified(self) -> bool:
        """Everything in the trace is what happens."""
        return self.difference is None


@dataclass(frozen=True)
class SpecLimits:
    """What a trace may ask for when it is run again."""

    cpus: int = 16
    mem_bytes: int = 16 << 30
    limit_ticks: int = 1 << 40
    image_bytes: int = 2 << 30
    """Of all images together, unpacked."""


def check_spec(spec: Json, limits: SpecLimits) -> None:
    """Say what is wrong with the spec of a trace, before any process is given it.

    Raises:
        TraceCorruptError: a field of another name or type, or out of range.
    """
    try:
        whole = RunSpec.from_json(spec)
    except BootflowError as exc:
        raise TraceCorruptError(f"the trace's spec: {clean_text(exc.message, 200)}") from exc
    ranges = {
        "cpus": (1, limits.cpus),
        "boot_cpu": (0, whole.cpus - 1),
        "mem_bytes": (1, limits.mem_bytes),
        "limit_ticks": (1, limits.limit_ticks),
    }
    for name, (low, high) in ranges.items():
        if not low <= getattr(whole, name) <= high:
            raise TraceCorruptError(
                f"the trace's spec: {name} {getattr(whole, name)}; {low}..{high} is possible here"
            )
    if len(whole.append) > MAX_APPEND_CHARACTERS or len(whole.until or "") > 128:
        raise TraceCorruptError("the trace's spec: append or until is too long")


def verify(
    path: Path,
    pool: SessionPool,
    again: Path,
    *,
    key: str = "verify",
    limits: SpecLimits | None = None,
    title: str = "",
    created_utc: str = "",
    on_tick: Callable[[int, int], object] = lambda tick, goal: None,
) -> Verification:
    """Prove a trace.

    Args:
        path: the trace, which a stranger may have made.
        pool: runs it again, under `key`; the session stays to be asked.
        again: where the second recording goes; it must not exist. It is left there.
        key: of the session.
        limits: what the trace may ask for.
        title: of the second recording.
        created_utc: of the second recording.
        on_tick: called with the tick that the run has come to, and the last one of the trace.

    Raises:
        TraceError: the file is no trace, damaged, of another version or engine, or still written.
        SessionError: the run again was cut short.
    """
    with TraceReader(path) as trace:
        status = trace.status
        if status == "running":
            raise TraceError(f"{path}: still being recorded", hint="Verify it when it has ended.")
        check_engine(trace.placement.get("engine"))
        limits = limits or SpecLimits()
        spec = trace.spec
        check_spec(spec, limits)
        _check_size(trace, limits)
        trace.check_file()
        images = _images(trace)
        goal = _last_tick(trace)
        whole = status == "finished"

        def show(tick: int) -> None:
            on_tick(tick, goal)
            if not whole and tick > goal:
                pool.cancel(key)

        outcome = pool.record(
            key, again, spec, images, title=title, created_utc=created_utc, on_tick=show
        )
        if not again.is_file():
            raise outcome.error or TraceError(f"{path}: it could not be run again")
        with TraceReader(again) as ran:
            enough = not whole and ran.last_tick > goal
            if outcome.error and outcome.status in ("killed", "cancelled") and not enough:
                raise outcome.error
            done = compare(trace, ran, goal)
        if whole or not done.verified:
            return done
        return replace(done, difference=_last_digest(trace, pool, f"{key}-part"))


def _last_digest(trace: TraceReader, pool: SessionPool, key: str) -> Difference | None:
    """Replay the slices of a cut-off trace: its last digest may be where no other run has one."""
    checkpoints = trace.checkpoints()
    reached = max((row.tick + row.ticks for row in trace.slices()), default=0)
    last = [row for row in checkpoints if row.tick == reached]
    if not last:
        return None
    try:
        pool.query(key, trace.path, {"q": "state", "tick": reached})
    except DivergenceError as exc:
        return Difference("checkpoint", reached, None, _shown(last[0]), {"digest": exc.message})
    finally:
        pool.drop(key)
    return None


def _check_size(trace: TraceReader, limits: SpecLimits) -> None:
    """Refuse images that are too large before one of them is unpacked."""
    size = sum(info.size_bytes for info in trace.image_infos().values())
    if size > limits.image_bytes:
        raise LimitError(f"images of {size} bytes; {limits.image_bytes} are possible here")


def _images(trace: TraceReader) -> list[ImageFile]:
    infos, data = trace.image_infos(), trace.images()
    if not {"kernel", "purgatory"} <= set(data):
        raise TraceError(
            f"{trace.path}: cut off before its images were stored", hint="Record the run again."
        )
    return [ImageFile(role, infos[role].name, data[role]) for role in data]


def _last_tick(trace: TraceReader) -> int:
    """The last tick of any row; events of a slice that was cut off lie beyond the last slice."""
    ticks = [trace.last_tick]
    for rows in (trace.events(), trace.console_chunks(), iter(trace.checkpoints())):
        ticks += [max((row.tick for row in rows), default=0)]
    ticks += [max((loop.end for loop in trace.loops()), default=0)]
    return max(ticks)


def compare(trace: TraceReader, ran: TraceReader, goal: int) -> Verification:
    """Compare a trace with another recording of its spec and images, row by row."""
    whole = trace.status == "finished"
    counts: dict[str, int] = {}
    found = list(_documents(trace, ran, goal, whole))  # first, where ticks are equal
    found += [
        difference
        for table in TABLES
        if trace.version >= TABLES_SINCE.get(table, 1)
        and (whole or table != "loop")
        and (difference := _table(table, trace, ran, whole, counts)) is not None
    ]
    if not whole and (difference := _part_of_loops(trace, ran, counts)) is not None:
        found.append(difference)
    digest = None
    if not found and whole:
        digest = ran.digest if trace.version == ran.version else ran.compute_digest(trace.version)
        if trace.digest != digest or trace.compute_digest() != digest:
            found = [Difference("digest", goal, None, {"digest": trace.digest}, {"digest": digest})]
    first = min(found, key=lambda difference: difference.tick, default=None)
    return Verification(trace.status, goal, counts, digest, first)


def _part_of_loops(
    trace: TraceReader, ran: TraceReader, counts: dict[str, int]
) -> Difference | None:
    """The first loop of a run that was cut off which the run again has not got.

    There every loop that was open went on, and what had ended may lie in a loop that nobody could
    see yet: it has the same head, began as early, and counts as much or more. So bounds of all
    loops with that head are compared; nobody is told of a loop, or of turns, that are not.
    """
    most: dict[tuple[int, str], tuple[int, ...]] = {}
    told = list(ran.loops())
    for loop in told:
        key, grown = (loop.cpu, loop.head), _grown(loop)
        most[key] = tuple(map(max, grown, most.get(key, grown)))
    counts["loop"] = 0
    for loop in trace.loops():
        bounds = most.get((loop.cpu, loop.head))
        if bounds is None and len(told) >= MAX_LOOPS:  # it may not have been told of
            continue
        if bounds is None or any(map(int.__gt__, _grown(loop), bounds)):
            return Difference("loop", loop.tick, loop.cpu, _shown(loop), None)
        counts["loop"] += 1
    return None


def _grown(loop: LoopRow) -> tuple[int, ...]:
    """What only grows while a loop goes on."""
    return -loop.begin, loop.end, loop.ticks, loop.turns, loop.entries


def _rows(table: str, trace: TraceReader, whole: bool) -> Iterator[Any]:
    """The rows of a table that another run must have too.

    Where and when a run was cancelled is no part of it: not the event and the digest that it
    ended with.
    """
    if table == "slice":
        return trace.slices()
    if table == "console":
        return trace.console_chunks()
    if table == "loop":
        return trace.loops()
    end = trace.end
    cancelled = not whole and end is not None and end["reason"] == "cancelled"
    at = end["tick"] if end is not None else -1
    if table == "event":
        return (e for e in trace.events() if not (cancelled and e.kind == "end" and e.tick == at))
    return (c for c in trace.checkpoints() if not (cancelled and c.tick == at))


def _table(
    table: str,
    trace: TraceReader,
    ran: TraceReader,
    whole: bool,
    counts: dict[str, int],
) -> Difference | None:
    """The first difference of one table."""
    counts[table] = 0
    pairs = zip_longest(_rows(table, trace, whole), _rows(table, ran, whole))
    for recorded, run in pairs:
        if recorded is None and not whole:
            return None
        if recorded != run:
            row = min((row for row in (recorded, run) if row is not None), key=_tick_of)
            return Difference(
                table, row.tick, getattr(row, "cpu", None), _shown(recorded), _shown(run)
            )
        counts[table] += 1
    return None


def _tick_of(row: Any) -> int:
    tick: int = row.tick
    return tick


def _shown(row: Any) -> Json | None:
    if row is None:
        return None
    cells = row._asdict()
    return {name: v.hex() if isinstance(v, bytes) else v for name, v in cells.items()}


def _documents(
    trace: TraceReader, ran: TraceReader, goal: int, whole: bool
) -> Iterator[Difference]:
    """Differences of what is said once a trace: the placement, the end, the error."""
    if ran.error is not None and trace.error is None:
        yield Difference("error", 0, None, None, ran.error)
        return
    pairs = [("placement", 0, trace.placement, ran.placement)]
    if whole:
        pairs.append(("end", goal, trace.end or {}, ran.end or {}))
    if trace.error is not None:
        pairs.append(("error", goal, trace.error, ran.error or {}))
    for table, tick, recorded, run in pairs:
        if not whole and not recorded:
            continue
        if canonical_json(recorded) != canonical_json(run):
            cpu = recorded.get("cpu") if type(recorded.get("cpu")) is int else None
            yield Difference(table, tick, cpu, recorded, run)


def reason_of(done: Verification | BootflowError) -> str:
    """Why a trace cannot be shown, in one line."""
    if isinstance(done, BootflowError):
        return f"not verified: {done.message}"
    if done.difference is not None:
        return f"not verified: running it again gives something else: {done.difference.words}"
    return f"the recording was cut off ({done.status}): only finished traces are shown"


def verification_document(done: Verification) -> Json:
    """Return what came out as the documented JSON."""
    difference = done.difference
    return {
        "verified": done.verified,
        "status": done.status,
        "ticks": done.ticks,
        "rows": done.rows,
        "digest": done.digest,
        "difference": None if difference is None else difference._asdict(),
    }


def verification_lines(done: Verification) -> Iterator[str]:
    """Yield what came out in words."""
    whole = done.status == "finished"
    part = "" if whole else f", as far as it goes: it is of a run that was {done.status}"
    rows = ", ".join(f"{count} {table}s" for table, count in done.rows.items())
    if done.difference is not None:
        yield "verify:   DIFFERS: running it again gives something else"
        yield f"first:    {done.difference.words}"
    else:
        yield f"verify:   OK: running it again gives the same{part}"
    yield f"compared: {rows.replace('consoles', 'console chunks')}, up to tick {done.ticks}"
    if done.digest is not None:
        yield f"digest:   {done.digest}"
