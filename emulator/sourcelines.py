"""Link address -> "file:line", from the DWARF of an image; "" where it has none.

What it is: the sections (packed, or relocated for an ET_REL purgatory), an index of all sequences
of instructions in .debug_line, made once, and the rows of those that are asked about. It needs no
.debug_aranges, which clang does not write, and of .debug_info, the bulk of a debug kernel, only
where it was compiled, and that before DWARF 5.
What it is not: source text, or inlined functions. Hostile DWARF costs its lines, never an answer:
memory is bounded by the constants below, time by the bytes of .debug_line.
Source: DWARF 5, 6.2; gABI (SHF_COMPRESSED); 64-bit PowerPC ELF ABI (R_PPC64_ADDR32, ADDR64). The
row that counts is the one that binutils' addr2line takes: the last at or before the address.
"""

from __future__ import annotations

import posixpath
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from emulator.dwarf import (
    DamagedDwarf,
    Files,
    LineUnit,
    compilation_dir,
    read_files,
    run_program,
    units,
)
from emulator.elf import (
    ET_REL,
    PT_LOAD,
    SHN_LORESERVE,
    SHT_NOBITS,
    SHT_RELA,
    SHT_SYMTAB,
    ElfFile,
    Section,
)

MAX_LINE_BYTES: Final = 128 << 20
"""Of .debug_line, unpacked; Debian's kernel has 20 MB."""
MAX_PACKED_BYTES: Final = 64 << 20
"""What another section may unpack to."""
MAX_PART_BYTES: Final = 1 << 20
"""How much is unpacked of sections that only the beginning is read of."""
MAX_SEQUENCES: Final = 1 << 20
"""32 MB; Debian's kernel has 4,096."""
MAX_UNIT_SEQUENCES: Final = 1 << 16
MAX_RELOCATIONS: Final = 1 << 20
"""Of one table."""
MAX_SYMBOLS: Final = 1 << 20
"""That relocations may name."""
MAX_RELA_SECTIONS: Final = 4
MAX_ROWS: Final = 1 << 20
"""Of one sequence, 24 MB."""
MAX_KEPT: Final = 64
"""Sequences and tables of files that are kept,"""
MAX_KEPT_ROWS: Final = 2 << 20
"""with so many rows in all."""
MAX_KEPT_LINES: Final = 1 << 16
MAX_WORK: Final = 4 << 20
"""Bytes of tables of files, and rows, that are read for one answer: two seconds. Debian's kernel
has up to 5 KB of the one in a unit, and 60,000 of the other in a sequence."""
MAX_PATH: Final = 56
"""Longer paths lose their beginning, so that what shows them keeps to 75 columns."""
MAX_LINE: Final = 9_999_999

_SHF_COMPRESSED: Final = 0x800
_ELFCOMPRESS_ZLIB, _ELFCOMPRESS_ZSTD = 1, 2
_DW_FORM_STRP, _DW_FORM_LINE_STRP = 0x0E, 0x1F
_R_ADDR: Final = {1: 4, 24: 4, 38: 8, 43: 8}
"""R_PPC64_ADDR32, UADDR32, ADDR64, UADDR64 -> bytes."""
_NOWHERE: Final = (1 << 64) - 1
"""Address of what is not loaded, as linkers write it."""
_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]


def source_lines(elf: ElfFile, section_addr: Mapping[int, int] | None = None) -> SourceLines | None:
    """The lines of a file, None if it has no line table; looks at no byte of one."""
    found = SourceLines(elf, section_addr)
    return found if found.present else None


@dataclass(frozen=True)
class _Unit:
    """A unit that was asked about."""

    unit: LineUnit
    files: Files
    paths: dict[int, str]
    """Number of a file -> how it is shown."""


class SourceLines:
    """Lines of one ELF file at its link addresses; `line_of` never raises.

    Args:
        elf: the file; its headers are already checked.
        section_addr: for a relocatable file, section index -> address it was linked at.
    """

    def __init__(self, elf: ElfFile, section_addr: Mapping[int, int] | None = None) -> None:
        self._elf = elf
        self._section_addr = section_addr
        self._rows: dict[int, tuple[_U64, _I64]] = {}
        self._units: dict[int, _Unit] = {}
        self._lines: dict[int, str] = {}
        self._work = MAX_WORK

    @property
    def present(self) -> bool:
        """Whether the file has a line table at all; looks at no byte of it."""
        return self._section("debug_line") is not None

    def prepare(self) -> None:
        """Make the index, and unpack what is packed, so that forks of this process have it."""
        _ = self._sequences, self._strings, self._compiled_in

    def renew(self) -> None:
        """Another answer begins, for which as much may be read as for the last one."""
        self._work = MAX_WORK

    def line_of(self, addr: int) -> str:
        """`arch/powerpc/kernel/head_64.S:123` of a link address; `file:?` if the line is 0."""
        known = self._lines.get(addr)
        if known is None:
            if self._work <= 0:
                return ""
            if len(self._lines) >= MAX_KEPT_LINES:
                self._lines.clear()
            known = self._lines[addr] = self._line_of(addr)
        return known

    def _line_of(self, addr: int) -> str:
        starts, ends, places = self._sequences
        if not 0 <= addr < 1 << 64:
            return ""
        last = int(np.searchsorted(starts, np.uint64(addr), side="right")) - 1
        for index in range(last, max(last - 8, -1), -1):  # they may overlap in a hostile file
            if addr < int(ends[index]):
                return self._row(index, addr, places[index])
        return ""

    def _row(self, index: int, addr: int, place: _I64) -> str:
        known = self._unit(int(place[1]))
        if known is None:
            return ""
        addrs, rows = self._sequence(index, known.unit, int(place[0]))
        at = int(np.searchsorted(addrs, np.uint64(addr), side="right")) - 1
        if at < 0:
            return ""
        file, line = rows[at].tolist()
        path = self._path(known, file)
        return path and f"{path}:{line if 0 < line <= MAX_LINE else '?'}"

    # --- the index ------------------------------------------------------------------------------

    @cached_property
    def _data(self) -> memoryview:
        """The line tables, unpacked and relocated; empty if there are none that can be read."""
        section = self._section("debug_line")
        try:
            data = self._bytes("debug_line", MAX_LINE_BYTES)
        except DamagedDwarf:
            return memoryview(b"")
        if self._elf.type == ET_REL and section is not None:
            return memoryview(self._relocated(bytearray(data), section))
        return data

    @cached_property
    def _array(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._data.toreadonly(), np.uint8)

    @cached_property
    def _sequences(self) -> tuple[_U64, _U64, _I64]:
        """First address of each sequence, ascending, that after its last, its program and unit."""
        found = np.zeros((MAX_UNIT_SEQUENCES, 3), np.int64)
        parts, total = [np.zeros((0, 4), np.int64)], 0
        for unit in units(self._data, self._elf.order):
            _, count = self._run(unit, unit.program, np.zeros((0, 3), np.int64), found)
            rows = found[: min(count, len(found))]
            total += len(rows)
            if total > MAX_SEQUENCES:
                break
            parts.append(np.column_stack([rows, np.full(len(rows), unit.at, np.int64)]))
        table = np.concatenate(parts)
        starts, ends = table[:, 0].view(np.uint64), table[:, 1].view(np.uint64)
        table = table[(starts < ends) & self._loaded(starts, ends)]
        table = table[np.argsort(table[:, 0].view(np.uint64), kind="stable")]
        bounds = np.ascontiguousarray(table[:, :2].T).view(np.uint64)
        return bounds[0], bounds[1], np.ascontiguousarray(table[:, 2:])

    def _loaded(self, starts: _U64, ends: _U64) -> npt.NDArray[np.bool_]:
        """Which sequences are of loaded code: linkers drop code, and leave its lines."""
        if self._section_addr is not None:
            sections = self._elf.sections
            placed = [(lo, sections[n].size) for n, lo in self._section_addr.items()]
        else:
            headers = self._elf.program_headers
            placed = [(h.vaddr, h.mem_bytes) for h in headers if h.type == PT_LOAD]
        known = sorted((lo, lo + size) for lo, size in placed if size and lo + size < 1 << 64)
        if not known:
            return np.zeros(len(starts), np.bool_)
        bounds = np.array(known, np.uint64)
        at = np.searchsorted(bounds[:, 0], starts, side="right") - 1
        return np.asarray((at >= 0) & (ends <= np.maximum.accumulate(bounds[:, 1])[at]))

    def _run(self, unit: LineUnit, at: int, rows: _I64, sequences: _I64) -> tuple[int, int]:
        header = np.array([*unit.header, self._elf.big_endian], np.int64)
        operands = np.frombuffer(unit.operands or b"\0", np.uint8)
        count, found = run_program(self._array, at, unit.end, header, operands, rows, sequences)
        return int(count), int(found)

    # --- rows and names of what is asked about ----------------------------------------------------

    def _sequence(self, index: int, unit: LineUnit, at: int) -> tuple[_U64, _I64]:
        """Addresses of the rows of one sequence, and (file, line) of each."""
        if index not in self._rows:
            _make_room(self._rows, MAX_KEPT - 1)
            if sum(len(addrs) for addrs, _ in self._rows.values()) > MAX_KEPT_ROWS:
                self._rows.clear()
            room = np.zeros((min(unit.end - at, MAX_ROWS), 3), np.int64)
            count, _ = self._run(unit, at, room, np.zeros((0, 3), np.int64))
            self._work -= count
            rows = room[: count if count <= len(room) else 0].copy()
            addrs = np.ascontiguousarray(rows[:, 0]).view(np.uint64)
            self._rows[index] = addrs, np.ascontiguousarray(rows[:, 1:])
        return self._rows[index]

    def _unit(self, at: int) -> _Unit | None:
        """A unit with its directories and files; None if there is none at that offset."""
        if at not in self._units:
            _make_room(self._units, MAX_KEPT - 1)
            unit = next(units(self._data, self._elf.order, at), None)
            if unit is None:
                return None
            self._work -= unit.program - unit.tables
            try:
                files = read_files(unit, self._data, self._elf.order, self._strings)
            except DamagedDwarf:
                files = Files((), ())
            self._units[at] = _Unit(unit, files, {})
        return self._units[at]

    def _path(self, known: _Unit, file: int) -> str:
        """A file of a unit as it is shown, "" if there is no such file."""
        if not 0 <= file < len(known.files.files):
            return ""
        if file not in known.paths:
            (name, at), directories = known.files.files[file], known.files.directories
            base = _text(directories[0]) or self._compiled_in if directories else ""
            inside = _text(directories[at]) if 0 < at < len(directories) else ""
            known.paths[file] = shown_path(_text(name), inside, base)
        return known.paths[file]

    @cached_property
    def _compiled_in(self) -> str:
        """Where the image was compiled, "" if it does not say; DWARF 5 says it in each unit."""
        if self._elf.type == ET_REL:
            return ""
        try:
            info = self._bytes("debug_info", MAX_PART_BYTES, part=True)
            abbrev = self._bytes("debug_abbrev", MAX_PART_BYTES, part=True)
            return _text(compilation_dir(info, abbrev, self._elf.order, self._strings))
        except DamagedDwarf:
            return ""

    @cached_property
    def _strings(self) -> dict[int, memoryview]:
        """Form of a string -> the section that it points into."""
        found = {}
        for form, name in ((_DW_FORM_STRP, "debug_str"), (_DW_FORM_LINE_STRP, "debug_line_str")):
            try:
                found[form] = self._bytes(name, MAX_PACKED_BYTES)
            except DamagedDwarf:
                found[form] = memoryview(b"")
        return found

    # --- sections ---------------------------------------------------------------------------------

    def _section(self, name: str) -> Section | None:
        return self._elf.find_section(f".{name}") or self._elf.find_section(f".z{name}")

    def _bytes(self, name: str, most: int, *, part: bool = False) -> memoryview:
        """The bytes of a debug section, unpacked if they are packed.

        Args:
            name: without the dot.
            most: what it may unpack to, or with `part` how much of it is wanted.
            part: a part is enough.

        Raises:
            DamagedDwarf: it is not there, too large, or does not unpack.
        """
        section = self._section(name)
        if section is None or section.type == SHT_NOBITS:
            raise DamagedDwarf(f"no .{name}")
        data = self._elf.section_bytes(section)
        if section.flags & _SHF_COMPRESSED:
            return memoryview(_unpack(data, self._elf.order, most, part=part))
        if section.name.startswith(".z"):
            return memoryview(_unpack_gnu(data, most, part=part))
        if name == "debug_line" and len(data) > most:
            raise DamagedDwarf(f"{section.name} has {len(data)} bytes")
        return data

    def _relocated(self, data: bytearray, section: Section) -> bytearray:
        """Apply the relocations of a debug section of an ET_REL file, in place."""
        tables = [s for s in self._elf.sections if s.type == SHT_RELA and s.info == section.index]
        for table in tables[:MAX_RELA_SECTIONS]:
            self._relocate(data, table)
        return data

    def _relocate(self, data: bytearray, table: Section) -> None:
        order, sections = self._elf.order, self._elf.sections
        if table.link >= len(sections) or sections[table.link].type != SHT_SYMTAB:
            return
        rela = np.dtype([("at", order + "u8"), ("info", order + "u8"), ("addend", order + "u8")])
        raw = self._elf.section_bytes(table)
        rows = np.frombuffer(raw[: min(len(raw) // 24, MAX_RELOCATIONS) * 24], rela)
        values = self._symbol_values(sections[table.link])
        kinds, symbols = rows["info"] & np.uint64(0xFFFFFFFF), rows["info"] >> np.uint64(32)
        out = np.frombuffer(data, np.uint8)
        for kind, size in _R_ADDR.items():
            mine = (kinds == kind) & (symbols < len(values))
            if len(out) < size:
                continue
            mine &= rows["at"] <= np.uint64(len(out) - size)
            value = values[symbols[mine].astype(np.int64)]
            sums = np.where(
                value == np.uint64(_NOWHERE), value, value + rows["addend"][mine].astype(np.uint64)
            )
            written = sums.astype(f"{order}u{size}").view(np.uint8).reshape(-1, size)
            at = rows["at"][mine].astype(np.int64)[:, np.newaxis] + np.arange(size)
            out[at] = written

    def _symbol_values(self, table: Section) -> _U64:
        """Address of each symbol; of those in debug sections the offset, of others nowhere."""
        order = self._elf.order
        dtype: np.dtype[Any] = np.dtype(
            [("name", order + "u4"), ("info", "u2"), ("shndx", order + "u2"),
             ("value", order + "u8"), ("size", order + "u8")]
        )  # fmt: skip
        raw = self._elf.section_bytes(table)
        symbols = np.frombuffer(raw[: min(len(raw) // 24, MAX_SYMBOLS) * 24], dtype)
        bases = np.full(0x10000, _NOWHERE, np.uint64)
        for section in self._elf.sections[:SHN_LORESERVE]:
            if section.name.startswith(".debug_"):
                bases[section.index] = 0
        for index, addr in (self._section_addr or {}).items():
            bases[index] = addr
        base = bases[symbols["shndx"]]
        nowhere = base == np.uint64(_NOWHERE)
        return np.asarray(np.where(nowhere, base, base + symbols["value"].astype(np.uint64)))


def shown_path(name: str, directory: str, base: str) -> str:
    """A path as it is shown: relative to the top of the source, and not longer than MAX_PATH.

    Args:
        name: of the file.
        directory: that it is in; relative ones are in `base`.
        base: where the compiler ran, "" if nobody knows.
    """
    path = posixpath.normpath(posixpath.join(directory, name)) if name else ""
    if path.startswith("../") and base:
        path = posixpath.normpath(posixpath.join(base, path))
    while path.startswith("../"):
        path = path[3:]
    if path.startswith("/") and base.startswith("/"):
        common = posixpath.commonpath([base, posixpath.dirname(path)])
        if common == posixpath.normpath(base) or common.count("/") >= 2:
            path = path[len(common) :].lstrip("/")
    if len(path) <= MAX_PATH:
        return path
    tail = path[4 - MAX_PATH :]
    return "..." + (tail[tail.find("/") :] if "/" in tail else tail)


def _text(name: bytes) -> str:
    """A name as ASCII; what a terminal would not print is a question mark."""
    return "".join(chr(byte) if 32 < byte < 127 else "?" for byte in name)


def _make_room(kept: dict[int, Any], most: int) -> None:
    """Let the eldest go until there are no more than `most`."""
    while len(kept) > most:
        del kept[next(iter(kept))]


def _unpack(data: memoryview, order: str, most: int, *, part: bool) -> bytes:
    """A section with SHF_COMPRESSED: Elf64_Chdr, then zlib or zstd."""
    if len(data) < 24:
        raise DamagedDwarf("a packed section without its header")
    kind, _, size, _ = struct.unpack_from(order + "IIQQ", data, 0)
    size = _wanted(size, most, part=part)
    if kind == _ELFCOMPRESS_ZLIB:
        return _inflate(data[24:], size)
    if kind != _ELFCOMPRESS_ZSTD:
        raise DamagedDwarf(f"a section packed by method {kind}")
    try:
        engine = zstandard.ZstdDecompressor(max_window_size=MAX_LINE_BYTES)
        with engine.stream_reader(data[24:]) as reader:
            return reader.read(size)
    except zstandard.ZstdError as exc:
        raise DamagedDwarf(f"a section that does not unpack ({exc})") from exc


def _unpack_gnu(data: memoryview, most: int, *, part: bool) -> bytes:
    """A .zdebug_ section of older tools: "ZLIB", the size, big-endian, then zlib."""
    if len(data) < 12 or bytes(data[:4]) != b"ZLIB":
        raise DamagedDwarf("a .zdebug section without its header")
    size = _wanted(struct.unpack_from(">Q", data, 4)[0], most, part=part)
    return _inflate(data[12:], size)


def _wanted(size: int, most: int, *, part: bool) -> int:
    """How much of a section of `size` bytes is unpacked."""
    if size > most and not part:
        raise DamagedDwarf(f"a section that unpacks to {size} bytes")
    return min(size, most)


def _inflate(data: memoryview, size: int) -> bytes:
    most = size + (size >> 8) + 1024  # of packed bytes: zlib copies those that it leaves
    try:
        return zlib.decompressobj().decompress(data[:most], max(size, 1))
    except zlib.error as exc:
        raise DamagedDwarf(f"a section that does not unpack ({exc})") from exc
