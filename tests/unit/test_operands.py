"""What an instruction word reads and writes: one word of each kind, by hand from the Power ISA."""

from __future__ import annotations

import random

import pytest

from emulator.operands import (
    CR_READS,
    CR_WRITES,
    GPR_READS,
    GPR_WRITES,
    HYPERCALL,
    PARTLY,
    PIECES,
    READS,
    UNKNOWN,
    WRITES,
    masks_of,
    may_change,
    piece_names,
)
from tests.operand_oracle import Oracle, complaint

WORDS = (
    # word, text, registers that it reads, registers that it replaces
    (0x7C632214, "add r3,r3,r4", "r3 r4", "r3"),
    (0x7C632215, "add. r3,r3,r4", "r3 r4 xer.so", "r3 cr0"),
    (0x38600001, "li r3,1", "", "r3"),
    (0xE8640008, "ld r3,8(r4)", "r4", "r3"),
    (0xE8640009, "ldu r3,8(r4)", "r4", "r3 r4"),
    (0xF8600008, "std r3,8(0)", "r3", ""),
    (0xF821FF91, "stdu r1,-112(r1)", "r1", "r1"),
    (0x60000000, "nop", "", ""),
    (0x7C210B78, "or 1,1,1", "", ""),
    (0x7C832378, "mr r3,r4", "r4", "r3"),
    (0x2C030000, "cmpwi r3,0", "r3 xer.so", "cr0"),
    (0x4E800020, "blr", "lr", ""),
    (0x4E800421, "bctrl", "ctr", "lr"),
    (0x4D820020, "beqlr", "lr cr0", ""),
    (0x42000000, "bdnz", "ctr", "ctr"),
    (0x7C64181E, "isel r3,r4,r3,lt", "r3 r4 cr0", "r3"),
    (0x7D8FF120, "mtcrf 255,r12", "r12", "cr"),
    (0x7D708026, "mfocrf r11,8", "cr4", "r11"),
    (0x7C0802A6, "mflr r0", "lr", "r0"),
    (0x7C0103A6, "mtxer r0", "r0", "xer"),
    (0x7C632114, "adde r3,r3,r4", "r3 r4 xer.ca", "r3 xer.ca xer.ca32"),
    (0xBBC10008, "lmw r30,8(r1)", "r1", "r30 r31"),
    (0xBFC10008, "stmw r30,8(r1)", "r1 r30 r31", ""),
    (0x7C8020AC, "dcbf 0,r4", "r4", ""),
    (0x7C60212D, "stwcx. r3,0,r4", "r3 r4 xer.so", "cr0"),
    (0x4C000024, "rfid", "", "msr"),
    (0x7D6000A6, "mfmsr r11", "msr", "r11"),
    (0x7C6302A6, "mfdscr r3, which this machine has not got", "", ""),
)


def named(masks: list[int], general: int, condition: int, other: int) -> set[str]:
    out = {f"r{n}" for n in range(32) if masks[general] >> n & 1}
    fields = piece_names("cr", masks[condition])
    out |= {"cr"} if masks[condition] == PIECES["cr"][1] else set(fields.split())
    xer = masks[other] & PIECES["xer"][1]
    whole = xer == PIECES["xer"][1]
    out |= {"xer"} if whole else {f"xer.{name}" for name in piece_names("xer", xer).split()}
    return out | {name for name in ("lr", "ctr", "msr") if masks[other] & PIECES[name][1]}


@pytest.mark.parametrize(("word", "text", "reads", "writes"), WORDS, ids=[w[1] for w in WORDS])
def test_word(word: int, text: str, reads: str, writes: str) -> None:
    masks = masks_of(word)
    assert named(masks, GPR_READS, CR_READS, READS) == set(reads.split())
    assert named(masks, GPR_WRITES, CR_WRITES, WRITES) == set(writes.split())


def test_what_no_row_describes_is_unknown() -> None:
    for word in (0, 0x04000000, 0x7C00042A, 0x7C00048C):  # .long 0, a prefix, lswx, lwat
        assert masks_of(word)[READS] == UNKNOWN
        assert may_change(word, "r3")


def test_a_hypercall_says_so() -> None:
    assert masks_of(0x44000022)[READS] == HYPERCALL
    assert may_change(0x44000022, "r3")
    assert not may_change(0x44000022, "r13")


def test_overflow_sticks() -> None:
    masks = masks_of(0x7C632614)  # addo
    assert masks[PARTLY] == PIECES["xer"][1] & 1 << 2
    assert may_change(0x7C632614, "xer")


@pytest.mark.parametrize("little", [True, False])
def test_the_machine_agrees(little: bool) -> None:
    oracle, chance = Oracle(little=little), random.Random(little)
    for word, text, _, _ in WORDS:
        assert complaint(oracle, word, chance) == "", text


def test_the_oracle_finds_a_missing_read_and_a_missing_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oracle, chance = Oracle(little=True), random.Random(1)
    add = masks_of(0x7C632215)
    for place, gone in ((GPR_READS, 1 << 4), (GPR_WRITES, 1 << 3), (CR_WRITES, 0xF0000000)):
        wrong = [mask & ~gone if n == place else mask for n, mask in enumerate(add)]
        monkeypatch.setattr("tests.operand_oracle.masks_of", lambda word, wrong=wrong: wrong)
        assert complaint(oracle, 0x7C632215, chance)
