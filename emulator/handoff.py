"""TABLE: the hand-off ABI: low memory, the flags, purgatory symbols, entry contracts, stages.

What it is: facts of kexec, kdump and the kernel's head, one row a fact, each with its source.
What it is not: anything found by looking at an image; an offset that moves with the kernel
(`__secondary_hold_spinloop`) is a symbol name here, never a number.
Sources: linux arch/powerpc/kernel/head_64.S and misc_64.S, kexec-tools kexec/arch/ppc64/ and
purgatory/arch/ppc64/v2wrap.S, commits named in the rows; registers as captured from QEMU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOW_COPY_BYTES: Final = 0x100
"""How much of the image's start the old kernel copies to real 0 (kexec_sequence)."""
SECONDARY_ENTRY: Final = 0x60
"""Where secondaries enter the copy at 0."""
FLAG_OFFSET: Final = 0x5C
"""`__run_at_load` in the kernel's head, `run_at_load` behind purgatory_start."""
RUN_AT_ZERO_MAGIC: Final = 0x72756E30
"""The flag as a relocatable kernel ships it: the letters "run0" in the kernel's byte order."""
RUN_AT_LOAD: Final = 1
"""The flag that tells the kernel to stay where it was loaded."""
KDUMP_FLAG_OFFSET: Final = 0x18
"""`__kdump_flag`, 64 bits, of 2.6.28-rc1 and rc2."""
CRASH_SIGNATURE: Final = 0xFEED1234
"""What kexec_sequence of 2.6.28-rc1 passed in r6 when the machine had crashed."""
BACKUP_BYTES: Final = 0x10000
"""Memory 0..64 KiB that purgatory saves before a crash kernel uses it."""
PAGE_BYTES: Final = 0x10000
"""Page size of the kernel under which kexec places segments (64 KiB on ppc64 Debian)."""
STACK_BYTES: Final = 16 * 1024
"""The hole that kexec looks for to hold purgatory's stack."""
RMO_TOP: Final = 0x30000000
"""kexec-tools places nothing above 768 MiB: the real-mode area of a partition."""
SHA256_REGIONS: Final = 16
"""Entries (start, length), 8 bytes each, in purgatory's sha256_regions."""
LINEAR_BASE: Final = 0xC000000000000000
"""PAGE_OFFSET: effective address of real address 0 in the kernel's linear map."""

MSR_BIG: Final = 0x8000000000001002
"""SF ME RI: real mode, big-endian."""
MSR_LITTLE: Final = 0x8000000000001003
"""SF ME RI LE: real mode, little-endian."""


@dataclass(frozen=True)
class LowField:
    """A named field of real 0x0-0x100 (or of the first bytes of a kernel image)."""

    name: str
    at: int | None
    """Offset where it is ABI; None where it moves and `symbol` finds it."""
    size: int
    symbol: str
    """Kernel symbol of the field, "" if it has none."""
    note: str
    source: str


LOW_FIELDS: Final = (
    LowField("entry", 0x0, 4, "", "boot CPU enters here, r3 = device tree",
             "linux head_64.S: __start"),
    LowField("__kdump_flag", 0x18, 8, "__kdump_flag", "1: this is a kdump kernel, stay",
             "linux 54622f10a6 (2.6.28-rc1, rc2 only)"),
    LowField("iSeries pointer", 0x20, 8, "", "the iSeries hypervisor's data (2.6 with PPC_ISERIES)",
             "linux v2.6.27 head_64.S"),
    LowField("__secondary_hold_spinloop", None, 8, "__secondary_hold_spinloop",
             "secondaries spin until it is non-zero", "linux head_64.S"),
    LowField("__secondary_hold_acknowledge", None, 8, "__secondary_hold_acknowledge",
             "id of the last secondary that arrived", "linux head_64.S"),
    LowField("__run_at_load", 0x5C, 4, "__run_at_load", "1: stay where loaded; run0: move to 0",
             "linux 8b8b0cc1c7 head_64.S; kexec-tools v2wrap.S"),
    LowField("__secondary_hold", 0x60, 0xA0, "__secondary_hold",
             "secondaries enter here, r3 = physical id", "linux head_64.S"),
)  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """A word that tells the kernel whether to stay where it was loaded."""

    name: str
    symbol: str
    at: int
    size: int
    stay: int
    """The value that means: stay."""
    note: str
    source: str


FLAGS: Final = (
    Flag("__run_at_load", "__run_at_load", FLAG_OFFSET, 4, RUN_AT_LOAD,
         "set by kexec-tools through purgatory", "linux 8b8b0cc1c7; kexec-tools 79c650e"),
    Flag("__kdump_flag", "__kdump_flag", KDUMP_FLAG_OFFSET, 8, 1,
         "set by purgatory when r6 carries 0xfeed1234", "linux 54622f10a6; kexec-tools d9c5b2d"),
)  # fmt: skip


@dataclass(frozen=True)
class PurgatorySymbol:
    """A variable of the purgatory that the loader fills in."""

    name: str
    size: int
    needed: bool
    """True if no hand-off works without it; the others are patched where they exist."""
    note: str
    source: str


PURGATORY_SYMBOLS: Final = (
    PurgatorySymbol("purgatory_start", 0x100, True, "kernel's first 0x100 bytes but one word",
                    "kexec-elf-ppc64.c; linux file_load.c"),
    PurgatorySymbol("kernel", 8, True, "load address of the kernel", "kexec-elf-ppc64.c"),
    PurgatorySymbol("dt_offset", 8, True, "address of the device tree", "kexec-elf-ppc64.c"),
    PurgatorySymbol("run_at_load", 4, False, "1 under KEXEC_ON_CRASH if it was run0",
                    "kexec-elf-ppc64.c"),
    PurgatorySymbol("panic_kernel", 4, False, "1 under KEXEC_ON_CRASH", "kexec-elf-ppc64.c"),
    PurgatorySymbol("backup_start", 8, False, "where 0..64 KiB are saved", "kexec-elf-ppc64.c"),
    PurgatorySymbol("stack", 8, False, "top of purgatory's stack", "kexec-elf-ppc64.c"),
    PurgatorySymbol("my_toc", 8, False, "r2 of purgatory's C code", "kexec-elf-ppc64.c"),
    PurgatorySymbol("debug", 4, False, "1: purgatory talks", "kexec-elf-ppc64.c"),
    PurgatorySymbol("opal_base", 8, False, "0 in a partition", "kexec-elf-ppc64.c"),
    PurgatorySymbol("opal_entry", 8, False, "0 in a partition", "kexec-elf-ppc64.c"),
    PurgatorySymbol("skip_checks", 4, False, "1: no digest check", "kexec.c, --no-checks"),
    PurgatorySymbol("sha256_regions", 256, False, "16 x start, length", "kexec.c"),
    PurgatorySymbol("sha256_digest", 32, False, "of all segments but purgatory", "kexec.c"),
    PurgatorySymbol("purgatory_sha_regions", 256, False, "the same, kernel's own purgatory",
                    "linux kexec_file.c"),
    PurgatorySymbol("purgatory_sha256_digest", 32, False, "the same, kernel's own purgatory",
                    "linux kexec_file.c"),
)  # fmt: skip


@dataclass(frozen=True)
class EntryContract:
    """What the registers hold when control reaches a place of the hand-off."""

    place: str
    who: str
    msr: str
    registers: tuple[tuple[str, str], ...]
    source: str


ENTRY_CONTRACTS: Final = (
    EntryContract(
        "purgatory_start", "boot CPU", "real mode, the old kernel's byte order",
        (("r3", "physical id of this CPU"), ("r4", "address of purgatory_start"),
         ("lr", "same as r4"), ("r5", "0"), ("r6", "0xfeed1234 after a crash, 2.6.28-rc1 only")),
        "linux misc_64.S: kexec_sequence"),
    EntryContract(
        "0x60", "secondaries", "real mode, big-endian",
        (("r3", "physical id of this CPU"), ("r4", "1, kexec_flag as read"),
         ("r5", "&kexec_flag of the old kernel"), ("r10", "0x60")),
        "linux misc_64.S: kexec_wait"),
    EntryContract(
        "kernel entry", "boot CPU", "real mode, big-endian",
        (("r3", "device tree"), ("r4", "load address of the kernel"), ("r5", "0"),
         ("r6", "&run_at_load of purgatory"), ("r7", "the flag"), ("r8", "opal_base, 0"),
         ("r9", "opal_entry, 0")),
        "kexec-tools v2wrap.S"),
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """Where a CPU is in the hand-off; lane letter, stable id, name."""

    letter: str
    id: str
    name: str
    symbols: tuple[str, ...]
    """Functions that belong to it (entered at their first instruction); "" rows are by address."""
    image: str
    """Where those symbols are looked up: handover, low, purgatory, kernel; "" for none."""
    source: str


STAGES: Final = (
    Stage("O", "hand-over", "old kernel's hand-over", ("handover_boot", "handover_secondary"),
          "handover", "linux misc_64.S: kexec_sequence, kexec_wait"),
    Stage("H", "hold", "hold loop", ("__secondary_hold",), "low", "linux head_64.S"),
    Stage("P", "purgatory", "purgatory", ("purgatory_start", "master", "purgatory"), "purgatory",
          "kexec-tools v2wrap.S"),
    Stage("D", "digest", "digest check", ("verify_sha256_digest",), "purgatory",
          "kexec-tools purgatory.c"),
    Stage("K", "head", "kernel head", ("__start", "_start", "_stext", "__after_prom_start"),
          "kernel", "linux head_64.S"),
    Stage("R", "relocate", "relocate", ("relocate",), "kernel", "linux reloc_64.S"),
    Stage("C", "copy", "copy to 0", ("copy_and_flush",), "kernel", "linux head_64.S"),
    Stage("E", "early_setup", "early_setup", ("early_setup",), "kernel", "linux setup_64.c"),
    Stage("S", "start_kernel", "start_kernel", ("start_kernel",), "kernel", "linux init/main.c"),
    Stage("J", "joins", "secondary joins", ("generic_secondary_smp_init",), "kernel",
          "linux head_64.S"),
    Stage("X", "stopped", "stopped, faulted, spinning", (), "", "bootflow"),
)  # fmt: skip

STAGE_BY_ID: Final = {stage.id: stage for stage in STAGES}
STAGE_BY_LETTER: Final = {stage.letter: stage for stage in STAGES}
