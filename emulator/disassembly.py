"""Instructions as text, in objdump's form. The only importer of capstone.

What it is: capstone with its known PowerPC mistakes mended (CONVENTIONS: checked against objdump
2.40 over Debian's kernel text). What it is not: aware of symbols; callers add them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import capstone

from emulator.branches import REGISTER_FORMS, branch_text

_OPD_31: Final = {306: "tlbie", 274: "tlbiel", 498: "slbia", 566: "tlbsync", 434: "slbie"}
_HEX: Final = re.compile(r"0x[0-9a-f]+")
_SYNCS: Final = {0: "hwsync", 1: "lwsync", 2: "ptesync"}
_SPRS: Final = {
    26: "srr0", 27: "srr1", 18: "dsisr", 19: "dar", 22: "dec", 28: "cfar", 287: "pvr", 3: "dscr",
    314: "hsrr0", 315: "hsrr1", 304: "hsprg0", 305: "hsprg1", 318: "lpcr", 48: "pidr", 1023: "pir",
    896: "ppr", 61: "iamr", 29: "amr", 157: "uamor", 349: "amor", 153: "fscr", 190: "hfscr",
    795: "mmcr0", 798: "mmcr1", 785: "mmcr2", 786: "mmcra", 319: "lpidr", 338: "pcr", 187: "ciabr",
    309: "purr", 308: "spurr", 286: "tbu40",
    849: "vtb",
}  # fmt: skip
"""SPRs with instructions of their own in objdump's output (Power ISA 3.1 Book III 5.4.4)."""
_HINTS: Final = (1, 2, 3, 5, 6, 7, 27, 29, 30, 31)
"""Registers n for which `or n,n,n` sets the SMT priority (Power ISA 3.1 Book II 3.2)."""

_TRAMPOLINE: Final = frozenset(
    (0x7D6000A6, 0x696B0001, 0x39400000, 0x7D410164, 0x429F0005, 0x7D4802A6, 0x394A0014,
     0x394A0024, 0x7D5A03A6, 0x7D7B03A6, 0x4C000024)
)  # fmt: skip
"""Words of FIXUP_ENDIAN (linux ppc_asm.h), from `mfmsr r11` to `rfid`: what a little-endian kernel
runs big-endian where a CPU enters it. The addi counts the words to skip and differs by release."""
_FIRST, _LAST = 0x7D6000A6, 0x4C000024


@dataclass(frozen=True)
class Line:
    """One instruction."""

    addr: int
    raw: bytes
    """Four bytes in memory order."""
    text: str
    """Mnemonic, padded to 8, and operands; `.long 0x...` where nothing decodes."""


@cache
def _engine(big_endian: bool) -> Any:
    order = capstone.CS_MODE_BIG_ENDIAN if big_endian else capstone.CS_MODE_LITTLE_ENDIAN
    return capstone.Cs(capstone.CS_ARCH_PPC, capstone.CS_MODE_64 | order)


def disassemble(code: bytes, addr: int, *, big_endian: bool) -> list[Line]:
    """Decode every word of `code`, which lies at effective address `addr`.

    Args:
        code: a multiple of four bytes, in memory order.
        addr: of the first byte.
        big_endian: the byte order of MSR[LE] when it runs.
    """
    lines = []
    for at in range(0, len(code) - 3, 4):
        raw = code[at : at + 4]
        here = (addr + at) % (1 << 64)
        lines.append(Line(here, raw, _text(raw, here, big_endian)))
    return lines


def trampolines(code: bytes) -> frozenset[int]:
    """Return the offsets of words that run big-endian though what follows them is little-endian.

    Code that stands in memory has no MSR; these words alone tell their own byte order.
    """
    words = [int.from_bytes(code[at : at + 4], "big") for at in range(0, len(code) - 3, 4)]
    found: set[int] = set()
    for end, word in enumerate(words):
        first = end
        while word == _LAST and first > 0 and words[first - 1] in _TRAMPOLINE:
            first -= 1
        if first < end and words[first] == _FIRST:
            found.update(range(4 * first, 4 * end + 4, 4))
    return frozenset(found)


def _text(raw: bytes, addr: int, big_endian: bool) -> str:
    word = int.from_bytes(raw, "big" if big_endian else "little")
    primary = word >> 26
    if primary == 16 or (primary == 19 and word >> 1 & 0x3FF in REGISTER_FORMS):
        return branch_text(word, addr) or f".long   0x{word:08x}"
    mended = _mend(word)
    if mended is not None:
        return mended
    for _, _, mnemonic, operands in _engine(big_endian).disasm_lite(raw, addr):
        text = operands.replace(", ", ",")
        number = _target if primary == 18 else _decimal
        return f"{mnemonic:<7} {_HEX.sub(number, text)}".rstrip()
    return f".long   0x{word:08x}"


def _decimal(match: re.Match[str]) -> str:
    """Print an immediate in decimal, as objdump does."""
    return str(int(match[0], 16))


def _target(match: re.Match[str]) -> str:
    """Print the target of a branch in hex without 0x, as objdump does."""
    return match[0].removeprefix("0x")


def _alias(word: int) -> str | None:
    """The name that objdump prefers, where capstone has the plain one."""
    primary, extended = word >> 26, word >> 1 & 0x3FF
    rt, ra, rb = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    dot = "." if word & 1 else ""
    if primary == 30 and word >> 2 & 7 in (0, 1):
        return _rotate(word, rt, ra, dot)
    if primary != 31:
        return None
    if extended == 444 and rt == rb and dot:
        return f"{'mr.':<7} r{ra},r{rt}"
    if extended == 598:
        return _SYNCS.get(rt & 3)
    spr = ra | rb << 5
    if extended == 339 and spr == 268:
        return f"{'mftb':<7} r{rt}"
    if 272 <= spr <= 275 and extended in (339, 467):
        n = spr - 272
        return f"mfsprg  r{rt},{n}" if extended == 339 else f"mtsprg  {n},r{rt}"
    if extended in (339, 467) and spr in _SPRS:
        name, register = _SPRS[spr], f"r{rt}"
        return f"{'mf' + name if extended == 339 else 'mt' + name:<7} {register}"
    return None


def _rotate(word: int, rs: int, ra: int, dot: str) -> str | None:
    """Print rldicl and rldicr as the shift or clear that they are, if they are one."""
    shift = (word >> 11 & 31) | (word & 2) << 4
    mask = (word >> 6 & 31) | (word & 0x20)
    left, right = f"r{ra}", f"r{rs}"
    if word >> 2 & 7 == 0:  # rldicl: mask is its begin
        if mask and shift == 64 - mask:
            return f"{'srdi' + dot:<7} {left},{right},{mask}"
        return None
    if shift == 0:  # rldicr: mask is its end
        return f"{'clrrdi' + dot:<7} {left},{right},{63 - mask}"
    return None


def _mend(word: int) -> str | None:
    """Text of the words that capstone 5.0.9 gets wrong, or names otherwise than objdump."""
    primary, extended = word >> 26, word >> 1 & 0x3FF
    rt, ra, rb = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    if primary == 31 and extended == 444 and rt == ra == rb and rt in _HINTS and not word & 1:
        return f"{'or':<7} {rt},{rt},{rt}"
    if primary == 31 and extended in _OPD_31:
        name = _OPD_31[extended]
        if name == "tlbsync":
            return name
        if name == "slbia":
            return f"{name:<7} {rt & 7}" if rt & 7 else name
        if name == "slbie":
            return f"{name:<7} r{rb}"
        ric, prs, r = word >> 18 & 3, word >> 17 & 1, word >> 16 & 1
        return f"{name:<7} r{rb},r{rt},{ric},{prs},{r}"
    return _alias(word)
