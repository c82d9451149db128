"""The sample pairs: same bytes from the same source, and the shape that the hand-off needs."""

import hashlib
import io
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from app.samples import TOPICS, sample_topics
from emulator import samples
from emulator.images import read_kernel, read_purgatory
from emulator.placement import LoadOptions, place
from emulator.samples import SAMPLES, get_sample

FOLDER = Path(samples.__file__).parent
FILES = tuple(sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".elf", ".ro")))
LINK = 0xC000000000000000
ORDERS = pytest.mark.parametrize("order", ["le", "be"])


def read(name: str) -> ELFFile:
    return ELFFile(io.BytesIO((FOLDER / name).read_bytes()))


def symbols(elf: ELFFile) -> dict[str, tuple[int, int]]:
    table = elf.get_section_by_name(".symtab")
    return {s.name: (s["st_value"], s["st_size"]) for s in table.iter_symbols()}


def test_source_builds_the_committed_files(
    cross_tool: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    for big_endian in (False, True):
        for program in ("as", "ld"):
            cross_tool(program, big_endian)
    subprocess.run(["bash", FOLDER / "build.sh", tmp_path], check=True)
    assert tuple(sorted(path.name for path in tmp_path.iterdir())) == FILES
    for name in FILES:
        built = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert built == hashlib.sha256((FOLDER / name).read_bytes()).hexdigest(), name


def test_table_names_every_file_and_both_modes_of_the_plain_pairs() -> None:
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES)
    assert {name for s in SAMPLES for name in (s.kernel, s.purgatory)} == set(FILES)
    assert {(sample.kernel, sample.mode) for sample in SAMPLES[:4]} == {
        (f"kernel-{order}.elf", mode) for order in ("le", "be") for mode in ("load", "load-panic")
    }
    for sample in SAMPLES:
        assert sample.kernel_bytes()[:4] == sample.purgatory_bytes()[:4] == b"\x7fELF"
        assert 0 <= sample.boot_cpu < sample.cpus <= 16
        assert sample.title
        assert sample.note
    assert get_sample("kdump-le") is SAMPLES[0]


@ORDERS
def test_kernel_has_the_head_of_a_kernel(order: str) -> None:
    elf = read(f"kernel-{order}.elf")
    big = order == "be"
    (segment,) = elf.iter_segments()
    found = symbols(elf)
    assert elf.little_endian is not big
    assert elf["e_flags"] == (1 if big else 2)
    assert elf["e_type"] == "ET_EXEC"
    assert elf["e_entry"] == segment["p_vaddr"] == LINK
    assert segment["p_paddr"] == 0
    assert found["__secondary_hold_spinloop"][0] == LINK + 0x38
    assert found["__secondary_hold_acknowledge"][0] == LINK + 0x40
    assert found["__run_at_load"] == (LINK + 0x5C, 4)
    assert found["__secondary_hold"][0] == LINK + 0x60
    assert segment.data()[0x5C:0x60] == (b"run0" if big else b"0nur")
    later = ("relocate", "copy_and_flush", "early_setup", "start_kernel", "smp_release_cpus",
             "generic_secondary_smp_init", "__after_prom_start", "copy_to_here")  # fmt: skip
    for name in later:
        assert found[name][0] >= LINK + 0x100, name
    assert found["_end"][0] >= LINK + segment["p_memsz"]


def test_little_endian_kernel_can_be_entered_big_endian() -> None:
    """The first word is a trap that never traps, or, read backwards, a branch into the rest."""
    data = next(read("kernel-le.elf").iter_segments()).data()
    for entry in (0, 0x60):
        words = struct.unpack_from(">10I", data, entry)
        assert words[0] == 0x48000008  # b .+8
        assert words[-1] == 0x4C000024  # rfid
        assert struct.unpack_from("<I", data, entry)[0] >> 16 == 0x0800  # tdi 0,0,...
        skip = struct.unpack_from("<I", data, entry + 4)[0]
        assert skip == 0x48000000 | 40 - 4  # b over the big-endian words


@ORDERS
def test_relocation_table_points_at_words_that_hold_link_addresses(order: str) -> None:
    elf = read(f"kernel-{order}.elf")
    endian = ">" if order == "be" else "<"
    data = next(elf.iter_segments()).data()
    at = symbols(elf)["__rela_dyn_start"][0] - LINK
    rows = 0
    while (row := struct.unpack_from(endian + "QQQ", data, at))[1] == 22:
        assert struct.unpack_from(endian + "Q", data, row[0] - LINK) == (row[2],)
        assert LINK <= row[2] < LINK + len(data)
        at += 24
        rows += 1
    assert rows == 6


@ORDERS
def test_purgatory_has_what_the_loader_patches(order: str) -> None:
    elf = read(f"purgatory-{order}.ro")
    found = symbols(elf)
    assert elf["e_type"] == "ET_REL"
    assert elf.little_endian is (order == "le")
    sizes = {
        "kernel": 8, "dt_offset": 8, "stack": 8, "my_toc": 8, "backup_start": 8, "opal_base": 8,
        "opal_entry": 8, "panic_kernel": 4, "debug": 4, "skip_checks": 4, "run_at_load": 4,
        "sha256_regions": 256, "sha256_digest": 32, "purgatory_start": 256,
    }  # fmt: skip
    assert {name: found[name][1] for name in sizes} == sizes
    start = found["purgatory_start"][0]
    assert found["run_at_load"][0] == start + 0x5C
    assert start % 256 == 0
    assert elf["e_entry"] == start
    code = elf.get_section_by_name(".text").data()
    first = struct.unpack_from(">I" if order == "be" else "<I", code, start)[0]
    assert first == 0x48000100  # b master: behind the 0x100 bytes that are replaced
    assert found["master"][0] == start + 0x100


@ORDERS
def test_sha256_constants_are_those_of_the_standard(order: str) -> None:
    """Roots of the first primes, computed here in integers (FIPS 180-4, 4.2.2 and 5.3.3)."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, n))]
    endian = ">" if order == "be" else "<"

    def root(n: int, power: int) -> int:
        low, high = 0, 1 << 64
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**power <= n else (low, middle - 1)
        return low & 0xFFFFFFFF

    initial = [root(p << 64, 2) for p in primes[:8]]
    constants = [root(p << 96, 3) for p in primes[:64]]
    rodata = read(f"purgatory-{order}.ro").get_section_by_name(".rodata").data()
    assert struct.pack(endian + "72I", *initial, *constants) in rodata


@ORDERS
def test_functions_have_the_size_of_their_code(order: str) -> None:
    """ELFv1: the table gives `name` 24 bytes, those of its descriptor, and `.name` the code's."""
    purgatory = read_purgatory((FOLDER / f"purgatory-{order}.ro").read_bytes(), "purgatory.ro")
    kernel = read_kernel((FOLDER / f"kernel-{order}.elf").read_bytes(), "vmlinux")
    placement = place(kernel, purgatory, LoadOptions(mem_bytes=256 << 20))
    at, size = placement.purgatory_symbols["sha256_process"]
    assert size == 0x1F0
    assert placement.address_map.name_at(at + size - 4) == "sha256_process+0x1ec/0x1f0"
    assert placement.purgatory_symbols["kernel"][1] == 8
    assert kernel.symbols.find_size("early_setup") == 0xDC
    assert kernel.symbols.lookup(kernel.symbols.get("early_setup") + 8) == ("early_setup", 8, 0xDC)


def test_every_sample_stands_under_one_heading_of_the_gallery() -> None:
    named = [name for _, names in TOPICS for name in names]
    assert sorted(named) == sorted(sample.name for sample in SAMPLES)
    assert [len(ids) for _, ids in sample_topics()] == [len(names) for _, names in TOPICS]
