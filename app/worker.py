"""The worker: takes queued runs one after the other, records them, answers the web's questions.

    enqueue_record, cancel      what the web processes call; state is in the queue and in the index
    enqueue_exploration         the same for explorations (`explorer.py`), which have a queue of
                                their own, so that no recording waits for one
    Recorder                    one run from the uploads to an ended trace and an index row; the
                                trace of a stranger is run again, and its own events never shown
    Worker, run_worker          queue consumer, session pool and broker in one process

The queue is Huey's: SQLite in the data directory, or Redis by URL (BOOTFLOW_QUEUE_URL). Its
messages are JSON. After a restart, what was queued is queued again; what was running is recorded
once more, and a run that took the worker down twice is marked as killed. A finished run is never
touched.

Not here: how a recording is confined (`sandbox.py`), how sessions are kept (`sessions.py`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from huey import Huey, PriorityRedisHuey, SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from app import broker
from app.broker import Broker
from app.explorer import Explorer
from app.index import (
    UNFINISHED,
    Index,
    NoSuchRun,
    Run,
    trace_path,
    upload_path,
)
from app.samples import sample_of_run
from app.sessions import Outcome, PoolLimits, SessionPool
from app.verify import SpecLimits, reason_of, verify
from emulator.errors import BootflowError, SessionError
from emulator.trace import ROLES, ImageFile, TraceReader
from emulator.verdict import verdict

log = logging.getLogger("bootflow.worker")

QUEUE_NAME = "queue.sqlite"
QUEUES = {"record": "bootflow", "explore": "bootflow-explore"}
LOCK_NAME = "worker.lock"
MAX_ATTEMPTS = 2
_CANCEL_SECONDS = 3.0
STRANGER = SpecLimits(mem_bytes=4 << 30, limit_ticks=8_000_000_000, image_bytes=512 << 20)
"""What the trace of a stranger may ask for; no more than the form lets anyone ask."""


class _JsonSerializer(Serializer):  # type: ignore[misc]
    """Messages as JSON: whoever can write to the queue gets no code to run here."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps(data).encode()

    def _deserialize(self, data: bytes) -> Any:
        message = json.loads(data)
        return Message(*message) if isinstance(message, list) else message


def open_queue(
    data_dir: Path, work: Callable[[str], None] | None = None, *, name: str = "record"
) -> Any:
    """Return a task of the queues of `data_dir`; call it with an id to enqueue.

    Args:
        data_dir: where the index and the traces are.
        work: what the task does; only the worker has it.
        name: record, with the id of a run, or explore, with that of an exploration.
    """
    url = os.environ.get("BOOTFLOW_QUEUE_URL", "")
    options = {"results": False, "serializer": _JsonSerializer()}
    if url:
        queue: Huey = PriorityRedisHuey(QUEUES[name], url=url, **options)
    else:
        queue = SqliteHuey(QUEUES[name], filename=str(Path(data_dir) / QUEUE_NAME), **options)
    return queue.task(name=name)(work or _only_in_the_worker)


def _only_in_the_worker(identifier: str) -> None:
    raise SessionError(f"{identifier} is work for the worker only")


def _enqueue(data_dir: Path, identifier: str, name: str) -> None:
    task = open_queue(data_dir, name=name)
    task(identifier, priority=_priority(identifier))
    task.huey.storage.close()


def _priority(identifier: str) -> int:
    """Return the place of work in its queue: whoever uploads does not wait for the samples."""
    return 0 if sample_of_run(identifier) else 1


def enqueue_record(data_dir: Path, run_id: str) -> None:
    """Queue the recording of a run whose row is in the index and whose files are uploaded."""
    _enqueue(data_dir, run_id, "record")


def enqueue_exploration(data_dir: Path, identifier: str) -> None:
    """Queue an exploration whose row is written."""
    _enqueue(data_dir, identifier, "explore")


def cancel(data_dir: Path, run_id: str) -> None:
    """Stop a run, queued or going on; a run that has ended stays as it is."""
    index = Index(Path(data_dir))
    try:
        deadline = time.monotonic() + _CANCEL_SECONDS
        while True:
            status = index.get(run_id).status
            if status == "queued":
                index.set_status(run_id, "cancelled", verdict="cancelled before it began")
                return
            if status not in UNFINISHED or _cancel_running(data_dir, index, run_id):
                return
            if time.monotonic() > deadline:
                raise SessionError("the run does not answer", hint="Try again in a moment.")
            time.sleep(0.1)  # it is between two states
    finally:
        index.close()


def _cancel_running(data_dir: Path, index: Index, run_id: str) -> bool:
    try:
        return broker.cancel(data_dir, run_id)
    except SessionError:
        if worker_runs(data_dir):
            raise
        index.set_status(run_id, "killed", verdict="the worker was stopped while it ran")
        return True


def worker_runs(data_dir: Path) -> bool:
    """Say whether a worker serves this data directory."""
    lock = _take_lock(Path(data_dir))
    if lock is None:
        return True
    os.close(lock)
    return False


def _take_lock(data_dir: Path) -> int | None:
    data_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


class Recorder:
    """Records one run: uploads in, ended trace and index row out."""

    def __init__(self, data_dir: Path, index: Index, pool: SessionPool) -> None:
        self._data_dir, self._index, self._pool = data_dir, index, pool
        self.stopping = False

    def record(self, run_id: str) -> None:
        """Record the run unless it was cancelled, deleted or done in the meantime."""
        try:
            run = self._index.get(run_id)
        except NoSuchRun:
            return
        if run.status != "queued" or self.stopping:
            return
        attempt = self._count_attempt(run_id)
        if attempt > MAX_ATTEMPTS:
            text = f"the worker was stopped {MAX_ATTEMPTS} times while it ran"
            self._index.set_status(run_id, "killed", verdict=text)
            return
        uploaded = "trace" in run.files
        self._index.set_status(run_id, "verifying" if uploaded else "running")
        log.info("run %s: recording, attempt %d", run_id, attempt)
        try:
            outcome = self._verify(run) if uploaded else self._record(run)
        except BootflowError as exc:
            outcome = Outcome("failed", error=exc)
        except Exception as exc:
            log.exception("run %s: the worker failed", run_id)
            outcome = Outcome("failed", error=SessionError(f"internal error: {type(exc).__name__}"))
        if self.stopping and outcome.status == "killed":
            self._attempt_path(run_id).unlink(missing_ok=True)
            self._index.set_status(run_id, "queued")
            return
        self._close(run_id, outcome)

    def _attempt_path(self, run_id: str) -> Path:
        return upload_path(self._data_dir, run_id, "attempts")

    def _count_attempt(self, run_id: str) -> int:
        """Count on disk, before anything can go wrong."""
        path = self._attempt_path(run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as counter:
            counter.write(b"+")
            return counter.tell()

    def _record(self, run: Run) -> Outcome:
        path = trace_path(self._data_dir, run.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)
        images = [
            ImageFile(role, str(run.files[role].get("name", role)), self._read(run.id, role))
            for role in ROLES
            if role in run.files
        ]
        return self._pool.record(
            run.id, path, run.spec, images, title=run.title, created_utc=run.created_utc
        )

    def _verify(self, run: Run) -> Outcome:
        """Run the trace of a stranger again; what is kept and shown is our own recording of it."""
        again = upload_path(self._data_dir, run.id, "again")
        for name in (again.name, f"{again.name}-wal", f"{again.name}-shm"):
            again.with_name(name).unlink(missing_ok=True)
        source = upload_path(self._data_dir, run.id, "trace")
        try:
            done = verify(
                source, self._pool, again, key=run.id, limits=STRANGER, title=run.title,
                created_utc=run.created_utc,
            )  # fmt: skip
        except BootflowError as exc:
            self._pool.drop(run.id)
            message = reason_of(exc).replace(f"{source}: ", "")
            return Outcome(self._status_of(exc), error=SessionError(message))
        if not done.verified or done.status != "finished":
            self._pool.drop(run.id)
            return Outcome("failed", error=SessionError(reason_of(done)))
        path = trace_path(self._data_dir, run.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        again.replace(path)
        return Outcome("finished", digest=done.digest)

    def _status_of(self, exc: BootflowError) -> str:
        """Return what a run is whose verification raised."""
        if self.stopping:
            return "killed"
        cancelled = isinstance(exc, SessionError) and exc.message == "cancelled on request"
        return "cancelled" if cancelled else "failed"

    def _read(self, run_id: str, role: str) -> bytes:
        try:
            return upload_path(self._data_dir, run_id, role).read_bytes()
        except OSError as exc:
            raise SessionError(f"the uploaded {role} is gone", hint="Upload it again.") from exc

    def _close(self, run_id: str, outcome: Outcome) -> None:
        """Write the row of an ended run; the uploads are in the trace now."""
        log.info("run %s: %s %s", run_id, outcome.status, outcome.error or "")
        fields: dict[str, Any] = {}
        with suppress(BootflowError), TraceReader(trace_path(self._data_dir, run_id)) as trace:
            fields["ticks"] = trace.last_tick
            if outcome.status == "finished":
                told = verdict(trace)
                fields |= {"word": told.word, "asked": told.asked, "verdict": told.sentence}
                fields |= {"spec": trace.spec, "files": _files_of(trace)}
        if outcome.error is not None:
            fields["verdict"] = outcome.error.message
        if self._index.get(run_id).status == "deleted":
            self._pool.drop(run_id)
            self._index.delete(run_id)
        else:
            self._index.set_status(run_id, outcome.status, **fields)
        shutil.rmtree(upload_path(self._data_dir, run_id, "kernel").parent, ignore_errors=True)


def _files_of(trace: TraceReader) -> dict[str, Any]:
    """Return what a trace holds as the index keeps it; for an uploaded trace it is news."""
    infos = trace.image_infos()
    return {
        role: {"name": infos[role].name, "sha256": infos[role].sha256,
               "size_bytes": infos[role].size_bytes}
        for role in ROLES
        if role in infos
    }  # fmt: skip


class Worker:
    """Queue consumer, session pool and broker of one data directory."""

    def __init__(
        self, data_dir: Path, *, engine: str = "", limits: PoolLimits | None = None
    ) -> None:
        self._data_dir = Path(data_dir).resolve()
        lock = _take_lock(self._data_dir)
        if lock is None:
            raise SessionError(
                f"another worker serves {self._data_dir}", hint="Stop it, or choose another --data."
            )
        self._lock = lock
        self._index = Index(self._data_dir)
        self._pool = SessionPool(limits, engine=engine)
        self._recorder = Recorder(self._data_dir, self._index, self._pool)
        self._task = open_queue(self._data_dir, self._recorder.record)
        self._explorer = Explorer(self._data_dir, self._index, self._task)
        self._explore = open_queue(self._data_dir, self._do_explore, name="explore")
        self._broker = Broker(self._data_dir, self._pool)
        self._consumers = [
            task.huey.create_consumer(
                workers=1, periodic=False, initial_delay=0.05, max_delay=0.2,
                check_worker_health=False,
            )
            for task in (self._task, self._explore)
        ]  # fmt: skip

    def _do_explore(self, identifier: str) -> None:
        """Explore; here, because Huey finds a task by the module of its function."""
        self._explorer.explore(identifier)

    def start(self) -> None:
        """Queue again what an earlier worker left, and begin."""
        self._task.huey.storage.flush_queue()
        for run in sorted(self._index.unfinished(), key=lambda run: run.created_utc):
            if run.status in UNFINISHED:
                self._index.set_status(run.id, "queued")
                self._task(run.id, priority=_priority(run.id))
        self._explore.huey.storage.flush_queue()
        for row in self._explorer.rows.unended():
            self._explorer.rows.change(row.id, status="queued")
            self._explore(row.id)
        handlers = {number: signal.getsignal(number) for number in self._signals()}
        for consumer in self._consumers:
            consumer.start()
        for number, handler in handlers.items():  # Huey takes them; they are the caller's
            signal.signal(number, handler)

    @staticmethod
    def _signals() -> tuple[signal.Signals, ...]:
        if threading.current_thread() is not threading.main_thread():
            return ()
        return (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def stop(self) -> None:
        """End sessions and consumer; a run that was going on is queued again at the next start."""
        self._recorder.stopping = self._explorer.stopping = True
        self._broker.close()
        self._pool.close()
        for consumer in self._consumers:
            consumer.stop(graceful=True)
        for task in (self._task, self._explore):
            task.huey.storage.close()
        self._index.close()
        os.close(self._lock)


def raise_descriptor_limit() -> None:
    """Take all descriptors that this process may have.

    Sessions are of the same user and have few, so that none can use up, with descriptors that it
    leaves in flight, what the worker needs to pass its own.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # "unlimited" is more than this kernel gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_worker(data_dir: Path, *, until_stdin_ends: bool = False) -> None:
    """Serve `data_dir` until SIGTERM or SIGINT, or until stdin ends (the parent has gone)."""
    os.umask(0o077)  # what users upload is nobody else's on this machine
    raise_descriptor_limit()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    worker = Worker(data_dir)
    worker.start()
    if until_stdin_ends:
        threading.Thread(target=_wait_for_end_of_stdin, args=(stop,), daemon=True).start()
    stop.wait()
    worker.stop()


def _wait_for_end_of_stdin(stop: threading.Event) -> None:
    while os.read(0, 4096):
        continue
    stop.set()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="worker: %(message)s")
    logging.getLogger("huey").setLevel(logging.WARNING)
    # Under its own name: Huey finds a task by the module of its function, and this is __main__.
    from app import worker

    worker.run_worker(Path(sys.argv[1]), until_stdin_ends="--with-parent" in sys.argv[2:])
