"""Schedules that look for trouble: each a function of its own text, so that it can be repeated.

    random:S[:P]             slices of 1 to 512 instructions in an order drawn from S; after P
                             slices the spec's own schedule
    slow:C:R                 CPU C runs one instruction where the others run R
    writer:cpuC:0xA:K:N      right after CPU C's K-th write at real address A (below 0x100) it runs
                             N instructions alone
    others:cpuC:0xA:K:N      right after that write each other CPU runs N instructions first
    before:cpuC:0xA:K:N      right before that write each other CPU runs N instructions first

A place is named by what the guest does, not by a count of slices or events, so that it means the
same write under any quantum and seed, and to any engine. Which tick that is, is found by a run
under the spec's own schedule (`recorder.tick_of_write`): up to there the two are one.

What it is not: unfair. A CPU that can run waits LAG_TICKS instructions of each other at most, which
is a long stall of a real one and short beside the delay loop of a purgatory (65,536 turns): what
such a loop orders stays in order, what nothing orders does not. Memory is sequentially consistent,
so that a barrier always holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from emulator.errors import PlacementError
from emulator.schedule import SOLO_TICKS, Schedule, mix

LAG_TICKS: Final = 4096
PROBED_TICKS: Final = 64
"""A shorter slice of a random order says nothing of a loop."""
_TEXT: Final = re.compile(
    r"(?P<random>random):(?P<seed>\d{1,18})(:(?P<slices>\d{1,9}))?"
    r"|(?P<slow>slow):(?P<slowed>\d{1,2}):(?P<ratio>\d{1,4})"
    r"|(?P<kind>writer|others|before):cpu(?P<cpu>\d{1,2}):0x(?P<at>[0-9a-f]{1,2})"
    r":(?P<nth>\d{1,6}):(?P<ticks>\d{1,4})"
)
FORMS: Final = (
    "random:SEED, slow:CPU:RATIO, or one of writer, others and before with a write and a number"
    " of instructions: others:cpu0:0x38:1:8."
)


class Place(NamedTuple):
    """A write into 0x0-0x100, by what the guest does."""

    cpu: int
    at: int
    nth: int
    """1 for the first that this CPU makes at that address."""

    @property
    def text(self) -> str:
        """As a schedule names it."""
        return f"cpu{self.cpu}:0x{self.at:x}:{self.nth}"

    @property
    def in_words(self) -> str:
        """As people say it."""
        return f"CPU {self.cpu}'s {_ordinal(self.nth)} write at 0x{self.at:x}"


class Adversary:
    """A schedule by its text; `attach` tells it how to learn the tick, `resolve` that of its write.

    Args:
        text: one of the forms above.
        base: the spec's own schedule, which goes on where this one has nothing to say.
    """

    def __init__(self, text: str, base: Schedule) -> None:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise PlacementError(f"schedule {text[:40]!r}", hint=f"It is {FORMS}")
        self.text = text
        self.kind = match["random"] or match["slow"] or match["kind"]
        self.first = int(match["seed"] or match["slowed"] or 0)
        self.second = int(match["slices"] or match["ratio"] or match["ticks"] or 0)
        self.place: Place | None = None
        if match["kind"]:
            self.place = Place(int(match["cpu"]), int(match["at"], 16), int(match["nth"]))
        if self.kind != "random" and not 1 <= self.second <= LAG_TICKS:
            raise PlacementError(
                f"schedule {text!r}: {self.second} is not in 1..{LAG_TICKS}",
                hint="A CPU is never stalled for longer.",
            )
        self.cut: int | None = None
        """Where the schedule steps in; slices before it end there at the latest."""
        self.exact = False
        """The slice that `length` was asked for ends at exactly its tick, in the midst of a block:
        other CPUs see memory between any two instructions, not only where code branches."""
        self.probes = True
        """After that slice it may be tried by some more steps whether the CPU only spins."""
        self._base = base
        self._now: Callable[[], int] = lambda: 0
        self._slices = 0
        self._waited: dict[int, int] = {}
        self._last_tick = 0
        self._others: list[int] | None = None
        self._current = -1

    def attach(self, now: Callable[[], int]) -> None:
        """Say how to learn the tick."""
        self._now = now

    def resolve(self, tick: int | None) -> None:
        """Say which tick ends with the write that this schedule names.

        Raises:
            PlacementError: there is no such write in the run.
        """
        if self.place is None:
            return
        if tick is None:
            raise PlacementError(
                f"schedule {self.text!r}: the run has no such write ({self.place.in_words})",
                hint="`bootflow events --kind low-write` lists the writes into 0x0-0x100.",
            )
        self.cut = tick - (self.kind == "before")

    def in_words(self, tick: int | None = None) -> str:
        """What this schedule does, in a sentence; with the tick of its write where it is known."""
        if self.kind == "random":
            ends = f", for {self.second} slices" if self.second else ""
            return f"slices of 1 to 512 instructions in the order of seed {self.first}{ends}"
        if self.kind == "slow":
            return f"CPU {self.first} runs 1 instruction where the others run {self.second}"
        count = f"{self.second:,} instruction{'s' * (self.second != 1)}"
        who = "it runs" if self.kind == "writer" else "each other CPU runs"
        when = "before" if self.kind == "before" else "after"
        write = self.place.in_words if self.place else ""
        at = "" if tick is None else f" (tick {tick})"
        tail = "before any other CPU does" if self.kind == "writer" else "first"
        return f"right {when} {write}{at} {who} {count} {tail}"

    # --- what the recorder asks -----------------------------------------------------------------

    def next_cpu(self, last: int, runnable: Sequence[int]) -> int:
        """The next CPU among the runnable ones."""
        self._slices += 1
        self._count_waiting(last, runnable)
        late = [cpu for cpu in runnable if self._waited.get(cpu, 0) >= LAG_TICKS]
        chosen = late[0] if late and self.kind == "random" else self._choose(last, runnable)
        self._waited[chosen] = 0
        self._current = chosen
        return chosen

    def length(self, number: int, runnable: int) -> int:
        """Ticks of the slice that begins now; sets `exact` and `probes`."""
        self.exact = self._acts
        self.probes = not self._acts
        if self._acts:
            return self._left if self.kind == "writer" else self.second
        if runnable == 1:
            return self._to_cut(SOLO_TICKS)
        if self.kind == "random" and self._is_random:
            ticks = 1 << mix(self.first ^ 0x4C454E, self._slices) % 10
            self.exact, self.probes = True, ticks >= PROBED_TICKS
            return ticks
        if self.kind == "slow":
            return 1 if self._current == self.first else self.second
        return self._to_cut(self._base.length(number, runnable))

    @property
    def _is_random(self) -> bool:
        return self.second == 0 or self._slices <= self.second

    def _to_cut(self, ticks: int) -> int:
        """So many ticks, or those up to where the schedule steps in."""
        ahead = 0 if self.cut is None else self.cut - self._now()
        if not 0 < ahead <= ticks:
            return ticks
        self.exact, self.probes = True, False
        return ahead

    @property
    def _left(self) -> int:
        """What the writer has still to run alone."""
        return 0 if self.cut is None else self.cut + self.second - self._now()

    @property
    def _acts(self) -> bool:
        """The slice that begins now is not the base schedule's."""
        if self.place is None or self.cut is None or self._now() < self.cut:
            return False
        if self.kind == "writer":
            return self._current == self.place.cpu and self._left > 0
        return self._others is not None and self._current in self._others

    def _count_waiting(self, last: int, runnable: Sequence[int]) -> None:
        now = self._now()
        for cpu in runnable:
            if cpu != last:
                self._waited[cpu] = self._waited.get(cpu, 0) + now - self._last_tick
        self._last_tick = now

    def _choose(self, last: int, runnable: Sequence[int]) -> int:
        if self.kind == "random" and self._is_random:
            return runnable[mix(self.first, self._slices) % len(runnable)]
        if self.place is None or self.cut is None or self._now() < self.cut:
            return self._base.next_cpu(last, runnable)
        if self.kind == "writer":
            alone = self._left > 0 and self.place.cpu in runnable
            return self.place.cpu if alone else self._base.next_cpu(last, runnable)
        if self._others is None:
            self._others = [cpu for cpu in runnable if cpu != self.place.cpu]
        elif last in self._others:  # it has had its turn
            self._others.remove(last)
        left = [cpu for cpu in self._others if cpu in runnable]
        self._others = left
        return left[0] if left else self._after(last, runnable)

    def _after(self, last: int, runnable: Sequence[int]) -> int:
        """When the others have run, the writer goes on, once."""
        if self.place is not None and not self._done and self.place.cpu in runnable:
            self._done = True
            return self.place.cpu
        return self._base.next_cpu(last, runnable)

    _done = False


def _ordinal(number: int) -> str:
    if 10 < number % 100 < 14:
        return f"{number}th"
    return f"{number}{({1: 'st', 2: 'nd', 3: 'rd'}).get(number % 10, 'th')}"


def words_of(schedule: str, write_tick: int | None = None) -> str:
    """Return what a schedule does, in a sentence.

    Args:
        schedule: its text.
        write_tick: the tick of the write that it names, where that is known.

    Raises:
        PlacementError: it is none.
    """
    return Adversary(schedule, Schedule(1, 0)).in_words(write_tick)
