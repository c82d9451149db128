"""Symbols: both directions, ELFv1 descriptors, the map of a whole run."""

import struct

import pytest

from emulator.elf import read_elf
from emulator.errors import MissingSymbol
from emulator.symbols import AddressMap, AddressRow, NamedPlaces, SymbolTable
from tests.elfwriter import (
    SHT_RELA,
    STB_LOCAL,
    STT_FUNC,
    STT_NOTYPE,
    STT_SECTION,
    Elf,
    Section,
    Symbol,
)

LINK = 0xC000000000000000


def table(*symbols: Symbol, **more: object) -> SymbolTable:
    sections = more.pop("sections", [Section(".text", bytes(0x200), addr=LINK)])
    elf = Elf(sections=sections, symbols=symbols, **more)  # type: ignore[arg-type]
    return SymbolTable(read_elf(elf.to_bytes(), "k", "a kernel"))


def test_find_takes_the_whole_name_and_prefers_global() -> None:
    symbols = table(
        Symbol("start", LINK + 8, 0, ".text", bind=STB_LOCAL),
        Symbol("start", LINK + 16, 0, ".text"),
        Symbol("restart", LINK + 24, 0, ".text"),
        Symbol("elsewhere"),
    )
    assert symbols.find("start") == LINK + 16
    assert symbols.find("restart") == LINK + 24
    assert symbols.find("star") is None
    assert symbols.find("elsewhere") is None
    assert symbols.find("") is None
    with pytest.raises(MissingSymbol, match="no symbol nowhere"):
        symbols.get("nowhere")


def test_local_entry_of_elfv2() -> None:
    both = [Symbol("far", LINK, 8, ".text", other=3 << 5), Symbol("leaf", LINK + 8, 8, ".text")]
    symbols = table(*both)
    assert [symbols.local_entry_offset(name) for name in ("far", "leaf", "none")] == [8, 0, 0]
    assert table(*both, flags=1).local_entry_offset("far") == 0


def test_lookup_gives_offset_and_size() -> None:
    symbols = table(
        Symbol("a", LINK + 0x10, 0x10, ".text", type=STT_FUNC),
        Symbol("label", LINK + 0x40, 0, ".text", type=STT_NOTYPE),
        Symbol("b", LINK + 0x60, 8, ".text", type=STT_FUNC),
        Symbol(".text", LINK, 0, ".text", type=STT_SECTION),
    )
    assert symbols.lookup(LINK + 0x10) == ("a", 0, 0x10)
    assert symbols.lookup(LINK + 0x1C) == ("a", 0xC, 0x10)
    assert symbols.lookup(LINK + 0x20) == ("a", 0x10, 0x30), "kallsyms: up to the next symbol"
    assert symbols.lookup(LINK + 0x44) == ("label", 4, 0x20)
    assert symbols.lookup(LINK + 0x64) == ("b", 4, 8)
    assert symbols.lookup(LINK + 0x68) is None
    assert symbols.lookup(LINK) is None
    assert symbols.lookup(1 << 64) is None


def test_lookup_prefers_functions_and_globals_at_one_place() -> None:
    symbols = table(
        Symbol(".Lhidden", LINK, 0, ".text", bind=STB_LOCAL),
        Symbol("label", LINK, 0, ".text", bind=STB_LOCAL),
        Symbol("entry", LINK, 8, ".text", type=STT_FUNC),
    )
    assert symbols.lookup(LINK + 4) == ("entry", 4, 8)


def descriptors(*entries: int) -> bytes:
    return b"".join(struct.pack(">QQQ", entry, LINK + 0x8000, 0) for entry in entries)


def test_elfv1_function_is_its_code_not_its_descriptor() -> None:
    opd = LINK + 0x1000
    sections = [
        Section(".text", bytes(0x200), addr=LINK),
        Section(".opd", descriptors(LINK + 0x40, LINK + 0x80), addr=opd),
    ]
    symbols = table(
        Symbol("early_setup", opd, 24, ".opd", type=STT_FUNC),
        Symbol("start_kernel", opd + 24, 24, ".opd", type=STT_FUNC),
        Symbol(".only_dotted", LINK + 0x100, 8, ".text", type=STT_FUNC),
        sections=sections,
        big_endian=True,
        flags=1,
    )
    assert symbols.find("early_setup") == LINK + 0x40
    assert symbols.find("start_kernel") == LINK + 0x80
    assert symbols.find("only_dotted") == LINK + 0x100
    assert symbols.lookup(LINK + 0x48) == ("early_setup", 8, 24)
    assert symbols.lookup(LINK + 0x104) == ("only_dotted", 4, 8)


def test_elfv1_descriptors_of_a_relocatable_kernel_lie_in_rela_dyn() -> None:
    opd = LINK + 0x1000
    rows = struct.pack(">QQQ", opd, 22, LINK + 0x44) + struct.pack(">QQQ", LINK, 22, LINK)
    sections = [
        Section(".text", bytes(0x200), addr=LINK),
        Section(".opd", bytes(24), addr=opd),
        Section(".rela.dyn", rows, SHT_RELA, addr=LINK + 0x1800),
    ]
    symbols = table(
        Symbol("f", opd, 24, ".opd", type=STT_FUNC), sections=sections, big_endian=True, flags=1
    )
    assert symbols.find("f") == LINK + 0x44


@pytest.fixture
def names() -> AddressMap:
    kernel = table(
        Symbol("_stext", LINK, 0, ".text"),
        Symbol("early_setup", LINK + 0x100, 0x20, ".text", type=STT_FUNC),
        Symbol("end", LINK + 0x1F8, 8, ".text", type=STT_FUNC),
    )
    old = NamedPlaces({"handover_boot": (0x10000, 0x64)})
    return AddressMap(
        (
            AddressRow(0x10000, 0x10100, old, 0, "handover"),
            AddressRow(0x2000000, 0x2000200, kernel, LINK - 0x2000000, "kernel"),
            AddressRow(0, 0x200, kernel, LINK, "kernel at 0"),
        )
    )


@pytest.mark.parametrize("alias", [0, LINK])
def test_map_names_any_alias(names: AddressMap, alias: int) -> None:
    assert names.name_at(alias | 0x200011C) == "early_setup+0x1c/0x20"
    assert names.name_at(alias | 0x11C) == "early_setup+0x1c/0x20"
    assert names.name_at(alias | 0x10010) == "handover_boot+0x10/0x64"
    assert names.name_at(alias | 0x30000) == ""


def test_map_gives_every_place_of_a_name(names: AddressMap) -> None:
    assert names.addr_of("early_setup") == [0x2000100, LINK | 0x2000100, 0x100, LINK | 0x100]
    assert names.addr_of("handover_boot") == [0x10000, LINK | 0x10000]
    assert names.addr_of("nothing") == []


def test_moved_kernel_wins_where_the_copies_overlap() -> None:
    kernel = table(
        Symbol("first", LINK, 0x100, ".text", type=STT_FUNC),
        Symbol("second", LINK + 0x100, 0x100, ".text", type=STT_FUNC),
    )
    rows = (
        AddressRow(0x100, 0x300, kernel, LINK - 0x100, "kernel"),
        AddressRow(0, 0x200, kernel, LINK, "kernel at 0"),
    )
    stays = AddressMap(rows)
    assert stays.name_at(LINK | 0x104) == "first+0x4/0x100"
    assert stays.moved(True).name_at(LINK | 0x104) == "second+0x4/0x100"
    assert stays.moved(True).name_at(0x104) == "first+0x4/0x100"
