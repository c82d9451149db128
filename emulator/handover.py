"""TABLE: the old kernel's last act, as guest code of our own, where no old kernel is given.

What it is: a routine for the boot CPU and one for the secondaries, machine words beside the
assembly that they are, and the registers each CPU starts with. It does what kexec_sequence and
kexec_wait of Linux do: copy the image's first 0x100 bytes to real 0, set kexec_flag, which sends
the secondaries to 0x60 (always big-endian), and enter purgatory.
What it is not: Linux's code, or the shooting down and MMU clean-up that come before and between.
Sources: linux arch/powerpc/kernel/misc_64.S for the order of events; the captured hand-offs for
the state on arrival; Power ISA 3.1 for the words (a test assembles the text and compares).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from emulator.handoff import MSR_BIG, MSR_LITTLE


@dataclass(frozen=True)
class Word:
    """One instruction: where, the word, the assembly it is, what for."""

    at: int
    word: int
    asm: str
    note: str = ""


# r25 physical id, r26 image start (purgatory), r27 &kexec_flag, r28 what purgatory gets in r6
BOOT_CODE: Final = (
    Word(0x00, 0x38A00000, "li 5,0", "copy 0x100 bytes from the image's start to real 0"),
    Word(0x04, 0x38000020, "li 0,32"),
    Word(0x08, 0x7C0903A6, "mtctr 0"),
    Word(0x0C, 0x7CDA282A, "ldx 6,26,5"),
    Word(0x10, 0x7CC0292A, "stdx 6,0,5"),
    Word(0x14, 0x38A50008, "addi 5,5,8"),
    Word(0x18, 0x4200FFF4, "bdnz .-12"),
    Word(0x1C, 0x38A00000, "li 5,0", "make the copy visible to instruction fetch"),
    Word(0x20, 0x38000002, "li 0,2"),
    Word(0x24, 0x7C0903A6, "mtctr 0"),
    Word(0x28, 0x7C00286C, "dcbst 0,5"),
    Word(0x2C, 0x7C0004AC, "sync"),
    Word(0x30, 0x7C002FAC, "icbi 0,5"),
    Word(0x34, 0x38A50080, "addi 5,5,128"),
    Word(0x38, 0x4200FFF0, "bdnz .-16"),
    Word(0x3C, 0x7C0004AC, "sync"),
    Word(0x40, 0x4C00012C, "isync"),
    Word(0x44, 0x38A00001, "li 5,1", "release the secondaries"),
    Word(0x48, 0x90BB0000, "stw 5,0(27)"),
    Word(0x4C, 0x7F23CB78, "mr 3,25", "enter purgatory"),
    Word(0x50, 0x7F44D378, "mr 4,26"),
    Word(0x54, 0x7C8803A6, "mtlr 4"),
    Word(0x58, 0x38A00000, "li 5,0"),
    Word(0x5C, 0x7F86E378, "mr 6,28"),
    Word(0x60, 0x4E800020, "blr"),
)

SECONDARY_CODE: Final = (
    Word(0x80, 0x80850000, "lwz 4,0(5)", "spin until kexec_flag is set"),
    Word(0x84, 0x2C040000, "cmpwi 4,0"),
    Word(0x88, 0x4182FFF8, "beq .-8"),
    Word(0x8C, 0x39400060, "li 10,0x60", "go to 0x60 in big-endian"),
    Word(0x90, 0x7D6000A6, "mfmsr 11"),
    Word(0x94, 0x796B07A4, "rldicr 11,11,0,62"),
    Word(0x98, 0x7D5A03A6, "mtsrr0 10"),
    Word(0x9C, 0x7D7B03A6, "mtsrr1 11"),
    Word(0xA0, 0x4C000024, "rfid"),
)

BOOT_OFFSET: Final = BOOT_CODE[0].at
SECONDARY_OFFSET: Final = SECONDARY_CODE[0].at
FLAG_OFFSET_BYTES: Final = 0xC0
"""Where kexec_flag lies in the segment, 4 bytes."""
CODE_BYTES: Final = 0x100
NOTES_OFFSET: Final = 0x1000
"""Where the crash notes of the CPUs lie (zero: nobody wrote any), behind the code."""
NOTE_BYTES: Final = 0x400
VMCOREINFO_OFFSET: Final = 0x8000
HANDOVER_BYTES: Final = 0x10000
DEFAULT_ADDR: Final = 0x10000
"""Where the search for its place begins: old kernels live low, above the first page."""

PLACES: Final = {
    "handover_boot": (BOOT_OFFSET, BOOT_CODE[-1].at + 4 - BOOT_OFFSET),
    "handover_secondary": (SECONDARY_OFFSET, SECONDARY_CODE[-1].at + 4 - SECONDARY_OFFSET),
    "kexec_flag": (FLAG_OFFSET_BYTES, 4),
}
"""Name -> (offset in the segment, size)."""


@dataclass(frozen=True)
class CpuStart:
    """State of one CPU at tick 0; registers that are not named are 0."""

    nip: int
    msr: int
    gpr: dict[int, int]


def handover_code(big_endian: bool) -> bytes:
    """The segment's code in the byte order of the old kernel, kexec_flag 0."""
    code = bytearray(CODE_BYTES)
    for row in BOOT_CODE + SECONDARY_CODE:
        struct.pack_into(">I" if big_endian else "<I", code, row.at, row.word)
    return bytes(code)


def cpu_starts(
    addr: int,
    entry_addr: int,
    cpu_ids: tuple[int, ...],
    boot_cpu: int,
    big_endian: bool,
    r6: int = 0,
) -> tuple[CpuStart, ...]:
    """Where every CPU stands at tick 0.

    Args:
        addr: real address of the segment.
        entry_addr: purgatory_start; the 0x100 bytes there are copied to 0.
        cpu_ids: physical ids, in CPU order.
        boot_cpu: index of the CPU that enters purgatory.
        big_endian: byte order that the old kernel runs in.
        r6: what purgatory finds in r6 (0xfeed1234 after a crash of 2.6.28-rc1).
    """
    msr = MSR_BIG if big_endian else MSR_LITTLE
    flag = addr + FLAG_OFFSET_BYTES
    boot = {25: cpu_ids[boot_cpu], 26: entry_addr, 27: flag, 28: r6}
    return tuple(
        CpuStart(addr + BOOT_OFFSET, msr, boot)
        if cpu == boot_cpu
        else CpuStart(addr + SECONDARY_OFFSET, msr, {3: cpu_id, 5: flag})
        for cpu, cpu_id in enumerate(cpu_ids)
    )


def assembly(rows: tuple[Word, ...]) -> str:
    """The routine as text for an assembler."""
    return "".join(f"\t{row.asm}\n" for row in rows)
