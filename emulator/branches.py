"""Conditional branches as text, in objdump's form: bc, bclr, bcctr and bctar.

What it is: BO, BI and BH of one word to the mnemonic that objdump 2.40 prints, hints with it; None
for a BO whose z bits are not 0. What it is not: aware of symbols. Source: Power ISA 3.1 Book I 2.4
and Appendix C.2, binutils opcodes/ppc-opc.c (behaviour), compared with it over every BO and BI.
"""

from __future__ import annotations

from typing import Final

REGISTER_FORMS: Final = {16: "lr", 528: "ctr", 560: "tar"}
"""Extended opcode of primary 19 -> where it branches to."""
_BITS: Final = ("lt", "gt", "eq", "so")
_FALSE: Final = ("ge", "le", "ne", "ns")
_NO_CTR: Final = 4
"""BO bit: CTR is not decremented,"""
_NO_CR: Final = 16
"""and: no bit of CR is tested."""


def condition_bit(bit: int) -> str:
    """Return a bit of CR by name: `eq`, `4*cr7+so`."""
    field, name = bit >> 2, _BITS[bit & 3]
    return f"4*cr{field}+{name}" if field else name


def branch_text(word: int, addr: int) -> str | None:
    """Text of a conditional branch at `addr`; None where objdump decodes nothing."""
    bo, bi = word >> 21 & 31, word >> 16 & 31
    if word >> 26 == 16:
        return _relative(word, bo, bi, addr)
    form = REGISTER_FORMS[word >> 1 & 0x3FF]
    hint = _hint(bo)
    if hint is None or word & 0xE000:
        return None
    link, branch_hint = "l" if word & 1 else "", word >> 11 & 3
    operands: list[str]
    stem, operands = _extended(bo, bi, always=True)
    if not stem or (form == "ctr" and not bo & _NO_CTR):
        stem, operands = "bc", [str(bo), condition_bit(bi)]
    elif branch_hint and bo & (_NO_CR | _NO_CTR) == _NO_CTR and not operands:
        operands = ["cr0"]
    if branch_hint:
        operands.append(str(branch_hint))
    return f"{stem + form + link + hint:<7} {','.join(operands)}".rstrip()


def _relative(word: int, bo: int, bi: int, addr: int) -> str | None:
    distance = (word & 0xFFFC ^ 0x8000) - 0x8000
    # objdump prints 32 bits of an absolute target, though the CPU extends its sign to 64.
    target = distance % (1 << 32) if word & 2 else (addr + distance) % (1 << 64)
    suffix = ("l" if word & 1 else "") + ("a" if word & 2 else "")
    stem, operands = _extended(bo, bi, always=False)
    hint = _hint(bo)
    if not stem:
        stem, operands = "bc", [str(bo), condition_bit(bi)]
        if hint is None:
            return None
    operands.append(f"{target:x}")
    return f"{stem + suffix + (hint or ''):<7} {','.join(operands)}"


def _hint(bo: int) -> str | None:
    """Return "+", "-" or "" as the a and t bits say; None for a BO that is reserved."""
    kind = bo & (_NO_CR | _NO_CTR)
    if kind == 0:
        return None if bo & 1 else ""
    if kind == _NO_CR | _NO_CTR:
        return "" if bo == kind else None
    taken = (bo & 3) if kind == _NO_CTR else (bo >> 2 & 2) | bo & 1
    return ("", None, "-", "+")[taken]


def _extended(bo: int, bi: int, *, always: bool) -> tuple[str, list[str]]:
    """Return the extended mnemonic's stem and operands; an empty stem where there is none."""
    field = [f"cr{bi >> 2}"] if bi >> 2 else []
    counted = "bdz" if bo & 2 else "bdnz"
    kind = bo & (_NO_CR | _NO_CTR)
    if kind == _NO_CTR:
        return "b" + (_BITS if bo & 8 else _FALSE)[bi & 3], field
    if kind == 0:
        return counted + ("t" if bo & 8 else "f"), [condition_bit(bi)]
    if bi == 0 and kind == _NO_CR:
        return counted, []
    return ("b" if always and bi == 0 else ""), []
