"""Assemble the handful of PowerPC instructions that tests need, without binutils.

Each function returns one instruction word; `code` turns words into bytes of either byte order.
Offsets of branches are in bytes, from the branch itself. It checks no ranges: fields are cut to
their width. Source: Power ISA 3.1, Book I, instruction forms D, DS, I, B, XL, XFX, SC, X.
"""

from __future__ import annotations

import struct

NOP = 0x60000000
SYNC = 0x7C0004AC
ISYNC = 0x4C00012C
BLR = 0x4E800020
BCTR = 0x4E800420
BCTRL = 0x4E800421
RFID = 0x4C000024
TRAP = 0x7FE00008
LT, GT, EQ = 0, 1, 2
SPR_LR, SPR_CTR, SPR_SRR0, SPR_SRR1, SPR_TB = 8, 9, 26, 27, 268
SPR_DSISR, SPR_DAR = 18, 19


def code(*words: int, big_endian: bool = False) -> bytes:
    """Return the words as bytes in memory order."""
    return struct.pack(f"{'>' if big_endian else '<'}{len(words)}I", *words)


def _d_form(opcode: int, rt: int, ra: int, value: int) -> int:
    return opcode << 26 | rt << 21 | ra << 16 | value & 0xFFFF


def addi(rt: int, ra: int, value: int) -> int:
    """Return `addi rt,ra,value`."""
    return _d_form(14, rt, ra, value)


def li(rt: int, value: int) -> int:
    """Return `li rt,value`."""
    return addi(rt, 0, value)


def lis(rt: int, value: int) -> int:
    """Return `lis rt,value`."""
    return _d_form(15, rt, 0, value)


def ori(ra: int, rs: int, value: int) -> int:
    """Return `ori ra,rs,value`."""
    return _d_form(24, rs, ra, value)


def lwz(rt: int, offset: int, ra: int) -> int:
    """Return `lwz rt,offset(ra)`."""
    return _d_form(32, rt, ra, offset)


def stw(rs: int, offset: int, ra: int) -> int:
    """Return `stw rs,offset(ra)`."""
    return _d_form(36, rs, ra, offset)


def lbz(rt: int, offset: int, ra: int) -> int:
    """Return `lbz rt,offset(ra)`."""
    return _d_form(34, rt, ra, offset)


def stb(rs: int, offset: int, ra: int) -> int:
    """Return `stb rs,offset(ra)`."""
    return _d_form(38, rs, ra, offset)


def ld(rt: int, offset: int, ra: int) -> int:
    """Return `ld rt,offset(ra)`; the offset is a multiple of four."""
    return _d_form(58, rt, ra, offset & ~3)


def std(rs: int, offset: int, ra: int) -> int:
    """Return `std rs,offset(ra)`; the offset is a multiple of four."""
    return _d_form(62, rs, ra, offset & ~3)


def cmpdi(ra: int, value: int) -> int:
    """Return `cmpdi ra,value` (field cr0)."""
    return _d_form(11, 1, ra, value)


def mr(ra: int, rs: int) -> int:
    """Return `mr ra,rs`."""
    return 31 << 26 | rs << 21 | ra << 16 | rs << 11 | 444 << 1


def b(offset: int) -> int:
    """Return `b .+offset`."""
    return 18 << 26 | offset & 0x03FFFFFC


def bl(offset: int) -> int:
    """Return `bl .+offset`."""
    return b(offset) | 1


def bc(bo: int, bi: int, offset: int) -> int:
    """Return `bc bo,bi,.+offset`."""
    return 16 << 26 | bo << 21 | bi << 16 | offset & 0xFFFC


def beq(offset: int) -> int:
    """Return `beq .+offset` (field cr0)."""
    return bc(12, EQ, offset)


def bne(offset: int) -> int:
    """Return `bne .+offset` (field cr0)."""
    return bc(4, EQ, offset)


def bdnz(offset: int) -> int:
    """Return `bdnz .+offset`."""
    return bc(16, 0, offset)


def _spr(number: int) -> int:
    return (number & 31) << 16 | (number >> 5) << 11


def mtspr(number: int, rs: int) -> int:
    """Return `mtspr number,rs`."""
    return 31 << 26 | rs << 21 | _spr(number) | 467 << 1


def mfspr(rt: int, number: int) -> int:
    """Return `mfspr rt,number`."""
    return 31 << 26 | rt << 21 | _spr(number) | 339 << 1


def mtctr(rs: int) -> int:
    """Return `mtctr rs`."""
    return mtspr(SPR_CTR, rs)


def mfmsr(rt: int) -> int:
    """Return `mfmsr rt`."""
    return 31 << 26 | rt << 21 | 83 << 1


def slbmte(rs: int, rb: int) -> int:
    """Return `slbmte rs,rb`."""
    return 31 << 26 | rs << 21 | rb << 11 | 402 << 1


def slbie(rb: int) -> int:
    """Return `slbie rb`."""
    return 31 << 26 | rb << 11 | 434 << 1


def slbia() -> int:
    """Return `slbia`, which leaves entry 0."""
    return 31 << 26 | 498 << 1


def sc(level: int = 0) -> int:
    """Return `sc level`; level 1 is a hypercall."""
    return 17 << 26 | level << 5 | 2
