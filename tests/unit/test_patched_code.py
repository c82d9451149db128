"""Code that the guest patches while it runs: what runs next is what stands in memory."""

import struct

import pytest

from emulator.machine import Machine
from emulator.ppc64 import MSR_LE, MSR_ME, MSR_SF

MAIN, FIRST, SECOND = 0x2000, 0x1000, 0x1100
LI_R3_1, LI_R4_2, LI_R3_7, LI_R4_9, BLR = 0x38600001, 0x38800002, 0x38600007, 0x38800009, 0x4E800020
TWICE = 2


def call(at: int, target: int) -> int:
    return 0x48000001 | (target - at) & 0x03FFFFFC


def machine(stores: tuple[int, ...]) -> Machine:
    """Call both functions twice, store between the calls: r5 and r6 hold new first instructions."""
    made = Machine(16 << 20, 1, hypercall=lambda machine, cpu, args: [0])
    made.write(FIRST, struct.pack("<2I", LI_R3_1, BLR))
    made.write(SECOND, struct.pack("<2I", LI_R4_2, BLR))
    words: list[int] = []
    for n in range(TWICE):
        for target in (FIRST, SECOND):
            words.append(call(MAIN + 4 * len(words), target))
        words += stores if n == 0 else (0x48000000,)
    made.write(MAIN, struct.pack(f"<{len(words)}I", *words))
    made.cpus[0].set_registers(
        {"nip": MAIN, "msr": MSR_SF | MSR_ME | MSR_LE, "r5": LI_R3_7, "r6": LI_R4_9}
    )
    return made


STORES = (0x90A01000, 0x90C01100)  # stw 5,0x1000(0); stw 6,0x1100(0)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("order", [STORES, STORES[::-1]])
def test_second_patch_of_a_page_is_seen_like_the_first(order: tuple[int, ...], exact: bool) -> None:
    made = machine(order)
    made.run(0, 100, exact=exact)
    registers = made.cpus[0].registers()
    assert (registers.gpr[3], registers.gpr[4]) == (7, 9)


def test_more_pages_than_can_be_kept_are_patched_rightly() -> None:
    """Each of 1,100 pages of code is patched twice: more pages than there are copies."""
    pages, base = 1100, 0x100000
    made = Machine(32 << 20, 1, hypercall=lambda machine, cpu, args: [0])
    for n in range(pages):
        at = base + 0x1000 * n
        made.write(at, struct.pack("<2I", LI_R3_1, BLR))
        made.write(at + 0x100, struct.pack("<2I", LI_R4_2, BLR))
    calls = (0x7D4903A6, 0x4E800421, 0x394A0100, 0x7D4903A6, 0x4E800421)
    body = [
        *calls,  # mtctr 10; bctrl; addi 10,10,0x100; mtctr 10; bctrl
        0x90AAFF00, 0x90CA0000,  # stw 5,-0x100(10); stw 6,0(10)
        0x394AFF00, *calls,  # addi 10,10,-0x100
        0x7D081A14, 0x7D082214,  # add 8,8,3; add 8,8,4
        0x394A0F00, 0x3929FFFF, 0x2C090000,  # addi 10,10,0xf00; addi 9,9,-1; cmpwi 9,0
    ]  # fmt: skip
    body += [0x40820000 | (-4 * len(body)) & 0xFFFC, 0x48000000]  # bne back; b .
    made.write(MAIN, struct.pack(f"<{len(body)}I", *body))
    made.cpus[0].set_registers(
        {
            "nip": MAIN, "msr": MSR_SF | MSR_ME | MSR_LE,
            "r5": LI_R3_7, "r6": LI_R4_9, "r9": pages, "r10": base,
        }
    )  # fmt: skip
    made.run(0, 100 * pages, exact=False)
    assert made.cpus[0].registers().gpr[8] == pages * (7 + 9)
