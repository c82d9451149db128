"""What a loop does, told from the instructions of its body.

What it is: one word for each loop, from the words between its head and its last branch back, for
labels: a delay, a spin, a copy. What it is not: a proof; `spin` proves that a CPU only spins, and
what the word says of a loop that calls functions is no more than that it does.

Source: Power ISA 3.1 Book I, opcode maps of appendix D.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from emulator.compiled import njit

KINDS: Final = ("delay", "spin", "scan", "fill", "copy", "update", "compute", "call")
"""Counts down; reads what it does not move on from; reads on; writes on; reads and writes as often;
reads and writes; neither; calls functions."""
_DELAY, _SPIN, _SCAN, _FILL, _COPY, _UPDATE, _COMPUTE, _CALLS = range(len(KINDS))

MAX_BODY_WORDS: Final = 256
"""Words of a body that are looked at."""
_DELAY_WORDS: Final = 4


def _table(size: int, numbers: Collection[int]) -> npt.NDArray[np.bool_]:
    table = np.zeros(size, np.bool_)
    table[list(numbers)] = True
    return table


# By primary opcode, and by extended opcode under 31.
_LOADS: Final = _table(64, (32, 33, 34, 35, 40, 41, 42, 43, 46, 48, 49, 50, 51, 56, 58))
_STORES: Final = _table(64, (36, 37, 38, 39, 44, 45, 47, 52, 53, 54, 55, 61, 62))
_LOADS_31: Final = _table(
    1024,
    (20, 21, 23, 52, 53, 55, 84, 87, 116, 119, 279, 311, 341, 343, 373, 375, 532, 533, 534, 535,
     567, 597, 599, 631, 790),
)  # fmt: skip
_STORES_31: Final = _table(
    1024,
    (149, 150, 151, 181, 183, 214, 215, 247, 407, 439, 660, 661, 662, 663, 694, 695, 725, 726, 727,
     759, 918, 1014),
)  # fmt: skip
_UPDATES: Final = _table(64, (33, 35, 37, 39, 41, 43, 45))
_UPDATES_31: Final = _table(1024, (53, 55, 119, 181, 183, 247, 311, 373, 375, 439))
_ADDS: Final = _table(64, (7, 8, 12, 13, 14, 15))
_ADDS_31: Final = _table(1024, (40, 266))


@njit(cache=True)
def _is_load(word: int) -> bool:
    primary = word >> 26
    return bool(_LOADS[primary] or (primary == 31 and _LOADS_31[word >> 1 & 0x3FF]))


@njit(cache=True)
def _is_store(word: int) -> bool:
    primary = word >> 26
    return bool(_STORES[primary] or (primary == 31 and _STORES_31[word >> 1 & 0x3FF]))


@njit(cache=True)
def _is_call(word: int) -> bool:
    primary, extended = word >> 26, word >> 1 & 0x3FF
    branches = primary == 16 or primary == 18
    to_register = primary == 19 and (extended == 16 or extended == 528 or extended == 560)
    return bool(word & 1 and (branches or to_register))


@njit(cache=True)
def _changed(word: int) -> int:
    """A bit for each register that an address may be made of and that the word moves on."""
    primary, extended = word >> 26, word >> 1 & 0x3FF
    bits = 0
    if _UPDATES[primary] or (primary == 31 and _UPDATES_31[extended]):
        bits |= 1 << (word >> 16 & 31)
    if (primary == 58 or primary == 62) and word & 3 == 1:
        bits |= 1 << (word >> 16 & 31)
    if _ADDS[primary] or (primary == 31 and _ADDS_31[extended]):
        bits |= 1 << (word >> 21 & 31)
    return bits


@njit(cache=True)
def in_order(raw: int, little: bool) -> int:
    """An instruction as a number: from what a little-endian host reads in its place."""
    if little:
        return raw
    return (raw & 0xFF) << 24 | (raw & 0xFF00) << 8 | (raw >> 8 & 0xFF00) | raw >> 24


@njit(cache=True)
def kind_at(memory: Any, first: int, count: int, little: bool) -> int:
    """Index in KINDS of what a loop does.

    Args:
        memory: uint32 words as a little-endian host reads them.
        first: index of its head.
        count: words from its head to its last branch back.
        little: the byte order that it ran with.
    """
    loads = stores = changed = read_by = 0
    for n in range(first, first + min(count, MAX_BODY_WORDS)):
        if n >= len(memory):
            break
        word = in_order(np.int64(memory[n]), little)
        if _is_call(word):
            return _CALLS
        changed |= _changed(word)
        stores += _is_store(word)
        if _is_load(word):
            loads += 1
            read_by |= 1 << (word >> 16 & 31)
            if word >> 26 == 31:
                read_by |= 1 << (word >> 11 & 31)
    if not loads and not stores:
        return _DELAY if count <= _DELAY_WORDS else _COMPUTE
    if not loads:
        return _FILL
    if not stores:
        return _SCAN if changed & read_by else _SPIN
    return _COPY if loads == stores else _UPDATE
