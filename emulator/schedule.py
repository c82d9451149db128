"""Which CPU runs next and for how many instructions: a pure function of quantum, seed and history.

What it is not: aware of time. Two runs with the same quantum and seed and the same guest take the
same slices. A CPU that runs alone (all others parked) takes long slices, because nobody can
notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from emulator.errors import LimitError

SOLO_TICKS: Final = 2_000_000
"""Slice of a CPU that runs alone; bounds how late a parked CPU sees a write to ordinary memory."""
QUANTUM_MIN, QUANTUM_MAX = 1, 100_000_000
_U64 = (1 << 64) - 1


def mix(seed: int, n: int) -> int:
    """The n-th 64-bit number of a seed (SplitMix64, Steele, Lea and Flood 2014)."""
    z = (seed + (n + 1) * 0x9E3779B97F4A7C15) & _U64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _U64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _U64
    return z ^ z >> 31


@dataclass(frozen=True)
class Schedule:
    """Round robin with slices of quantum/2 .. 3 quantum/2 instructions, drawn from the seed."""

    quantum: int
    seed: int
    cut: ClassVar[None] = None
    """No tick is special (`adversary`)."""
    exact: ClassVar[bool] = False
    """A slice may end at the last block boundary before its tick."""
    probes: ClassVar[bool] = True
    """After a slice it may be tried by some more steps whether the CPU only spins."""

    def __post_init__(self) -> None:
        if not QUANTUM_MIN <= self.quantum <= QUANTUM_MAX:
            raise LimitError(
                f"quantum {self.quantum} is not in {QUANTUM_MIN}..{QUANTUM_MAX} instructions",
                hint="give another --quantum",
            )

    def length(self, number: int, runnable: int) -> int:
        """Ticks of slice `number` when so many CPUs can run."""
        if runnable == 1:
            return SOLO_TICKS
        return max(1, self.quantum // 2 + mix(self.seed, number) % (self.quantum + 1))

    @staticmethod
    def next_cpu(last: int, runnable: Sequence[int]) -> int:
        """The next CPU after `last` among the runnable ones (ascending, not empty)."""
        return next((cpu for cpu in runnable if cpu > last), runnable[0])
