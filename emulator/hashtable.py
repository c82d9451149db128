"""The hashed page table of a partition, which the hypervisor holds and the guest asks it to change.

What it is: the entries, the checks that the PAPR asks for, and the hypercalls on them. What it is
not: the lookup (`mmu`); nothing here sets R and C bits, because translation does not.

Source: LoPAR 1.1, 14.5.4.1 (H_ENTER, H_READ, H_REMOVE, H_BULK_REMOVE, H_PROTECT, H_CLEAR_MOD,
H_CLEAR_REF); Power ISA 2.07 Book III-S 5.7.7.3 (page table entry).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from emulator.mmu import (
    HPTE_R_G,
    HPTE_R_N,
    HPTE_R_PP,
    HPTE_R_RPN,
    HPTE_V_AVPN,
    HPTE_V_VALID,
    HPTE_WORDS,
    PTEG_ENTRIES,
    page_shift,
)
from emulator.papr import (
    BULK_ANDCOND,
    BULK_AVPN,
    BULK_CODE_SHIFT,
    BULK_END,
    BULK_FLAGS,
    BULK_INDEX,
    BULK_NOT_FOUND,
    BULK_PAIRS,
    BULK_PARAMETER,
    BULK_RC_SHIFT,
    BULK_REQUEST,
    BULK_RESPONSE,
    BULK_TYPE,
    H_ANDCOND,
    H_AVPN,
    H_EXACT,
    H_NOT_FOUND,
    H_PARAMETER,
    H_PTEG_FULL,
    H_READ_4,
    H_SUCCESS,
    U64,
)

MIN_ORDER, MAX_ORDER = 18, 28
"""log2 of the sizes in bytes that the ISA allows at least, and that a machine has here at most: as
much as a partition of 32 GiB is given."""

_SOFTWARE: Final = 0x60
"""Bits of the first doubleword that a hypervisor clears on H_ENTER."""
_R, _C, _WIMG, _M = 0x100, 0x80, 0x78, 0x10
_PP0, _KEY_HIGH, _KEY_LOW = 1 << 63, 0x3000000000000000, 0xE00
_PROTECTION: Final = _PP0 | HPTE_R_PP | HPTE_R_N | _KEY_HIGH | _KEY_LOW


def table_bytes(order: int) -> int:
    """Size of a table of 2^order bytes as the device tree offers it; 0 for what cannot be."""
    return 1 << order if MIN_ORDER <= order <= MAX_ORDER else 0


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class HashTable:
    """The hashed page table.

    Args:
        size: in bytes, a power of two; 0 for a partition without one.
        ram_bytes: end of RAM: a page below it is mapped as memory, one above as a device.
    """

    def __init__(self, size: int, ram_bytes: int) -> None:
        self.words = np.zeros(size // 8, np.int64)
        """Entries of two doublewords, as numbers, not as bytes of either order."""
        self._ram_bytes = ram_bytes
        self._slots = size // (8 * HPTE_WORDS)
        self._touched: set[int] = set()
        """Groups in which an entry was ever made."""

    def contents(self) -> bytes:
        """All that it holds, for a digest of the state; empty if nothing was ever entered."""
        if not self._touched:
            return b""
        groups = np.array(sorted(self._touched))
        rows = self.words.reshape(-1, PTEG_ENTRIES * HPTE_WORDS)[groups]
        return bytes(groups.tobytes() + rows.tobytes())

    def entry(self, slot: int) -> tuple[int, int]:
        """Both doublewords of an entry, unsigned."""
        v, r = self.words[HPTE_WORDS * slot : HPTE_WORDS * (slot + 1)].tolist()
        return v & U64, r & U64

    def _store(self, slot: int, v: int, r: int) -> None:
        self._touched.add(slot // PTEG_ENTRIES)
        self.words[HPTE_WORDS * slot : HPTE_WORDS * (slot + 1)] = _signed(v), _signed(r)

    # --- hypercalls: arguments from r4 on, answers from r3 on -------------------------------------

    def enter(self, args: list[int]) -> list[int]:
        """H_ENTER(flags, slot, v, r) -> slot."""
        flags, slot, v, r = args[:4]
        shift = page_shift.py_func(0, v, r)  # called too rarely to be worth compiling
        if not shift or slot >= self._slots or not self._is_storage_class(r, shift):
            return [H_PARAMETER]
        group = slot - slot % PTEG_ENTRIES
        wanted = (slot,) if flags & H_EXACT else range(group, group + PTEG_ENTRIES)
        for at in wanted:
            if not self.entry(at)[0] & HPTE_V_VALID:
                self._store(at, v & ~_SOFTWARE, r)
                return [H_SUCCESS, at]
        return [H_PTEG_FULL]

    def _is_storage_class(self, r: int, shift: int) -> bool:
        """Memory is cacheable and coherent, all else is caching-inhibited."""
        real = r & HPTE_R_RPN & ~((1 << shift) - 1)
        if real < self._ram_bytes:
            return r & _WIMG == _M
        return r & _WIMG & ~HPTE_R_G & ~_M == 0x20

    def read(self, args: list[int]) -> list[int]:
        """H_READ(flags, slot) -> v, r of one entry, or of the four from slot & ~3 on."""
        flags, slot = args[:2]
        if slot >= self._slots:
            return [H_PARAMETER]
        slots = range(slot & ~3, (slot & ~3) + 4) if flags & H_READ_4 else (slot,)
        return [H_SUCCESS] + [word for at in slots for word in self.entry(at)]

    def remove(self, args: list[int]) -> list[int]:
        """H_REMOVE(flags, slot, avpn or mask) -> v, r as they were."""
        flags, slot, given = args[:3]
        if slot >= self._slots:
            return [H_PARAMETER]
        v, r = self.entry(slot)
        other = flags & H_AVPN and (v ^ given) & HPTE_V_AVPN & U64
        if not v & HPTE_V_VALID or other or (flags & H_ANDCOND and v & given):
            return [H_NOT_FOUND]
        self._store(slot, 0, 0)
        return [H_SUCCESS, v, r]

    def bulk_remove(self, args: list[int]) -> list[int]:
        """H_BULK_REMOVE(four pairs of request and avpn) -> the pairs, requests answered."""
        pairs = list(args[: 2 * BULK_PAIRS])
        for at in range(0, 2 * BULK_PAIRS, 2):
            request = pairs[at]
            if request & BULK_TYPE == BULK_END:
                break
            conditions = request & BULK_FLAGS
            if request & BULK_TYPE != BULK_REQUEST or conditions == BULK_FLAGS:
                return [H_PARAMETER, *pairs]
            flags = H_AVPN if conditions == BULK_AVPN else 0
            flags |= H_ANDCOND if conditions == BULK_ANDCOND else 0
            answer = self.remove([flags, request & BULK_INDEX, pairs[at + 1]])
            pairs[at] = request & (BULK_INDEX | BULK_FLAGS) | BULK_RESPONSE
            if answer[0] == H_SUCCESS:
                pairs[at] |= (answer[2] & (_R | _C)) << BULK_RC_SHIFT
            elif answer[0] == H_NOT_FOUND:
                pairs[at] |= BULK_NOT_FOUND << BULK_CODE_SHIFT
            else:
                pairs[at] |= BULK_PARAMETER << BULK_CODE_SHIFT
                return [H_PARAMETER, *pairs]
        return [H_SUCCESS, *pairs]

    def protect(self, args: list[int]) -> list[int]:
        """H_PROTECT(flags with pp, n and key, slot, avpn)."""
        flags, slot, avpn = args[:3]
        if slot >= self._slots:
            return [H_PARAMETER]
        v, r = self.entry(slot)
        other = flags & H_AVPN and (v ^ avpn) & HPTE_V_AVPN & U64
        if not v & HPTE_V_VALID or other:
            return [H_NOT_FOUND]
        new = flags << 55 & _PP0 | flags << 48 & _KEY_HIGH
        new |= flags & (HPTE_R_PP | HPTE_R_N | _KEY_LOW)
        self._store(slot, v, r & ~_PROTECTION & U64 | new)
        return [H_SUCCESS]

    def clear_modified(self, args: list[int]) -> list[int]:
        """H_CLEAR_MOD(flags, slot) -> r as it was."""
        return self._clear(args[1], _C)

    def clear_referenced(self, args: list[int]) -> list[int]:
        """H_CLEAR_REF(flags, slot) -> r as it was."""
        return self._clear(args[1], _R)

    def _clear(self, slot: int, bit: int) -> list[int]:
        if slot >= self._slots:
            return [H_PARAMETER]
        v, r = self.entry(slot)
        if not v & HPTE_V_VALID:
            return [H_NOT_FOUND]
        self._store(slot, v, r & ~bit)
        return [H_SUCCESS, r]
