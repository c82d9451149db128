"""The pool of session processes: records runs, answers queries, keeps the last few sessions alive.

One sandboxed process a trace; `room.py` says which idle ones end when there are too many, or too
large ones. Whoever waits, for an answer or for a session, is served in the order of coming. The
pool lives in the worker, or in the command line; `query` is how web processes ask the worker's (see
`broker.py`).

Not here: what a session answers (`emulator.session`), what a trace holds (`emulator.trace`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.broker import query
from app.live import Live, replay_job
from app.room import SESSION_BYTES, Seat, budget_bytes, surplus
from app.session_process import SessionProcess, error_from
from app.turns import Turns
from app.warden import MAX_PROCESSES, Warden
from emulator.errors import (
    BootflowError,
    DivergenceError,
    LimitError,
    SessionError,
    SessionGone,
    TraceError,
)
from emulator.records import clean_text
from emulator.trace import ImageFile, TraceWriter

__all__ = ["Outcome", "PoolLimits", "SessionPool", "query"]

Json = dict[str, Any]
OnTick = Callable[[int], None]


SPARE_SECONDS = 2.0
"""How long after a job has begun the process for the next is started."""
MAX_PROGRESS = 100_000
"""Records of one recording that add nothing to its trace; 100 a second, as long as it may last."""
MAX_LATE_RECORDS = 10_000
MAX_LATE_BYTES = 4 << 20
"""What a session may send when its recording has ended; a replay also its checkpoints."""
CHECKPOINT_BYTES = 256
QUICK = ("state", "window")
"""Questions that one checkpoint answers in milliseconds; the others search through the run."""
BUSY = "too many runs are looked at at once"
MAX_KNOWN = 1000
"""Runs whose sessions' size is remembered."""


@dataclass(frozen=True)
class PoolLimits:
    """How long anything may take, and how many there may be."""

    live_sessions: int = 24
    """A back-stop: what bounds them is their memory."""
    session_bytes: int = field(default_factory=budget_bytes)
    """What all sessions may use together, as proportional set size."""
    record_seconds: float = 900.0
    start_seconds: float = 120.0
    silence_seconds: float = 120.0
    cancel_seconds: float = 3.0
    answer_seconds: float = 60.0
    queries_at_once: int = 8
    """Of one session."""
    searches_at_once: int = 4
    """Of these, how many may search through the run, so that they leave room for pages."""


@dataclass(frozen=True)
class Outcome:
    """How a recording ended."""

    status: str
    """finished, cancelled, failed or killed, as the trace says."""
    digest: str | None = None
    end: Json | None = None
    error: BootflowError | None = None
    """Why the run was cut short, unless it finished."""


class SessionPool:
    """All session processes of one worker; every method may be called from any thread."""

    def __init__(
        self,
        limits: PoolLimits | None = None,
        *,
        engine: str = "",
        keep_spare: bool = True,
        checkpoint_seconds: float | None = None,
    ) -> None:
        self._checkpoint_seconds = checkpoint_seconds
        self._limits = limits or PoolLimits()
        self._engine = engine
        self._keep_spare = keep_spare
        self._lock = threading.RLock()
        self._live: OrderedDict[str, Live] = OrderedDict()
        self._starting: dict[str, Future[None]] = {}
        self._reserved: dict[str, int] = {}
        self._known_bytes: OrderedDict[str, int] = OrderedDict()
        self._door = Turns(1)
        self._moved = threading.Condition(self._lock)
        self._closed = False
        self._spare: SessionProcess | None = SessionProcess(engine)
        self._warden = Warden(self._pids, self._end_crowd, self._end_largest, self._note_bytes)

    def __enter__(self) -> SessionPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every session; recordings are left as killed traces."""
        self._warden.stop()
        with self._lock:
            self._closed = True
            sessions = [live.process for live in self._live.values()]
            self._live.clear()
            if self._spare is not None:
                sessions.append(self._spare)
                self._spare = None
        for process in sessions:
            process.kill()

    def _pids(self) -> list[int]:
        with self._lock:
            return [live.process.pid for live in self._live.values()]

    def _end_crowd(self, pid: int) -> None:
        """End the session that has more processes than it may."""
        with self._lock:
            found = [live for live in self._live.values() if live.process.pid == pid]
        for live in found:
            live.failure = LimitError(f"more than {MAX_PROCESSES} processes in one session")
            live.process.kill()

    def _end_largest(self) -> None:
        """Make room: end the largest idle session; one that is busy or records only if need be."""
        with self._lock:
            ranked = sorted(
                self._live.values(), key=lambda live: (live.recording, live.busy > 0, -live.bytes)
            )
        for live in ranked[:1]:
            live.failure = LimitError(
                "the machine ran out of memory", hint="Try again later, or with less --mem."
            )
            live.process.kill()

    def _note_bytes(self, pid: int, used_bytes: int) -> None:
        """Take note of what a session uses, and keep within the budget."""
        with self._lock:
            for key, live in self._live.items():
                if live.process.pid == pid:
                    live.bytes = self._known_bytes[key] = used_bytes
                    self._known_bytes.move_to_end(key)
            while len(self._known_bytes) > MAX_KNOWN:
                self._known_bytes.popitem(last=False)
            ended, _ = self._surplus()
            self._moved.notify_all()
        for process in ended:
            process.kill()

    def _take_process(self) -> SessionProcess:
        """Return the spare process, whose imports are done; the next one is started in a while.

        Not at once: its imports would take the second CPU from whoever waits for this one.
        """
        with self._lock:
            if self._closed:
                raise SessionError("the worker is shutting down", hint="Try again in a moment.")
            process, self._spare = self._spare, None
            if self._keep_spare:
                later = threading.Timer(SPARE_SECONDS, self.start_spare)
                later.daemon = True
                later.start()
        if process is not None and process.alive:
            return process
        if process is not None:
            process.kill()
        return SessionProcess(self._engine)

    def start_spare(self) -> SessionProcess | None:
        """Start the process that the next job will find ready, if there is none; return it."""
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare = SessionProcess(self._engine)
            return self._spare

    def _new(self, key: str, *, recording: bool) -> Live:
        limits = self._limits
        return Live(
            self._take_process(),
            Turns(limits.queries_at_once),
            Turns(limits.searches_at_once),
            self._guess(key),
            recording,
            reached=None if recording else 0,
        )

    def _guess(self, key: str) -> int:
        """Return what the session of a run will use: as much as it did before."""
        return self._known_bytes.get(key, min(SESSION_BYTES, self._limits.session_bytes))

    def _surplus(self, coming: str | None = None) -> tuple[list[SessionProcess], bool]:
        """Take out the sessions that end, and say whether one more, or those left, have room."""
        now, seats = time.monotonic(), []
        for key, live in self._live.items():
            idle = not (live.recording or live.busy)
            seats.append(Seat(key, live.bytes, live.used_at, idle, live.recording))
        seats += [Seat(f"+{key}", size, now, False) for key, size in self._reserved.items()]
        ended, fits = surplus(
            seats, self._limits.session_bytes, self._limits.live_sessions, now,
            None if coming is None else self._guess(coming),
        )  # fmt: skip
        return [self._live.pop(key).process for key in ended], fits

    def _add(self, key: str, live: Live) -> None:
        """Count a session among the others, in the place that was kept for it, if any."""
        with self._lock:
            self._reserved.pop(key, None)
            if self._closed:
                live.process.kill()
                raise SessionError("the worker is shutting down", hint="Try again in a moment.")
            old = self._live.pop(key, None)
            self._live[key] = live
            live.busy += 1  # itself it stays
            ended, _ = self._surplus()
            live.busy -= 1
            self._moved.notify_all()
        if old is not None:
            ended.append(old.process)
        for process in ended:
            process.kill()

    def drop(self, key: str) -> None:
        """End the session of a run, if it has one."""
        with self._lock:
            live = self._live.pop(key, None)
            self._moved.notify_all()
        if live is not None:
            live.process.kill()

    def cancel(self, key: str) -> bool:
        """Stop the recording of a run; returns whether there was one."""
        with self._lock:
            live = self._live.get(key)
            if live is None or not live.recording:
                return False
            live.cancelled = True
        live.process.cancel()
        return True

    def record(
        self,
        key: str,
        path: Path,
        spec: Mapping[str, Any],
        images: Sequence[ImageFile],
        *,
        title: str = "",
        created_utc: str = "",
        on_tick: OnTick | None = None,
    ) -> Outcome:
        """Run a recording to its end into the trace file `path`; the session stays to be asked."""
        writer = TraceWriter(path)
        live = self._new(key, recording=True)
        self._add(key, live)
        try:
            writer.start(spec, images, title=title, created_utc=created_utc)
            live.process.await_ready(self._limits.start_seconds)
            names = {image.role: image.name for image in images}
            job: Json = {"op": "record", "spec": dict(spec), "names": names}
            if self._checkpoint_seconds is not None:
                job["checkpoint_seconds"] = self._checkpoint_seconds
            live.process.start(job, images)
            self._pump(live, writer, on_tick)
        except BootflowError as exc:
            return self._cut_short(key, live, writer, exc)
        except BaseException:  # the command line was interrupted
            self._cut_short(key, live, writer, SessionError("interrupted"), status="killed")
            raise
        if live.cancelled:
            return self._cut_short(key, live, writer, SessionError("cancelled"))
        try:
            digest = writer.finish()
        except TraceError as exc:
            self.drop(key)
            return Outcome("failed", end=writer.end, error=_error_of(writer) or exc)
        live.recording = False
        self._follow(key, live, {})
        self._add_again(key, live)
        return Outcome("finished", digest=digest, end=writer.end)

    def _add_again(self, key: str, live: Live) -> None:
        """Count a session that has stopped recording among the idle ones."""
        with self._lock:
            if self._live.pop(key, None) is not live:
                live.process.kill()
                return
        self._add(key, live)

    def _cut_short(
        self, key: str, live: Live, writer: TraceWriter, exc: BootflowError, status: str = ""
    ) -> Outcome:
        if live.cancelled:
            status, exc = "cancelled", SessionError("cancelled on request")
        elif self._closed:
            status, exc = "killed", SessionError("the worker was shut down")
        elif live.failure is not None:
            status, exc = "killed", live.failure
        status = status or ("killed" if isinstance(exc, SessionError) else "failed")
        self.drop(key)
        live.process.kill()
        writer.abort(status, exc.message)
        return Outcome(status, end=writer.end, error=exc)

    def _pump(self, live: Live, writer: TraceWriter, on_tick: OnTick | None) -> None:
        """Move records from the session into the trace until the end or an error comes."""
        start = heard = time.monotonic()
        cancel_at: float | None = None
        empty = 0
        while writer.end is None and writer.error is None:
            record = live.process.receive(0.2)
            now = time.monotonic()
            if record is None:
                writer.flush()
            elif record.get("t") in ("ready", "progress") and empty >= MAX_PROGRESS:
                raise SessionError(f"the session sent {empty} records of progress")
            elif record.get("t") != "ready":
                empty += record.get("t") == "progress"
                writer.apply(record)
                heard = now
                if on_tick is not None:
                    on_tick(writer.tick)
            else:
                empty += 1
            if live.cancelled:
                cancel_at = cancel_at or now
                if now - cancel_at > self._limits.cancel_seconds:
                    raise SessionError("cancelled")
            if now - start > self._limits.record_seconds:
                raise LimitError(
                    f"the recording took more than {self._limits.record_seconds:.0f} s",
                    hint="Lower --limit, or end the run earlier with --until.",
                )
            if now - heard > self._limits.silence_seconds:
                raise SessionError(f"silent for {self._limits.silence_seconds:.0f} s, and ended")

    def _follow(self, key: str, live: Live, recorded: Mapping[int, str]) -> None:
        """Hear a session out in the background; compare its checkpoints with the recorded ones."""

        def follow() -> None:
            most = MAX_LATE_RECORDS + len(recorded)
            most_bytes = MAX_LATE_BYTES + CHECKPOINT_BYTES * len(recorded)
            most_bytes += live.process.received_bytes
            try:
                while True:
                    record = live.process.receive(3600.0)
                    if record is not None:
                        most -= 1
                        if most < 0 or live.process.received_bytes > most_bytes:
                            raise SessionError("the session sent records without end")
                        _compare(record, recorded)
                        live.move(record)
            except BootflowError as exc:
                live.failure = live.failure or exc
            live.move({})
            self._forget(key, live)

        threading.Thread(target=follow, daemon=True, name=f"session {key[:8]}").start()

    def _forget(self, key: str, live: Live) -> None:
        with self._lock:
            if self._live.get(key) is live:
                del self._live[key]
            self._moved.notify_all()
        live.process.kill()

    def query(self, key: str, path: Path, query: Mapping[str, Any]) -> Json:
        """Answer a query about a run, from its live session or from one started for it.

        Raises:
            SessionError: the session died, or gave no answer in time.
            TraceError: the trace cannot be replayed.
            DivergenceError: the replay differs from the record.
        """
        try:
            return self._ask_session(key, path, query)
        except SessionGone:  # it was ended, or died, just before: ask another
            return self._ask_session(key, path, query)

    def _ask_session(self, key: str, path: Path, query: Mapping[str, Any]) -> Json:
        live = self._enter(key, path)
        try:
            return self._ask(key, live, query)
        finally:
            with self._lock:
                live.busy -= 1
                live.used_at = time.monotonic()
                self._moved.notify_all()

    def _ask(self, key: str, live: Live, query: Mapping[str, Any]) -> Json:
        deadline = time.monotonic() + self._limits.answer_seconds
        live.wait_for(query.get("tick"), self._limits.answer_seconds)
        lanes = [live.turns] if query.get("q") in QUICK else [live.searches, live.turns]
        taken: list[Turns] = []
        try:
            for lane in lanes:
                if not lane.take(max(deadline - time.monotonic(), 0.0)):
                    raise LimitError("too many queries about this run at once", hint="Try again.")
                taken.append(lane)
            answer = live.process.ask(query, self._limits.answer_seconds)
            if live.failure is not None:
                raise live.failure
            return answer
        except SessionError as exc:
            if isinstance(exc, SessionGone) or not live.process.alive:
                self._forget(key, live)
            raise live.failure or exc from exc
        finally:
            for lane in taken:
                lane.give()

    # --- sessions that are started because somebody asks ---------------------------------------

    def _enter(self, key: str, path: Path) -> Live:
        """Return the session of a run, to be left again; all who miss it wait for one start."""
        while True:
            with self._lock:
                live = self._standing(key)
                if live is not None:
                    live.busy += 1
                    return live
                start = self._starting.get(key)
                mine = start is None
                if start is None:
                    start = self._starting[key] = Future()
            if not mine:
                start.result()
                continue
            try:
                live = self._start(key, path)
                start.set_result(None)
                return live
            except BaseException as exc:
                start.set_exception(exc)
                raise
            finally:
                with self._lock:
                    del self._starting[key]

    def _standing(self, key: str) -> Live | None:
        live = self._live.get(key)
        if live is None or live.leaving or not live.process.alive:
            return None
        self._live.move_to_end(key)
        live.used_at = time.monotonic()
        return live

    def _start(self, key: str, path: Path) -> Live:
        """Start a session that runs a recorded trace again, as soon as there is room for it."""
        standing = self._keep_place(key)
        if standing is not None:
            return standing
        try:
            job, images, checkpoints = replay_job(path)
            live = self._new(key, recording=False)
            live.busy += 1
            try:
                live.process.start(job, images)
                self._add(key, live)
            except BaseException:
                live.process.kill()
                raise
        finally:
            with self._lock:
                self._reserved.pop(key, None)
        self._follow(key, live, checkpoints)
        return live

    def _keep_place(self, key: str) -> Live | None:
        """Wait until one more session has room, behind all who wait for the same.

        While nobody is idle, the session that began first takes no more questions and ends when it
        has answered; who asks it later waits like the others.

        Returns:
            The run's own session if it stands after all; else None, and there is room for one.
        """
        deadline = time.monotonic() + self._limits.answer_seconds
        if not self._door.take(self._limits.answer_seconds):
            raise LimitError(BUSY, hint="Try again in a moment.")
        try:
            while True:
                with self._moved:
                    standing = self._live.get(key)
                    if standing is not None and standing.process.alive:
                        standing.busy += 1
                        return standing
                    ended, fits = self._surplus(key)
                    if fits:
                        self._reserved[key] = self._guess(key)
                    elif not ended:
                        self._wait_for_room(deadline)
                for process in ended:
                    process.kill()
                if fits:
                    return None
        finally:
            with self._lock:
                for live in self._live.values():
                    live.leaving = False
            self._door.give()

    def _wait_for_room(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise LimitError(BUSY, hint="Try again in a moment.")
        replays = [live for live in self._live.values() if not live.recording]
        if replays:
            min(replays, key=lambda live: live.began_at).leaving = True
        self._moved.wait(1.0)


def _error_of(writer: TraceWriter) -> BootflowError | None:
    return None if writer.error is None else error_from(writer.error)


def _compare(record: Json, recorded: Mapping[int, str]) -> None:
    """Raise if a record of a replay says that it is not the run that was recorded."""
    kind, tick = record.get("t"), record.get("tick")
    if kind == "error":
        raise error_from(record)
    if (
        kind == "checkpoint"
        and type(tick) is int
        and tick in recorded
        and recorded[tick] != record.get("digest")
    ):
        raise DivergenceError(
            f"the replay differs from the record at checkpoint tick {clean_text(str(tick), 20)}",
            hint="This is a bug of bootflow: please report it with the trace.",
        )
