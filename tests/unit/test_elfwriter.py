"""The test suite's own ELF writer, judged by pyelftools."""

import io

import pytest
from elftools.elf.elffile import ELFFile

from tests import elfwriter as w


@pytest.mark.parametrize("big_endian", [False, True])
def test_object_file_reads_back(big_endian: bool) -> None:
    elf = w.Elf(
        type=w.ET_REL,
        big_endian=big_endian,
        sections=[
            w.Section(".text", b"\x60\0\0\0" * 4, flags=w.SHF_ALLOC | w.SHF_EXECINSTR),
            w.Section(".bss", type=w.SHT_NOBITS, size=64),
        ],
        symbols=[
            w.Symbol("kernel", 8, 8, ".text"),
            w.Symbol("here", 4, 0, ".text", bind=w.STB_LOCAL),
            w.Symbol("elsewhere"),
        ],
        relocations=[w.Rela(".text", 4, 10, "elsewhere", -4)],
    )
    read = ELFFile(io.BytesIO(elf.to_bytes()))
    assert read.little_endian is not big_endian
    assert [s.name for s in read.iter_sections()] == [
        *("", ".text", ".bss", ".symtab", ".strtab", ".rela.text", ".shstrtab")
    ]
    symtab = read.get_section_by_name(".symtab")
    assert symtab["sh_info"] == 2
    names = {symbol.name: symbol for symbol in symtab.iter_symbols()}
    assert names["kernel"]["st_value"] == 8
    assert names["kernel"]["st_size"] == 8
    assert names["elsewhere"]["st_shndx"] == "SHN_UNDEF"
    assert names["here"]["st_info"]["bind"] == "STB_LOCAL"
    rows = list(read.get_section_by_name(".rela.text").iter_relocations())
    assert [(r["r_offset"], r["r_info_type"], r["r_addend"]) for r in rows] == [(4, 10, -4)]
    assert symtab.get_symbol(rows[0]["r_info_sym"]).name == "elsewhere"
    assert read.get_section_by_name(".bss")["sh_size"] == 64


@pytest.mark.parametrize("big_endian", [False, True])
def test_tiny_kernel_is_a_vmlinux(big_endian: bool) -> None:
    read = ELFFile(io.BytesIO(w.tiny_kernel(big_endian=big_endian)))
    (segment,) = read.iter_segments()
    assert read["e_type"] == "ET_EXEC"
    assert read["e_entry"] == segment["p_vaddr"] == 0xC000000000000000
    assert segment["p_paddr"] == 0
    assert segment["p_memsz"] == segment["p_filesz"] + 0x100
    assert segment.data()[0x5C:0x60] == (b"run0" if big_endian else b"0nur")
    (flag,) = read.get_section_by_name(".symtab").get_symbol_by_name("__run_at_load")
    assert flag["st_value"] == 0xC00000000000005C
