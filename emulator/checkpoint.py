"""Checkpoints: forked copies of the whole machine, each standing at one tick.

What it is: `Checkpoints` keeps, in the root of a session, one socket to each of them, the
recorded slices and the pages written between them; `ask` hands a question to the right one. What
it is not: anything in a file. A fork costs about 3 ms and 3 MB of private memory (measured on the
Debian pair).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from emulator.census import Census
from emulator.errors import BootflowError, SessionError, SessionGone
from emulator.located import add_line_of_event, add_lines
from emulator.queries import QUERIES, Path
from emulator.run import Record, Run
from emulator.spans import Span, spans_of

MAX_CHECKPOINTS: Final = 160
CHECKPOINT_SECONDS: Final = 0.010
"""CPU time between two checkpoints, at least: a seek has to do so much again at most. It says only
where checkpoints stand, never what a question answers, so it may hang on a clock."""
MAX_SLICES: Final = 3000
"""Slices between two checkpoints, before there are too many of these."""
MAX_QUESTION_BYTES: Final = 180 << 10
"""Of one message, packed; some 100,000 slices fit."""
ANSWER_CPU_SECONDS: Final = 30.0
"""CPU time of one process that answers; the kernel ends it then, whatever it runs. The shell waits
for an answer a minute at most, but who no longer waits cannot end the work."""


@dataclass
class Checkpoint:
    """One forked process, as the root sees it."""

    tick: int
    first_slice: int
    """Index of the first slice that begins at or after the tick."""
    link: socket.socket
    pages: npt.NDArray[np.int64]
    """Pages written between the checkpoint before and this one."""
    seconds: float
    """Work done since the start of the run, without what checkpoints cost."""


class Checkpoints:
    """All checkpoints of a session, and the slices that lead from one to the next.

    Args:
        apart_seconds: CPU time between two; less makes seeks faster and recording slower.
    """

    def __init__(self, apart_seconds: float = CHECKPOINT_SECONDS) -> None:
        self._apart = apart_seconds
        self.dense = apart_seconds <= CHECKPOINT_SECONDS
        self.slices: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self.reached = 0
        self.standing: list[Checkpoint] = []
        self._stages: dict[int, list[tuple[int, str]]] = {}
        self._turns: list[int] = []
        self._trail: list[npt.NDArray[np.int64]] = []
        self._forking = 0.0
        self.broken = False
        """Not every tick can be reached any more: the session is to end."""

    def follow(self, run: Run) -> None:
        """Keep the trail that a run leaves, and its names, ready for the checkpoints."""
        run.names.prepare_lines()
        run.on_trail = self._trail.append
        self.run = run
        self.census = Census(run.names.function_starts())

    @property
    def cpus(self) -> int:
        """How many CPUs the machine has."""
        return len(self.run.machine.cpus)

    def sampled_spans(self, begin: int, end: int) -> list[Span]:
        """Functions during [begin, end), as far as one look in 16,384 ticks tells."""
        rows = np.concatenate([*self._trail, np.zeros((0, 3), np.int64)])
        inside = rows[(rows[:, 0] >= begin) & (rows[:, 0] < end)]
        return spans_of(self.run.names, inside, end)

    def exact_spans(self, begin: int, end: int, width: int) -> list[Span] | None:
        """Functions during [begin, end), exactly; None while the census is not complete."""
        if not self.census.complete:
            return None
        return self.census.spans(self.run.names, begin, end, width)

    def with_line(self, event: Record) -> Record:
        """What was noted of an instruction, with its source line."""
        return add_line_of_event(event, self.run.names)

    def note_stage(self, tick: int, cpu: int, stage: str) -> None:
        """Take note of a change of stage."""
        self._stages.setdefault(cpu, []).append((tick, stage))

    def note_turn(self, tick: int) -> None:
        """Take note of a tick at which more happened than instructions that retired."""
        self._turns.append(tick)

    def is_plain(self, first_tick: int, last_tick: int) -> bool:
        """Between two ticks nothing happened but instructions that retired."""
        at = bisect_right(self._turns, first_tick - 3)
        return at == len(self._turns) or self._turns[at] > last_tick + 2

    def stage_at(self, tick: int, cpu: int) -> str:
        """The stage in which a CPU ran the instruction that made this tick."""
        changes = self._stages.get(cpu, [])
        at = bisect_right(changes, tick - 1, key=lambda change: change[0])
        return changes[at - 1][1] if at else "hand-over"

    def add_slice(self, cpu: int, ticks: int) -> None:
        """Take note of a slice that has run."""
        self._starts.append(self.reached)
        self.slices.append((cpu, ticks))
        self.reached += ticks

    def _worked(self) -> float:
        """CPU time of the run so far, without what checkpoints cost."""
        return time.process_time() - self._forking

    @property
    def due(self) -> bool:
        """So much work, or so many slices, since the last checkpoint that the next is due."""
        if not self.standing:
            return True
        worked, last = self._worked(), self.standing[-1]
        apart = max(self._apart, worked / MAX_CHECKPOINTS)
        return worked - last.seconds >= apart or len(self.slices) - last.first_slice >= MAX_SLICES

    def fork(self, run: Run, inherited: Sequence[int]) -> None:
        """Leave a copy of this process standing at this tick.

        Args:
            run: the run, which stands at `reached`.
            inherited: descriptors of the root that the copy must not keep open.
        """
        begin, seconds = time.process_time(), self._worked()
        pages = run.machine.take_dirty()
        if self.standing and self.standing[-1].tick == run.machine.tick:
            last = self.standing[-1]
            last.pages = np.union1d(last.pages, pages)
            return
        while len(self.standing) >= MAX_CHECKPOINTS:
            self._thin_out()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if os.fork() == 0:
            ours.close()
            for other in self.standing:
                other.link.close()
            for fd in inherited:  # else whoever waits for their end would wait for ever
                os.close(fd)
            stand(run, theirs, self.census)
        theirs.close()
        here = Checkpoint(run.machine.tick, len(self.slices), ours, pages, seconds)
        self.standing.append(here)
        self._forking += time.process_time() - begin

    def _thin_out(self) -> None:
        """End the checkpoint whose neighbours lie closest together; the first and the last stay."""
        at = self.standing
        self._end(min(range(1, len(at) - 1), key=lambda n: at[n + 1].seconds - at[n - 1].seconds))

    def _end(self, index: int) -> None:
        """Let a checkpoint go; what was written before it counts for the next."""
        ended = self.standing.pop(index)
        ended.link.close()
        if index < len(self.standing):
            after = self.standing[index]
            after.pages = np.union1d(ended.pages, after.pages)

    def forget_dead(self) -> None:
        """Leave out the checkpoints whose processes have gone, killed or out of memory.

        Raises:
            SessionGone: the first is among them, from which all can be reached.
        """
        poller = select.poll()
        for checkpoint in self.standing:
            poller.register(checkpoint.link, 0)
        dead = {fd for fd, _ in poller.poll(0)}
        for index in range(len(self.standing) - 1, -1, -1):
            if self.standing[index].link.fileno() in dead:
                self._end(index)
        if not self.standing or self.standing[0].tick:
            self.broken = True
            raise SessionGone("the session lost its first checkpoint", hint="Try again.")

    def index_at(self, tick: int) -> int:
        """Index of the last checkpoint at or before a tick."""
        return bisect_right(self.standing, tick, key=lambda checkpoint: checkpoint.tick) - 1

    def ask(self, query: Record, fd: int) -> None:
        """Hand a question to the checkpoint it begins at; the answer goes to `fd`."""
        kind = QUERIES[query["q"]]
        first = max(0, kind.first_tick(query))
        last = min(self.reached, kind.last_tick(query))
        if query["q"] == "window":
            query = query | {"plain": self.is_plain(first, last)}
        self.ask_at(self.index_at(first), last, query, fd)

    def ask_at(self, index: int, last_tick: int, query: Record, fd: int) -> None:
        """Hand a question to one checkpoint, with the slices up to a tick."""
        checkpoint = self.standing[index]
        end = bisect_right(self._starts, last_tick)
        slices = self.slices[checkpoint.first_slice : max(end, checkpoint.first_slice)]
        job = zlib.compress(json.dumps({"query": query, "slices": slices}).encode(), 1)
        if len(job) > MAX_QUESTION_BYTES:
            raise SessionError("a question that spans too many slices", hint="Ask for less.")
        try:
            socket.send_fds(checkpoint.link, [job], [fd])
        except OSError as error:
            raise SessionError(f"a checkpoint is gone: {error}", hint="Try again.") from error


def stand(run: Run, link: socket.socket, census: Census) -> None:
    """What a checkpoint's process does: fork for every question, until the link closes."""
    run.mute()
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(link, MAX_QUESTION_BYTES + 1, 4)
        except OSError:
            os._exit(0)
        if not message:
            os._exit(0)
        if fds:
            answer_in_a_fork(fds[0], partial(_respond, run, census, link, message))
        for fd in fds:
            os.close(fd)


def answer_in_a_fork(fd: int, work: Callable[[], Record]) -> None:
    """Answer with what `work` returns, in a process of its own: what fails, fails there."""
    try:
        child = os.fork()
    except OSError as error:
        words = f"the session is too busy: {error.strerror}"
        answer(fd, error_document(SessionError(words, hint="Try again in a moment.")))
        return
    if child == 0:
        try:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, ANSWER_CPU_SECONDS)
            gc.disable()
            answer(fd, guarded(work))
        finally:
            os._exit(0)


def guarded(work: Callable[[], Record]) -> Record:
    """What `work` returns, or the error that it raises, as a document."""
    try:
        return work()
    except BootflowError as error:
        return error_document(error)
    except (LookupError, TypeError, ValueError, OverflowError, OSError) as error:
        return error_document(SessionError(f"a question that cannot be answered: {error!r}"))


def _respond(run: Run, census: Census, link: socket.socket, message: bytes) -> Record:
    """The answer to one question, in a process of its own."""
    link.close()
    job = json.loads(zlib.decompress(message))
    query = job["query"]
    slices = [(int(cpu), int(ticks)) for cpu, ticks in job["slices"]]
    return add_lines(QUERIES[query["q"]].answer(Path(run, slices, census), query), run.names)


def error_document(error: BootflowError) -> Record:
    """An error as an answer."""
    return {"error": {"slug": error.slug, "message": error.message, "hint": error.hint}}


def answer(fd: int, document: Record) -> None:
    """Write one document to a descriptor; whoever asked may have gone."""
    data = memoryview(json.dumps(document, separators=(",", ":")).encode())
    with suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]
