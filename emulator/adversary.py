"""Schedules that look for trouble: each a function of its own text, so that it can be repeated.

    random:S[:P]   slices of 1 to 512 instructions in an order drawn from S; after P slices the
                   spec's own schedule
    slow:C:R       CPU C runs one instruction where the others run R
    writer:K:N     after the K-th write into 0x0-0x100 its writer runs N instructions alone
    others:K:N     after the K-th write into 0x0-0x100 each other CPU runs N instructions first

What it is not: unfair. A CPU that can run waits LAG_TICKS instructions of the others at most, which
is a long stall of a real one and short beside the delay loop of a purgatory (65,536 turns): what
such a loop orders stays in order, what nothing orders does not. Memory is sequentially consistent,
so that a barrier always holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from emulator.errors import PlacementError
from emulator.schedule import SOLO_TICKS, Schedule, mix

LAG_TICKS: Final = 4096
_TEXT: Final = re.compile(
    r"(random):(\d{1,18})(?::(\d{1,9}))?|(slow|writer|others):(\d{1,6}):(\d{1,4})"
)


class Adversary:
    """A schedule by its text; `attach` tells it the tick, `wrote` of each low-memory write."""

    def __init__(self, text: str, base: Schedule) -> None:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise PlacementError(
                f"schedule {text[:40]!r}",
                hint="It is random:SEED, slow:CPU:RATIO, writer:WRITE:TICKS or others:WRITE:TICKS.",
            )
        self.text = text
        self.kind = match[1] or match[4]
        self.first = int(match[2] or match[5])
        self.second = int(match[3] or match[6] or 0)
        if self.kind != "random" and not 1 <= self.second <= LAG_TICKS:
            raise PlacementError(
                f"schedule {text!r}: {self.second} is not in 1..{LAG_TICKS}",
                hint="A CPU is never stalled for longer.",
            )
        self._base = base
        self._now: Callable[[], int] = lambda: 0
        self._writes = self._slices = 0
        self._waited: dict[int, int] = {}
        self._last_tick = 0
        self._writer = -1
        self._until = -1
        self._others: list[int] | None = None
        self._current = -1

    def attach(self, now: Callable[[], int]) -> None:
        """Say how to learn the tick."""
        self._now = now

    def wrote(self, cpu: int) -> None:
        """A CPU has written into 0x0-0x100."""
        self._writes += 1
        if self._writes == self.first and self.kind in ("writer", "others"):
            self._writer = cpu
            self._until = self._now() + self.second

    def in_words(self) -> str:
        """What this schedule does, in a sentence."""
        if self.kind == "random":
            ends = f", up to slice {self.second}" if self.second else ""
            return f"slices of 1 to 512 instructions in the order of seed {self.first}{ends}"
        if self.kind == "slow":
            return f"CPU {self.first} runs 1 instruction where the others run {self.second}"
        who = "its writer runs" if self.kind == "writer" else "each other CPU runs"
        return (
            f"after write {self.first} into 0x0-0x100 {who} {self.second} instruction"
            f"{'s' * (self.second != 1)} {'alone' if self.kind == 'writer' else 'first'}"
        )

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
        """Ticks of the slice that begins now."""
        if runnable == 1:
            return SOLO_TICKS
        if self.kind == "random" and self._is_random:
            return 1 << mix(self.first ^ 0x4C454E, self._slices) % 10
        if self.kind == "slow":
            return 1 if self._current == self.first else self.second
        if self._writer >= 0 and self.kind == "writer" and self._current == self._writer:
            return max(1, self._until - self._now())
        if self._others is not None and self._current in self._others:
            self._others.remove(self._current)
            return self.second
        return self._base.length(number, runnable)

    @property
    def _is_random(self) -> bool:
        return self.second == 0 or self._slices <= self.second

    def _count_waiting(self, last: int, runnable: Sequence[int]) -> None:
        now = self._now()
        for cpu in runnable:
            if cpu != last:
                self._waited[cpu] = self._waited.get(cpu, 0) + now - self._last_tick
        self._last_tick = now

    def _choose(self, last: int, runnable: Sequence[int]) -> int:
        if self.kind == "random" and self._is_random:
            return runnable[mix(self.first, self._slices) % len(runnable)]
        if self._writer in runnable and self.kind == "writer":
            if self._now() < self._until:
                return self._writer
            self._writer = -1
        if self._writer >= 0 and self.kind == "others":
            if self._others is None:
                self._others = [cpu for cpu in runnable if cpu != self._writer]
            if self._others:
                left = [cpu for cpu in self._others if cpu in runnable]
                if left:
                    return left[0]
            self._writer, self._others = -1, None
        return self._base.next_cpu(last, runnable)
