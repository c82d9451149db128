"""A bounds-checked view of an ELF64 file's headers; hostile bytes cost an ImageError.

What it is: header, program headers and sections of a file held in memory, nothing copied.
What it is not: a loader or a linker; names and numbers of relocations and symbols are elsewhere.
Source: System V gABI (ELF-64), OpenPOWER ELF V2 ABI 1.4 (e_flags).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from emulator.errors import ImageError, NotElf, WrongMachine

ELF_MAGIC: Final = b"\x7fELF"
EM_PPC64: Final = 21
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
PT_LOAD: Final = 1
PT_INTERP: Final = 3
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 1, 2, 3, 4, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON = 0, 0xFF00, 0xFFF1, 0xFFF2

MAX_SECTIONS: Final = 20_000
MAX_PROGRAM_HEADERS: Final = 256
_MAX_NAME_BYTES: Final = 256

MACHINES: Final = {
    0: "an unnamed machine",
    2: "SPARC",
    3: "x86 (i386)",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC",
    22: "s390",
    40: "32-bit Arm",
    50: "IA-64",
    62: "x86-64",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
"""e_machine -> how a person calls it (gABI's register of machines)."""

TYPES: Final = {1: "relocatable", 2: "executable", 3: "shared object or PIE", 4: "core dump"}


@dataclass(frozen=True)
class Section:
    """One row of the section header table."""

    index: int
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int


@dataclass(frozen=True)
class ProgramHeader:
    """One row of the program header table."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_bytes: int
    mem_bytes: int


@dataclass(frozen=True)
class ElfFile:
    """Checked headers over the file's bytes; every section and segment lies inside the file."""

    name: str
    data: bytes | memoryview
    big_endian: bool
    type: int
    machine: int
    flags: int
    entry: int
    program_headers: tuple[ProgramHeader, ...]
    sections: tuple[Section, ...]
    file_bytes: int
    """Where the last header, section or segment ends: the size of an ELF found inside a file."""

    @property
    def order(self) -> str:
        """The struct byte-order character."""
        return ">" if self.big_endian else "<"

    @property
    def abi(self) -> int:
        """1 or 2: the ABI of 64-bit PowerPC; e_flags 0 means 1 if big-endian, else 2."""
        return self.flags & 3 or (1 if self.big_endian else 2)

    def section_bytes(self, section: Section) -> memoryview:
        """The bytes of a section in the file; empty for NOBITS."""
        if section.type == SHT_NOBITS:
            return memoryview(b"")
        return memoryview(self.data)[section.offset : section.offset + section.size]

    def find_section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)


def describe_elf(data: bytes | memoryview) -> str:
    """What kind of ELF file begins here, in words; for messages."""
    head = bytes(data[:20])
    if len(head) < 20:
        return "a cut-off ELF file"
    bits = {1: "32-bit", 2: "64-bit"}.get(head[4], "odd-class")
    order = {1: "little-endian", 2: "big-endian"}.get(head[5], "odd-endian")
    elf_type, machine = struct.unpack_from(">HH" if head[5] == 2 else "<HH", head, 16)
    kind = TYPES.get(elf_type, f"type {elf_type}")
    return f"a {bits} {order} {MACHINES.get(machine, f'machine {machine}')} ELF file ({kind})"


def read_elf(data: bytes | memoryview, name: str, expected: str) -> ElfFile:
    """Check the headers of a 64-bit PowerPC ELF file.

    Args:
        data: the file; bytes behind the ELF's own end are ignored.
        name: how messages call the file.
        expected: what the caller wants, for messages ("a 64-bit PowerPC vmlinux").

    Raises:
        NotElf: no ELF magic. WrongMachine: another class or machine. ImageError: damaged.
    """
    view = memoryview(data)
    if bytes(view[:4]) != ELF_MAGIC:
        raise NotElf(f"{name}: no ELF magic at offset 0", hint=f"Give {expected}.")
    if len(view) < 64:
        raise ImageError(
            f"{name}: {len(view)} bytes are too short for an ELF header of 64",
            hint="The file is cut off; copy it again.",
        )
    if view[4] != 2 or view[5] not in (1, 2):
        raise WrongMachine(f"{name}: {describe_elf(view)}", hint=f"Give {expected}.")
    order = ">" if view[5] == 2 else "<"
    fields = struct.unpack_from(order + "HHIQQQIHHHHHH", view, 16)
    elf_type, machine, _, entry, phoff, shoff, flags = fields[:7]
    _, phentsize, phnum, shentsize, shnum, shstrndx = fields[7:]
    if machine != EM_PPC64:
        raise WrongMachine(f"{name}: {describe_elf(view)}", hint=f"Give {expected}.")
    headers = _program_headers(view, name, order, (phoff, phentsize, phnum))
    sections = _sections(view, name, order, (shoff, shentsize, shnum, shstrndx))
    ends = [64]
    ends += [header.offset + header.file_bytes for header in headers]
    ends += [s.offset + s.size for s in sections if s.type not in (0, SHT_NOBITS)]
    ends += [phoff + phnum * phentsize if phnum else 0, shoff + len(sections) * 64]
    return ElfFile(
        name, data, order == ">", elf_type, machine, flags, entry, headers, sections, max(ends)
    )


def _damaged(name: str, what: str) -> ImageError:
    return ImageError(f"{name}: {what}", hint="The file is damaged or cut off; copy it again.")


def _program_headers(
    view: memoryview, name: str, order: str, place: tuple[int, int, int]
) -> tuple[ProgramHeader, ...]:
    offset, entsize, count = place
    if not count:
        return ()
    if entsize != 56 or count > MAX_PROGRAM_HEADERS:
        raise _damaged(name, f"{count} program headers of {entsize} bytes each are not plausible")
    if offset + count * 56 > len(view):
        raise _damaged(name, f"program headers at {offset:#x} lie outside {len(view):#x} bytes")
    rows = []
    for index in range(count):
        kind, flags, at, vaddr, paddr, filesz, memsz, _ = struct.unpack_from(
            order + "IIQQQQQQ", view, offset + index * 56
        )
        if kind == PT_LOAD and at + filesz > len(view):
            raise _damaged(
                name,
                f"program header {index} (offset {at:#x}, {filesz:#x} bytes)"
                f" lies outside {len(view):#x} bytes",
            )
        if kind != PT_LOAD:
            filesz = min(filesz, max(0, len(view) - at))
            at = min(at, len(view))
        rows.append(ProgramHeader(kind, flags, at, vaddr, paddr, filesz, memsz))
    return tuple(rows)


def _sections(
    view: memoryview, name: str, order: str, place: tuple[int, int, int, int]
) -> tuple[Section, ...]:
    offset, entsize, count, strings_index = place
    if not offset:
        return ()
    if entsize != 64 or offset + 64 > len(view):
        raise _damaged(name, f"section headers at {offset:#x} ({entsize} bytes each) are damaged")
    first = struct.unpack_from(order + "IIQQQQIIQQ", view, offset)
    if count == 0:
        count = first[5]
    if strings_index == 0xFFFF:
        strings_index = first[6]
    if count > MAX_SECTIONS or offset + count * 64 > len(view):
        raise _damaged(name, f"{count} section headers at {offset:#x} lie outside the file")
    raw = list(struct.iter_unpack(order + "IIQQQQIIQQ", view[offset : offset + count * 64]))
    for index, row in enumerate(raw):
        if row[1] not in (0, SHT_NOBITS) and row[4] + row[5] > len(view):
            raise _damaged(
                name,
                f"section {index} (offset {row[4]:#x}, {row[5]:#x} bytes)"
                f" lies outside {len(view):#x} bytes",
            )
    names = memoryview(b"")
    if 0 < strings_index < count and raw[strings_index][1] == SHT_STRTAB:
        row = raw[strings_index]
        names = view[row[4] : row[4] + row[5]]
    return tuple(Section(index, _string(names, row[0]), *row[1:]) for index, row in enumerate(raw))


def _string(table: memoryview, offset: int) -> str:
    piece = bytes(table[offset : offset + _MAX_NAME_BYTES]) if offset < len(table) else b""
    return piece.split(b"\0", 1)[0].decode("ascii", "replace")
