"""The operand table over all of Debian's kernel text and purgatory: capstone, and the machine.

capstone names an instruction's registers and does not say which are read (for PowerPC it has no
answer to `regs_access`), so their union is compared. What is read and what is written the machine
itself says: each word runs with other values in every register that it should not look at.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from app.debian import DebianPair
from emulator.disassembly import disassemble
from emulator.images import read_kernel
from emulator.intercepts import changes_segments, is_timebase
from emulator.operands import (
    ANSWERED,
    GPR_READS,
    GPR_WRITES,
    HYPERCALL,
    READS,
    UNKNOWN,
    masks_of,
    place_of,
)
from tests.operand_oracle import Oracle, complaint, depends

pytestmark = pytest.mark.real

TEXT_BYTES = 14 << 20
REGISTER = re.compile(r"\br(\d+)\b")
CAPSTONE_DIFFERS = {
    "ori": "ori rn,rn,0 is no operation",
    "oris": "oris r0,r0,0 likewise",
    "xoris": "xoris r0,r0,0 likewise",
    "mr": "mr rn,rn is a hint",
    "trap": "TO = 31 traps whatever it compares",
    "twui": "TO = 31 traps whatever it compares",
    "tdui": "TO = 31 traps whatever it compares",
    "tdu": "TO = 31 traps whatever it compares",
    "stwu": "RA 0 is no valid form: data",
    "stbu": "RA 0 is no valid form: data",
    "lmw": "only the first register is named",
    "stmw": "only the first register is named",
    "lswi": "only the first register is named",
    "stswi": "only the first register is named",
    "stbcix": "RA 0 is the number 0, though printed as r0",
    "stwcix": "RA 0 is the number 0, though printed as r0",
    "lwzcix": "RA 0 is the number 0, though printed as r0",
    "ldcix": "RA 0 is the number 0, though printed as r0",
    "lhzu": "RA 0 is no valid form: data",
    "lwzu": "RA 0 is no valid form: data",
    "lbzu": "RA 0 is no valid form: data",
    "lfsu": "RA 0 is no valid form: data",
    "lfdu": "RA 0 is no valid form: data",
    "stfsu": "RA 0 is no valid form: data",
    "stfdu": "RA 0 is no valid form: data",
}
MFSPR = place_of(0x7C0002A6)
HIDDEN = ("bcd", "darn", "mcrfs", "vcmp", "xvcmp")
"""They answer from vector registers, FPSCR or a random number: twice the same is not the same."""
MOST_UNKNOWN = 0.001


@pytest.fixture(scope="module")
def words(debian_pair: DebianPair) -> dict[int, int]:
    """Every word of the kernel's text and of kexec, with its purgatory: word -> how often."""
    kernel = read_kernel(Path(debian_pair.vmlinux).read_bytes(), "vmlinux")
    kexec = debian_pair.kexec.read_bytes()
    text = bytes(kernel.segments[0].data[:TEXT_BYTES]) + kexec[: len(kexec) & ~3]
    found, counts = np.unique(np.frombuffer(text, "<u4"), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def text_of(word: int) -> str:
    return disassemble(word.to_bytes(4, "little"), 0x11000, big_endian=False)[0].text


def test_capstone_names_the_same_registers(words: dict[int, int]) -> None:
    differing, seen, unknown = Counter[str](), 0, 0
    for word, count in words.items():
        text, masks = text_of(word), masks_of(word)
        spr = word >> 16 & 31 | (word >> 11 & 31) << 5
        if text.startswith(".long") or (place_of(word) == MFSPR and spr not in ANSWERED):
            continue
        seen += count
        if masks[READS] & UNKNOWN:
            unknown += count
            continue
        named = sum({1 << int(n) for n in REGISTER.findall(text)})
        if named != masks[GPR_READS] | masks[GPR_WRITES]:
            differing[text.split()[0]] += count
    assert seen > 3_000_000
    assert unknown < MOST_UNKNOWN * seen
    assert set(differing) <= set(CAPSTONE_DIFFERS), differing


@pytest.mark.parametrize("little", [True, False])
def test_the_machine_reads_and_writes_no_more(words: dict[int, int], little: bool) -> None:
    chance = random.Random(20081008 + little)
    groups = defaultdict(list)
    for word in words:
        masks = masks_of(word)
        if masks[READS] & (UNKNOWN | HYPERCALL) or is_timebase(word) or changes_segments(word):
            continue
        if not text_of(word).startswith(".long"):
            groups[place_of(word), word & 1].append(word)
    sample = [w for group in groups.values() for w in chance.sample(group, min(12, len(group)))]
    assert len(sample) > 2500
    oracle, wrong, depend = Oracle(little=little), list[tuple[str, str]](), 0
    for word in sample:
        text = text_of(word)
        said = complaint(oracle, word, chance)
        if said and not (said.startswith("hangs on more") and text.startswith(HIDDEN)):
            wrong.append((said, text))
        depend += depends(oracle, word, chance)
    assert wrong == []
    assert depend > 0.75 * len(sample), "what is read matters"


def test_which_special_registers_the_machine_answers() -> None:
    """mfspr of any other leaves RT as it is, or is refused."""
    oracle, chance, found = Oracle(little=True), random.Random(1), []
    for number in range(1024):
        word = 0x7C6002A6 | (number & 31) << 16 | (number >> 5) << 11
        if is_timebase(word):  # answered by a hook, which is put there at a first fetch
            found.append(number)
            continue
        values = oracle.values(chance, addresses=True)
        first = oracle.run(word, values)
        second = oracle.run(word, values | {"r3": values["r3"] ^ 0xFFF})
        if first.rest[1] != "fault" and first.registers["r3"] == second.registers["r3"]:
            found.append(number)
    assert found == list(ANSWERED)
