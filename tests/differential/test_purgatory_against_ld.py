"""The linked purgatory against GNU ld: same layout, same bytes, but for one rewriting.

ld is given our layout as a script and must not merge strings (SHF_MERGE is cleared for it) nor
shorten .eh_frame (--traditional-format). What differs must be exactly the instructions that set r2
at global entries (REL16_HA, REL16_LO): ld keeps them relative to r12, kexec-tools makes them
absolute; the captured hand-offs are the judge of those (tests/real/test_captured_placement.py).
"""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from app.debian import DebianPair
from emulator import samples
from emulator.elf import SHF_ALLOC, SHT_RELA, ElfFile
from emulator.images import read_purgatory
from emulator.relocations import TOC_ALIGN, LinkedPurgatory, layout_purgatory, link_purgatory

CrossTool = Callable[[str, bool], Path]
FOLDER = Path(samples.__file__).parent
ADDR = 0x48A0000
REL16 = (250, 252)
SHF_MERGE, SHF_STRINGS = 0x10, 0x20


def script(elf: ElfFile) -> str:
    """A linker script that lays the sections out as kexec-tools does."""
    rows = [f". = {ADDR:#x};"]
    for section in elf.sections:
        if section.flags & SHF_ALLOC and section.size:
            align = TOC_ALIGN if section.name == ".toc" else max(section.align, 1)
            rows.append(f"{section.name} ALIGN({align}) : {{ *({section.name}) }}")
    return "SECTIONS {" + "\n".join(rows) + "\n/DISCARD/ : { *(*) } }"


def without_merging(elf: ElfFile) -> bytes:
    """The file with SHF_MERGE and SHF_STRINGS cleared in every section header."""
    data = bytearray(elf.data)
    (table,) = struct.unpack_from(elf.order + "Q", data, 40)
    for section in elf.sections:
        flags = section.flags & ~(SHF_MERGE | SHF_STRINGS)
        struct.pack_into(elf.order + "Q", data, table + 64 * section.index + 8, flags)
    return bytes(data)


def link_with_ld(elf: ElfFile, tool: CrossTool, folder: Path) -> bytes:
    source, lds, linked, flat = (folder / name for name in ("p.ro", "p.lds", "p.elf", "p.bin"))
    source.write_bytes(without_merging(elf))
    lds.write_text(script(elf))
    plain = ["--traditional-format", "--no-toc-sort", "--no-opd-optimize",
             "--no-warn-rwx-segments"]  # fmt: skip
    ld = str(tool("ld", elf.big_endian))
    command = [ld, *plain, "-T", str(lds), "-e", "purgatory_start", "-o", str(linked), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    copy = [str(tool("objcopy", elf.big_endian)), "-O", "binary", str(linked), str(flat)]
    subprocess.run(copy, check=True, capture_output=True)
    return flat.read_bytes()


def rewritten(elf: ElfFile) -> set[int]:
    """Offsets in the linked purgatory of the instructions with a REL16_HA or REL16_LO."""
    offsets = layout_purgatory(elf).offsets
    places = set()
    for table in elf.sections:
        if table.type == SHT_RELA and table.info in offsets:
            for at, info, _ in struct.iter_unpack(elf.order + "QQq", elf.section_bytes(table)):
                if info & 0xFFFFFFFF in REL16:
                    places.add(offsets[table.info] + at & ~3)
    return places


def differences(linked: LinkedPurgatory, other: bytes) -> set[int]:
    mine = bytes(linked.data)
    assert len(mine) == len(other)
    return {at & ~3 for at in range(len(mine)) if mine[at] != other[at]}


@pytest.mark.parametrize("order", ["le", "be"])
def test_sample_purgatory(order: str, cross_tool: CrossTool, tmp_path: Path) -> None:
    elf = read_purgatory((FOLDER / f"purgatory-{order}.ro").read_bytes(), "p").parsed
    linked = link_purgatory(elf, ADDR)
    assert linked.relocations > 10
    assert differences(linked, link_with_ld(elf, cross_tool, tmp_path)) <= rewritten(elf)


@pytest.mark.real
def test_debian_purgatory(debian_pair: DebianPair, cross_tool: CrossTool, tmp_path: Path) -> None:
    elf = read_purgatory(debian_pair.kexec.read_bytes(), "kexec").parsed
    linked = link_purgatory(elf, ADDR)
    assert linked.relocations == 137
    places = rewritten(elf)
    assert len(places) == 2 * 11
    assert differences(linked, link_with_ld(elf, cross_tool, tmp_path)) <= places
