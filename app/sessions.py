"""The pool of session processes: records runs, answers queries, keeps the last few sessions alive.

One sandboxed process a trace; the least recently used ones are ended first. The pool lives in the
worker, or in the command line; `query` is how web processes ask the worker's (see `broker.py`).

Not here: what a session answers (`emulator.session`), what a trace holds (`emulator.trace`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.broker import query
from app.session_process import SessionProcess, error_from
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
from emulator.revision import check_engine
from emulator.trace import ImageFile, TraceReader, TraceWriter

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


@dataclass(frozen=True)
class PoolLimits:
    """How long anything may take, and how many there may be."""

    live_sessions: int = 3
    record_seconds: float = 900.0
    start_seconds: float = 120.0
    silence_seconds: float = 120.0
    cancel_seconds: float = 3.0
    answer_seconds: float = 60.0
    queries_at_once: int = 8


@dataclass(frozen=True)
class Outcome:
    """How a recording ended."""

    status: str
    """finished, cancelled, failed or killed, as the trace says."""
    digest: str | None = None
    end: Json | None = None
    error: BootflowError | None = None
    """Why the run was cut short, unless it finished."""


@dataclass
class _Live:
    """A session that can be asked."""

    process: SessionProcess
    recording: bool = False
    cancelled: bool = False
    failure: BootflowError | None = None
    busy: int = 0
    reached: int | None = None
    """How far a replay has come; None for a recording, which is asked only for what it has sent."""
    moved: threading.Condition = field(default_factory=threading.Condition)

    def move(self, record: Json) -> None:
        """Take note of a replay's progress; its "progress" record is the last."""
        with self.moved:
            tick = record.get("tick")
            if self.reached is not None and type(tick) is int:
                self.reached = max(self.reached, tick)
            if record.get("t") == "progress":
                self.reached = None
            self.moved.notify_all()

    def wait_for(self, tick: object, timeout_seconds: float) -> None:
        """Wait until a replay has come to a tick, or to its end, whatever that is."""
        if type(tick) is int:
            with self.moved:
                self.moved.wait_for(
                    lambda: (
                        self.reached is None
                        or self.reached >= tick
                        or self.failure is not None
                        or not self.process.alive
                    ),
                    timeout_seconds,
                )

    slots: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(8))


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
        self._live: OrderedDict[str, _Live] = OrderedDict()
        self._closed = False
        self._spare: SessionProcess | None = SessionProcess(engine)
        self._warden = Warden(self._pids, self._end_crowd, self._end_oldest)

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

    def _end_oldest(self) -> None:
        """Make room: end the session that was used longest ago, a recording only if need be."""
        with self._lock:
            ranked = sorted(self._live.values(), key=lambda live: (live.recording, live.busy > 0))
        for live in ranked[:1]:
            live.failure = LimitError(
                "the machine ran out of memory", hint="Try again later, or with less --mem."
            )
            live.process.kill()

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

    def _add(self, key: str, live: _Live) -> None:
        with self._lock:
            if self._closed:
                live.process.kill()
                raise SessionError("the worker is shutting down", hint="Try again in a moment.")
            old = self._live.pop(key, None)
            self._live[key] = live
            idle = [k for k, v in self._live.items() if not (v.recording or v.busy or k == key)]
            surplus = len(idle) + (not live.recording) - self._limits.live_sessions
            ended = [self._live.pop(k).process for k in idle[: max(surplus, 0)]]
        if old is not None:
            ended.append(old.process)
        for process in ended:
            process.kill()

    def drop(self, key: str) -> None:
        """End the session of a run, if it has one."""
        with self._lock:
            live = self._live.pop(key, None)
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
        live = _Live(self._take_process(), recording=True)
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

    def _add_again(self, key: str, live: _Live) -> None:
        """Count a session that has stopped recording among the idle ones."""
        with self._lock:
            if self._live.pop(key, None) is not live:
                live.process.kill()
                return
        self._add(key, live)

    def _cut_short(
        self, key: str, live: _Live, writer: TraceWriter, exc: BootflowError, status: str = ""
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

    def _pump(self, live: _Live, writer: TraceWriter, on_tick: OnTick | None) -> None:
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

    def _follow(self, key: str, live: _Live, recorded: Mapping[int, str]) -> None:
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

    def _forget(self, key: str, live: _Live) -> None:
        with self._lock:
            if self._live.get(key) is live:
                del self._live[key]
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
        with self._lock:
            live = self._session(key, path)
            live.busy += 1
        try:
            return self._ask(key, live, query)
        finally:
            with self._lock:
                live.busy -= 1

    def _ask(self, key: str, live: _Live, query: Mapping[str, Any]) -> Json:
        if not live.slots.acquire(timeout=self._limits.answer_seconds):
            raise LimitError("too many queries about this run at once", hint="Try again.")
        try:
            live.wait_for(query.get("tick"), self._limits.answer_seconds)
            answer = live.process.ask(query, self._limits.answer_seconds)
            if live.failure is not None:
                raise live.failure
            return answer
        except SessionError as exc:
            if isinstance(exc, SessionGone) or not live.process.alive:
                self._forget(key, live)
            raise live.failure or exc from exc
        finally:
            live.slots.release()

    def _session(self, key: str, path: Path) -> _Live:
        live = self._live.get(key)
        if live is not None and live.process.alive:
            self._live.move_to_end(key)
            return live
        return self._replay(key, path)

    def _replay(self, key: str, path: Path) -> _Live:
        """Start a session that runs a recorded trace again."""
        with TraceReader(path) as trace:
            check_engine(trace.placement.get("engine"))
            spec, checkpoints = trace.spec, trace.checkpoints()
            infos, data = trace.image_infos(), trace.images()
            job = {
                "op": "replay",
                "spec": spec,
                "names": {role: info.name for role, info in infos.items()},
                "slices": [(row.cpu, row.ticks) for row in trace.slices()],
                "checkpoints": checkpoints,
                "last_tick": trace.last_tick,
                "status": trace.status,
            }
        if not data:
            raise TraceError(
                f"{path}: cut off before its images were stored", hint="Record the run again."
            )
        images = [ImageFile(role, infos[role].name, data[role]) for role in data]
        live = _Live(self._take_process(), reached=0)
        live.process.start(job, images)
        self._add(key, live)
        self._follow(key, live, dict(checkpoints))
        return live


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
