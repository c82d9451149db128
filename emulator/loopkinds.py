"""What a loop does, told from the instructions of its body.

What it is: one word for each loop, from the words between its head and its last branch back, for
labels: a delay, a spin, a copy. What it is not: a proof; `spin` proves that a CPU only spins, and
what the word says of a loop that calls functions is no more than that it does.

Source: Power ISA 3.1 Book I, opcode maps of appendix D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

KINDS: Final = ("delay", "spin", "scan", "fill", "copy", "update", "compute", "call")
"""Counts down; reads what it does not move on from; reads on; writes on; reads and writes as often;
reads and writes; neither; calls functions."""

MAX_BODY_WORDS: Final = 256
"""Words of a body that are looked at."""
_DELAY_WORDS: Final = 4

_LOADS: Final = frozenset({32, 33, 34, 35, 40, 41, 42, 43, 46, 48, 49, 50, 51, 56, 58})
_STORES: Final = frozenset({36, 37, 38, 39, 44, 45, 47, 52, 53, 54, 55, 61, 62})
_LOADS_31: Final = frozenset(
    {20, 21, 23, 52, 53, 55, 84, 87, 116, 119, 279, 311, 341, 343, 373, 375, 532, 533, 534, 535,
     567, 597, 599, 631, 790}
)  # fmt: skip
_STORES_31: Final = frozenset(
    {149, 150, 151, 181, 183, 214, 215, 247, 407, 439, 660, 661, 662, 663, 694, 695, 725, 726, 727,
     759, 918, 1014}
)  # fmt: skip
_UPDATES: Final = frozenset({33, 35, 37, 39, 41, 43, 45})
_UPDATES_31: Final = frozenset({53, 55, 119, 181, 183, 247, 311, 373, 375, 439})


def _is_load(word: int) -> bool:
    primary = word >> 26
    return primary in _LOADS or (primary == 31 and word >> 1 & 0x3FF in _LOADS_31)


def _is_store(word: int) -> bool:
    primary = word >> 26
    return primary in _STORES or (primary == 31 and word >> 1 & 0x3FF in _STORES_31)


def _is_call(word: int) -> bool:
    primary, linked = word >> 26, word & 1
    return bool(linked) and (
        primary in (16, 18) or (primary == 19 and word >> 1 & 0x3FF in (16, 528, 560))
    )


def _moves_on(words: Sequence[int]) -> bool:
    """Some register that a load's address is made of is changed in the body."""
    changed: set[int] = set()
    for word in words:
        primary, rt, ra = word >> 26, word >> 21 & 31, word >> 16 & 31
        extended = word >> 1 & 0x3FF
        if primary in _UPDATES or (primary == 31 and extended in _UPDATES_31):
            changed.add(ra)
        if primary in (58, 62) and word & 3 == 1:
            changed.add(ra)
        if primary in (14, 15, 7, 8, 12, 13) or (primary == 31 and extended in (266, 40)):
            changed.add(rt)
    for word in words:
        if _is_load(word):
            named = {word >> 16 & 31} | ({word >> 11 & 31} if word >> 26 == 31 else set())
            if named & changed:
                return True
    return False


def kind_of(words: Sequence[int]) -> str:
    """One of KINDS.

    Args:
        words: the instructions from T to B, as numbers in the byte order that they ran with.
    """
    if any(_is_call(word) for word in words):
        return "call"
    loads, stores = sum(map(_is_load, words)), sum(map(_is_store, words))
    if not loads and not stores:
        return "delay" if len(words) <= _DELAY_WORDS else "compute"
    if not loads:
        return "fill"
    if not stores:
        return "scan" if _moves_on(words) else "spin"
    return "copy" if loads == stores else "update"
