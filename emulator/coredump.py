"""The ELF core header that a crash kernel finds by elfcorehdr=: what memory there was, and where.

What it is: the few headers that kexec-tools builds for /proc/vmcore, over a machine that never
ran, so the notes that they point to are zero. What it is not: a dump.
Source: kexec-tools kexec/crashdump-elf.c and arch/ppc64/crashdump-ppc64.c (behaviour); gABI.
"""

from __future__ import annotations

import struct
from typing import Final

from emulator.elf import EM_PPC64, ET_CORE
from emulator.handoff import BACKUP_BYTES, LINEAR_BASE
from emulator.handover import NOTE_BYTES, NOTES_OFFSET, VMCOREINFO_OFFSET

HEADER_ALIGN: Final = 1024
_PT_LOAD, _PT_NOTE = 1, 4
_CRASH_NOTE_BYTES: Final = 0x218
_VMCOREINFO_BYTES: Final = 0x1000


def build_core_header(
    mem_bytes: int,
    crash: tuple[int, int],
    backup_addr: int,
    rtas: tuple[int, int] | None,
    cpus: int,
    big_endian: bool,
    old_kernel_addr: int,
) -> bytes:
    """Headers of the old kernel's memory without the crash kernel's area.

    Args:
        mem_bytes: end of memory.
        crash: the crash kernel's area, start and end.
        backup_addr: where 0..64 KiB are found after purgatory saved them.
        rtas: the firmware's area if it lies inside the crash kernel's.
        cpus: how many crash notes there are.
        big_endian: byte order of the old kernel.
        old_kernel_addr: where the notes of the old kernel lie.
    """
    ranges = [(BACKUP_BYTES, crash[0]), (crash[1], mem_bytes)]
    if rtas is not None and rtas[0] < crash[1] and rtas[1] > crash[0]:
        page_end = -(-rtas[1] // BACKUP_BYTES) * BACKUP_BYTES
        ranges.append((max(rtas[0], crash[0]), min(page_end, crash[1])))
    rows: list[tuple[int, int, int, int, int]] = []  # type, offset, vaddr, paddr, size
    for cpu in range(cpus):
        note = old_kernel_addr + NOTES_OFFSET + cpu * NOTE_BYTES
        rows.append((_PT_NOTE, note, 0, note, _CRASH_NOTE_BYTES))
    info = old_kernel_addr + VMCOREINFO_OFFSET
    rows.append((_PT_NOTE, info, 0, info, _VMCOREINFO_BYTES))
    rows.append((_PT_LOAD, backup_addr, LINEAR_BASE, 0, BACKUP_BYTES))
    rows += [(_PT_LOAD, lo, LINEAR_BASE | lo, lo, hi - lo) for lo, hi in ranges if hi > lo]
    order = ">" if big_endian else "<"
    ident = b"\x7fELF" + bytes([2, 2 if big_endian else 1, 1]) + bytes(9)
    head = struct.pack(
        order + "HHIQQQIHHHHHH", ET_CORE, EM_PPC64, 1, 0, 64, 0, 0, 64, 56, len(rows), 0, 0, 0
    )
    body = b"".join(
        struct.pack(order + "IIQQQQQQ", kind, 7 if kind == _PT_LOAD else 0, at, vaddr, paddr,
                    size, size, 0)
        for kind, at, vaddr, paddr, size in rows
    )  # fmt: skip
    whole = ident + head + body
    return whole.ljust(-(-len(whole) // HEADER_ALIGN) * HEADER_ALIGN, b"\0")
