"""Lines of DWARF 2 to 5, both byte orders and ABIs, against addr2line and pyelftools.

The images, the command that makes them and what addr2line says of each of their instructions are in
tests/data/dwarf (build.sh).
"""

import struct
import tracemalloc
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from emulator import dwarf, samples
from emulator.dwarf import DamagedDwarf, LineUnit, compilation_dir, read_files, units
from emulator.elf import ElfFile, Section, read_elf
from emulator.located import add_line_of_event, add_lines
from emulator.sourcelines import MAX_PATH, SourceLines, _inflate, shown_path, source_lines
from emulator.symbols import AddressMap, AddressRow, SymbolTable

DATA = Path(__file__).parent.parent / "data" / "dwarf"
LINKED = sorted(path.name for path in DATA.glob("*.elf"))
PARTS = {".head.text": 0, ".text": 0x1000, ".init.text": 0x4000}
BASE = 0xC000000000000000


def elf_of(name: str) -> ElfFile:
    return read_elf((DATA / name).read_bytes(), name, "an image with DWARF")


def expected(name: str) -> dict[int, str]:
    rows = [line.split(" ", 1) for line in (DATA / f"{name}.lines").read_text().splitlines()]
    return {int(addr, 16): line for addr, line in rows}


def code_of(elf: ElfFile) -> list[Section]:
    return [section for section in elf.sections if section.flags & 4 and section.size]


def all_lines(elf: ElfFile, lines: SourceLines, addrs: dict[int, int]) -> dict[int, str]:
    found = {}
    for section in code_of(elf):
        for at in range(addrs[section.index], addrs[section.index] + section.size, 4):
            line = lines.line_of(at)
            if line:
                found[at] = line
    return found


def test_the_images_are_of_every_kind() -> None:
    assert len(LINKED) == 12
    versions, orders, abis = set(), set(), set()
    for name in LINKED:
        elf = elf_of(name)
        lines = SourceLines(elf)
        versions |= {(unit.version, unit.offset_bytes) for unit in units(lines._data, elf.order)}
        orders.add(elf.order)
        abis.add(elf.abi)
    assert versions == {(2, 4), (3, 4), (4, 4), (5, 4), (5, 8)}
    assert (orders, abis) == ({"<", ">"}, {1, 2})
    assert elf_of("be-5-noaranges.elf").find_section(".debug_aranges") is None
    flags = {
        name: elf_of(f"be-5-{name}.elf").find_section(".debug_line") for name in ("zlib", "zstd")
    }
    assert all(section is not None and section.flags & 0x800 for section in flags.values())
    assert elf_of("be-5-gnu.elf").find_section(".zdebug_line") is not None


@pytest.mark.parametrize("name", LINKED)
def test_every_instruction_has_the_line_that_addr2line_says(name: str) -> None:
    elf = elf_of(name)
    lines = source_lines(elf)
    assert lines is not None
    wanted = expected(name)
    assert len(wanted) >= 46
    assert all_lines(elf, lines, {s.index: s.addr for s in code_of(elf)}) == wanted
    assert lines.line_of(min(wanted) - 4) == lines.line_of(max(wanted) + 0x1000) == ""
    assert lines.line_of(-1) == lines.line_of(1 << 64) == ""


@pytest.mark.parametrize("base", [BASE, 0x1EFF0000, 0xC000000004560000])
@pytest.mark.parametrize(("name", "linked"), [("rel-be.ro", "be-4.elf"), ("rel-le.ro", "le-5.elf")])
def test_a_relocatable_file_has_its_lines_where_its_sections_were_put(
    name: str, linked: str, base: int
) -> None:
    elf = elf_of(name)
    addrs = {s.index: base + PARTS[s.name] for s in code_of(elf)}
    lines = source_lines(elf, addrs)
    assert lines is not None
    wanted = {addr - BASE + base: line for addr, line in expected(linked).items()}
    assert all_lines(elf, lines, addrs) == wanted


def test_a_section_that_is_not_loaded_has_no_lines() -> None:
    elf = elf_of("rel-be.ro")
    addrs = {s.index: 0x10000 + PARTS[s.name] for s in code_of(elf)}
    left_out = next(s for s in code_of(elf) if s.name == ".head.text")
    kept = {index: addr for index, addr in addrs.items() if index != left_out.index}
    lines = SourceLines(elf, kept)
    assert len(lines._sequences[0]) == 4
    assert not any(lines.line_of(at) for at in range(0, 0x11000, 4))
    assert lines.line_of(0x11008) == "src/first.c:6"


@pytest.mark.parametrize("name", ["purgatory-le.ro", "purgatory-be.ro"])
@pytest.mark.parametrize("at", [0, 0x1EFF0000])
def test_the_sample_purgatory(name: str, at: int) -> None:
    elf = elf_of(name)
    (text,) = code_of(elf)
    lines = SourceLines(elf, {text.index: at})
    wanted = {addr + at: line for addr, line in expected(name).items()}
    assert len(wanted) > 300
    assert all_lines(elf, lines, {text.index: at}) == wanted


@pytest.mark.parametrize(
    "name", [name for name in LINKED if "-z" not in name and "gnu" not in name]
)
def test_rows_and_files_are_those_of_pyelftools(name: str) -> None:
    """The second opinion: pyelftools runs every program, row by row."""
    elf = elf_of(name)
    lines = SourceLines(elf)
    info = ELFFile(BytesIO((DATA / name).read_bytes())).get_dwarf_info()
    theirs = {}
    for cu in info.iter_CUs():
        program = info.line_program_for_CU(cu)
        assert program is not None
        states = [entry.state for entry in program.get_entries() if entry.state is not None]
        names = [entry.name for entry in program["file_entry"]]
        theirs[cu.get_top_DIE().attributes["DW_AT_stmt_list"].value] = (
            [(state.address, state.file, state.line) for state in states], names,
        )  # fmt: skip
    assert len(theirs) == len(list(units(lines._data, elf.order))) > 0
    for unit in units(lines._data, elf.order):
        rows, names = theirs[unit.at]
        ours, at = [], unit.program
        while at < unit.end:
            room, found = np.zeros((1000, 3), np.int64), np.zeros((1, 3), np.int64)
            count, _ = lines._run(unit, at, room, found)
            ours += [(addr % (1 << 64), file, line) for addr, file, line in room[:count].tolist()]
            at = _after(lines, unit, at)
        assert ours == rows
        files = read_files(unit, lines._data, elf.order, lines._strings).files
        assert [file for file, _ in files[unit.version < 5 :]] == names


def _after(lines: SourceLines, unit: LineUnit, at: int) -> int:
    """Where the sequence behind the one at `at` begins."""
    found = np.zeros((100, 3), np.int64)
    _, count = lines._run(unit, unit.program, np.zeros((0, 3), np.int64), found)
    begins = [*found[:count, 2].tolist(), unit.end]
    return next(begin for begin in begins if begin > at)


def test_an_image_without_dwarf_costs_nothing_and_says_nothing() -> None:
    for sample in ("kernel-le.elf", "purgatory-be.ro"):
        data = (Path(samples.__file__).parent / sample).read_bytes()
        table = SymbolTable(read_elf(data, sample, "a sample"))
        assert table.lines is None
        names = AddressMap((AddressRow(0, 1 << 60, table, 0, "kernel"),))
        assert not names.has_lines
        names.prepare_lines()
        answer = {"nip": "0x0000000000000000", "symbol": ""}
        assert add_lines(dict(answer), names) == answer
        assert names.line_at(0) == ""


def _names(at: int = 0x2000000) -> AddressMap:
    table = SymbolTable(elf_of("kernel-le.elf"))
    rows = (
        AddressRow(at, at + 0x9000, table, BASE - at, "kernel"),
        AddressRow(0, 0x9000, table, BASE, "kernel at 0"),
        AddressRow(0, 0x100, table, BASE, "low memory"),
    )
    return AddressMap(rows)


@pytest.mark.parametrize("start", [0, BASE, 0x2000000, BASE | 0x2000000])
def test_every_alias_of_both_copies_has_the_same_line(start: int) -> None:
    names = _names()
    wanted = {addr - BASE: line for addr, line in expected("kernel-le.elf").items()}
    for known in (names, names.moved(True)):
        assert {at: known.line_at(start + at) for at in wanted} == wanted
    assert names.line_at(0x1800000) == ""


def test_the_line_is_of_the_image_that_names_the_address() -> None:
    """Where two copies overlap, symbol and line are of the same."""
    names, wanted = _names(at=0x400), expected("kernel-le.elf")
    for at in range(0, 0x9400, 4):
        for known in (names, names.moved(True)):
            found, line = known.find(BASE | at), known.line_at(BASE | at)
            if found is not None and line:
                shift = 0x400 if found[3] == "kernel" else 0
                assert line == wanted[BASE + at - shift]


def test_answers_get_lines_beside_their_instructions() -> None:
    names = _names()
    at, line = next(iter(expected("kernel-le.elf").items()))
    nip = f"0x{at:016x}"
    registers = {"nip": nip, "lr": nip}
    answer = {
        "steps": [{"nip": nip}], "accesses": [{"nip": nip}, {"nip": "0x0000000007000000"}],
        "state": {
            "cpus": [{"registers": registers, "lr_symbol": "x"}, {"registers": registers}],
            "disassembly": {"0": [{"addr": nip}]},
        },
    }  # fmt: skip
    add_lines(answer, names)
    assert answer["steps"] == [{"nip": nip, "line": line}]
    assert answer["accesses"] == [{"nip": nip, "line": line}, {"nip": "0x0000000007000000"}]
    assert [cpu.get("line") for cpu in answer["state"]["cpus"]] == [line, line]
    assert [cpu.get("lr_line") for cpu in answer["state"]["cpus"]] == [line, None]
    assert answer["state"]["disassembly"]["0"] == [{"addr": nip, "line": line}]
    symbol = names.name_at(at)
    for said, wanted in ((symbol, line), ("else+0x0/0x4", None)):
        event = {"nip": nip, "symbol": said}
        assert add_line_of_event(event, names.moved(True)).get("line") == wanted


@pytest.mark.parametrize(
    ("name", "directory", "base", "shown"),
    [
        ("head_64.S", "/build/linux/arch/powerpc/kernel", "/build/linux",
         "arch/powerpc/kernel/head_64.S"),
        ("head_64.S", "/build/x/linux/arch/powerpc", "/build/x/linux/debian/build/out",
         "arch/powerpc/head_64.S"),
        ("arch/powerpc/kernel/setup_64.c", "", "/build/linux", "arch/powerpc/kernel/setup_64.c"),
        ("setup.c", "../../arch/powerpc", "/build/linux/debian/out", "arch/powerpc/setup.c"),
        ("setup.c", "../../arch/powerpc", "", "arch/powerpc/setup.c"),
        ("/build/linux/./init/../init/main.c", "", "/build/linux", "init/main.c"),
        ("timeconst.h", "include/generated", "/build/linux", "include/generated/timeconst.h"),
        ("stddef.h", "/usr/lib/gcc/powerpc64/12/include", "/usr/src/linux",
         "/usr/lib/gcc/powerpc64/12/include/stddef.h"),
        ("linux/io.h", "/home/me/linux/include", "/home/me/out", "linux/include/linux/io.h"),
        ("head.S", "", "relative", "head.S"),
        ("", "", "/build", ""),
        ("a.c", "/" + "d" * 30 + "/e" * 20, "", "..." + "/e" * 20 + "/a.c"),
        ("a" * 70 + ".c", "", "", "..." + "a" * (MAX_PATH - 6) + ".c"),
    ],
)  # fmt: skip
def test_shown_path(name: str, directory: str, base: str, shown: str) -> None:
    found = shown_path(name, directory, base)
    assert found == shown
    assert len(found) <= MAX_PATH


def test_the_directory_of_the_compilation_is_found_before_dwarf_5() -> None:
    """Absolute names are shown without it, although the line table does not say it."""
    elf = elf_of("be-4.elf")
    lines = SourceLines(elf)
    assert lines._compiled_in == "/build/sample"
    packed = [f"be-5-{name}.elf" for name in ("zlib", "zstd", "gnu")]
    for name in ("be-2.elf", "le-3.elf", "be-5.elf", "be-5-64.elf", *packed):
        assert SourceLines(elf_of(name))._compiled_in == "/build/sample"
    assert SourceLines(elf_of("rel-be.ro"), {})._compiled_in == ""
    with pytest.raises(DamagedDwarf):
        compilation_dir(memoryview(b"\0" * 40), memoryview(b"\0" * 9), ">", {})


# --- bounds ---------------------------------------------------------------------------------------


def with_lines(data: bytes) -> SourceLines:
    """An image whose .debug_line is `data`."""
    elf = elf_of("be-5.elf")
    found = SourceLines(elf)
    found.__dict__["_data"] = memoryview(data)
    return found


def v5(tables: bytes, program: bytes) -> bytes:
    """A unit of DWARF 5, big-endian."""
    body = bytes([4, 1, 1, 0xFB, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1]) + tables
    head = struct.pack(">HBBI", 5, 8, 0, len(body))
    return struct.pack(">I", len(head + body + program)) + head + body + program


NAMES = bytes([1, 1, 8, 1]) + b"/b\0" + bytes([1, 1, 8, 2]) + b"a.c\0b.c\0"
HUGE = b"\xff" * 9 + b"\x01"
SET = b"\0\x09\x02" + struct.pack(">Q", BASE)
END = b"\0\x01\x01"


def test_a_unit_of_our_own() -> None:
    lines = with_lines(v5(NAMES, SET + b"\x03\x05\x01" + b"\x02\x02" + END))
    assert lines.line_of(BASE) == lines.line_of(BASE + 7) == "b.c:6"
    assert lines.line_of(BASE + 8) == ""


@pytest.mark.parametrize(
    ("tables", "program"),
    [
        (bytes([0]) + HUGE + NAMES, b""),  # 2^63 directories of nothing
        (bytes([1, 1, 8]) + HUGE, b""),  # 2^63 names
        (bytes([1, 1, 0x1F, 1]) + b"\xff\xff\xff\xff" + NAMES, b""),  # a string outside
        (bytes([1, 1, 0x77, 1]) + b"\0" * 9, b""),  # a form that does not exist
        (bytes([1, 1, 9, 1]) + HUGE, b""),  # a block of 2^63 bytes
        (bytes([255]) + b"\x80" * 400, b""),  # LEB128 without end
        (NAMES, b"\x02" + b"\x80" * 400),
        (NAMES, b"\x03" + b"\xff" * 400),
        (NAMES, b"\0" + HUGE + b"\x02"),  # an opcode of 2^63 bytes
        (NAMES, b"\0\0\0\0\0"),
        (NAMES, b"\x09\x01"),
        (NAMES, b"\x04" + HUGE + b"\x01"),  # file 2^63
    ],
)
def test_what_lies_outside_costs_its_line(tables: bytes, program: bytes) -> None:
    lines = with_lines(v5(tables, SET + b"\x01" + program + b"\x02\x02" + END))
    assert lines.line_of(BASE) in ("", "b.c:1")
    assert lines.line_of(BASE + 4) in ("", "b.c:1")
    assert with_lines(v5(tables, program)).line_of(BASE) == ""


@pytest.mark.parametrize(
    "field",
    [
        (0, b"\xff\xff\xff\xff"),
        (4, b"\0\x06"),
        (8, b"\x7f"),
        (13, b"\x02"),
        (16, b"\0"),
        (17, b"\0"),
    ],
)
def test_a_header_that_is_none_costs_its_unit(field: tuple[int, bytes]) -> None:
    at, value = field
    whole = v5(NAMES, SET + b"\x01\x02\x02" + END)
    damaged = whole[:at] + value + whole[at + len(value) :]
    assert with_lines(damaged).line_of(BASE) == ""
    following = with_lines(damaged + whole).line_of(BASE)
    assert following == ("" if at == 0 else "b.c:1")


def test_line_0_and_lines_that_are_none() -> None:
    for advance, shown in (
        (b"\x7f", "b.c:?"),
        (b"\x7e", "b.c:?"),
        (b"\xff\xff\xff\xff\x0f", "b.c:?"),
    ):
        program = SET + b"\x03" + advance + b"\x01\x02\x02" + END
        assert with_lines(v5(NAMES, program)).line_of(BASE) == shown


def test_memory_stays_within_its_bounds() -> None:
    """1 MiB of rows, of sequences, or of units: what is kept is a fraction of what was claimed."""
    many = 1 << 20
    rows = v5(NAMES, SET + b"\x0d" * many + END)
    sequences = v5(NAMES, (SET + b"\x02\x02" + END) * (many // 16))
    small = v5(b"\0\0\0\0", b"")
    for data in (rows, sequences, small * (many // len(small))):
        lines = with_lines(data)
        tracemalloc.start()
        lines.line_of(BASE)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 << 20


def test_an_answer_reads_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and rows that would take minutes for one answer cost the lines behind them."""
    tables = bytes([1, 1, 8, 1]) + b"/b\0" + bytes([1, 1, 8, 0x80, 0x02]) + b"a\0" * 256
    many = [v5(tables, SET[:-1] + bytes([4 * n]) + b"\x01\x02\x01" + END) for n in range(5)]
    lines = with_lines(b"".join(many))
    monkeypatch.setattr("emulator.sourcelines.MAX_WORK", 1024)
    lines.renew()
    asked = [lines.line_of(BASE + 4 * n) for n in range(5)]
    assert asked == ["a:1"] * 2 + [""] * 3
    lines.renew()
    assert [lines.line_of(BASE + 4 * n) for n in range(4)] == ["a:1"] * 4
    rows = with_lines(v5(NAMES, SET + b"\x01" * 2048 + b"\x02\x02" + END))
    rows.renew()
    assert rows.line_of(BASE) == "b.c:1"
    assert rows.line_of(BASE + 4) == ""


def test_an_answer_begins_with_all_that_it_may_read() -> None:
    names = _names()
    tables = [row.table.lines for row in names.rows if row.table.lines is not None]
    for lines in tables:
        lines._work = 0
    at, line = next(iter(expected("kernel-le.elf").items()))
    assert names.line_at(at) == ""
    assert add_lines({"nip": f"0x{at:016x}"}, names)["line"] == line


def test_what_is_not_unpacked_is_not_copied() -> None:
    packed = zlib.compress(b"x" * 100) + bytes(64 << 20)
    tracemalloc.start()
    assert _inflate(memoryview(packed), 100) == b"x" * 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("claimed", [1 << 40, 129 << 20, 100])
@pytest.mark.parametrize("name", ["be-5-zlib.elf", "be-5-zstd.elf", "be-5-gnu.elf"])
def test_a_packed_section_may_not_unpack_to_more(name: str, claimed: int) -> None:
    data = bytearray((DATA / name).read_bytes())
    elf = elf_of(name)
    section = elf.find_section(".debug_line") or elf.find_section(".zdebug_line")
    assert section is not None
    at = section.offset + (4 if section.name.startswith(".z") else 8)
    struct.pack_into(">Q", data, at, claimed)
    lines = SourceLines(replace(elf, data=bytes(data)))
    assert lines.line_of(BASE) in ("", "src/head.S:10")
    assert len(lines._data) <= 100


def test_names_are_printable() -> None:
    tables = NAMES.replace(b"b.c\0", b"\x1b[2J\xe2\x80\xae<\0")
    assert with_lines(v5(tables, SET + b"\x01\x02\x02" + END)).line_of(BASE) == "?[2J???<:1"


def test_compiling_before_the_lock_is_enough() -> None:
    """Nothing is compiled later, where files cannot be opened any more."""
    dwarf.warm_up()
    before = len(dwarf.run_program.signatures)
    lines = SourceLines(elf_of("be-5.elf"))
    assert lines.line_of(BASE)
    assert SourceLines(elf_of("rel-le.ro"), {1: BASE}).line_of(BASE) is not None
    assert len(dwarf.run_program.signatures) == before
