"""Line tables of DWARF 2 to 5: bytes of .debug_line in, rows and file names out, bounds first.

What it is: a reader of one unit's header, of its table of files, and of its line number program.
The program, a byte code, is run by compiled code: 20 MB of a kernel's in 0.1 s. No count, length or
offset of the file is trusted: a table has at most as many entries as it has bytes, a LEB128 ends
after ten, and what does not fit costs its unit. What it is not: a reader of .debug_info. Lines need
nothing from it but the directory of the compilation, before DWARF 5 (`compilation_dir`).
Source: DWARF 5, 6.2 and 7.22 (line tables), 7.5 (units, abbreviations, forms); DWARF 2 to 4, 6.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from emulator.compiled import njit

MAX_UNITS: Final = 1 << 16
"""A kernel has 3,000. So many take a second."""
MAX_FILES: Final = 4096
"""Files of one unit, and directories; those of Debian's kernel have up to 408."""
MAX_TABLE_BYTES: Final = 1 << 18
"""All names of one table; Debian's kernel has up to 4 KB."""
MAX_NAME_BYTES: Final = 4096
"""PATH_MAX"""
_MAX_LEB_BYTES: Final = 10
_MIN_UNIT_BYTES: Final = 15

_DW_LNCT_PATH, _DW_LNCT_DIRECTORY = 1, 2
_DW_AT_COMP_DIR: Final = 0x1B
_STRING, _STRP, _LINE_STRP, _UDATA, _BLOCK = 0x08, 0x0E, 0x1F, 0x0F, 0x09
_FIXED: Final = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}
"""DW_FORM_data1, 2, 4, 8, 16 -> bytes."""
_OTHER_FIXED: Final = {0x01: 8, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x19: 0, 0x20: 8}
"""DW_FORM_addr, flag, ref1 to ref8, flag_present, ref_sig8 -> bytes."""
_ULEBS: Final = (0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23)
"""DW_FORM_udata, ref_udata, strx, addrx, loclistx, rnglistx."""


class DamagedDwarf(ValueError):
    """Something lies outside its bounds; never leaves `sourcelines`."""


class _Cursor:
    """Reads numbers and strings of one stretch [at, end) of a section."""

    def __init__(self, data: memoryview, at: int, end: int, order: str) -> None:
        self.data, self.at, self.end, self.order = data, at, end, order
        self.left = MAX_TABLE_BYTES
        """What strings may still take."""

    def take(self, size: int) -> int:
        """Step over `size` bytes; where they began."""
        at = self.at
        if not 0 <= size <= self.end - at:
            raise DamagedDwarf(f"{size} bytes at {at:#x} lie outside their unit")
        self.at = at + size
        return at

    def number(self, size: int) -> int:
        """An unsigned number of 1, 2, 4 or 8 bytes."""
        form = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
        return int(struct.unpack_from(self.order + form, self.data, self.take(size))[0])

    def uleb(self) -> int:
        """An unsigned LEB128 of at most ten bytes."""
        value = 0
        for n in range(_MAX_LEB_BYTES):
            byte = self.data[self.take(1)]
            value |= (byte & 0x7F) << 7 * n
            if byte < 0x80:
                return value
        raise DamagedDwarf(f"a LEB128 without end before {self.at:#x}")

    def count(self) -> int:
        """A count of entries that take a byte each, at least."""
        value = self.uleb()
        if value > min(MAX_FILES, self.end - self.at):
            raise DamagedDwarf(f"{value} entries before {self.at:#x} do not fit")
        return value

    def string(self) -> bytes:
        """A string that ends with a zero byte."""
        text = self.string_in(self.data[: self.end], self.at)
        self.take(len(text) + 1)
        return text

    def string_in(self, data: memoryview, at: int) -> bytes:
        """The string at an offset of a section."""
        piece = bytes(data[at : at + MAX_NAME_BYTES]) if at < len(data) else b""
        text, zero, _ = piece.partition(b"\0")
        self.left -= len(text)
        if not zero or self.left < 0:
            raise DamagedDwarf(f"a string without end at {at:#x}")
        return text


@dataclass(frozen=True)
class LineUnit:
    """The header of one unit of .debug_line; offsets are those of the section."""

    at: int
    end: int
    version: int
    offset_bytes: int
    """4 or 8: 32-bit or 64-bit DWARF."""
    tables: int
    """Where the tables of directories and files begin,"""
    program: int
    """and where the line number program does."""
    header: tuple[int, int, int, int]
    """minimum_instruction_length, line_base, line_range, opcode_base."""
    operands: bytes
    """standard_opcode_lengths, of opcode 1 on."""


def units(data: memoryview, order: str, at: int = 0) -> Iterator[LineUnit]:
    """Every unit of .debug_line that can be read, in order; what is damaged is left out.

    Args:
        data: the section.
        order: struct's byte-order character.
        at: offset of the first unit.
    """
    for _ in range(MAX_UNITS):
        if len(data) - at < _MIN_UNIT_BYTES:
            return
        length, size = struct.unpack_from(order + "I", data, at)[0], 4
        body = at + 4
        if length == 0xFFFFFFFF:
            length, size = struct.unpack_from(order + "Q", data, at + 4)[0], 8
            body = at + 12
        end = body + length
        if end > len(data):
            return
        with suppress(DamagedDwarf):
            yield _unit(_Cursor(data, body, end, order), at, size)
        at = end


def _unit(cursor: _Cursor, at: int, size: int) -> LineUnit:
    version = cursor.number(2)
    if not 2 <= version <= 5:
        raise DamagedDwarf(f"line table version {version}")
    if version == 5:
        cursor.take(2)  # address_size, segment_selector_size
    header_bytes = cursor.number(size)
    program = cursor.at + header_bytes
    if program > cursor.end:
        raise DamagedDwarf(f"a header of {header_bytes} bytes at {at:#x}")
    least = cursor.number(1)
    if version >= 4 and cursor.number(1) > 1:
        raise DamagedDwarf("a line table of a VLIW machine")
    cursor.take(1)  # default_is_stmt
    base = cursor.number(1)
    line_range, opcode_base = cursor.number(1), cursor.number(1)
    if not line_range or not opcode_base:
        raise DamagedDwarf("line_range or opcode_base is 0")
    start = cursor.take(opcode_base - 1)
    operands = bytes(cursor.data[start : cursor.at])
    header = (least, base - 256 if base > 127 else base, line_range, opcode_base)
    return LineUnit(at, cursor.end, version, size, cursor.at, program, header, operands)


# --- directories and files ------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """The directories and files that a unit's rows refer to by number."""

    directories: tuple[bytes, ...]
    """The first is the directory of the compilation: b"" before DWARF 5, which does not say it."""
    files: tuple[tuple[bytes, int], ...]
    """Name and directory; the first is unused before DWARF 5."""


def read_files(
    unit: LineUnit, data: memoryview, order: str, strings: Mapping[int, memoryview]
) -> Files:
    """Read the tables of a unit.

    Args:
        unit: its header.
        data: .debug_line.
        order: struct's byte-order character.
        strings: DW_FORM_strp, DW_FORM_line_strp -> the section that it points into.

    Raises:
        DamagedDwarf: they lie outside their bounds, or have a form that is not known.
    """
    cursor = _Cursor(data, unit.tables, unit.program, order)
    if unit.version < 5:
        return _old_files(cursor)
    directories = [name for name, _ in _entries(cursor, unit, strings)]
    return Files(tuple(directories), tuple(_entries(cursor, unit, strings)))


def _old_files(cursor: _Cursor) -> Files:
    directories = [b""]
    while len(directories) <= MAX_FILES and (name := cursor.string()):
        directories.append(name)
    files = [(b"", 0)]
    while len(files) <= MAX_FILES and (name := cursor.string()):
        files.append((name, cursor.uleb()))
        cursor.uleb()  # time
        cursor.uleb()  # size
    return Files(tuple(directories), tuple(files))


def _entries(
    cursor: _Cursor, unit: LineUnit, strings: Mapping[int, memoryview]
) -> list[tuple[bytes, int]]:
    """One of the two tables of DWARF 5: (path, directory) of each entry."""
    form = [(cursor.uleb(), cursor.uleb()) for _ in range(cursor.number(1))]
    count = cursor.count()
    if count and not form:
        raise DamagedDwarf(f"{count} entries of nothing")
    rows = []
    for _ in range(count):
        path, directory = b"", 0
        for content, kind in form:
            value = _value(cursor, kind, unit.offset_bytes, strings)
            if content == _DW_LNCT_PATH and isinstance(value, bytes):
                path = value
            elif content == _DW_LNCT_DIRECTORY and isinstance(value, int):
                directory = value
        rows.append((path, directory))
    return rows


def _value(
    cursor: _Cursor, kind: int, offset_bytes: int, strings: Mapping[int, memoryview]
) -> int | bytes:
    if kind in strings:
        return cursor.string_in(strings[kind], cursor.number(offset_bytes))
    if kind == _STRING:
        return cursor.string()
    if kind == _UDATA:
        return cursor.uleb()
    if kind == _BLOCK:
        cursor.take(cursor.uleb())
        return 0
    size = _FIXED.get(kind)
    if size is None:
        raise DamagedDwarf(f"form {kind:#x} in a line table")
    if size == 16:
        cursor.take(16)  # an MD5
        return 0
    return cursor.number(size)


def compilation_dir(
    info: memoryview, abbrev: memoryview, order: str, strings: Mapping[int, memoryview]
) -> bytes:
    """DW_AT_comp_dir of the first unit of .debug_info: all of a kernel have the same.

    Raises:
        DamagedDwarf: there is none, or it cannot be read.
    """
    cursor = _Cursor(info, 0, len(info), order)
    offset_bytes = 4
    if cursor.number(4) == 0xFFFFFFFF:
        cursor.take(8)
        offset_bytes = 8
    version = cursor.number(2)
    if version == 5:
        cursor.take(2)  # unit_type, address_size
    where = cursor.number(offset_bytes)
    if version < 5:
        cursor.take(1)  # address_size
    declared = _Cursor(abbrev, where, len(abbrev), order)
    if cursor.uleb() != declared.uleb():
        raise DamagedDwarf("the first unit does not begin with the first abbreviation")
    declared.uleb()  # tag
    declared.take(1)  # has children
    for _ in range(64):
        name, kind = declared.uleb(), declared.uleb()
        if not name:
            break
        value = _attribute(cursor, kind, offset_bytes, strings)
        if name == _DW_AT_COMP_DIR and isinstance(value, bytes):
            return value
    raise DamagedDwarf("no DW_AT_comp_dir")


def _attribute(
    cursor: _Cursor, kind: int, offset_bytes: int, strings: Mapping[int, memoryview]
) -> int | bytes:
    """One attribute of a unit's first entry, stepped over unless it is a string."""
    if kind in _OTHER_FIXED:
        return cursor.take(_OTHER_FIXED[kind])
    if kind in (0x10, 0x17):  # DW_FORM_ref_addr, sec_offset
        return cursor.take(offset_bytes)
    if kind in _ULEBS or kind == 0x0D:  # and sdata
        return cursor.uleb()
    if kind == 0x18:  # exprloc
        return cursor.take(cursor.uleb())
    return _value(cursor, kind, offset_bytes, strings)


# --- the line number program ----------------------------------------------------------------------

_ROW, _END = 1, 2
"""What an opcode says besides what it adds."""


@njit(cache=True)
def _uleb(data: Any, at: int, end: int) -> Any:
    """(where it ends, value, its last byte, its bits); -1 if it has no end."""
    value: Any = 0
    shift = 0
    for _ in range(_MAX_LEB_BYTES):
        if at >= end:
            break
        byte = np.int64(data[np.uint64(at)])
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return at, value, byte, shift
    return -1, 0, 0, 0


@njit(cache=True)
def _signed(value: Any, last: int, bits: int) -> Any:
    """A LEB128 as a signed number."""
    return value - (np.int64(1) << bits) if last & 0x40 and bits < 64 else value


@njit(cache=True)
def _fixed(data: Any, at: int, size: int, big: int) -> Any:
    """A number of `size` bytes."""
    value: Any = 0
    for n in range(size):
        shift = 8 * (size - 1 - n) if big else 8 * n
        value |= np.int64(data[np.uint64(at + n)]) << shift
    return value


@njit(cache=True)
def _extended(data: Any, at: int, end: int, big: int, address: int) -> Any:
    """Run an extended opcode: (where the next one begins or -1, address, whether it ends)."""
    at, size, _, _ = _uleb(data, at, end)
    if at < 0 or size < 1 or size > end - at:
        return -1, address, 0
    opcode = data[np.uint64(at)]
    if opcode == 2 and size <= 9:  # DW_LNE_set_address
        address = _fixed(data, at + 1, size - 1, big)
    return at + size, address, _END if opcode == 1 else 0  # DW_LNE_end_sequence


@njit(cache=True)
def _unusual(data: Any, at: int, end: int, count: int, big: int) -> Any:
    """Read what follows DW_LNS_fixed_advance_pc, else step over so many LEB128."""
    if not count:
        return (at + 2, _fixed(data, at, 2, big)) if end - at >= 2 else (-1, 0)
    for _ in range(count):
        if at >= 0:
            at, _, _, _ = _uleb(data, at, end)
    return at, 0


@njit(cache=True)
def _specials(least: int, base: int, line_range: int, opcode_base: int) -> Any:
    """What each special opcode adds to address and line."""
    adds = np.zeros((256, 2), np.int64)
    for opcode in range(opcode_base, 256):
        steps = (opcode - opcode_base) // line_range
        adds[opcode, 0] = steps * least
        adds[opcode, 1] = base + opcode - opcode_base - steps * line_range
    return adds


@njit(cache=True)
def _moved(opcode: int, value: int, least: int, most: int) -> Any:
    """What a standard opcode adds to address and line."""
    if opcode == 2:  # DW_LNS_advance_pc
        return value * least, 0
    if opcode == 3:  # DW_LNS_advance_line
        return 0, value
    if opcode == 8:  # DW_LNS_const_add_pc
        return most, 0
    return value if opcode == 9 else 0, 0


@njit(cache=True)
def _put(table: Any, at: int, first: int, second: int, third: int) -> None:
    """Write a row, if there is room."""
    if at < len(table):
        table[at, 0], table[at, 1], table[at, 2] = first, second, third


@njit(cache=True)
def run_program(
    data: Any, at: int, end: int, header: Any, operands: Any, rows: Any, sequences: Any
) -> Any:
    """Run a line number program, or its first sequence; it stops where it is damaged.

    Args:
        data: uint8 of .debug_line, read-only.
        at: where the program, or a sequence of it, begins.
        end: where it ends.
        header: int64 of LineUnit.header, and 1 if big-endian.
        operands: uint8 of LineUnit.operands, read-only.
        rows: int64 (n, 3), out: address, file, line; with n > 0 the first sequence alone is run.
        sequences: int64 (m, 3), out: first address, address after the last, where it begins.

    Returns:
        How many rows and sequences there are, those that found no room too.
    """
    least, opcode_base, big = header[0], header[3], header[4]
    special = _specials(least, header[1], header[2], opcode_base)
    count, found, low, begin = 0, 0, 0, at
    address, file, line = 0, 1, 1
    fresh = True
    while 0 <= at < end and not (found and len(rows)):
        opcode = np.int64(data[np.uint64(at)])
        at += 1
        said = _ROW
        if opcode >= opcode_base:
            address += special[np.uint64(opcode), 0]
            line += special[np.uint64(opcode), 1]
        elif opcode == 0:
            at, address, said = _extended(data, at, end, big, address)
        elif opcode != 1:  # DW_LNS_copy
            said = value = 0
            follow = np.int64(operands[np.uint64(opcode - 1)])
            if opcode == 9 or follow > 1:
                at, value = _unusual(data, at, end, 0 if opcode == 9 else follow, big)
            elif follow:
                at, value, last, bits = _uleb(data, at, end)
                value = _signed(value, last, bits) if opcode == 3 else value
            farther, further = _moved(opcode, value, least, special[255, 0])
            address, line = address + farther, line + further
            file = value if opcode == 4 else file  # DW_LNS_set_file
        if not said:
            continue
        low = address if fresh else low
        _put(rows, count, address, file, line)
        count, fresh = count + 1, said == _END
        if fresh:
            _put(sequences, found, low, address, begin)
            found += 1
            address, file, line, begin = 0, 1, 1, at
    return count, found


def warm_up() -> None:
    """Compile what cannot be compiled later."""
    numbers = np.zeros((1, 3), np.int64)
    nothing = np.zeros(1, np.uint8)
    nothing.setflags(write=False)  # as the bytes of an image are
    run_program(nothing, 0, 0, np.array([1, 0, 1, 1, 0]), nothing, numbers[:0], numbers)
