"""Address -> symbol+offset and back, for any alias and any relocation of the images of a run.

What it is: the .symtab as numpy arrays (100,000 entries without a Python loop), and a map of all
that can be named in one run. What it is not: a reader of DWARF (`sourcelines`) or of kallsyms.
Source: gABI; 64-bit PowerPC ELF ABI 1.9 (.opd: a function symbol names a descriptor of three
doublewords, the first is the code); kernel/kallsyms.c for the form and the choice between aliases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from emulator.elf import (
    SHN_LORESERVE,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    ElfFile,
)
from emulator.errors import MissingSymbol
from emulator.handoff import LINEAR_BASE
from emulator.sourcelines import SourceLines, source_lines

MAX_SYMBOLS: Final = 2_000_000
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC = 0, 1, 2
_R_PPC64_RELATIVE: Final = 22
_DESCRIPTOR_BYTES: Final = 24
REAL_MASK: Final = 0x0FFFFFFFFFFFFFFF
"""Real mode ignores the top four bits of an effective address."""

_U64 = npt.NDArray[np.uint64]


def _symbol_dtype(order: str) -> np.dtype[Any]:
    return np.dtype(
        [
            ("name", order + "u4"),
            ("info", "u1"),
            ("other", "u1"),
            ("shndx", order + "u2"),
            ("value", order + "u8"),
            ("size", order + "u8"),
        ]
    )


class SymbolTable:
    """Symbols of one ELF file at its link addresses; empty for a stripped file.

    Args:
        elf: the file; its headers are already checked.
        section_addr: for a relocatable file, section index -> address it was linked at.
        opd: for a linked ELFv1 relocatable file, the address and final bytes of its .opd.
    """

    def __init__(
        self,
        elf: ElfFile,
        section_addr: Mapping[int, int] | None = None,
        opd: tuple[int, bytes] | None = None,
    ) -> None:
        self._elf = elf
        self._section_addr = section_addr
        self._linked_opd = opd

    @cached_property
    def lines(self) -> SourceLines | None:
        """Where the file's instructions come from; None if it has no DWARF."""
        return source_lines(self._elf, self._section_addr)

    @cached_property
    def _raw(self) -> npt.NDArray[Any]:
        dtype = _symbol_dtype(self._elf.order)
        section = next((s for s in self._elf.sections if s.type == SHT_SYMTAB), None)
        if section is None:
            return np.zeros(0, dtype)
        count = min(section.size // dtype.itemsize, MAX_SYMBOLS)
        data = self._elf.section_bytes(section)[: count * dtype.itemsize]
        return np.frombuffer(data, dtype)

    @cached_property
    def _strings(self) -> npt.NDArray[np.uint8]:
        section = next((s for s in self._elf.sections if s.type == SHT_SYMTAB), None)
        sections = self._elf.sections
        if section is None or section.link >= len(sections):
            return np.zeros(1, np.uint8)
        table = sections[section.link]
        if table.type != SHT_STRTAB or not table.size:
            return np.zeros(1, np.uint8)
        return np.frombuffer(self._elf.section_bytes(table), np.uint8)

    @cached_property
    def _defined(self) -> npt.NDArray[np.bool_]:
        shndx = self._raw["shndx"]
        return np.asarray((shndx != SHN_UNDEF) & (shndx < SHN_LORESERVE))

    @cached_property
    def _values(self) -> _U64:
        """Addresses of all symbols; those in .opd are the code their descriptor names."""
        values = self._raw["value"].astype(np.uint64)
        if self._section_addr is not None:
            bases = np.zeros(0x10000, np.uint64)
            for index, addr in self._section_addr.items():
                bases[index] = addr
            values = values + np.where(self._defined, bases[self._raw["shndx"]], np.uint64(0))
        opd_addr, descriptors = self._opd
        if len(descriptors):
            offset = values - np.uint64(opd_addr)
            inside = self._defined & (offset < np.uint64(len(descriptors) * 8))
            code = descriptors[(offset[inside] >> np.uint64(3)).astype(np.int64)]
            values[inside] = np.where(code != 0, code, values[inside])
        return values

    @cached_property
    def _sizes(self) -> _U64:
        """Sizes of all symbols; that of a descriptor is its code's where a dot symbol tells it.

        Compilers with dot symbols give `name` the 24 bytes of its descriptor and `.name` the
        code's size; those without give `name` the code's size.
        """
        sizes = self._raw["size"].astype(np.uint64)
        if len(self._opd[1]):
            values = self._values
            descriptor = np.flatnonzero(self._defined & (sizes == _DESCRIPTOR_BYTES))
            dotted = self._defined & (self._first_letters == ord(".")) & (sizes != 0)
            code = np.flatnonzero(dotted)
            code = code[np.argsort(values[code], kind="stable")]
            if len(code):
                at = np.searchsorted(values[code], values[descriptor])
                at = np.minimum(at, len(code) - 1)
                same = values[code[at]] == values[descriptor]
                sizes[descriptor[same]] = sizes[code[at[same]]]
        return sizes

    @cached_property
    def _first_letters(self) -> npt.NDArray[np.uint8]:
        first = np.minimum(self._raw["name"].astype(np.int64), len(self._strings) - 1)
        return np.asarray(self._strings[first])

    @cached_property
    def _beginnings(self) -> _U64:
        """The first eight bytes of every name, as one little-endian number."""
        padded = np.concatenate([self._strings, np.zeros(8, np.uint8)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 8)
        offsets = np.minimum(self._raw["name"].astype(np.int64), len(self._strings) - 1)
        return np.ascontiguousarray(windows[offsets]).view("<u8")[:, 0]

    @cached_property
    def _opd(self) -> tuple[int, _U64]:
        section = self._elf.find_section(".opd")
        if section is None or self._elf.abi != 1 or section.type == SHT_NOBITS:
            return 0, np.zeros(0, np.uint64)
        dtype = np.dtype(self._elf.order + "u8")
        if self._linked_opd is not None:
            addr, data = self._linked_opd
            return addr, np.frombuffer(data[: len(data) // 8 * 8], dtype).astype(np.uint64)
        view = self._elf.section_bytes(section)
        words = np.frombuffer(view[: len(view) // 8 * 8], dtype).astype(np.uint64)
        self._apply_relative(section.addr, words)
        return section.addr, words

    def _apply_relative(self, opd_addr: int, words: _U64) -> None:
        """A relocatable kernel may leave .opd empty and describe it in .rela.dyn."""
        section = self._elf.find_section(".rela.dyn")
        if section is None or section.type != SHT_RELA:
            return
        order = self._elf.order
        dtype = np.dtype([("at", order + "u8"), ("info", order + "u8"), ("addend", order + "u8")])
        data = self._elf.section_bytes(section)
        rows = np.frombuffer(data[: len(data) // 24 * 24], dtype)
        offset = rows["at"].astype(np.uint64) - np.uint64(opd_addr)
        mine = (rows["info"] == _R_PPC64_RELATIVE) & (offset < np.uint64(len(words) * 8))
        words[(offset[mine] >> np.uint64(3)).astype(np.int64)] = rows["addend"][mine]

    def __len__(self) -> int:
        return len(self._raw)

    def _indexes(self, name: str) -> npt.NDArray[np.int64]:
        """Indexes of the defined symbols of exactly that name."""
        wanted = name.encode("utf-8", "replace") + b"\0"
        first = wanted[:8]
        mask = np.uint64(int.from_bytes(b"\xff" * len(first), "little"))
        beginning = np.uint64(int.from_bytes(first, "little"))
        candidates = np.flatnonzero((self._beginnings & mask) == beginning)
        strings, offsets = self._strings, self._raw["name"][candidates].astype(np.int64)
        for position in range(8, len(wanted)):
            at = np.minimum(offsets + position, len(strings) - 1)
            same = strings[at] == wanted[position]
            candidates, offsets = candidates[same], offsets[same]
        return candidates[self._defined[candidates] & (offsets + len(wanted) <= len(strings))]

    def _find_index(self, name: str) -> int | None:
        for spelling in (name, "." + name):
            indexes = self._indexes(spelling)
            if len(indexes):
                bind = self._raw["info"][indexes] >> 4
                return int(indexes[int(np.argmax(bind != 0))])
        return None

    def find(self, name: str) -> int | None:
        """Link address of a symbol; of a function its code, not its descriptor."""
        index = self._find_index(name)
        return None if index is None else int(self._values[index])

    def find_size(self, name: str) -> int:
        """The size that the symbol table gives, 0 if unknown."""
        index = self._find_index(name)
        return 0 if index is None else int(self._sizes[index])

    def local_entry_offset(self, name: str) -> int:
        """ELFv2: bytes from a function's global entry (its symbol) to its local one, else 0.

        A call inside the image goes to the local entry, behind the two instructions that set r2:
        start_kernel of a ppc64le kernel is entered at symbol + 8.
        """
        index = self._find_index(name)
        if index is None or self._elf.abi != 2:
            return 0
        return ((1 << (int(self._raw["other"][index]) >> 5)) >> 2) << 2

    def get(self, name: str) -> int:
        """Like find, but raises MissingSymbol."""
        value = self.find(name)
        if value is None:
            raise MissingSymbol(
                f"{self._elf.name}: no symbol {name}",
                hint="Give an image that is not stripped." if not len(self) else "",
            )
        return value

    def starts(self) -> _U64:
        """Link address of everything that `lookup` can name, ascending."""
        return self._sorted[0]

    @cached_property
    def _sorted(self) -> tuple[_U64, npt.NDArray[np.int64]]:
        """Addresses in order, one a place, and the index of the symbol that names each."""
        raw = self._raw
        kind = raw["info"] & 15
        usable = self._defined & (kind <= _STT_FUNC)
        strings = self._strings
        first = np.minimum(raw["name"].astype(np.int64), len(strings) - 1)
        second = np.minimum(first + 1, len(strings) - 1)
        usable &= strings[first] != 0
        usable &= ~((strings[first] == ord(".")) & (strings[second] == ord("L")))
        indexes = np.flatnonzero(usable)
        bind = raw["info"][indexes] >> 4
        dotted = strings[first[indexes]] == ord(".")
        rank = np.where(kind[indexes] == _STT_FUNC, 0, 1) * 4 + np.where(bind != 0, 0, 2) + dotted
        order = np.lexsort((indexes, rank, self._values[indexes]))
        indexes = indexes[order]
        addrs, firsts = np.unique(self._values[indexes], return_index=True)
        return addrs, indexes[firsts]

    def lookup(self, addr: int) -> tuple[str, int, int] | None:
        """Name, offset and size of the symbol that holds a link address."""
        addrs, indexes = self._sorted
        if not 0 <= addr < 1 << 64:
            return None
        position = int(np.searchsorted(addrs, np.uint64(addr), side="right")) - 1
        if position < 0:
            return None
        start = int(addrs[position])
        size = int(self._sizes[indexes[position]])
        last = position + 1 >= len(addrs)
        if addr - start >= size:
            size = max(size, 4) if last else int(addrs[position + 1]) - start
        if addr - start >= size:
            return None
        return self.name_of(int(indexes[position])), addr - start, size

    def name_of(self, index: int) -> str:
        """The name of the symbol at that index, without an ELFv1 dot."""
        start = int(self._raw["name"][index])
        piece = self._strings[start : start + 512].tobytes().split(b"\0", 1)[0]
        text = piece.decode("ascii", "replace")
        return text[1:] if self._elf.abi == 1 and text.startswith(".") else text

    def addresses(self) -> dict[str, tuple[int, int]]:
        """Every defined, named symbol: name -> (address, size). For small tables."""
        values = self._values
        named = [i for i in np.flatnonzero(self._defined).tolist() if int(self._raw["name"][i])]
        return {self.name_of(i): (int(values[i]), int(self._sizes[i])) for i in reversed(named)}


class NamedPlaces:
    """A handful of names for code of our own; the same questions as SymbolTable."""

    lines: SourceLines | None = None
    """Our own code has no DWARF."""

    def __init__(self, places: Mapping[str, tuple[int, int]]) -> None:
        self._places = dict(places)

    def find(self, name: str) -> int | None:
        """Address of a name."""
        place = self._places.get(name)
        return None if place is None else place[0]

    def starts(self) -> _U64:
        """Address of every place."""
        return np.array([start for start, _ in self._places.values()], np.uint64)

    def lookup(self, addr: int) -> tuple[str, int, int] | None:
        """Name, offset and size of the place that holds an address."""
        for name, (start, size) in self._places.items():
            if start <= addr < start + size:
                return name, addr - start, size
        return None


@dataclass(frozen=True)
class AddressRow:
    """Real addresses lo..hi hold an image whose names are in `table`."""

    lo: int
    hi: int
    table: SymbolTable | NamedPlaces
    link_delta: int
    """Real address + link_delta = link address."""
    prefix: str
    """What the row is: kernel, kernel at 0, purgatory, low memory, handover."""


@dataclass(frozen=True)
class AddressMap:
    """All that can be named in one run.

    Rows are tried in order. For a linear (0xc...) address the row "kernel at 0" is tried first
    if `kernel_at_zero`, because a kernel that has moved to 0 and the image that it was copied
    from may overlap in real addresses.
    """

    rows: Sequence[AddressRow]
    kernel_at_zero: bool = False

    def moved(self, to_zero: bool) -> AddressMap:
        """The same map for a kernel that has (not) moved to 0."""
        return replace(self, kernel_at_zero=to_zero)

    def find(self, vaddr: int) -> tuple[str, int, int, str] | None:
        """Name, offset, size and row prefix at an effective address, whatever its alias."""
        for row, link in self._rows_at(vaddr):
            found = row.table.lookup(link)
            if found is not None:
                return *found, row.prefix
        return None

    def _rows_at(self, vaddr: int) -> Iterator[tuple[AddressRow, int]]:
        """The rows that hold an effective address, and its link address in each."""
        real = vaddr & REAL_MASK
        rows = self.rows
        if self.kernel_at_zero and vaddr >= LINEAR_BASE:
            rows = sorted(rows, key=lambda row: row.prefix != "kernel at 0")
        for row in rows:
            if row.lo <= real < row.hi:
                yield row, (real + row.link_delta) & (1 << 64) - 1

    @property
    def has_lines(self) -> bool:
        """Whether an image has DWARF."""
        return any(row.table.lines is not None for row in self.rows)

    def line_at(self, vaddr: int) -> str:
        """`file:line` of the instruction at an effective address, "" if nothing is known.

        It comes from the image that names the address, so that both say the same.
        """
        for row, link in self._rows_at(vaddr):
            line = row.table.lines.line_of(link) if row.table.lines is not None else ""
            if line or row.table.lookup(link) is not None:
                return line
        return ""

    def renew_lines(self) -> None:
        """An answer begins: what its lines may cost is counted anew."""
        for row in self.rows:
            if row.table.lines is not None:
                row.table.lines.renew()

    def prepare_lines(self) -> None:
        """Make what `line_at` needs, once for all forks of this process."""
        for row in self.rows:
            if row.table.lines is not None:
                row.table.lines.prepare()

    def function_starts(self) -> npt.NDArray[np.int64]:
        """Real addresses at which a named piece of code begins, ascending."""
        parts = [np.zeros(0, np.int64)]
        for row in self.rows:
            link = row.table.starts()
            real = (link - np.uint64(row.link_delta & (1 << 64) - 1)).astype(np.int64)
            parts.append(real[(real >= row.lo) & (real < row.hi)])
        return np.unique(np.concatenate(parts))

    def name_at(self, vaddr: int) -> str:
        """The kernel's %pS form "sym+0x1c/0x30", "" if nothing is known."""
        found = self.find(vaddr)
        return "" if found is None else f"{found[0]}+{found[1]:#x}/{found[2]:#x}"

    def addr_of(self, name: str) -> list[int]:
        """Every effective address at which the name may run: real and linear, each row's."""
        found: list[int] = []
        for row in self.rows:
            link = row.table.find(name)
            if link is None:
                continue
            real = (link - row.link_delta) & (1 << 64) - 1
            if row.lo <= real < row.hi:
                found += [addr for addr in (real, LINEAR_BASE | real) if addr not in found]
        return found
