"""Effective to physical addresses: real mode, radix and hash, one page at a time.

What it is: the guest's own address translation, as a function of RAM, MSR, process table and PID
(radix), or of the segment lookaside buffer and the hashed page table (hash). It is written in the
subset of Python that numba compiles, because the TLB-fill hook calls it at native speed;
`translate.py_func` is the same code as plain Python. What it is not: a TLB, or the keeper of the
hashed page table (`hashtable`). Neither MMU sets R and C bits, and there are no storage keys: the
device tree offers none.

A partition uses radix from H_REGISTER_PROC_TBL on; until then, and without it, hash.

Source: Power ISA 3.1 Book III 6.7.10 (radix tree translation), 6.7.2 (real mode: a guest ignores
EA0:3); Linux arch/powerpc/include/asm/book3s/64/radix.h for the entry layout. Power ISA 2.07 Book
III-S 5.7.6-5.7.9 (segments, hashed page table, storage protection).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emulator.compiled import njit

ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH = 16, 17, 18  # unicorn.h: uc_mem_type

OK, OUTSIDE_RAM, NO_TABLE, NOT_MAPPED, NOT_ALLOWED, BAD_QUADRANT = 0, 1, 2, 3, 4, 5
NO_SEGMENT, NO_EXECUTE = 6, 7
WHY = {
    OUTSIDE_RAM: "outside RAM",
    NO_TABLE: "translation is on but the partition has no page table",
    NOT_MAPPED: "no valid page table entry",
    NOT_ALLOWED: "the page table entry does not allow it",
    BAD_QUADRANT: "effective address quadrant 1 or 2",
    NO_SEGMENT: "no segment in the SLB",
    NO_EXECUTE: "a segment or page without execution, or guarded",
}

_MSR_IR, _MSR_DR, _MSR_PR = 0x20, 0x10, 0x4000
_REAL_MASK = 0x0FFFFFFFFFFFFFFF
_BASE_MASK = 0x0FFFFFFFFFFFFF00  # RPDB, NLB
_RPN_MASK = 0x01FFFFFFFFFFF000
_PRIVILEGED, _READ, _WRITE, _EXECUTE = 0x8, 0x4, 0x2, 0x1
_EA_BITS = 52

SLB_ENTRIES, SLB_ROW = 32, 3
"""Rows of a CPU's SLB and words of a row: ESID, VSID, and one that is Unicorn's own."""
ESID_V = 1 << 27
_ESID_256M, _ESID_1T = -1 << 28, -1 << 40
_VSID_KS, _VSID_KP, _VSID_N, _VSID_SIZE, _VSID_FLAGS = 0x800, 0x400, 0x200, 0x130, 0xFFF

PTEG_ENTRIES, HPTE_WORDS = 8, 2
HPTE_V_VALID, HPTE_V_SECONDARY, HPTE_V_LARGE, HPTE_V_AVPN = 0x1, 0x2, 0x4, ~0x7F
HPTE_R_N, HPTE_R_G, HPTE_R_PP, HPTE_R_RPN = 0x4, 0x8, 0x3, 0x0FFFFFFFFFFFF000
HPTE_R_LP_SHIFT = 12

SEGMENT_PAGES = ((0x000, 12), (0x110, 16), (0x100, 24), (0x120, 34))
"""L and LP of an SLB entry, log2 of the segment's base page size (POWER7 to POWER10)."""
PAGE_ENCODINGS = ((12, 16, 0x7), (12, 24, 0x38), (16, 16, 0x1), (16, 24, 0x8), (24, 24, 0x0),
                  (34, 34, 0x3))  # fmt: skip
"""log2 of base and actual page size, LP field of an entry with L = 1; without L it is 4 KiB."""


@njit(cache=True)
def _load_be(ram: Any, ram_bytes: int, address: int) -> Any:
    """Load a big-endian doubleword at a physical address; 0 (an invalid entry) when outside RAM."""
    if address < 0 or address + 8 > ram_bytes or address & 7:
        return np.int64(0)
    x = ram[address >> 3]
    x = ((x & np.uint64(0x00FF00FF00FF00FF)) << np.uint64(8)) | (
        (x >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    )
    x = ((x & np.uint64(0x0000FFFF0000FFFF)) << np.uint64(16)) | (
        (x >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    )
    return np.int64((x << np.uint64(32)) | (x >> np.uint64(32)))


@njit(cache=True)
def _walk(ram: Any, ram_bytes: int, ea: int, root: int) -> tuple[int, int]:
    """Walk from a process table entry to the leaf: (leaf, bits of the address it leaves over)."""
    base = root & _BASE_MASK
    bits = root & 0x1F
    left = _EA_BITS
    while 5 <= bits <= 16 and left - bits >= 12:
        left -= bits
        index = (ea >> left) & ((1 << bits) - 1)
        entry = _load_be(ram, ram_bytes, base + 8 * index)
        if entry >= 0:  # bit 0, valid, is the sign bit
            return 0, 0
        if entry & (1 << 62):
            return entry, left
        base = entry & _BASE_MASK
        bits = entry & 0x1F
    return 0, 0


@njit(cache=True)
def _allowed(entry: int, access: int, msr: int) -> bool:
    """Whether a leaf's authority bits allow an access."""
    if (msr & _MSR_PR) and (entry & _PRIVILEGED):
        return False
    if access == ACCESS_READ:
        return bool(entry & (_READ | _WRITE))
    return bool(entry & (_WRITE if access == ACCESS_WRITE else _EXECUTE))


@njit(cache=True)
def find_segment(slb: Any, ea: int) -> int:
    """Index of the SLB entry that holds an effective address, -1 for none."""
    for n in range(SLB_ENTRIES):
        esid = slb[SLB_ROW * n]
        if esid & ESID_V:
            mask = _ESID_1T if slb[SLB_ROW * n + 1] >> 62 & 3 else _ESID_256M
            if not (esid ^ ea) & mask:
                return n
    return -1


@njit(cache=True)
def base_page_shift(vsid: int) -> int:
    """Log2 of the base page size of a segment, 0 for an encoding that does not exist."""
    for bits, shift in SEGMENT_PAGES:
        if vsid & _VSID_SIZE == bits:
            return shift
    return 0


@njit(cache=True)
def page_shift(base: int, v: int, r: int) -> int:
    """Log2 of the page size of a page table entry (v, r) in a segment of base page size 2^base.

    0 if the entry cannot stand for a page of such a segment. A base of 0 asks for any.
    """
    if not v & HPTE_V_LARGE:
        return 12 if base == 12 or base == 0 else 0
    for row_base, actual, encoding in PAGE_ENCODINGS:
        low = r & HPTE_R_RPN & ((1 << actual) - 1)
        if (base == row_base or base == 0) and low == encoding << HPTE_R_LP_SHIFT:
            return actual
    return 0


@njit(cache=True)
def _find_entry(table: Any, vsid: int, ea: int, shift: int) -> tuple[int, int]:
    """Search both groups for a page: (slot, log2 of its size), or (-1, 0)."""
    if vsid >> 62 & 3:
        number = (vsid >> 24) & ((1 << 38) - 1)
        offset = ea & ((1 << 40) - 1)
        hashed = number ^ (number << 25) ^ (offset >> shift)
    else:
        number = (vsid >> 12) & ((1 << 50) - 1)
        offset = ea & ((1 << 28) - 1)
        hashed = number ^ (offset >> shift)
    wanted = (vsid & ~_VSID_FLAGS) | ((offset >> shift << shift) >> 16 & HPTE_V_AVPN)
    mask = len(table) // (PTEG_ENTRIES * HPTE_WORDS) - 1
    for secondary in range(2):
        group = (~hashed if secondary else hashed) & mask
        for slot in range(PTEG_ENTRIES * group, PTEG_ENTRIES * (group + 1)):
            v = table[HPTE_WORDS * slot]
            if (
                v & HPTE_V_VALID
                and bool(v & HPTE_V_SECONDARY) == bool(secondary)
                and (v ^ wanted) & HPTE_V_AVPN == 0
            ):
                size = page_shift(shift, v, table[HPTE_WORDS * slot + 1])
                if size:
                    return slot, size
    return -1, 0


@njit(cache=True)
def protection(pp: int, key: int) -> int:
    """Rights of a page, _READ and _WRITE, by its PP bits (0 to 7) and the segment's key (0, 1)."""
    if pp == 2 or (not key and pp < 2):
        return _READ | _WRITE
    if pp == 3 or (key and pp == 1) or (not key and pp == 6):
        return _READ
    return 0


@njit(cache=True)
def _translate_hashed(
    slb: Any, table: Any, ram_bytes: int, ea: int, access: int, msr: int
) -> tuple[int, int]:
    n = find_segment(slb, ea)
    if n < 0:
        return 0, NO_SEGMENT
    vsid = slb[SLB_ROW * n + 1]
    if access == ACCESS_FETCH and vsid & _VSID_N:
        return 0, NO_EXECUTE
    shift = base_page_shift(vsid)
    slot, size = (-1, 0) if shift == 0 else _find_entry(table, vsid, ea, shift)
    if slot < 0:
        return 0, NOT_MAPPED
    r = table[HPTE_WORDS * slot + 1]
    if access == ACCESS_FETCH and r & (HPTE_R_N | HPTE_R_G):
        return 0, NO_EXECUTE
    key = 1 if vsid & (_VSID_KP if msr & _MSR_PR else _VSID_KS) else 0
    rights = protection((r & HPTE_R_PP) | (r >> 63 & 1) << 2, key)
    if not rights & (_WRITE if access == ACCESS_WRITE else _READ):
        return 0, NOT_ALLOWED
    offset = (1 << size) - 1
    real = (r & HPTE_R_RPN & ~offset) | (ea & offset)
    return (real, OK) if real < ram_bytes else (0, OUTSIDE_RAM)


@njit(cache=True)
def translate(
    ram: Any,
    ram_bytes: int,
    ea: int,
    access: int,
    msr: int,
    process_table: int,
    pid: int,
    slb: Any,
    table: Any,
) -> tuple[int, int]:
    """Translate a page.

    Args:
        ram: the whole of RAM as host doublewords (uint64).
        ram_bytes: its size.
        ea: effective address as a signed 64-bit number; its low 12 bits are kept.
        access: ACCESS_READ, ACCESS_WRITE or ACCESS_FETCH.
        msr: the MSR of the CPU.
        process_table: physical address given to H_REGISTER_PROC_TBL, -1 when none was.
        pid: the PID register.
        slb: SLB_ENTRIES rows of SLB_ROW signed words (ESID, VSID, ignored) as slbmte takes them.
        table: the hashed page table, entries of two signed words; empty if there is none.

    Returns:
        (physical address, OK) or (0, one of WHY).
    """
    relocated = msr & (_MSR_IR if access == ACCESS_FETCH else _MSR_DR)
    if not relocated:
        real = ea & _REAL_MASK
        if real >= ram_bytes:
            return 0, OUTSIDE_RAM
        return real, OK
    if process_table < 0:
        if len(table) == 0:
            return 0, NO_TABLE
        physical, why = _translate_hashed(slb, table, ram_bytes, ea, access, msr)
        return physical, why
    quadrant = (ea >> 62) & 3
    if quadrant == 1 or quadrant == 2:
        return 0, BAD_QUADRANT
    row = process_table + 16 * (pid if quadrant == 0 else 0)
    entry, left = _walk(ram, ram_bytes, ea, _load_be(ram, ram_bytes, row))
    if entry == 0:
        return 0, NOT_MAPPED
    if not _allowed(entry, access, msr):
        return 0, (NO_EXECUTE if access == ACCESS_FETCH else NOT_ALLOWED)
    offset = (1 << left) - 1
    real = (entry & _RPN_MASK & ~offset) | (ea & offset)
    return (real, OK) if real < ram_bytes else (0, OUTSIDE_RAM)
