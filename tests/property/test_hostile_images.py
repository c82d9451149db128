"""Hostile uploads: any bytes give a result or a BootflowError; no crash, no hang.

Kernels, purgatories, programs that hold one, packed kernels and device trees are mutated: single
bits and bytes, fields set to telling values (header tables most of all), cuts, repeats, swaps.
Whatever is accepted goes on through linking, placement and naming, as an upload would.
The default run is short; CI=true or BOOTFLOW_FUZZ=full makes more than 10,000 mutants.
"""

import gzip
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator import samples
from emulator.devicetree import DeviceTree, parse_device_tree
from emulator.elf import read_elf
from emulator.errors import BootflowError
from emulator.images import (
    KernelImage,
    PurgatoryImage,
    read_device_tree,
    read_kernel,
    read_purgatory,
)
from emulator.partition import Partition, build_partition
from emulator.placement import LoadOptions, Placement, place
from emulator.symbols import SymbolTable
from tests.elfwriter import ET_DYN, Elf, Section, Segment, Symbol, tiny_kernel

FULL = os.environ.get("CI") == "true" or os.environ.get("BOOTFLOW_FUZZ") == "full"
FOLDER = Path(samples.__file__).parent
DATA = Path(__file__).parent.parent / "data" / "groundtruth"
LINK = 0xC000000000000000

hostile = settings(
    max_examples=5000 if FULL else 60,
    deadline=timedelta(seconds=10),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TELLING = (
    0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
    0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 0x1000, LINK,
)  # fmt: skip
MAGICS = (
    b"", b"\x7fELF\2\1\1", b"\x7fELF\2\2\1", b"\xd0\x0d\xfe\xed", b"\x1f\x8b\x08\0", b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd", b"BZh9", b"\x5d\0\0",
)  # fmt: skip


def sample(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


@cache
def good_pair(order: str) -> tuple[KernelImage, PurgatoryImage]:
    return (
        read_kernel(sample(f"kernel-{order}.elf"), "kernel"),
        read_purgatory(sample(f"purgatory-{order}.ro"), "purgatory"),
    )


def program() -> bytes:
    """A program with two relocatable files inside, one a purgatory."""
    body = bytes(64) + sample("purgatory-be.ro") + bytes(3) + sample("purgatory-le.ro")
    return Elf(type=ET_DYN, segments=[Segment(0, 0, body)]).to_bytes()


def vmlinux_with_purgatory() -> bytes:
    body = bytes(0x40) + sample("purgatory-le.ro")
    return Elf(
        segments=[Segment(LINK, 0, body)],
        sections=[Section(".rodata", body, addr=LINK)],
        symbols=[Symbol("kexec_purgatory", LINK + 0x40, len(body) - 0x40, ".rodata")],
    ).to_bytes()


def captured_tree() -> bytes:
    return gzip.decompress((DATA / "kdump_c_smp2" / "dt_seg.bin.gz").read_bytes())[:22000]


KERNELS: tuple[Callable[[], bytes], ...] = (
    lambda: sample("kernel-le.elf"),
    lambda: sample("kernel-be.elf"),
    tiny_kernel,
    lambda: tiny_kernel(big_endian=True),
    lambda: gzip.compress(tiny_kernel(), mtime=0),
)
PURGATORIES: tuple[Callable[[], bytes], ...] = (
    lambda: sample("purgatory-le.ro"),
    lambda: sample("purgatory-be.ro"),
    program,
    vmlinux_with_purgatory,
)
TREES: tuple[Callable[[], bytes], ...] = (
    lambda: build_partition(Partition((0, 1, 2, 3), 1 << 30)).to_bytes(),
    captured_tree,
)


@cache
def table_ranges(data: bytes) -> list[tuple[int, int]]:
    """Where a hit hurts most: the header, and the tables that it names."""
    ranges = [(0, 64)]
    try:
        elf = read_elf(data, "seed", "an ELF file")
    except BootflowError:
        return [*ranges, (0, min(len(data), 400))]
    at = struct.unpack_from(elf.order + "Q", data, 40)[0]
    ranges.append((at, at + 64 * len(elf.sections)))
    ranges += [(64, 64 + 56 * len(elf.program_headers))] if elf.program_headers else []
    for section in elf.sections:
        if section.type in (2, 3, 4) and section.size:
            ranges.append((section.offset, section.offset + section.size))
    return ranges


@st.composite
def mutants(draw: st.DrawFn, seeds: tuple[Callable[[], bytes], ...]) -> bytes:
    seed = draw(st.sampled_from(seeds))()
    ranges = table_ranges(seed)
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        low, high = draw(st.sampled_from([*ranges, *ranges, (0, len(seed))]))
        high = max(min(high, len(data)), 1)
        at = draw(st.integers(min(low, high - 1), high - 1))
        kind = draw(st.sampled_from(("bit", "byte", "field", "field", "cut", "repeat", "swap")))
        _mutate(data, kind, at, draw)
    return bytes(data)


def _mutate(data: bytearray, kind: str, at: int, draw: st.DrawFn) -> None:
    if kind == "bit":
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "byte":
        data[at] = draw(st.integers(0, 255))
    elif kind == "field":
        form = draw(st.sampled_from((">H", "<H", ">I", "<I", ">Q", "<Q")))
        size = struct.calcsize(form)
        at -= at % size
        if at + size <= len(data):
            value = draw(st.one_of(st.sampled_from(TELLING), st.integers(0, (1 << 64) - 1)))
            struct.pack_into(form, data, at, value & (1 << 8 * size) - 1)
    elif kind == "cut":
        del data[at:]
    else:
        size = draw(st.integers(1, 200))
        piece = data[at : at + size]
        if kind == "repeat":
            data[at:at] = piece
        else:
            other = draw(st.integers(0, len(data) - 1))
            data[other : other + len(piece)] = piece


def use(placed: Placement) -> None:
    """Ask a placement what the rest of the program asks."""
    for segment in placed.segments:
        assert 0x100 <= segment.addr <= segment.addr + segment.mem_bytes <= placed.mem_bytes
        assert len(segment.data) <= segment.mem_bytes
    assert all(isinstance(line, str) for line in placed.debug_lines())
    names = placed.address_map
    for addr in (0, 0x60, placed.entry_addr, placed.kernel_addr, LINK | placed.kernel_addr + 0x100):
        assert isinstance(names.name_at(addr), str)
    for name in ("start_kernel", "purgatory_start", "purgatory", "__secondary_hold"):
        assert all(0 <= addr < 1 << 64 for addr in names.addr_of(name))


def try_kernel(data: bytes) -> None:
    with suppress(BootflowError):
        kernel = read_kernel(data, "upload")
        assert len(kernel.low256) == 256
        use(place(kernel, good_pair("le")[1], LoadOptions(cpus=2, panic=True, checks=False)))


def try_purgatory(data: bytes) -> None:
    with suppress(BootflowError):
        purgatory = read_purgatory(data, "upload")
        use(place(good_pair("le")[0], purgatory, LoadOptions(cpus=2)))


def try_tree(data: bytes) -> None:
    with suppress(BootflowError):
        tree = read_device_tree(data, "upload")
        again = parse_device_tree(tree.to_bytes(), "again")
        assert again.root == tree.root
        assert isinstance(tree.to_text(), str)
        options = LoadOptions(panic=True, mem_bytes=2 << 30)
        use(place(*good_pair("be"), options, dtb=tree, initrd=b"x"))


@hostile
@given(mutants(KERNELS))
def test_mutated_kernels(data: bytes) -> None:
    try_kernel(data)


@hostile
@given(mutants(PURGATORIES))
def test_mutated_purgatories(data: bytes) -> None:
    try_purgatory(data)


@hostile
@given(mutants(TREES))
def test_mutated_device_trees(data: bytes) -> None:
    try_tree(data)


@hostile
@given(st.binary(max_size=2000), st.sampled_from(MAGICS))
def test_any_bytes(data: bytes, magic: bytes) -> None:
    for attempt in (try_kernel, try_purgatory, try_tree):
        attempt(magic + data)


@hostile
@given(st.binary(max_size=600), st.integers(0, (1 << 64) - 1), st.text(max_size=20))
def test_any_symbol_table(rows: bytes, addr: int, name: str) -> None:
    """A symbol table of noise: lookups answer or say nothing."""
    symtab = Section(".symtab", rows, 2, 0, link=3)
    strings = Section(".strtab", rows[::-1], 3, 0, align=1)
    for big_endian in (False, True):
        elf = Elf(
            big_endian=big_endian,
            flags=1 if big_endian else 2,
            sections=[Section(".opd", rows[:48], addr=addr & ~7), symtab, strings],
        )
        table = SymbolTable(read_elf(elf.to_bytes(), "k", "a kernel"))
        assert table.find(name) is None or name
        found = table.lookup(addr)
        assert found is None or 0 <= found[1] < found[2]


def test_many_magics_cost_little() -> None:
    """Ten thousand ELF magics, and a thousand relocatable files that are no purgatory."""
    module = Elf(type=1, sections=[Section(".text", bytes(8), flags=6)]).to_bytes()
    body = b"\x7fELF" * 10_000
    for filling in (body, module * 1000):
        data = Elf(type=ET_DYN, segments=[Segment(0, 0, filling)]).to_bytes()
        with pytest.raises(BootflowError, match="holds no purgatory"):
            read_purgatory(data, "kexec")


def test_tree_of_half_a_million_cpus_costs_little() -> None:
    tree: DeviceTree = build_partition(Partition((0,), 1 << 30))
    cpus = tree.find("/cpus")
    assert cpus is not None
    ids = struct.pack(">400000I", *range(400_000))
    cpus.children[0].properties["ibm,ppc-interrupt-server#s"] = ids
    assert len(read_device_tree(tree.to_bytes(), "t").cpu_ids()) == 400_000
