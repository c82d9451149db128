"""TABLE: which registers an instruction reads and writes, for every word that a kernel runs.

What it is: `FORMS`, rows of opcodes and their operands, and `operands`, compiled, which turns a
word into masks of register pieces. What it is not: an over-approximation; a word that no row
describes is said to be unknown. Checked against the operands that capstone names (it tells nobody
which of them are read) over all of Debian's kernel text, and against the machine: what is not read
here can be changed before the instruction runs, and nothing else comes out of it
(`tests/real/test_operands.py`).

A general register, LR, CTR and MSR are one piece; CR has 32 (its bits), XER its fields. SO is read
by whatever copies it into CR: compares and record forms.

Source: Power ISA 3.1, Books I to III, and its appendix of opcode maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from emulator.compiled import njit
from emulator.ppc64 import GPRS

GPR_READS, GPR_WRITES, CR_READS, CR_WRITES, READS, WRITES, PARTLY = range(7)
"""Places of the masks in what `operands` fills: bit n of the first two is rn, bit 31 - n of the
next two CR bit n; the others are of LR ... UNKNOWN. PARTLY changes and does not replace."""
MASKS: Final = 7

LR, CTR, SO, OV, CA, OV32, CA32, COUNT, MSR = (1 << n for n in range(9))
UNKNOWN: Final = 1 << 9
"""Of READS: no row describes the word, or what it touches hangs on more than the word."""
HYPERCALL: Final = 1 << 10
"""Of READS: `sc 1`; which registers firmware looks at and answers in hangs on the call."""
XER_PIECES: Final = SO | OV | CA | OV32 | CA32 | COUNT

RS, RA, RA0, RB, RC, PAIR, TO_RT, TO_RA, TO_PAIR, TO_BF, DOT, TO_CR0 = (1 << n for n in range(12))
FROM_SO, FROM_CA, TO_CA, OE, DOT_CR1, VECTOR_CR6, BITS, KNOWN = (1 << n for n in range(12, 20))
FROM_OV, TO_OV, MANY, RARE = (1 << n for n in range(20, 24))
_WORDS: Final = {
    "rs": RS, "ra": RA, "ra0": RA0, "rb": RB, "rc": RC, "rs+1": RS | PAIR, "=rt": TO_RT,
    "=ra": TO_RA, "=rt+1": TO_RT | TO_PAIR, "=bf": TO_BF, ".": DOT, "=cr0": TO_CR0, "so": FROM_SO,
    "ca": FROM_CA, "=ca": TO_CA, "oe": OE, "cr1.": DOT_CR1, "cr6.": VECTOR_CR6, "bits": BITS,
    "ov": FROM_OV, "=ov": TO_OV, "many": MANY, "rare": RARE,
}  # fmt: skip
"""How a row says it: a register field that is read, "=" one that is written, "." what the record
bit does, "oe" what the overflow bit does; "bits" and "many": told from the word by `_by_word`;
"rare": touches registers in a way that no table says."""


@dataclass(frozen=True)
class Form:
    """Instructions with the same operands."""

    primary: int
    extended: str
    """Extended opcodes in decimal, of the width that `place_of` cuts out; "" for none."""
    touches: str


FORMS: Final = (
    Form(2, "", "bits"), Form(3, "", "bits"),  # tdi, twi
    Form(6, "", "ra0"),  # lxvp, stxvp
    Form(7, "", "=rt ra"), Form(8, "", "=rt ra =ca"),  # mulli, subfic
    Form(10, "", "=bf ra so"), Form(11, "", "=bf ra so"),  # cmpli, cmpi
    Form(12, "", "=rt ra =ca"), Form(13, "", "=rt ra =ca =cr0 so"),  # addic, addic.
    Form(14, "", "=rt ra0"), Form(15, "", "=rt ra0"),  # addi, addis
    Form(16, "", "bits"), Form(17, "", "bits"), Form(18, "", "bits"),  # bc, sc, b
    Form(20, "", "=ra ra rs ."), Form(21, "", "=ra rs ."), Form(23, "", "=ra rs rb ."),
    Form(24, "", "bits"), Form(25, "", "bits"), Form(26, "", "bits"), Form(27, "", "bits"),
    Form(28, "", "=ra rs =cr0 so"), Form(29, "", "=ra rs =cr0 so"),  # andi., andis.
    Form(32, "", "=rt ra0"), Form(33, "", "=rt =ra ra"), Form(34, "", "=rt ra0"),
    Form(35, "", "=rt =ra ra"), Form(36, "", "rs ra0"), Form(37, "", "rs ra =ra"),
    Form(38, "", "rs ra0"), Form(39, "", "rs ra =ra"), Form(40, "", "=rt ra0"),
    Form(41, "", "=rt =ra ra"), Form(42, "", "=rt ra0"), Form(43, "", "=rt =ra ra"),
    Form(44, "", "rs ra0"), Form(45, "", "rs ra =ra"),
    Form(46, "", "ra0 many"), Form(47, "", "ra0 many"),  # lmw, stmw
    Form(48, "", "ra0"), Form(49, "", "ra =ra"), Form(50, "", "ra0"), Form(51, "", "ra =ra"),
    Form(52, "", "ra0"), Form(53, "", "ra =ra"), Form(54, "", "ra0"), Form(55, "", "ra =ra"),
    Form(56, "", "=rt+1 ra0"),  # lq
    Form(57, "0 2 3", "ra0"),  # lfdp, lxsd, lxssp
    Form(58, "0 2", "=rt ra0"), Form(58, "1", "=rt =ra ra"),  # ld, lwa, ldu
    Form(61, "0 1 2 3", "ra0"),  # stfdp, lxv, stxv, stxsd, stxssp
    Form(62, "0", "rs ra0"), Form(62, "1", "rs ra =ra"), Form(62, "2", "rs+1 ra0"),
    Form(30, "0 1 2 3 4 5", "=ra rs ."),  # rldicl, rldicr, rldic
    Form(30, "6 7", "=ra ra rs ."),  # rldimi
    Form(30, "8 9", "=ra rs rb ."),  # rldcl, rldcr
    # 19: branches to registers, CR logic, returns from interrupts
    Form(19, "0 16 33 129 193 225 257 289 417 449 528 560", "bits"),
    Form(19, "18 50 82 146 274 402", "bits"),  # rfid, rfi, rfscv, hrfid, urfid
    Form(19, "150 370", ""),  # isync, stop
    # 31: arithmetic
    Form(31, "266 40 235 233 489 457 491 459", "=rt ra rb oe ."),
    Form(31, "425 393 427 395", "=rt ra rb ."),  # divde, divdeu, divwe, divweu
    Form(31, "10 8", "=rt ra rb =ca oe ."),  # addc, subfc
    Form(31, "138 136", "=rt ra rb ca =ca oe ."),  # adde, subfe
    Form(31, "234 202 232 200", "=rt ra ca =ca oe ."),  # addme, addze, subfme, subfze
    Form(31, "170", "=rt ra rb ov =ov"),  # addex
    Form(31, "104", "=rt ra oe ."),  # neg
    Form(31, "75 11 73 9 587 523 585 521", "=rt ra rb ."),  # mulhw, mulhwu, mulhd, mulhdu
    Form(31, "267 779 265 777 74", "=rt ra rb"),  # modulo, addg6s
    # 31: logic, shifts, counts
    Form(31, "28 60 284 476 124 412 316 24 536 27 539", "=ra rs rb ."),
    Form(31, "444", "bits"),  # or; or rn,rn,rn is a hint
    Form(31, "792 794", "=ra rs rb =ca ."), Form(31, "824 826 827", "=ra rs =ca ."),
    Form(31, "890 891 922 954 986 26 58 538 570", "=ra rs ."),
    Form(31, "122 378 506 154 186 155 187 219 282 314", "=ra rs"),
    Form(31, "252 508 59 571 188 220 156", "=ra rs rb"),
    Form(31, "0 32", "=bf ra rb so"), Form(31, "192 224", "=bf ra rb"),
    # 31: loads and stores
    Form(31, "23 87 279 343 341 21 534 790 532 20 84 52 116 853 821 789 885", "=rt ra0 rb"),
    Form(31, "55 119 311 375 373 53", "=rt =ra ra rb"), Form(31, "276", "=rt+1 ra0 rb"),
    Form(31, "151 215 407 149 662 918 660 981 949 917 1013", "rs ra0 rb"),
    Form(31, "183 247 439 181", "rs ra rb =ra"),
    Form(31, "150 214 694 726", "rs ra0 rb =cr0 so"), Form(31, "182", "rs+1 ra0 rb =cr0 so"),
    Form(31, "597 725", "ra0 many"), Form(31, "533 661", "rare"),  # lswi, stswi; lswx, stswx
    Form(31, "582 614 710 742", "rare"),  # lwat, ldat, stwat, stdat
    Form(31, "535 599 855 887 663 727 983 791 919", "ra0 rb"),  # floating point
    Form(31, "567 631 695 759", "ra rb =ra"),
    Form(31, "7 39 71 103 359 135 167 199 231 487 6 38", "ra0 rb"),  # vector
    Form(31, "588 844 780 332 524 76 12 716 972 908 652 140", "ra0 rb"),
    Form(31, "268 364 812 876 396 940 1004", "ra0 rb"),
    Form(31, "781 813 909 941 269 301 397 429 13 45 77 109 141 173 205 237 333 461", "ra0 rb"),
    Form(31, "51 115 307", "=ra"), Form(31, "179 211 243 403", "ra"), Form(31, "435", "ra0 rb"),
    # 31: caches, translations, messages
    Form(31, "86 54 278 246 1014 470 982 22 758", "ra0 rb"),
    Form(31, "598 854 30 566 498 370 338 886 838 430 822", ""), Form(31, "850", "rs"),
    Form(31, "306 274 466 402", "rs rb"), Form(31, "434", "rb"),
    Form(31, "851 915 659", "=rt rb"), Form(31, "979", "=rt rb =cr0 so"), Form(31, "595", "=rt"),
    Form(31, "210", "rs"), Form(31, "242", "rs rb"), Form(31, "142 174 206 238", "rb"),
    Form(31, "722 754 658 690 774", "ra rb"), Form(31, "902", "ra rb =cr0 so"),
    Form(31, "755", "=rt"),  # darn
    # 31: transactions, which POWER10 has not got
    Form(31, "654 686 750 1006", "=cr0"), Form(31, "910 942", "ra =cr0"), Form(31, "718", "=bf"),
    Form(31, "782 814", "ra rb =cr0"), Form(31, "846 878", "ra =cr0"),
    # 31: special registers, CR, traps
    Form(31, "83 146 178 339 467 19 144 576 128 384 416 448 480", "bits"),
    Form(31, "371 302", "=rt"), Form(31, "4 68", "bits"),
    Form(31, " ".join(str(n << 5 | 15) for n in range(32)), "=rt ra0 rb bits"),  # isel
)  # fmt: skip
_PLACES: Final = {19: 64, 31: 64 + 1024}
_FROM_30, _FROM_57, _FROM_58, _FROM_61, _FROM_62 = (64 + 2048 + n for n in (0, 16, 20, 24, 28))
_SIZE: Final = 64 + 2048 + 32


@njit(cache=True)
def place_of(word: int) -> int:
    """Where the table says what an instruction touches."""
    primary = word >> 26 & 63
    if primary == 31:
        return 64 + 1024 + (word >> 1 & 0x3FF)
    if primary == 19:
        return 64 + (word >> 1 & 0x3FF)
    if primary == 30:
        return 64 + 2048 + (word >> 1 & 15)
    if primary == 57 or primary == 58:
        return 64 + 2048 + 16 + 4 * (primary - 57) + (word & 3)
    if primary == 61 or primary == 62:
        return 64 + 2048 + 24 + 4 * (primary - 61) + (word & 3)
    return int(primary)


def _table() -> Any:
    first = {30: _FROM_30, 57: _FROM_57, 58: _FROM_58, 61: _FROM_61, 62: _FROM_62} | _PLACES
    out = np.zeros(_SIZE, np.int64)
    for form in FORMS:
        flags = KNOWN
        for name in form.touches.split():
            flags |= _WORDS[name]
        for number in form.extended.split() or [""]:
            at = first[form.primary] + int(number) if number else form.primary
            out[at] = flags
            if flags & OE:
                out[at + 512] = flags
    for n in range(0, 1024, 32):  # addpcis: five bits of opcode, the others belong to a number
        out[_PLACES[19] + (n | 2)] = KNOWN | TO_RT
    return out


TABLE: Final = _table()

ANSWERED: Final = (
    1, 8, 9, 13, 17, 18, 19, 22, 26, 27, 28, 29, 31, 48, 61, 136, 144, 153, 157, 159, 256, 259,
    *range(268, 270), *range(272, 276), 282, 284, 285, 287, 308, 309, 446, *range(768, 777),
    *range(779, 783), *range(784, 793), *range(795, 799), *range(800, 807), 815, 848, 849,
    *range(888, 891), *range(892, 897), 1023,
)  # fmt: skip
"""Special purpose registers that mfspr reads on this machine (swept); of any other it is no
operation for who is privileged and leaves RT as it is (Power ISA 3.1 Book III 5.4.4)."""
_ANSWERED: Final = np.isin(np.arange(1024), ANSWERED)


@njit(cache=True)
def operands(word: int, out: Any) -> None:
    """Fill seven masks with what an instruction word touches; see GPR_READS.

    Args:
        word: the instruction.
        out: room for MASKS numbers.
    """
    for i in range(7):
        out[i] = 0
    primary = word >> 26 & 63
    if primary == 4 or primary == 59 or primary == 60 or primary == 63:
        _vector(word, primary, out)
        return
    flags = TABLE[place_of(word)]
    if flags & KNOWN == 0 or flags & RARE:
        out[4] = UNKNOWN
        return
    _general(word, flags, out)
    _conditions(word, flags, out)
    if flags & MANY:
        _many(word, primary, out)
    if flags & BITS:
        _by_word(word, primary, out)


@njit(cache=True)
def _general(word: int, flags: int, out: Any) -> None:
    """The general registers that a row names."""
    rt, ra, one = word >> 21 & 31, word >> 16 & 31, np.int64(1)
    if flags & RS:
        out[0] |= one << rt
    if flags & PAIR:
        out[0] |= one << ((rt + 1) & 31)
    if flags & RA or (flags & RA0 and ra != 0):
        out[0] |= one << ra
    if flags & RB:
        out[0] |= one << (word >> 11 & 31)
    if flags & TO_RT:
        out[1] |= one << rt
    if flags & TO_PAIR:
        out[1] |= one << ((rt + 1) & 31)
    if flags & TO_RA:
        out[1] |= one << ra


@njit(cache=True)
def _conditions(word: int, flags: int, out: Any) -> None:
    """The fields of CR and XER that a row names."""
    if flags & TO_BF:
        out[3] |= np.int64(0xF0000000) >> (word >> 21 & 0x1C)
    if flags & TO_CR0 or (flags & DOT and word & 1):
        out[3] |= np.int64(0xF0000000)
        out[4] |= SO
    if flags & FROM_SO:
        out[4] |= SO
    if flags & FROM_CA:
        out[4] |= CA
    if flags & TO_CA:
        out[5] |= CA | CA32
    if flags & FROM_OV:
        out[4] |= OV
    if flags & TO_OV:
        out[5] |= OV | OV32
    if flags & OE and word & 0x400:
        out[5] |= OV | OV32
        out[6] |= SO


@njit(cache=True)
def _many(word: int, primary: int, out: Any) -> None:
    """Lmw, stmw, lswi and stswi: registers from RT on."""
    rt = word >> 21 & 31
    count = 32 - rt
    if primary == 31:
        count = ((word >> 11 & 31) or 32) + 3 >> 2
    where = 1 if primary == 46 or (primary == 31 and word >> 1 & 0x3FF == 597) else 0
    for n in range(count):
        out[where] |= np.int64(1) << ((rt + n) & 31)


@njit(cache=True)
def _by_word(word: int, primary: int, out: Any) -> None:
    """What hangs on more than the opcode."""
    rt, ra, rb = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    one = np.int64(1)
    if primary == 18 or primary == 16 or primary == 17:
        _branch(word, primary, out)
    elif primary == 2 or primary == 3:
        out[0] |= one << ra if rt != 31 else 0  # whatever it compares, it traps
    elif primary == 19:
        _with_19(word, out)
    elif 24 <= primary <= 27:  # ori ... xoris; with 0 onto itself no operation
        if word & 0xFFFF or rt != ra:
            out[0] |= one << rt
            out[1] |= one << ra
    elif word >> 1 & 0x3FF == 444:
        if not (rt == ra == rb) or word & 1:
            out[0] |= one << rt | one << rb
            out[1] |= one << ra
            if word & 1:
                out[3] |= np.int64(0xF0000000)
                out[4] |= SO
    elif word >> 1 & 31 == 15:
        out[2] |= one << (31 - (word >> 6 & 31))
    else:
        _with_31(word, out)


@njit(cache=True)
def _branch(word: int, primary: int, out: Any) -> None:
    """Bc, b and sc."""
    if primary == 17:
        out[4] |= MSR
        if word & 2 == 0:  # scv
            out[5] |= LR | CTR
        elif word >> 5 & 0x7F == 1:
            out[4] = HYPERCALL
            return
        out[6] |= MSR
        return
    if word & 1:
        out[5] |= LR
    if primary == 16:
        _condition(word, out)


@njit(cache=True)
def _condition(word: int, out: Any) -> None:
    """BO and BI of a conditional branch."""
    if word & 0x02000000 == 0:
        out[2] |= np.int64(1) << (31 - (word >> 16 & 31))
    if word & 0x00800000 == 0:
        out[4] |= CTR
        out[5] |= CTR


@njit(cache=True)
def _with_19(word: int, out: Any) -> None:
    """Branches to LR and CTR, CR logic, returns from interrupts."""
    rt, ra, rb = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    extended = word >> 1 & 0x3FF
    one = np.int64(1)
    if extended == 16 or extended == 528 or extended == 560:
        _condition(word, out)
        if extended == 16:
            out[4] |= LR
        elif extended == 528:
            out[4] |= CTR
        if word & 1:
            out[5] |= LR
    elif extended == 0:
        out[2] |= np.int64(0xF0000000) >> (ra & 0x1C)
        out[3] |= np.int64(0xF0000000) >> (rt & 0x1C)
    elif extended == 18 or extended == 50 or extended == 274 or extended == 402:
        out[5] |= MSR
    elif extended == 82 or extended == 146:
        out[4] |= LR | CTR
        out[5] |= MSR
    else:
        out[2] |= one << (31 - ra) | one << (31 - rb)
        out[3] |= one << (31 - rt)


@njit(cache=True)
def _with_31(word: int, out: Any) -> None:
    """Moves to and from MSR, CR, XER, LR and CTR."""
    rt, ra, rb = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    extended = word >> 1 & 0x3FF
    one = np.int64(1)
    to_rt, from_rs = one << rt, one << rt
    if extended == 4 or extended == 68:
        out[0] |= one << ra | one << rb if rt != 31 else 0
    elif extended == 83:
        out[1] |= to_rt
        out[4] |= MSR
    elif extended == 146 or extended == 178:
        out[0] |= from_rs
        out[6] |= MSR
    elif extended == 339 or extended == 467:
        pieces = _special(ra | rb << 5)
        if extended == 339:
            out[1] |= to_rt if _ANSWERED[ra | rb << 5] else 0
            out[4] |= pieces
        else:
            out[0] |= from_rs
            out[5] |= pieces
    elif extended == 19 or extended == 144:
        _with_fields(word, out)
    elif extended == 576:
        out[3] |= np.int64(0xF0000000) >> (rt & 0x1C)
        out[4] |= OV | OV32 | CA | CA32
    elif extended == 128:
        out[1] |= to_rt
        out[2] |= np.int64(0xC0000000) >> (ra & 0x1C)  # LT and GT of the field
    else:  # setbc, setbcr, setnbc, setnbcr
        out[1] |= to_rt
        out[2] |= one << (31 - ra)


@njit(cache=True)
def _with_fields(word: int, out: Any) -> None:
    """Mfcr, mfocrf, mtcrf, mtocrf."""
    fields, general = _fields(word), np.int64(1) << (word >> 21 & 31)
    if fields < 0:
        out[4] = UNKNOWN
    elif word >> 1 & 0x3FF == 19:
        out[1] |= general
        out[2] |= fields
    else:
        out[0] |= general
        out[3] |= fields


@njit(cache=True)
def _special(number: int) -> int:
    """The pieces behind the number of a special purpose register."""
    if number == 1:
        return SO | OV | CA | OV32 | CA32 | COUNT
    if number == 8:
        return LR
    return CTR if number == 9 else 0


@njit(cache=True)
def _fields(word: int) -> Any:
    """The CR bits that mfcr, mfocrf, mtcrf and mtocrf name; -1 where they must name one field."""
    mask = word >> 12 & 0xFF
    if word & 0x00100000 and (mask == 0 or mask & (mask - 1)):
        return np.int64(-1)
    if word & 0x00100000 == 0 and word >> 1 & 0x3FF == 19:
        mask = 0xFF
    bits = np.int64(0)
    for n in range(8):
        if mask & (0x80 >> n):
            bits |= np.int64(0xF0000000) >> (4 * n)
    return bits


@njit(cache=True)
def _vector(word: int, primary: int, out: Any) -> None:
    """Primary opcodes 4, 59, 60 and 63: floating point and vectors touch few registers of ours."""
    to_bf, ten = np.int64(0xF0000000) >> (word >> 21 & 0x1C), word >> 1 & 0x3FF
    if primary == 4:
        _vector_4(word, to_bf, out)
    elif primary == 60:
        compares = word >> 3 & 0x7F
        if (65 <= compares <= 83 or 97 <= compares <= 115) and compares & 7 == 3:
            out[3] |= np.int64(0xF0) if word & 0x400 else 0
        elif (word >> 2 & 0x1FF == 347 and word >> 17 & 15 == 0) or ten == 918:
            out[4] = UNKNOWN
        elif _tests(word):
            out[3] |= to_bf
    elif _compares(ten):
        out[3] |= to_bf
    elif word & 1 and not (primary == 63 and _rounds_to_odd(ten)):
        out[3] |= np.int64(0x0F000000)


@njit(cache=True)
def _vector_4(word: int, to_bf: Any, out: Any) -> None:
    """Vectors, and the three multiplications that share their opcode."""
    low, eleven, one = word & 0x3F, word & 0x7FF, np.int64(1)
    if low == 48 or low == 49 or low == 51:  # maddhd, maddhdu, maddld
        out[0] |= one << (word >> 16 & 31) | one << (word >> 11 & 31) | one << (word >> 6 & 31)
        out[1] |= one << (word >> 21 & 31)
    elif low == 6 or low == 7 or low == 1:  # compares, and decimal
        if word & 0x400 or eleven == 833:
            out[3] |= np.int64(0xF0)
        elif eleven == 257 or eleven == 321:
            out[3] |= to_bf
    elif (low == 13 and eleven >= 1549) or low == 15 or low == 50 or eleven == 1602:
        out[4] = UNKNOWN
    elif eleven == 1538:  # vclzlsbb, vctzlsbb
        out[4] = UNKNOWN if word >> 17 & 15 == 0 else 0


@njit(cache=True)
def _rounds_to_odd(ten: int) -> bool:
    """Whether the last bit of a quadruple-precision instruction is no record bit."""
    five = ten & 31
    return bool(
        five == 5 or ten == 4 or ten == 36 or ten == 388 or ten == 420 or ten == 452 or ten == 484
        or ten == 516 or ten == 548 or ten == 804 or ten == 836
    )  # fmt: skip


@njit(cache=True)
def _tests(word: int) -> bool:
    """Whether a VSX instruction puts what it finds into a CR field."""
    eight, nine = word >> 3 & 0xFF, word >> 2 & 0x1FF
    return bool(
        eight == 35 or eight == 43 or eight == 59 or eight == 61 or eight == 93 or eight == 125
        or nine == 106 or nine == 170 or nine == 234 or nine == 362 or nine == 298
        or (nine == 475 and word >> 16 & 31 == 2)
    )  # fmt: skip


@njit(cache=True)
def _compares(ten: int) -> bool:
    """Whether a floating point instruction puts what it finds into a CR field."""
    return bool(
        ten == 0 or ten == 32 or ten == 64 or ten == 128 or ten == 160 or ten == 130 or ten == 642
        or ten == 132 or ten == 644 or ten == 164 or ten == 708 or ten == 162 or ten == 674
        or ten == 675 or ten & 0x1FF == 194 or ten & 0x1FF == 226
    )  # fmt: skip


# --- by name --------------------------------------------------------------------------------------

PIECES: Final[dict[str, tuple[int, int]]] = {
    name: (GPR_READS, 1 << n) for n, name in enumerate(GPRS)
} | {
    "cr": (CR_READS, (1 << 32) - 1),
    "lr": (READS, LR),
    "ctr": (READS, CTR),
    "xer": (READS, XER_PIECES),
    "msr": (READS, MSR),
}
"""Register -> which mask its pieces are in, and which they are."""
_XER_NAMES: Final = {SO: "so", OV: "ov", CA: "ca", OV32: "ov32", CA32: "ca32", COUNT: "count"}


def masks_of(word: int) -> list[int]:
    """The seven masks of a word."""
    out = np.zeros(MASKS, np.int64)
    operands(word, out)
    return [int(value) for value in out]


def may_change(word: int, register: str) -> bool:
    """Whether an instruction writes a register or a part of it, by the table or for all we know."""
    masks, (where, pieces) = masks_of(word), PIECES[register]
    firmware = where == GPR_READS and masks[READS] & HYPERCALL and pieces & 0x1FF8
    partly = masks[PARTLY] if where == READS else 0
    return bool(masks[READS] & UNKNOWN or firmware or (masks[where + 1] | partly) & pieces)


def piece_names(register: str, pieces: int) -> str:
    """The fields of CR or XER that pieces belong to, "" for a register of one piece."""
    if register == "cr":
        named = [f"cr{n}" for n in range(8) if pieces & (0xF0000000 >> 4 * n)]
        return " ".join(named) if len(named) < 8 else ""
    if register == "xer" and pieces != XER_PIECES:
        return " ".join(name for bit, name in _XER_NAMES.items() if pieces & bit)
    return ""
