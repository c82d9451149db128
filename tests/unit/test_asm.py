"""The test suite's own assembler, judged by binutils."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import asm

SAME = [
    (asm.li(3, -1), "li 3,-1"),
    (asm.lis(4, 0x1234), "lis 4,0x1234"),
    (asm.addi(5, 6, -8), "addi 5,6,-8"),
    (asm.ori(7, 8, 0xFFFF), "ori 7,8,0xffff"),
    (asm.lwz(9, 0x5C, 26), "lwz 9,0x5c(26)"),
    (asm.stw(7, 92, 4), "stw 7,92(4)"),
    (asm.lbz(1, 2, 3), "lbz 1,2(3)"),
    (asm.stb(1, 2, 3), "stb 1,2(3)"),
    (asm.ld(4, 0x38, 0), "ld 4,0x38(0)"),
    (asm.std(24, 0x40, 0), "std 24,0x40(0)"),
    (asm.std(0, -16, 1), "std 0,-16(1)"),
    (asm.cmpdi(4, 0), "cmpdi 4,0"),
    (asm.mr(24, 3), "mr 24,3"),
    (asm.b(0), "b ."),
    (asm.b(-8), "b .-8"),
    (asm.bl(0x100), "bl .+0x100"),
    (asm.beq(-8), "beq .-8"),
    (asm.bne(8), "bne .+8"),
    (asm.bdnz(0), "bdnz ."),
    (asm.mtctr(6), "mtctr 6"),
    (asm.mtspr(asm.SPR_SRR0, 4), "mtsrr0 4"),
    (asm.mtspr(asm.SPR_SRR1, 5), "mtsrr1 5"),
    (asm.mfspr(10, asm.SPR_LR), "mflr 10"),
    (asm.mfspr(3, asm.SPR_TB), "mfspr 3,268"),
    (asm.mfmsr(11), "mfmsr 11"),
    (asm.sc(1), "sc 1"),
    (asm.sc(), "sc"),
    (asm.NOP, "nop"),
    (asm.SYNC, "sync"),
    (asm.ISYNC, "isync"),
    (asm.BLR, "blr"),
    (asm.BCTR, "bctr"),
    (asm.BCTRL, "bctrl"),
    (asm.RFID, "rfid"),
    (asm.TRAP, "trap"),
]


@pytest.mark.parametrize("big_endian", [False, True])
def test_words_are_those_of_binutils(
    big_endian: bool, cross_tool: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    source = tmp_path / "all.s"
    source.write_text("\n".join(text for _, text in SAME) + "\n")
    flat = tmp_path / "all.bin"
    run = [cross_tool("as", big_endian), "-mpower8", "-o", tmp_path / "all.o", source]
    subprocess.run(run, check=True)
    copy = [cross_tool("objcopy", big_endian), "-O", "binary", "-j", ".text", tmp_path / "all.o"]
    subprocess.run([*copy, flat], check=True)
    theirs = flat.read_bytes()
    ours = asm.code(*(word for word, _ in SAME), big_endian=big_endian)
    differ = [
        (text, ours[at : at + 4].hex(), theirs[at : at + 4].hex())
        for at, (_, text) in zip(range(0, len(ours), 4), SAME, strict=True)
        if ours[at : at + 4] != theirs[at : at + 4]
    ]
    assert differ == []
    assert len(ours) == len(theirs)
