"""Relocations: each of the 19 types in both byte orders, against values worked out by hand."""

import struct
from dataclasses import dataclass

import pytest

from emulator.elf import ElfFile, read_elf
from emulator.errors import ImageError, LimitError, UnsupportedRelocation
from emulator.relocations import (
    RELOCATIONS,
    LinkedPurgatory,
    layout_purgatory,
    link_purgatory,
)
from tests.elfwriter import ET_REL, SHT_NOBITS, Elf, Rela, Section, Symbol

BASE = 0x1_2345_0000
TEXT, TOC, DATA = 0, 0x100, 0x120
"""Offsets of the sections that `build` makes, from the purgatory's address."""
TARGET = BASE + DATA + 0x8
R2 = BASE + TOC + 0x8000


def build(text: bytes, *relocations: Rela, big_endian: bool = False, **more: object) -> ElfFile:
    symbols = [
        Symbol("purgatory_start", 0, 0x80, ".text"),
        Symbol("f", 0x40, 8, ".text", other=3 << 5),
        Symbol("v", 8, 8, ".data"),
        Symbol(".TOC."),
    ]
    elf = Elf(
        type=ET_REL,
        big_endian=big_endian,
        flags=int(more.pop("flags", 2)),  # type: ignore[call-overload]
        sections=[
            Section(".text", text.ljust(0x80, b"\0"), flags=6, align=16),
            Section(".toc", bytes(0x20), flags=3),
            Section(".data", bytes(0x20), flags=3),
        ],
        symbols=symbols,
        relocations=relocations,
    )
    return read_elf(elf.to_bytes(), "p", "a purgatory")


@dataclass(frozen=True)
class Case:
    """A type, where it is applied, what is there before, and what must be there after."""

    type: int
    symbol: str
    addend: int
    before: int
    after: int
    bytes: int = 2


PLACE = BASE + 0x10
CASES = (
    Case(1, "v", 4, 0, (TARGET + 4) & 0xFFFFFFFF, 4),
    Case(4, "v", 0, 0xFFFF, 0x0128),
    Case(5, "v", 0, 0xFFFF, 0x2345),
    Case(6, "v", 0x8000, 0, 0x2346),
    Case(10, "f", 0, 0x48000001, 0x48000001 | (0x40 + 8 - 0x10), 4),
    Case(26, "v", 0, 0, (TARGET - PLACE) & 0xFFFFFFFF, 4),
    Case(38, "v", -8, 0, TARGET - 8, 8),
    Case(39, "v", 0, 0xFFFF, 0x0001),
    Case(41, "v", 0, 0xFFFF, 0x0000),
    Case(44, "v", 0, 0, TARGET, 8),
    Case(47, "v", 0, 0, (TARGET - R2) & 0xFFFF),
    Case(48, "v", 0, 0, (TARGET - R2) & 0xFFFF),
    Case(49, "v", 0, 0, 0xFFFF),
    Case(50, "v", 0, 0, 0x0000),
    Case(51, "v", 0, 0, R2, 8),
    Case(63, "v", 0, 0x0001, (TARGET - R2) & 0xFFFC | 1),
    Case(64, "v", 0, 0x0003, (TARGET - R2) & 0xFFFC | 3),
    Case(250, ".TOC.", 4, 0, R2 & 0xFFFF),
    Case(252, ".TOC.", 0, 0x3C4C0000, 0x3C400000 | R2 >> 16 & 0xFFFF, 4),
)


def apply(case: Case, big_endian: bool) -> int:
    order = ">" if big_endian else "<"
    form = order + {2: "H", 4: "I", 8: "Q"}[case.bytes]
    text = bytearray(0x80)
    offset, addend = 0x10, case.addend
    if case.type == 250:  # the halfword of an addi 2,2
        struct.pack_into(order + "I", text, 0x10, 0x38420000)
        offset = 0x12 if big_endian else 0x10
        addend = 6 if big_endian else 4
        read_at = offset
    else:
        struct.pack_into(form, text, 0x10, case.before)
        read_at = 0x10
        if case.type == 252 and big_endian:
            offset, addend = 0x12, 2
    linked = link_purgatory(
        build(bytes(text), Rela(".text", offset, case.type, case.symbol, addend),
              big_endian=big_endian),
        BASE,
    )  # fmt: skip
    return int(struct.unpack_from(form, linked.data, read_at)[0])


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.type))
def test_recipe(case: Case, big_endian: bool) -> None:
    assert hex(apply(case, big_endian)) == hex(case.after)


def test_all_19_types_are_tested_and_described() -> None:
    assert len(RELOCATIONS) == 19
    assert sorted(case.type for case in CASES) == [row.number for row in RELOCATIONS]
    assert all(row.text and row.source for row in RELOCATIONS)


def test_rel32_with_kexecs_own_buffer() -> None:
    elf = build(bytes(0x80), Rela(".text", 0x10, 26, "v"))
    linked = link_purgatory(elf, BASE, buffer_addr=0x155ED07C0)
    (word,) = struct.unpack_from("<I", linked.data, 0x10)
    assert word == (TARGET - 0x155ED07D0) & 0xFFFFFFFF


def test_layout_is_kexecs() -> None:
    elf = Elf(
        type=ET_REL,
        sections=[
            Section(".text", bytes(5), flags=6, align=16),
            Section(".bss", type=SHT_NOBITS, size=0x30, align=0x20),
            Section(".toc", bytes(8), flags=3),
            Section(".comment", bytes(99), flags=0),
            Section(".data", bytes(3), flags=3, align=4),
        ],
    )
    layout = layout_purgatory(read_elf(elf.to_bytes(), "p", "a purgatory"))
    assert layout.offsets == {1: 0, 3: 0x100, 5: 0x108, 2: 0x120}
    assert (layout.data_bytes, layout.mem_bytes, layout.align) == (0x10B, 0x150, 0x100)


def link_elfv1(target: str) -> LinkedPurgatory:
    """A branch to a function of which only the descriptor has a name, or to its dot symbol."""
    elf = Elf(
        type=ET_REL,
        big_endian=True,
        flags=1,
        sections=[
            Section(".text", struct.pack(">I", 0x48000001).ljust(0x80, b"\0"), flags=6),
            Section(".opd", bytes(24), flags=3),
            Section(".toc", bytes(8), flags=3),
        ],
        symbols=[
            Symbol(".code", 0x40, 8, ".text"),
            Symbol("code", 0, 24, ".opd"),
            Symbol(".TOC."),
        ],
        relocations=[
            Rela(".text", 0, 10, target),
            Rela(".opd", 0, 38, ".code"),
            Rela(".opd", 8, 51, ".TOC."),
        ],
    )
    return link_purgatory(read_elf(elf.to_bytes(), "p", "a purgatory"), BASE)


@pytest.mark.parametrize("target", ["code", ".code"])
def test_elfv1_branch_reaches_the_code(target: str) -> None:
    linked = link_elfv1(target)
    assert struct.unpack_from(">I", linked.data, 0)[0] == 0x48000001 | 0x40
    assert struct.unpack_from(">QQ", linked.data, 0x80) == (BASE + 0x40, linked.toc_addr)


def test_unknown_type_is_named_with_its_place() -> None:
    with pytest.raises(UnsupportedRelocation, match=r"type 132 at \.text\+0x10") as caught:
        link_purgatory(build(bytes(0x80), Rela(".text", 0x10, 132, "v")), BASE)
    assert "mno-pcrel" in caught.value.hint


@pytest.mark.parametrize(
    ("relocation", "words"),
    [
        (Rela(".text", 0x7E, 10, "f"), "lies outside its section"),
        (Rela(".text", 0x10, 10, "f", 0x4000000), "overflows"),
        (Rela(".text", 0x10, 10, "f", 2), "is not aligned"),
        (Rela(".text", 0x10, 47, "v", 0x18000), "overflows"),
        (Rela(".text", 0x10, 252, ".TOC."), "not on an addis 2,12"),
        (Rela(".text", 0x10, 250, ".TOC."), "not on an addi 2,2"),
    ],
)
def test_damage_is_an_error(relocation: Rela, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        link_purgatory(build(bytes(0x80), relocation), BASE)


def test_a_call_to_what_is_not_defined_names_it() -> None:
    """kexec-tools of 2008 with a newer gcc -Os: _savegpr0_28 is nowhere."""
    elf = Elf(
        type=ET_REL,
        sections=[Section(".text", bytes(16), flags=6)],
        symbols=[Symbol("purgatory_start", 0, 4, ".text"), Symbol("_savegpr0_28")],
        relocations=[Rela(".text", 4, 10, "_savegpr0_28")],
    )
    read = read_elf(elf.to_bytes(), "p", "a purgatory")
    with pytest.raises(
        ImageError, match=r"\.text\+0x4 \(_savegpr0_28, which is not defined\) over"
    ):
        link_purgatory(read, 0x4000000)


def test_toc_relocation_without_a_toc() -> None:
    elf = Elf(
        type=ET_REL,
        sections=[Section(".text", bytes(16), flags=6)],
        symbols=[Symbol("f", 0, 4, ".text")],
        relocations=[Rela(".text", 0, 47, "f")],
    )
    with pytest.raises(ImageError, match=r"no \.toc section"):
        link_purgatory(read_elf(elf.to_bytes(), "p", "a purgatory"), BASE)


def test_too_large() -> None:
    elf = Elf(type=ET_REL, sections=[Section(".bss", type=SHT_NOBITS, size=1 << 40, flags=3)])
    with pytest.raises(LimitError, match="the limit is"):
        layout_purgatory(read_elf(elf.to_bytes(), "p", "a purgatory"))
