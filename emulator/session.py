"""A process that has run a trace, or runs it, and answers questions about any tick of it.

What it is: the root of a sandboxed session. It records or replays, and forks a checkpoint every few
milliseconds of work (`checkpoint`): the child keeps the whole machine as it stood then. A question
about tick T goes to the last checkpoint before it, which forks again, runs the recorded slices up
to exactly T, answers on the descriptor that came with the question, and ends. So a question that
crashes costs that question alone, and many are answered at once. Questions that look through the
run ("who wrote this byte last") get a process of their own that asks checkpoint after checkpoint
(`search`).

What it is not: the process's walls (`app/sandbox.py`), its starter (`app/sessions.py`), or a file.

Protocol on the control socket (SOCK_SEQPACKET, JSON): out, records, one a line, several a message;
in, `{"q": "cancel"}`, or a query with one descriptor (SCM_RIGHTS) that takes one JSON document.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from emulator import search
from emulator.checkpoint import CHECKPOINT_SECONDS, Checkpoints, answer, answer_in_a_fork, guarded
from emulator.errors import BootflowError, DivergenceError, SessionError
from emulator.queries import run_slice
from emulator.recorder import Prepared, Recorder, RunSpec, prepare
from emulator.run import Record, Run

MAX_MESSAGE_BYTES: Final = 128 << 10
ASKED: Final = ("state", "window", "loops")
"""Queries that a checkpoint answers to anyone; the others are parts of searches."""
FLUSH_SECONDS: Final = 0.05
TURNS: Final = ("stage", "hypercall", "exception", "cpu-released", "end")
"""Events where a CPU does more than retire instructions."""


def serve(job: Mapping[str, Any], images: Mapping[str, bytes], control: socket.socket) -> None:
    """Run a job and answer queries until the control socket closes.

    Args:
        job: {"op": "record" | "replay", "spec": ..., "names": {role: file name}}; a replay also has
            "slices": [[cpu, ticks], ...] and "checkpoints": [[tick, digest], ...]. With
            "checkpoint_seconds" checkpoints stand further apart, for who will ask little.
        images: role -> content.
        control: see the module's docstring.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children need no wait
    apart = float(job.get("checkpoint_seconds", CHECKPOINT_SECONDS))
    session = _Session(control, max(apart, CHECKPOINT_SECONDS))
    names = job.get("names", {})
    named = {role: (str(names.get(role, role)), data) for role, data in images.items()}
    prepared = prepare(RunSpec.from_json(job["spec"]), named)
    if job["op"] == "record":
        session.record(prepared)
    else:
        session.replay(prepared, job)
    session.answer_until_closed()


def warm_up() -> None:
    """Compile and load all that is needed, while files may still be opened."""
    from emulator import warmup

    warmup.run_once()


class _Session:
    """State of the root process of a session."""

    def __init__(self, control: socket.socket, apart_seconds: float) -> None:
        self.control = control
        self.checkpoints = Checkpoints(apart_seconds)
        self.low_writes: list[Record] = []
        self._goal = 0
        """Where a replay will come to: queries up to there wait for it."""
        self._waiting: list[tuple[Record, int]] = []
        self._buffer: list[str] = []
        self._buffered = 0
        self._flushed_at = time.monotonic()
        self._cancel = ""
        self._closed = False

    # --- records out ----------------------------------------------------------------------------

    def emit(self, record: Record) -> None:
        """Queue a record; they go out in messages of many."""
        self.note(record)
        if record["t"] == "slice":
            self.checkpoints.add_slice(record["cpu"], record["ticks"])
        line = json.dumps(record, separators=(",", ":"))
        if self._buffered + len(line) > MAX_MESSAGE_BYTES:
            self.flush()
        self._buffer.append(line)
        self._buffered += len(line) + 1
        if record["t"] == "end":
            self.flush()

    def note(self, record: Record) -> None:
        """Keep what answers questions without a replay."""
        if record.get("kind") in TURNS:
            self.checkpoints.note_turn(record["tick"])
        if record.get("kind") == "low-write":
            self.low_writes.append(record)
        elif record.get("kind") == "stage":
            self.checkpoints.note_stage(record["tick"], record["cpu"], record["text"])

    def flush(self) -> None:
        """Send what is queued."""
        self._flushed_at = time.monotonic()
        if self._buffer:
            self.control.sendall("\n".join(self._buffer).encode())
            self._buffer.clear()
            self._buffered = 0

    # --- recording and replaying ------------------------------------------------------------------

    def record(self, prepared: Prepared) -> None:
        """Record a run, answering queries between slices."""
        self.emit(prepared.record())
        recorder = Recorder(prepared, self.emit, poll=self._poll, on_checkpoint=self._digested)
        self.checkpoints.follow(recorder.run)
        recorder.record()

    def replay(self, prepared: Prepared, job: Mapping[str, Any]) -> None:
        """Run recorded slices again; every checkpoint is compared with the record."""
        recorded = {int(tick): str(digest) for tick, digest in job.get("checkpoints", [])}
        slices = [(int(cpu), int(ticks)) for cpu, ticks in job["slices"]]
        self._goal = sum(ticks for _, ticks in slices)
        run = prepared.start(self.note)
        self.checkpoints.follow(run)
        self._compare(run, recorded)
        for cpu, ticks in slices:
            run_slice(run, cpu, run.machine.tick + ticks)
            self.checkpoints.add_slice(cpu, ticks)
            if run.machine.tick in recorded:
                self._compare(run, recorded)
            self._answer_waiting()
            self._poll(run)
            if self._closed:
                return
        self.emit({"t": "progress", "tick": self.checkpoints.reached})
        self.flush()

    def _compare(self, run: Run, recorded: Mapping[int, str]) -> None:
        tick, digest = run.machine.tick, run.machine.state_digest()
        if recorded.get(tick, digest) != digest:
            raise DivergenceError(
                f"the replay differs from the record at tick {tick}, on a CPU or in memory that "
                f"changed since the checkpoint before: state digest {digest}, not {recorded[tick]}",
                hint="This is a bug of bootflow: please report it with the trace.",
            )
        self.emit({"t": "checkpoint", "tick": tick, "digest": digest})
        self._fork(run)

    def _poll(self, run: Run) -> str | None:
        now = time.monotonic()
        if now - self._flushed_at > FLUSH_SECONDS:
            self.flush()
        if self.checkpoints.due:
            self._fork(run)
        while self._readable():
            self._take_query()
        return self._cancel or ("the session was closed" if self._closed else None)

    def _digested(self, run: Run) -> None:
        """A state digest was taken: a good place for a checkpoint, unless these stand far apart."""
        if self.checkpoints.due or self.checkpoints.dense:
            self._fork(run)

    def _fork(self, run: Run) -> None:
        """Leave a checkpoint here."""
        self.flush()
        mine = [self.control.fileno(), *(fd for _, fd in self._waiting)]
        self.checkpoints.fork(run, mine)

    # --- queries ----------------------------------------------------------------------------------

    def _readable(self, seconds: float = 0.0) -> bool:
        return not self._closed and bool(select.select([self.control], [], [], seconds)[0])

    def answer_until_closed(self) -> None:
        """Hand queries on to checkpoints until nobody can ask any more."""
        gc.collect()
        with suppress(OSError):  # without a process for it, timelines are of samples
            if not self._closed and os.fork() == 0:
                self.control.close()
                with suppress(BootflowError, OSError):  # the session has been ended meanwhile
                    search.take_census(self.checkpoints)
                os._exit(0)
        while not self._closed:
            if self._readable(3600.0):
                self._take_query()

    def _take_query(self) -> None:
        message, fds, _, _ = socket.recv_fds(self.control, MAX_MESSAGE_BYTES, 4)
        if not message:
            self._closed = True
            return
        query = json.loads(message)
        if query.get("q") == "cancel":
            self._cancel = "cancelled on request"
        elif fds:
            self._waiting.append((query, fds.pop(0)))
            self._answer_waiting()
        for fd in fds:
            os.close(fd)

    def _answer_waiting(self) -> None:
        """Hand on every query whose tick has been reached, or never will be."""
        waiting, self._waiting = self._waiting, []
        for query, fd in waiting:
            if self.checkpoints.reached < self._needed(query):
                self._waiting.append((query, fd))
                continue
            failed = guarded(partial(self._hand_on, query, fd))
            if failed:
                answer(fd, failed)
            os.close(fd)
        self._closed = self._closed or self.checkpoints.broken

    def _needed(self, query: Record) -> int:
        """How far a replay must have come for a query: what looks ahead needs all of the run."""
        tick, after = query.get("tick"), query.get("after", 12)
        if query.get("q") in ("state", "last-write", "register-write", "chain"):
            return tick if type(tick) is int and tick <= self._goal else 0
        if query.get("q") == "window" and type(tick) is int and type(after) is int:
            return min(self._goal, tick + after) if tick <= self._goal else 0
        return self._goal

    def _hand_on(self, query: Record, fd: int) -> Record:
        """Give a query to whoever answers it; what it cannot be given is the answer."""
        reached = self.checkpoints.reached
        tick = query.setdefault("tick", reached)
        if type(tick) is not int or not 0 <= tick <= reached:
            raise SessionError(
                f"tick {tick} is not in this run, which has come to tick {reached}",
                hint="Ask for a tick in that range.",
            )
        self.checkpoints.forget_dead()
        kind = query.get("q")
        if kind in ASKED:
            self.checkpoints.ask(query, fd)
            return {}
        if kind in search.SEARCHES:
            quick = search.answer_at_once(query, self.low_writes, self.checkpoints)
            if quick is None:
                answer_in_a_fork(fd, partial(self._search, query))
            return quick or {}
        known = ", ".join([*ASKED, *search.SEARCHES])
        raise SessionError(f"unknown query {kind!r}", hint=f"Ask for one of: {known}.")

    def _search(self, query: Record) -> Record:
        self.control.close()
        return search.respond(query, self.checkpoints)
