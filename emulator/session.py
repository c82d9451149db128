"""A process that has run a trace, or runs it, and answers questions about any tick of it.

What it is: the inside of a sandboxed session process. At each checkpoint it forks: the child keeps the
whole machine as it stood then (rr's way; DESIGN: measured at 4-10 ms and under 1 MB each). A question
about tick T goes to the last checkpoint before T, which forks again, runs the recorded slices up to
exactly T, answers on the descriptor that came with the question, and ends. So a question that crashes
costs that question alone, and many can be answered at once.

What it is not: the process's walls (`app/sandbox.py`), its starter (`app/sessions.py`), or a file.

Protocol on the control socket (SOCK_SEQPACKET, JSON): out, records, one a line, several a message; in,
`{"q": "cancel"}`, or a query with one descriptor (SCM_RIGHTS) that takes one JSON document.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from emulator.errors import BootflowError, DivergenceError, SessionError
from emulator.recorder import Prepared, Recorder, RunSpec, prepare
from emulator.run import Record, Run

MAX_MESSAGE_BYTES: Final = 128 << 10
FLUSH_SECONDS: Final = 0.05
MAX_CHECKPOINTS: Final = 64
MAX_SLICES_PER_CHECKPOINT: Final = 3000
"""So many slices fit into the message that a checkpoint gets with a question."""
_REPLAY_POLL_TICKS: Final = 5_000_000


def serve(job: Mapping[str, Any], images: Mapping[str, bytes], control: socket.socket) -> None:
    """Run a job and answer queries until the control socket closes.

    Args:
        job: {"op": "record" | "replay", "spec": ..., "names": {role: file name}}; a replay also has
            "slices": [[cpu, ticks], ...] and "checkpoints": [[tick, digest], ...].
        images: role -> content.
        control: see the module's docstring.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children need no wait
    session = _Session(control)
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


@dataclass
class _Checkpoint:
    tick: int
    first_slice: int
    """Index of the first slice that begins at or after the tick."""
    link: socket.socket
    """To the forked process that stands there."""


class _Session:
    """State of the root process of a session."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.slices: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self.reached = 0
        self._checkpoints: list[_Checkpoint] = []
        self._buffer: list[str] = []
        self._buffered = 0
        self._flushed_at = time.monotonic()
        self._cancel = ""
        self._closed = False
        self._goal = 0
        """Where a replay will come to: queries up to there wait for it."""
        self._waiting: list[tuple[Record, int]] = []

    # --- records out ----------------------------------------------------------------------------

    def emit(self, record: Record) -> None:
        """Queue a record; they go out in messages of many."""
        if record["t"] == "slice":
            self.add_slice(record["cpu"], record["ticks"])
        line = json.dumps(record, separators=(",", ":"))
        if self._buffered + len(line) > MAX_MESSAGE_BYTES:
            self.flush()
        self._buffer.append(line)
        self._buffered += len(line) + 1
        if record["t"] == "end":
            self.flush()

    def add_slice(self, cpu: int, ticks: int) -> None:
        """Take note of a slice that has run."""
        self._starts.append(self.reached)
        self.slices.append((cpu, ticks))
        self.reached += ticks

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
        recorder = Recorder(prepared, self.emit, poll=self._poll, on_checkpoint=self.checkpoint)
        recorder.record()

    def _poll(self) -> str | None:
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()
        while self._readable():
            self._take_query()
        return self._cancel or ("the session was closed" if self._closed else None)

    def replay(self, prepared: Prepared, job: Mapping[str, Any]) -> None:
        """Run recorded slices again; every checkpoint is compared with the record."""
        recorded = {int(tick): str(digest) for tick, digest in job.get("checkpoints", [])}
        slices = [(int(cpu), int(ticks)) for cpu, ticks in job["slices"]]
        self._goal = sum(ticks for _, ticks in slices)
        run = prepared.start(lambda record: None)
        self._replayed(run, recorded)
        for cpu, ticks in slices:
            run_slice(run, cpu, run.machine.tick + ticks)
            self.add_slice(cpu, ticks)
            if run.machine.tick in recorded:
                self._replayed(run, recorded)
            self._answer_waiting()
            self._poll()
            if self._closed:
                return
        self.emit({"t": "progress", "tick": self.reached})
        self.flush()

    def _replayed(self, run: Run, recorded: Mapping[int, str]) -> None:
        tick, digest = run.machine.tick, run.machine.state_digest()
        if recorded.get(tick, digest) != digest:
            raise DivergenceError(
                f"the replay differs from the record at tick {tick}, on a CPU or in memory that "
                f"changed since the checkpoint before: state digest {digest}, not {recorded[tick]}",
                hint="This is a bug of bootflow: please report it with the trace.",
            )
        self.emit({"t": "checkpoint", "tick": tick, "digest": digest})
        self.checkpoint(run)

    # --- checkpoints ------------------------------------------------------------------------------

    def checkpoint(self, run: Run) -> None:
        """Fork: the child stands at this tick for as long as the session lives."""
        if len(self._checkpoints) >= MAX_CHECKPOINTS:
            self._thin_out()
        self.flush()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if os.fork() == 0:
            ours.close()
            self.control.close()
            for other in self._checkpoints:
                other.link.close()
            for _, answer in self._waiting:  # else whoever asked would never see its end
                os.close(answer)
            _stand(run, theirs)
        theirs.close()
        self._checkpoints.append(_Checkpoint(run.machine.tick, len(self.slices), ours))

    def _thin_out(self) -> None:
        """End every second checkpoint but the first and the last."""
        for checkpoint in self._checkpoints[1:-1:2]:
            checkpoint.link.close()
        self._checkpoints[1:-1] = self._checkpoints[2:-1:2]

    # --- queries ----------------------------------------------------------------------------------

    def _readable(self, seconds: float = 0.0) -> bool:
        return not self._closed and bool(select.select([self.control], [], [], seconds)[0])

    def answer_until_closed(self) -> None:
        """Hand queries on to checkpoints until nobody can ask any more."""
        gc.collect()
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
        for query, answer in waiting:
            tick = query.get("tick", self.reached)
            if type(tick) is int and self.reached < tick <= self._goal:
                self._waiting.append((query, answer))
                continue
            try:
                self._hand_on(query, answer)
            finally:
                os.close(answer)

    def _hand_on(self, query: Record, answer: int) -> None:
        tick = query.get("tick", self.reached)
        if type(tick) is not int or not 0 <= tick <= self.reached:
            message = f"tick {tick} is not in this run, which has come to tick {self.reached}"
            _answer(answer, _error(SessionError(message, hint="Ask for a tick in that range.")))
            return
        ticks = [checkpoint.tick for checkpoint in self._checkpoints]
        checkpoint = self._checkpoints[bisect_right(ticks, tick) - 1]
        last = bisect_right(self._starts, tick)
        slices = self.slices[checkpoint.first_slice : last]
        if len(slices) > MAX_SLICES_PER_CHECKPOINT:
            slices = slices[:MAX_SLICES_PER_CHECKPOINT]
        job = {"query": query | {"tick": tick}, "slices": slices}
        try:
            socket.send_fds(checkpoint.link, [json.dumps(job).encode()], [answer])
        except OSError as error:
            _answer(answer, _error(SessionError(f"a checkpoint is gone: {error}", hint="Try again.")))


def run_slice(run: Run, cpu: int, until_tick: int) -> None:
    """Run one CPU to exactly a tick.

    Raises:
        DivergenceError: it cannot get there, although the record says so.
    """
    while run.machine.tick < until_tick:
        begin = run.machine.tick
        stop = run.advance(cpu, until_tick, exact=True)
        if stop.why == "fault" or (run.machine.tick == begin and stop.why == "limit"):
            nip, symbol, _ = run.where(cpu)
            raise DivergenceError(
                f"CPU {cpu} stops at tick {run.machine.tick} (nip 0x{nip:016x} {symbol}), but the "
                f"record has it go on to tick {until_tick}",
                hint="This is a bug of bootflow: please report it with the trace.",
            )


def _stand(run: Run, link: socket.socket) -> None:
    """What a checkpoint's process does: fork for every question, until the link closes."""
    gc.collect()
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(link, 1 << 20, 4)
        except OSError:
            os._exit(0)
        if not message:
            os._exit(0)
        if fds and os.fork() == 0:
            link.close()
            _answer(fds[0], _respond(run, message))
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _respond(run: Run, message: bytes) -> Record:
    """The answer to one question, in a process of its own."""
    try:
        job = json.loads(message)
        tick = job["query"]["tick"]
        for cpu, ticks in job["slices"]:
            run_slice(run, cpu, min(run.machine.tick + ticks, tick))
        return QUERIES[job["query"]["q"]](run, job["query"])
    except BootflowError as error:
        return _error(error)
    except KeyError as error:
        return _error(SessionError(f"unknown query {error}", hint="Ask for one of: state."))


def _state(run: Run, query: Record) -> Record:
    return run.state()


QUERIES: Final[dict[str, Callable[[Run, Record], Record]]] = {"state": _state}


def _error(error: BootflowError) -> Record:
    return {"error": {"slug": error.slug, "message": error.message, "hint": error.hint}}


def _answer(fd: int, document: Record) -> None:
    """Write one document to a descriptor; whoever asked may have gone."""
    data = memoryview(json.dumps(document, separators=(",", ":")).encode())
    with suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]
