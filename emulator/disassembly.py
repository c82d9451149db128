"""Instructions as text, in objdump's form. The only importer of capstone.

What it is: capstone with its known PowerPC mistakes mended (CONVENTIONS: checked against objdump
2.40 over Debian's kernel text). What it is not: aware of symbols; callers add them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import capstone

_OPD_31: Final = {306: "tlbie", 274: "tlbiel", 498: "slbia", 566: "tlbsync", 434: "slbie"}
_HINTS: Final = (1, 2, 3, 5, 6, 7, 27, 29, 30, 31)
"""Registers n for which `or n,n,n` sets the SMT priority (Power ISA 3.1 Book II 3.2)."""


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


def _text(raw: bytes, addr: int, big_endian: bool) -> str:
    word = int.from_bytes(raw, "big" if big_endian else "little")
    mended = _mend(word)
    if mended is not None:
        return mended
    for _, _, mnemonic, operands in _engine(big_endian).disasm_lite(raw, addr):
        return f"{mnemonic:<7} {operands}".rstrip().replace(", ", ",")
    return f".long   0x{word:08x}"


def _mend(word: int) -> str | None:
    """Text of the words that capstone 5.0.9 gets wrong."""
    primary, extended = word >> 26, word >> 1 & 0x3FF
    rt, ra, rb = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    if primary == 31 and extended == 444 and rt == ra == rb and rt in _HINTS and not word & 1:
        return f"{'or':<7} {rt},{rt},{rt}"
    if primary == 19 and extended == 528 and rt & 0x14 != 0x14:
        name = "bcctrl" if word & 1 else "bcctr"
        return f"{name:<7} {rt},{ra}"
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
    return None
