"""TABLE: registers, MSR bits and exceptions of a 64-bit PowerPC.

What it is: rows that the machine, the pages and the text output share. What it is not: behaviour.
Source: Power ISA 3.1 Books I and III; Linux arch/powerpc/kernel/process.c for the order of MSR
names; unicorn/ppc.h for the register numbers (part of Unicorn's ABI, checked by a test).
"""

from __future__ import annotations

from dataclasses import dataclass

UC_REG_PC = 1
UC_REG_GPR0 = 2
UC_REG_LR, UC_REG_CTR, UC_REG_MSR, UC_REG_CR = 74, 76, 77, 79

MSR_LE, MSR_RI, MSR_DR, MSR_IR = 0x1, 0x2, 0x10, 0x20
MSR_ME, MSR_FP, MSR_PR, MSR_EE = 0x1000, 0x2000, 0x4000, 0x8000
MSR_SF = 1 << 63


@dataclass(frozen=True)
class Bit:
    """One named bit of a register."""

    name: str
    mask: int
    note: str


MSR_BITS: tuple[Bit, ...] = (  # in the order in which the kernel's oops prints them
    Bit("SF", 1 << 63, "64-bit mode"),
    Bit("HV", 1 << 60, "hypervisor state"),
    Bit("VEC", 1 << 25, "vector available"),
    Bit("VSX", 1 << 23, "VSX available"),
    Bit("EE", 0x8000, "external interrupts enabled"),
    Bit("PR", 0x4000, "problem state"),
    Bit("FP", 0x2000, "floating point available"),
    Bit("ME", 0x1000, "machine checks enabled"),
    Bit("SE", 0x0400, "single step"),
    Bit("BE", 0x0200, "branch trace"),
    Bit("IR", 0x0020, "instruction relocation"),
    Bit("DR", 0x0010, "data relocation"),
    Bit("PMM", 0x0004, "performance monitor mark"),
    Bit("RI", 0x0002, "recoverable interrupt"),
    Bit("LE", 0x0001, "little endian"),
)


def msr_names(msr: int) -> str:
    """Names of the set bits in oops form, e.g. `<SF,ME,RI,LE>`."""
    return "<" + ",".join(bit.name for bit in MSR_BITS if msr & bit.mask) + ">"


GPRS = tuple(f"r{n}" for n in range(32))
SPECIALS = ("nip", "msr", "cr", "lr", "ctr", "xer")
REGISTERS: tuple[str, ...] = SPECIALS + GPRS
"""Every register of a moment, in the order of its JSON."""

REGISTER_BITS: dict[str, int] = {name: 64 for name in REGISTERS} | {"cr": 32, "xer": 32}

SPR_SRR0, SPR_SRR1, SPR_DAR, SPR_DSISR, SPR_PID, SPR_LPCR = 26, 27, 19, 18, 48, 318
SPR_SPRG0, SPR_SPRG3 = 272, 275


@dataclass(frozen=True)
class Interrupt:
    """One way in which Unicorn hands an exception to us, and the vector the guest expects."""

    number: int
    """The number that UC_HOOK_INTR carries (QEMU's POWERPC_EXCP_*)."""
    vector: int
    name: str
    faulting: bool
    """SRR0 is the instruction itself, not the one after it."""


INTERRUPTS: dict[int, Interrupt] = {
    row.number: row
    for row in (
        Interrupt(2, 0x300, "data storage interrupt", True),
        Interrupt(3, 0x400, "instruction storage interrupt", True),
        Interrupt(5, 0x600, "alignment interrupt", True),
        Interrupt(6, 0x700, "program check", True),
        Interrupt(7, 0x800, "floating point unavailable", True),
        Interrupt(8, 0xC00, "system call", False),
        Interrupt(64, 0x100, "system reset", False),
        Interrupt(65, 0x380, "data segment interrupt", True),
        Interrupt(66, 0x480, "instruction segment interrupt", True),
        Interrupt(73, 0xF20, "vector unavailable", True),
        Interrupt(94, 0xF40, "VSX unavailable", True),
        Interrupt(95, 0xF60, "facility unavailable", True),
        Interrupt(96, 0xE40, "emulation assist", True),
    )
}

# Program check reasons in SRR1 (Power ISA 3.1 Book III 7.5.9)
PROGRAM_ILLEGAL, PROGRAM_PRIVILEGED, PROGRAM_TRAP = 0x80000, 0x40000, 0x20000


_D_FORM = frozenset(range(32, 56))
_DS_FORM = frozenset((57, 58, 61, 62))
_DQ_FORM = frozenset((6, 56))
_NO_INDEX = frozenset((597, 725))
"""Extended opcodes under 31 of lswi and stswi."""


def effective_address(word: int, gpr: tuple[int, ...]) -> int | None:
    """Address that a load or store names, in 64-bit mode; None for what is surely neither.

    Source: Power ISA 3.1, Book I 1.6.1 (D, DS, DQ and X forms).
    """
    primary, ra, rb = word >> 26, word >> 16 & 31, word >> 11 & 31
    base = gpr[ra] if ra else 0
    if primary == 31:
        offset = 0 if word >> 1 & 0x3FF in _NO_INDEX else gpr[rb]
    elif primary in _D_FORM:
        offset = word & 0xFFFF
    elif primary in _DQ_FORM or (primary == 61 and word & 3 == 1):  # lxv, stxv
        offset = word & 0xFFF0
    elif primary in _DS_FORM:
        offset = word & 0xFFFC
    else:
        return None
    if primary != 31:
        offset = (offset ^ 0x8000) - 0x8000
    return (base + offset) & (1 << 64) - 1
