"""When does a CPU only spin? Judged from the instructions of one turn of its loop.

What it is: a pure check of steps that really ran. A CPU spins when it comes back to an
instruction with every register as it was, and nothing on the way can have changed memory or hangs
on the clock. It then stays there until one of the bytes it reads, or one of the instructions it
runs, is changed by another CPU. What it is not: a guess from the look of the code.

Source: Power ISA 3.1 Book I, opcode maps of appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from emulator.cpu import Registers
from emulator.machine import Step

PROBE_STEPS: Final = 64
"""Longest loop that is recognised as a spin, in instructions, is half of this."""

_LOADS_D: Final = {32: 4, 34: 1, 40: 2, 42: 2}  # lwz lbz lhz lha
_LOADS_X: Final = {21: 8, 23: 4, 87: 1, 279: 2, 343: 2, 341: 4, 534: 4, 532: 8, 790: 2}
_PURE: Final = {7, 8, 10, 11, 12, 13, 14, 15, 16, 18, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30}
_PURE_19: Final = {0, 16, 528, 150, 33, 129, 193, 225, 257, 289, 417, 449}
_PURE_31: Final = {
    0, 32, 444, 28, 266, 40, 104, 83, 339, 467, 598, 986, 954, 922, 316, 124, 60, 24, 536, 27,
    539, 19, 144, 854, 278, 246, 15, 30, 26, 58, 792, 794, 824, 826, 827,
}  # fmt: skip


@dataclass(frozen=True)
class Spin:
    """One turn of a spin loop."""

    steps: tuple[Step, ...]
    reads: tuple[tuple[int, int], ...]
    """(effective address, bytes) of every load in it."""


def find_spin(steps: Sequence[Step]) -> Spin | None:
    """The first turn among the steps that leaves everything as it was, or None."""
    seen: dict[Registers, int] = {}
    for n, step in enumerate(steps):
        start = seen.setdefault(step.registers, n)
        if start < n:
            return _judge(tuple(steps[start:n]))
    return None


def _judge(turn: tuple[Step, ...]) -> Spin | None:
    reads: list[tuple[int, int]] = []
    for step in turn:
        if step.special:
            return None
        load = _load_of(step)
        if load is not None:
            reads.append(load)
        elif not _is_pure(step.word):
            return None
    return Spin(turn, tuple(reads))


def _load_of(step: Step) -> tuple[int, int] | None:
    """Effective address and size of a plain load (no update form), None for anything else."""
    word, gpr = step.word, step.registers.gpr
    primary, base = word >> 26, word >> 16 & 31
    start = gpr[base] if base else 0
    if primary in _LOADS_D:
        return (start + _signed16(word)) % (1 << 64), _LOADS_D[primary]
    if primary == 58 and word & 3 in (0, 2):
        return (start + _signed16(word & ~3)) % (1 << 64), 8 if word & 3 == 0 else 4
    if primary == 31 and word >> 1 & 0x3FF in _LOADS_X:
        return (start + gpr[word >> 11 & 31]) % (1 << 64), _LOADS_X[word >> 1 & 0x3FF]
    return None


def _signed16(word: int) -> int:
    low = word & 0xFFFF
    return low - 0x10000 if low & 0x8000 else low


def _is_pure(word: int) -> bool:
    """Whether an instruction only computes on registers, or branches."""
    primary, extended = word >> 26, word >> 1 & 0x3FF
    if primary == 19:
        return extended in _PURE_19
    if primary == 31:
        return extended in _PURE_31
    return primary in _PURE
