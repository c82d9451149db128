"""TABLE: the 19 relocation types that kexec-tools applies for ppc64, and the linker over them.

What it is: one row a type (recipe, field, overflow rule), and `link_purgatory`, which lays the
allocated sections of an ET_REL purgatory out at an address and applies every relocation.
What it is not: a general linker: no archives, no common symbols, no PLT, no prefixed instructions.
Source: kexec-tools kexec/arch/ppc64/kexec-elf-rel-ppc64.c and kexec/kexec-elf-rel.c (behaviour),
64-bit PowerPC ELF ABI 1.9 and 2.1 (numbers, fields), linux purgatory/file_load_64.c for vmlinux.

Two habits of kexec-tools are kept because the bytes are compared with a real hand-off:
REL16_HA stores the upper half without the carry of the lower one (the code that would use it is
skipped by the local entry), and REL32 subtracts the address of kexec's own buffer, not of the
place; without a known buffer the place is used, which is what the ABI says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from emulator.elf import (
    ET_REL,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHN_ABS,
    SHN_COMMON,
    SHN_LORESERVE,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_REL,
    SHT_RELA,
    ElfFile,
    Section,
)
from emulator.errors import ImageError, LimitError, UnsupportedRelocation

MAX_PURGATORY_BYTES: Final = 16 << 20
MAX_RELOCATIONS: Final = 50_000
TOC_ALIGN: Final = 256
TOC_BIAS: Final = 0x8000
"""r2 points 0x8000 into the TOC, to reach 64 KiB with a signed 16-bit offset."""
_MASK64: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Operands:
    """What a recipe may use, all unsigned 64-bit numbers."""

    value: int
    """Symbol + addend (S + A)."""
    place: int
    """Address of the field (P)."""
    toc: int
    """.toc + 0x8000."""
    local: int
    """ELFv2: bytes from the callee's global to its local entry."""
    buffer: int
    """What REL32 subtracts: P, or the place in kexec's own buffer if that is known."""


@dataclass(frozen=True)
class Relocation:
    """One relocation type: number, field and recipe."""

    number: int
    name: str
    bytes: int
    """Width of the field."""
    mask: int
    """Which bits of the field are replaced."""
    recipe: Callable[[Operands], int]
    text: str
    """The recipe in the ABI's notation."""
    signed_bits: int
    """Overflow unless the result fits this many signed bits; 0: never checked."""
    source: str


_KEXEC = "kexec-elf-rel-ppc64.c"

RELOCATIONS: Final = (
    Relocation(1, "R_PPC64_ADDR32", 4, 0xFFFFFFFF, lambda o: o.value, "S + A", 0, _KEXEC),
    Relocation(4, "R_PPC64_ADDR16_LO", 2, 0xFFFF, lambda o: o.value, "#lo(S + A)", 0, _KEXEC),
    Relocation(5, "R_PPC64_ADDR16_HI", 2, 0xFFFF, lambda o: o.value >> 16, "#hi(S + A)", 0, _KEXEC),
    Relocation(6, "R_PPC64_ADDR16_HA", 2, 0xFFFF, lambda o: o.value + 0x8000 >> 16,
               "#ha(S + A)", 0, _KEXEC),
    Relocation(10, "R_PPC64_REL24", 4, 0x03FFFFFC, lambda o: o.value + o.local - o.place,
               "S + A + local - P", 26, _KEXEC),
    Relocation(26, "R_PPC64_REL32", 4, 0xFFFFFFFF, lambda o: o.value - o.buffer,
               "S + A - P", 0, _KEXEC),
    Relocation(38, "R_PPC64_ADDR64", 8, _MASK64, lambda o: o.value, "S + A", 0, _KEXEC),
    Relocation(39, "R_PPC64_ADDR16_HIGHER", 2, 0xFFFF, lambda o: o.value >> 32,
               "#higher(S + A)", 0, _KEXEC),
    Relocation(41, "R_PPC64_ADDR16_HIGHEST", 2, 0xFFFF, lambda o: o.value >> 48,
               "#highest(S + A)", 0, _KEXEC),
    Relocation(44, "R_PPC64_REL64", 8, _MASK64, lambda o: o.value,
               "S + A (kexec-tools does not subtract P)", 0, _KEXEC),
    Relocation(47, "R_PPC64_TOC16", 2, 0xFFFF, lambda o: o.value - o.toc,
               "S + A - TOC", 16, _KEXEC),
    Relocation(48, "R_PPC64_TOC16_LO", 2, 0xFFFF, lambda o: o.value - o.toc,
               "#lo(S + A - TOC)", 0, _KEXEC),
    Relocation(49, "R_PPC64_TOC16_HI", 2, 0xFFFF, lambda o: (o.value - o.toc) >> 16,
               "#hi(S + A - TOC)", 0, _KEXEC),
    Relocation(50, "R_PPC64_TOC16_HA", 2, 0xFFFF, lambda o: (o.value - o.toc + 0x8000) >> 16,
               "#ha(S + A - TOC)", 0, _KEXEC),
    Relocation(51, "R_PPC64_TOC", 8, _MASK64, lambda o: o.toc, "TOC", 0, _KEXEC),
    Relocation(63, "R_PPC64_TOC16_DS", 2, 0xFFFC, lambda o: o.value - o.toc,
               "S + A - TOC", 16, _KEXEC),
    Relocation(64, "R_PPC64_TOC16_LO_DS", 2, 0xFFFC, lambda o: o.value - o.toc,
               "#lo(S + A - TOC)", 0, _KEXEC),
    Relocation(250, "R_PPC64_REL16_LO", 2, 0xFFFF, lambda o: o.value + o.toc,
               "#lo(TOC): addi 2,2 of the global entry", 0, _KEXEC),
    Relocation(252, "R_PPC64_REL16_HA", 4, _MASK64, lambda o: o.value + o.toc,
               "#hi(TOC): addis 2,12 of the global entry becomes lis 2", 0, _KEXEC),
)  # fmt: skip

_BY_NUMBER: Final = {row.number: row for row in RELOCATIONS}
_ADDIS_2_12, _ADDI_2_2, _LIS_2 = 0x3C4C0000, 0x38420000, 0x3C400000


@dataclass(frozen=True)
class LinkedPurgatory:
    """The purgatory at its address, before its symbols are patched."""

    data: bytearray
    """Allocated sections but NOBITS."""
    mem_bytes: int
    """With NOBITS."""
    addr: int
    entry_addr: int
    toc_addr: int
    """r2; 0 if there is no .toc."""
    section_addr: dict[int, int]
    relocations: int
    """How many were applied."""


@dataclass(frozen=True)
class Layout:
    """Where each allocated section lies, relative to the purgatory's address."""

    offsets: dict[int, int]
    data_bytes: int
    mem_bytes: int
    align: int


def layout_purgatory(elf: ElfFile) -> Layout:
    """Lay out as kexec-tools does: file order, NOBITS last, .toc aligned to 256.

    Raises:
        ImageError: not relocatable, or an alignment that is no power of two.
        LimitError: larger than 16 MiB.
    """
    if elf.type != ET_REL:
        raise ImageError(
            f"{elf.name}: not a relocatable ELF file",
            hint="A purgatory is the .ro file before linking (ET_REL).",
        )
    loaded = [s for s in elf.sections if s.flags & SHF_ALLOC]
    offsets: dict[int, int] = {}
    end, align, bss_align = 0, 1, 1
    for section in loaded:
        need = _alignment(elf, section)
        align = max(align, need)
        if section.type == SHT_NOBITS:
            bss_align = max(bss_align, need)
            continue
        end = _up(end, need)
        offsets[section.index] = end
        end += section.size
    data_bytes = end
    end = _up(end, bss_align)
    for section in loaded:
        if section.type == SHT_NOBITS:
            end = _up(end, _alignment(elf, section))
            offsets[section.index] = end
            end += section.size
    if end > MAX_PURGATORY_BYTES:
        raise LimitError(
            f"{elf.name}: a purgatory of {end} bytes; the limit is {MAX_PURGATORY_BYTES}",
            hint="kexec-tools' purgatory has about 15,000 bytes.",
        )
    return Layout(offsets, data_bytes, end, align)


def _alignment(elf: ElfFile, section: Section) -> int:
    align = max(section.align, 1, TOC_ALIGN if section.name == ".toc" else 1)
    if align & (align - 1) or align > MAX_PURGATORY_BYTES:
        raise ImageError(
            f"{elf.name}: section {section.name} has alignment {section.align:#x}",
            hint="An alignment is a power of two; the file is damaged.",
        )
    return align


def _up(value: int, align: int) -> int:
    return (value + align - 1) & -align


def link_purgatory(elf: ElfFile, addr: int, buffer_addr: int | None = None) -> LinkedPurgatory:
    """Lay out an ET_REL purgatory at a real address and apply its relocations.

    Args:
        elf: the purgatory.
        addr: where it will lie.
        buffer_addr: where kexec held it while linking, if that is known (REL32, see above).

    Raises:
        UnsupportedRelocation: a type that kexec-tools does not know either.
        ImageError: damaged tables, a place or symbol outside, an overflow.
    """
    return _Linker(elf, addr, buffer_addr).link()


class _Linker:
    def __init__(self, elf: ElfFile, addr: int, buffer_addr: int | None) -> None:
        self.elf = elf
        self.addr = addr
        self.buffer_addr = addr if buffer_addr is None else buffer_addr
        layout = layout_purgatory(elf)
        self.layout = layout
        self.section_addr = {index: addr + off for index, off in layout.offsets.items()}
        self.data = bytearray(layout.data_bytes)
        for index, offset in layout.offsets.items():
            section = elf.sections[index]
            if section.type != SHT_NOBITS:
                self.data[offset : offset + section.size] = elf.section_bytes(section)
        toc = next((s for s in elf.sections if s.name == ".toc" and s.size), None)
        toc = toc if toc is not None and toc.index in self.section_addr else None
        self.toc = 0 if toc is None else self.section_addr[toc.index] + TOC_BIAS
        opd = elf.find_section(".opd")
        self.opd = opd if opd is not None and elf.abi == 1 and opd.index in layout.offsets else None
        self.applied = 0
        self._names = 0
        """Index of the string table of the symbols in use."""

    def link(self) -> LinkedPurgatory:
        tables = [s for s in self.elf.sections if s.type in (SHT_RELA, SHT_REL)]
        # Descriptors first: a branch to an ELFv1 function goes to what its descriptor names.
        opd_index = -1 if self.opd is None else self.opd.index
        tables.sort(key=lambda table: table.info != opd_index)
        for table in tables:
            self._apply_table(table)
        return LinkedPurgatory(
            self.data,
            self.layout.mem_bytes,
            self.addr,
            self._entry(),
            self.toc,
            self.section_addr,
            self.applied,
        )

    def _entry(self) -> int:
        entry = self.elf.entry
        for section in self.elf.sections:
            code = section.flags & SHF_ALLOC and section.flags & SHF_EXECINSTR
            if code and section.addr <= entry < section.addr + section.size:
                return self.section_addr[section.index] + entry - section.addr
        raise ImageError(
            f"{self.elf.name}: entry {entry:#x} lies in no section with code",
            hint="Is this file a purgatory?",
        )

    def _fail(self, message: str) -> ImageError:
        return ImageError(f"{self.elf.name}: {message}", hint="The purgatory is damaged.")

    def _apply_table(self, table: Section) -> None:
        sections = self.elf.sections
        if table.info >= len(sections) or table.link >= len(sections):
            raise self._fail(f"{table.name} names a section that does not exist")
        target = sections[table.info]
        if target.index not in self.layout.offsets or target.type == SHT_NOBITS:
            return
        symbols = self.elf.section_bytes(sections[table.link])
        self._names = sections[table.link].link
        size = 24 if table.type == SHT_RELA else 16
        form = self.elf.order + ("QQq" if size == 24 else "QQ")
        rows = self.elf.section_bytes(table)
        self.applied += len(rows) // size
        if self.applied > MAX_RELOCATIONS:
            raise LimitError(
                f"{self.elf.name}: more than {MAX_RELOCATIONS} relocations",
                hint="kexec-tools' purgatory has fewer than 200.",
            )
        for row in struct.iter_unpack(form, rows[: len(rows) // size * size]):
            self._apply(target, symbols, row[0], row[1], row[2] if size == 24 else 0)

    def _apply(
        self, target: Section, symbols: memoryview, offset: int, info: int, addend: int
    ) -> None:
        number = info & 0xFFFFFFFF
        if number == 0:
            return
        row = _BY_NUMBER.get(number)
        where = f"{target.name}+{offset:#x}"
        if row is None:
            raise UnsupportedRelocation(
                f"{self.elf.name}: relocation type {number} at {where}"
                " is none of the 19 that kexec-tools applies for ppc64",
                hint="Build the purgatory without PC-relative (-mno-pcrel) or TLS code.",
            )
        value, local = self._symbol(symbols, info >> 32, row)
        if number == 252 and self.elf.big_endian:
            offset -= 2  # the field is the halfword; the recipe rewrites the whole instruction
        if not 0 <= offset <= target.size - row.bytes:
            raise self._fail(f"{row.name} at {where} lies outside its section")
        if row.name in _TOC_USERS and not self.toc:
            raise self._fail(f"{row.name} at {where}, but there is no .toc section")
        at = self.layout.offsets[target.index] + offset
        operands = Operands(
            (value + addend) & _MASK64, self.addr + at, self.toc, local, self.buffer_addr + at
        )
        self._store(row, at, operands, where + self._missing(symbols, info >> 32))

    def _symbol(self, symbols: memoryview, index: int, row: Relocation) -> tuple[int, int]:
        """Address of a symbol and its local entry offset."""
        if index * 24 + 24 > len(symbols):
            raise self._fail(f"{row.name} names symbol {index}, which does not exist")
        _, _, other, shndx, value, _ = struct.unpack_from(
            self.elf.order + "IBBHQQ", symbols, index * 24
        )
        local = ((1 << (other >> 5)) >> 2) << 2 if self.elf.abi == 2 else 0
        if shndx == SHN_UNDEF:
            return 0, 0  # .TOC., and the empty symbol of R_PPC64_TOC; kexec-tools takes 0 too
        if shndx == SHN_ABS:
            return value, local
        if shndx == SHN_COMMON:
            raise self._fail(f"symbol {index} is in a common section")
        if shndx >= SHN_LORESERVE or shndx not in self.section_addr:
            raise self._fail(f"symbol {index} is in section {shndx}, which is not loaded")
        if self.opd is not None and shndx == self.opd.index and row.number == 10:
            return self._descriptor(self.opd, value), 0
        return (self.section_addr[shndx] + value) & _MASK64, local

    def _missing(self, symbols: memoryview, index: int) -> str:
        """Whether the symbol has a name and no definition, in words; "" if all is well."""
        name, _, _, shndx, _, _ = struct.unpack_from(self.elf.order + "IBBHQQ", symbols, index * 24)
        if shndx != SHN_UNDEF or not name or self._names >= len(self.elf.sections):
            return ""
        strings = self.elf.section_bytes(self.elf.sections[self._names])
        text = bytes(strings[name : name + 64]).split(b"\0", 1)[0].decode("ascii", "replace")
        return f" ({text}, which is not defined)" if text.isprintable() else ""

    def _descriptor(self, opd: Section, offset: int) -> int:
        """The code address in an ELFv1 function descriptor, as a linker resolves a call."""
        if offset + 8 > opd.size:
            raise self._fail(f"a call to .opd+{offset:#x}, which lies outside .opd")
        at = self.layout.offsets[opd.index] + offset
        return int(struct.unpack_from(self.elf.order + "Q", self.data, at)[0])

    def _store(self, row: Relocation, at: int, operands: Operands, where: str) -> None:
        form = self.elf.order + {2: "H", 4: "I", 8: "Q"}[row.bytes]
        (old,) = struct.unpack_from(form, self.data, at)
        result = row.recipe(operands)
        if row.signed_bits:
            low = ((result + (1 << 63)) & _MASK64) - (1 << 63)
            if not -(1 << row.signed_bits - 1) <= low < 1 << row.signed_bits - 1:
                raise self._fail(f"{row.name} at {where} overflows ({low:#x})")
        if row.mask in (0x03FFFFFC, 0xFFFC) and result & 3:
            raise self._fail(f"{row.name} at {where}: {result & _MASK64:#x} is not aligned")
        if row.number == 252:
            new = self._rewritten_addis(old, result, where)
        else:
            if row.number == 250:
                result -= 6 if self.elf.big_endian else 4  # how far the addi is from the addis
                self._expect_addi(at, where)
            new = (old & ~row.mask) | (result & row.mask)
        struct.pack_into(form, self.data, at, new & (1 << row.bytes * 8) - 1)

    def _rewritten_addis(self, old: int, result: int, where: str) -> int:
        if old & 0xFFFF0000 != _ADDIS_2_12:
            raise self._fail(f"R_PPC64_REL16_HA at {where} is not on an addis 2,12")
        if self.elf.big_endian:
            result -= 2
        return _LIS_2 | (result >> 16 & 0xFFFF)

    def _expect_addi(self, at: int, where: str) -> None:
        start = at - 2 if self.elf.big_endian else at
        if not 0 <= start <= len(self.data) - 4:
            raise self._fail(f"R_PPC64_REL16_LO at {where} lies outside its section")
        (word,) = struct.unpack_from(self.elf.order + "I", self.data, start)
        if word & 0xFFFF0000 != _ADDI_2_2:
            raise self._fail(f"R_PPC64_REL16_LO at {where} is not on an addi 2,2")


_TOC_USERS: Final = frozenset(
    row.name for row in RELOCATIONS if "TOC" in row.text or "TOC" in row.name
)
