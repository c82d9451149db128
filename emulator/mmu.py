"""Effective to physical addresses: real mode and radix, one page at a time.

What it is: the guest's own address translation, as a function of RAM, MSR, process table and PID.
It is written in the subset of Python that numba compiles, because the TLB-fill hook calls it at
native speed; `translate.py_func` is the same code as plain Python. What it is not: a TLB, and no
hash MMU (a kernel that chooses hash gets an event that says so).

Source: Power ISA 3.1 Book III 6.7.10 (radix tree translation), 6.7.2 (real mode: a guest ignores
EA0:3); Linux arch/powerpc/include/asm/book3s/64/radix.h for the entry layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH = 16, 17, 18  # unicorn.h: uc_mem_type

OK, OUTSIDE_RAM, NO_TABLE, NOT_MAPPED, NOT_ALLOWED, BAD_QUADRANT = 0, 1, 2, 3, 4, 5
WHY = {
    OUTSIDE_RAM: "outside RAM",
    NO_TABLE: "translation is on but no process table is registered",
    NOT_MAPPED: "no valid page table entry",
    NOT_ALLOWED: "the page table entry does not allow it",
    BAD_QUADRANT: "effective address quadrant 1 or 2",
}

_MSR_IR, _MSR_DR, _MSR_PR = 0x20, 0x10, 0x4000
_REAL_MASK = 0x0FFFFFFFFFFFFFFF
_BASE_MASK = 0x0FFFFFFFFFFFFF00  # RPDB, NLB
_RPN_MASK = 0x01FFFFFFFFFFF000
_PRIVILEGED, _READ, _WRITE, _EXECUTE = 0x8, 0x4, 0x2, 0x1
_EA_BITS = 52


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
def translate(
    ram: Any, ram_bytes: int, ea: int, access: int, msr: int, process_table: int, pid: int
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
        return 0, NO_TABLE
    quadrant = (ea >> 62) & 3
    if quadrant == 1 or quadrant == 2:
        return 0, BAD_QUADRANT
    row = process_table + 16 * (pid if quadrant == 0 else 0)
    entry, left = _walk(ram, ram_bytes, ea, _load_be(ram, ram_bytes, row))
    if entry == 0:
        return 0, NOT_MAPPED
    if not _allowed(entry, access, msr):
        return 0, NOT_ALLOWED
    offset = (1 << left) - 1
    real = (entry & _RPN_MASK & ~offset) | (ea & offset)
    return (real, OK) if real < ram_bytes else (0, OUTSIDE_RAM)
