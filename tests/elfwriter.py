"""Write small ELF64 files for tests, from a description: bytes out, nothing read.

It knows what bootflow's images need (segments, sections, symbols, RELA rows, both byte orders) and
checks nothing: a test may describe a file that is wrong. Source: System V gABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_PPC64 = 21
PT_LOAD = 1
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS = 1, 2, 3, 4, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK = 1, 2, 4, 0x40
STB_LOCAL, STB_GLOBAL = 0, 1
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION = 0, 1, 2, 3
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
EHDR_BYTES, PHDR_BYTES, SHDR_BYTES = 64, 56, 64


@dataclass
class Segment:
    """A PT_LOAD row with its bytes."""

    vaddr: int
    paddr: int
    data: bytes
    mem_bytes: int | None = None
    type: int = PT_LOAD


@dataclass
class Section:
    """A section with its bytes; NOBITS takes `size` instead."""

    name: str
    data: bytes = b""
    type: int = SHT_PROGBITS
    flags: int = SHF_ALLOC
    addr: int = 0
    align: int = 8
    size: int | None = None
    link: int = 0
    info: int = 0
    entry_bytes: int = 0


@dataclass
class Symbol:
    """A symbol; `section` is a section's name, "" for an undefined and "*ABS*" for an absolute."""

    name: str
    value: int = 0
    size: int = 0
    section: str = ""
    bind: int = STB_GLOBAL
    type: int = STT_NOTYPE
    other: int = 0


@dataclass
class Rela:
    """A relocation of a place in `section` against the symbol of this name."""

    section: str
    offset: int
    type: int
    symbol: str
    addend: int = 0


@dataclass
class Elf:
    """The description of a file; `to_bytes` writes it."""

    type: int = ET_EXEC
    big_endian: bool = False
    machine: int = EM_PPC64
    flags: int = 2
    entry: int = 0
    segments: Sequence[Segment] = ()
    sections: Sequence[Section] = ()
    symbols: Sequence[Symbol] = ()
    relocations: Sequence[Rela] = ()
    _out: bytearray = field(default_factory=bytearray, repr=False)

    def to_bytes(self) -> bytes:
        """Return the file: header, program headers, data, section headers."""
        order = ">" if self.big_endian else "<"
        self._out = bytearray(EHDR_BYTES + PHDR_BYTES * len(self.segments))
        for row, segment in enumerate(self.segments):
            at = self._append(segment.data, 8)
            mem_bytes = len(segment.data) if segment.mem_bytes is None else segment.mem_bytes
            struct.pack_into(
                order + "IIQQQQQQ",
                self._out,
                EHDR_BYTES + PHDR_BYTES * row,
                *(segment.type, 7, at, segment.vaddr, segment.paddr),
                *(len(segment.data), mem_bytes, 0x10000),
            )
        rows, strings = self._section_rows(order)
        table_at = self._append(b"", 8)
        for row in rows:
            self._out += struct.pack(order + "IIQQQQIIQQ", *row)
        self._write_header(order, table_at if rows else 0, len(rows), strings)
        return bytes(self._out)

    def _append(self, data: bytes, align: int) -> int:
        self._out += bytes(-len(self._out) % max(align, 1))
        at = len(self._out)
        self._out += data
        return at

    def _section_rows(self, order: str) -> tuple[list[tuple[int, ...]], int]:
        """Append every section's bytes; return the header rows and the index of .shstrtab."""
        if not self.sections and not self.symbols:
            return [], 0
        sections = list(self.sections)
        index = {section.name: number for number, section in enumerate(sections, start=1)}
        if self.symbols:
            sections += self._symbol_sections(order, index)
        names = Strings()
        offsets = [names.add(section.name) for section in sections]
        name_at = names.add(".shstrtab")
        sections.append(Section(".shstrtab", names.data(), SHT_STRTAB, 0, align=1))
        rows: list[tuple[int, ...]] = [(0,) * 10]
        for section, offset in zip(sections, [*offsets, name_at], strict=True):
            at = self._append(section.data, section.align)
            size = len(section.data) if section.size is None else section.size
            row = offset, section.type, section.flags, section.addr, at, size
            rows.append((*row, section.link, section.info, section.align, section.entry_bytes))
        return rows, len(rows) - 1

    def _symbol_sections(self, order: str, index: dict[str, int]) -> list[Section]:
        """Return .symtab, .strtab and a .rela section for each section with relocations."""
        ordered = sorted(self.symbols, key=lambda symbol: symbol.bind != STB_LOCAL)
        number = {symbol.name: row for row, symbol in enumerate(ordered, start=1)}
        names = Strings()
        table = bytearray(24)
        for symbol in ordered:
            where = {"": SHN_UNDEF, "*ABS*": SHN_ABS}.get(symbol.section)
            table += struct.pack(
                order + "IBBHQQ",
                names.add(symbol.name),
                symbol.bind << 4 | symbol.type,
                symbol.other,
                index[symbol.section] if where is None else where,
                *(symbol.value, symbol.size),
            )
        symtab = len(index) + 1
        first_global = 1 + sum(symbol.bind == STB_LOCAL for symbol in ordered)
        sections = [
            Section(
                ".symtab", bytes(table), SHT_SYMTAB, 0, 0, 8, None, symtab + 1, first_global, 24
            ),
            Section(".strtab", names.data(), SHT_STRTAB, 0, align=1),
        ]
        for target in dict.fromkeys(rela.section for rela in self.relocations):
            rows = b"".join(
                struct.pack(
                    order + "QQq", rela.offset, number[rela.symbol] << 32 | rela.type, rela.addend
                )
                for rela in self.relocations
                if rela.section == target
            )
            sections.append(
                Section(
                    f".rela{target}",
                    rows,
                    SHT_RELA,
                    SHF_INFO_LINK,
                    link=symtab,
                    info=index[target],
                    entry_bytes=24,
                )
            )
        return sections

    def _write_header(self, order: str, table_at: int, rows: int, strings: int) -> None:
        magic = b"\x7fELF" + bytes([2, 2 if self.big_endian else 1, 1]) + bytes(9)
        fields = struct.pack(
            order + "HHIQQQIHHHHHH",
            *(self.type, self.machine, 1, self.entry),
            *(EHDR_BYTES if self.segments else 0, table_at, self.flags, EHDR_BYTES),
            *(PHDR_BYTES if self.segments else 0, len(self.segments)),
            *(SHDR_BYTES, rows, strings),
        )
        self._out[:EHDR_BYTES] = magic + fields


class Strings:
    """A string table that grows."""

    def __init__(self) -> None:
        self._data = bytearray(b"\0")

    def add(self, name: str) -> int:
        """Append a name; return its offset."""
        at = len(self._data)
        self._data += name.encode() + b"\0"
        return at

    def data(self) -> bytes:
        """Return the table."""
        return bytes(self._data)


def tiny_kernel(*, big_endian: bool = False, size: int = 0x200) -> bytes:
    """Return a kernel that has the hand-off's symbols and "run0", and does nothing (zeros)."""
    link = 0xC000000000000000
    body = bytearray(size)
    body[0x5C:0x60] = struct.pack(">I" if big_endian else "<I", 0x72756E30)
    places = {
        "_stext": 0, "__secondary_hold_spinloop": 0x38, "__secondary_hold_acknowledge": 0x40,
        "__run_at_load": 0x5C, "__secondary_hold": 0x60, "early_setup": 0x120,
        "start_kernel": 0x140, "generic_secondary_smp_init": 0x160,
    }  # fmt: skip
    return Elf(
        big_endian=big_endian,
        flags=1 if big_endian else 2,
        entry=link,
        segments=[Segment(link, 0, bytes(body), size + 0x100)],
        sections=[Section(".head.text", bytes(body), flags=SHF_ALLOC | SHF_EXECINSTR, addr=link)],
        symbols=[Symbol(name, link + at, 0, ".head.text") for name, at in places.items()],
    ).to_bytes()
