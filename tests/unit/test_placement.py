"""Placement over small images of both byte orders: addresses, symbols, digest, tree, errors."""

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from emulator import images, samples
from emulator.devicetree import DeviceTree, Node, parse_device_tree
from emulator.errors import BootflowError, LimitError, MissingSymbol, PlacementError
from emulator.handoff import RUN_AT_ZERO_MAGIC
from emulator.memory import Ram, Segment, without
from emulator.partition import Partition, build_partition
from emulator.placement import Addresses, LoadOptions, Placement, place
from tests.elfwriter import ET_REL, Elf, Section, Symbol
from tests.elfwriter import Segment as ElfSegment

FOLDER = Path(samples.__file__).parent
ORDERS = pytest.mark.parametrize("order", ["le", "be"])
GIB = 1 << 30


def pair(order: str) -> tuple[images.KernelImage, images.PurgatoryImage]:
    return (
        images.read_kernel((FOLDER / f"kernel-{order}.elf").read_bytes(), "kernel"),
        images.read_purgatory((FOLDER / f"purgatory-{order}.ro").read_bytes(), "purgatory"),
    )


def load(order: str, initrd: bytes = b"", **options: object) -> Placement:
    return place(*pair(order), LoadOptions(**options), initrd=initrd)  # type: ignore[arg-type]


def ram(placement: Placement) -> bytearray:
    """Memory at tick 0, as far as segments reach."""
    memory = bytearray(placement.mem_bytes)
    for segment in placement.segments:
        memory[segment.addr : segment.addr + len(segment.data)] = segment.data
    return memory


def variable(placement: Placement, name: str, size: int) -> int:
    addr = placement.purgatory_symbols[name][0]
    purgatory = placement.segment("purgatory")
    assert purgatory is not None
    raw = bytes(purgatory.data[addr - purgatory.addr :][:size])
    return int.from_bytes(raw, "big" if placement.purgatory_big_endian else "little")


@ORDERS
@pytest.mark.parametrize("panic", [False, True])
def test_symbols_are_patched(order: str, panic: bool) -> None:
    placed = load(order, panic=panic, debug=True, cpus=3)
    assert variable(placed, "kernel", 8) == placed.kernel_addr == 0x2000000
    assert variable(placed, "dt_offset", 8) == placed.dt_addr
    assert variable(placed, "stack", 8) == placed.stack_addr
    assert variable(placed, "debug", 4) == 1
    assert variable(placed, "skip_checks", 4) == 0
    assert variable(placed, "panic_kernel", 4) == int(panic)
    assert variable(placed, "backup_start", 8) == placed.backup_addr
    assert (placed.backup_addr != 0) is panic
    assert placed.run_at_load == variable(placed, "run_at_load", 4)
    assert placed.run_at_load == (1 if panic else RUN_AT_ZERO_MAGIC)


@ORDERS
def test_kernels_head_lies_behind_purgatorys_first_word(order: str) -> None:
    kernel, purgatory = pair(order)
    placed = place(kernel, purgatory, LoadOptions())
    linked = placed.segment("purgatory")
    assert linked is not None
    at = placed.entry_addr - linked.addr
    assert placed.entry_addr == placed.purgatory_symbols["purgatory_start"][0]
    assert bytes(linked.data[at + 4 : at + 0x100]) == kernel.low256[4:]
    assert bytes(linked.data[at : at + 4]) != kernel.low256[:4]


@ORDERS
@pytest.mark.parametrize("panic", [False, True])
def test_digest_is_of_the_memory_of_all_segments_but_the_purgatory(order: str, panic: bool) -> None:
    placed = load(order, initrd=b"an initrd" * 1000, panic=panic, cpus=2)
    table = placed.purgatory_symbols["sha256_regions"][0]
    memory = ram(placed)
    form = ">QQ" if placed.purgatory_big_endian else "<QQ"
    regions = [struct.unpack_from(form, memory, table + 16 * row) for row in range(16)]
    used = [region for region in regions if region[1]]
    names = ["kernel", *(["backup", "elfcorehdr"] if panic else []), "initrd", "device-tree"]
    expected = [placed.segment(name) for name in names]
    assert used == [(s.addr, s.mem_bytes) for s in expected if s is not None]
    assert regions[len(used) :] == [(0, 0)] * (16 - len(used))
    engine = hashlib.sha256()
    for start, size in used:
        engine.update(memory[start : start + size])
    at = placed.purgatory_symbols["sha256_digest"][0]
    assert bytes(memory[at : at + 32]) == engine.digest()
    assert placed.digest == engine.hexdigest()


def test_no_checks() -> None:
    placed = load("le", checks=False)
    assert variable(placed, "skip_checks", 4) == 1
    assert variable(placed, "sha256_digest", 32) == 0
    assert placed.digest == ""


def test_no_checks_with_a_purgatory_that_always_checks() -> None:
    """Before --no-checks existed: an empty list of regions and the digest of nothing."""
    kernel, purgatory = pair("le")
    raw = bytearray(purgatory.upload)
    at = raw.find(b"skip_checks\0")
    raw[at : at + 4] = b"none"
    old = images.read_purgatory(bytes(raw), "old purgatory")
    placed = place(kernel, old, LoadOptions(checks=False))
    digest = variable(placed, "sha256_digest", 32).to_bytes(32, "little")
    assert digest == hashlib.sha256(b"").digest()


def test_crash_kernel_gets_backup_core_header_and_its_own_area() -> None:
    placed = load("le", panic=True, append="quiet", cpus=2)
    header = placed.segment("elfcorehdr")
    assert header is not None
    assert placed.command_line == f"quiet elfcorehdr={header.addr // 1024}K"
    blob = placed.segment("device-tree")
    assert blob is not None
    tree = parse_device_tree(bytes(blob.data), "tree")
    chosen, memory = tree.find("/chosen"), tree.find("/memory")
    assert chosen is not None
    assert memory is not None
    assert chosen.text("bootargs") == placed.command_line
    assert "linux,booted-from-kexec" in chosen.properties
    assert memory.cells("linux,usable-memory") == (0, 0, 0, 0x12000000)
    assert tree.reservations == [
        (0x10000, 0x1FF0000),
        (placed.backup_addr, 0x10000),
        (header.addr, 0x400),
        (placed.dt_addr, len(blob.data)),
    ]
    kinds = [row[0] for row in struct.iter_unpack("<IIQQQQQQ", header.data[64 : 64 + 56 * 6])]
    assert kinds == [4, 4, 4, 1, 1, 1]


def test_initrd_is_named_to_the_kernel() -> None:
    placed = load("be", initrd=b"x" * 70000)
    initrd = placed.segment("initrd")
    chosen = placed.device_tree.find("/chosen")
    assert initrd is not None
    assert chosen is not None
    assert chosen.properties["linux,initrd-start"] == struct.pack(">Q", initrd.addr)
    assert chosen.properties["linux,initrd-end"] == struct.pack(">Q", initrd.addr + 70000)
    assert (initrd.addr, 70000) in placed.device_tree.reservations


@ORDERS
def test_cpus_start_in_the_hand_over(order: str) -> None:
    placed = load(order, cpus=4, boot_cpu=2)
    assert placed.cpu_ids == (0, 1, 2, 3)
    names = [placed.address_map.name_at(start.nip) for start in placed.cpu_starts]
    assert [name.split("+")[0] for name in names] == [
        "handover_secondary", "handover_secondary", "handover_boot", "handover_secondary",
    ]  # fmt: skip
    assert {start.gpr[5] for cpu, start in enumerate(placed.cpu_starts) if cpu != 2} == {
        placed.kexec_flag_addr
    }
    assert placed.device_tree.boot_cpuid == 2


def test_physical_ids_come_from_the_users_tree() -> None:
    tree = build_partition(Partition((0, 8, 16, 24), GIB))
    kernel, purgatory = pair("le")
    placed = place(kernel, purgatory, LoadOptions(cpus=3, boot_cpu=1), dtb=tree)
    assert placed.cpu_ids == (0, 8, 16)
    assert placed.cpu_starts[1].gpr[25] == 8
    assert tree.reservations == [], "the caller's tree is left alone"


def test_empty_command_line_gets_kexecs_leading_blank() -> None:
    placed = load("le", panic=True)
    header = placed.segment("elfcorehdr")
    assert header is not None
    word = f" elfcorehdr={header.addr // 1024}K"
    assert placed.debug_lines()[:2] == [
        f"Command line after adding elfcorehdr: {word}",
        f"Modified cmdline:{word}",
    ]


def test_users_tree_keeps_its_command_line_unless_append_is_given() -> None:
    tree = build_partition(Partition((0,), GIB))
    chosen = tree.find("/chosen")
    assert chosen is not None
    chosen.properties["bootargs"] = b"root=/dev/sda elfcorehdr=1K\0"
    kernel, purgatory = pair("le")
    assert place(kernel, purgatory, LoadOptions(), dtb=tree).command_line == "root=/dev/sda"
    assert place(kernel, purgatory, LoadOptions(append="a=b"), dtb=tree).command_line == "a=b"


def test_kernel_that_would_move_over_itself_lies_higher() -> None:
    """As captured: an old kernel of 0x2880000 bytes at 0 puts the new one at 0x2890000."""
    link = 0xC000000000000000
    elf = Elf(segments=[ElfSegment(link, 0, bytes(0x100), 0x287C918)])
    kernel = images.read_kernel(elf.to_bytes(), "k")
    purgatory = pair("le")[1]
    assert place(kernel, purgatory, LoadOptions()).kernel_addr == 0x2890000
    assert place(kernel, purgatory, LoadOptions(panic=True)).kernel_addr == 0x2000000
    assert place(kernel, purgatory, LoadOptions(base_addr=0x3000000)).kernel_addr == 0x3000000


def test_hand_over_lies_where_neither_kernel_nor_its_copy_at_0_goes() -> None:
    link = 0xC000000000000000
    elf = Elf(segments=[ElfSegment(link, 0, bytes(0x100), 0x287C918)])
    kernel = images.read_kernel(elf.to_bytes(), "k")
    for panic in (False, True):
        placed = place(kernel, pair("le")[1], LoadOptions(panic=panic))
        old = placed.segment("handover")
        assert old is not None
        assert old.addr == placed.handover_addr >= kernel.mem_bytes
        if panic:
            assert old.addr == 0x12000000, "above the crash kernel's area"
        starts = {start.nip & ~0xFFFF for start in placed.cpu_starts}
        assert starts == {old.addr}
    full = LoadOptions(panic=True, mem_bytes=256 << 20)
    assert place(kernel, pair("le")[1], full).handover_addr == 0x10000, "no room above"


def test_flags_and_fields_are_found_by_symbol() -> None:
    placed = load("le")
    assert [(flag.name, at) for flag, at in placed.flags] == [("__run_at_load", 0x5C)]
    fields = {row.name: at for row, at in placed.low_fields}
    assert fields["__secondary_hold_spinloop"] == 0x38
    assert "__kdump_flag" not in fields


def test_stripped_kernel_still_has_the_flag_of_the_abi() -> None:
    kernel, purgatory = pair("le")
    body = bytes(kernel.segments[0].data)
    bare = images.read_kernel(
        Elf(segments=[ElfSegment(kernel.link_vaddr, 0, body)]).to_bytes(), "stripped"
    )
    placed = place(bare, purgatory, LoadOptions(panic=True))
    assert placed.run_at_load == 1
    assert [(flag.name, at) for flag, at in placed.flags] == [("__run_at_load", 0x5C)]
    assert [row.name for row, _ in placed.low_fields] == [
        "entry", "__run_at_load", "__secondary_hold",
    ]  # fmt: skip


def test_kernel_of_several_pieces_is_one_segment() -> None:
    link = 0xC000000000000000
    elf = Elf(
        segments=[
            ElfSegment(link, 0, b"A" * 0x100),
            ElfSegment(link + 0x20000, 0x20000, b"B" * 16, 0x100),
        ]
    )
    kernel = images.read_kernel(elf.to_bytes(), "k")
    placed = place(kernel, pair("le")[1], LoadOptions())
    segment = placed.segment("kernel")
    assert segment is not None
    assert bytes(segment.data[:0x100]) == b"A" * 0x100
    assert bytes(segment.data[0x20000:]) == b"B" * 16
    assert segment.mem_bytes == 0x30000


def test_kernels_own_purgatory_has_other_symbols() -> None:
    """No stack, my_toc, debug; purgatory_sha256_digest and purgatory_sha_regions instead."""
    variables = [("kernel", 8), ("dt_offset", 8), ("backup_start", 8),
                 ("purgatory_sha256_digest", 32), ("purgatory_sha_regions", 256)]  # fmt: skip
    symbols, at = [Symbol("purgatory_start", 0, 0x100, ".text")], 0
    for name, size in variables:
        symbols.append(Symbol(name, at, size, ".data"))
        at += size
    elf = Elf(
        type=ET_REL,
        sections=[Section(".text", bytes(0x200), flags=6), Section(".data", bytes(at), flags=3)],
        symbols=symbols,
    )
    purgatory = images.read_purgatory(elf.to_bytes(), "p")
    placed = place(pair("le")[0], purgatory, LoadOptions())
    assert variable(placed, "purgatory_sha256_digest", 32).to_bytes(32, "little").hex() == (
        placed.digest
    )
    assert variable(placed, "purgatory_sha_regions", 8) == placed.kernel_addr
    assert placed.run_at_load is None
    assert placed.toc_addr == 0


def test_purgatory_without_what_it_needs() -> None:
    elf = Elf(
        type=ET_REL,
        sections=[Section(".text", bytes(0x200), flags=6)],
        symbols=[Symbol("purgatory_start", 0, 0x100, ".text")],
    )
    purgatory = images.read_purgatory(elf.to_bytes(), "p")
    with pytest.raises(MissingSymbol, match="kernel, dt_offset"):
        place(pair("le")[0], purgatory, LoadOptions())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cpus": 17}, LimitError, "17 CPUs"),
        ({"cpus": 2, "boot_cpu": 2}, PlacementError, "there is no CPU 2: --cpus 2 gives 0 and 1"),
        ({"mem_bytes": 1 << 20}, LimitError, "1M of memory; possible are 128M to 16G"),
        ({"base_addr": 0}, PlacementError, "cannot lie at 0x0"),
        ({"base_addr": 0x12345}, PlacementError, "cannot lie at"),
        ({"base_addr": 0x2FFF0000}, PlacementError, "no room for the purgatory"),
        ({"cpus": "4"}, PlacementError, "cpus is '4'"),
        ({"base_addr": 1.5}, PlacementError, "base_addr is 1.5"),
        ({"append": 7}, PlacementError, "append is 7"),
        ({"entry_r6": 1 << 64}, PlacementError, "r6 cannot hold"),
        ({"append": "a\nb"}, PlacementError, "printable ASCII"),
        ({"append": "x" * 2048}, LimitError, "command line has 2048"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, object], error: type[BootflowError], words: str
) -> None:
    with pytest.raises(error) as caught:
        load("le", **options)
    assert words in caught.value.message
    assert caught.value.hint


def test_trees_that_do_not_fit() -> None:
    kernel, purgatory = pair("le")
    tree = build_partition(Partition((0, 1), 2 * GIB))
    with pytest.raises(PlacementError, match="memory up to 0x80000000") as caught:
        place(kernel, purgatory, LoadOptions(), dtb=tree)
    assert "--mem 2048M" in caught.value.hint
    with pytest.raises(PlacementError, match="2 CPUs in the device tree, 4 asked"):
        place(kernel, purgatory, LoadOptions(cpus=4, mem_bytes=2 * GIB), dtb=tree)
    with pytest.raises(PlacementError, match="no memory node"):
        place(kernel, purgatory, LoadOptions(), dtb=DeviceTree(Node("")))


def test_given_addresses_that_overlap() -> None:
    kernel, purgatory = pair("le")
    for given in (Addresses(purgatory=0x2000000), Addresses(dt=GIB)):
        with pytest.raises(PlacementError):
            place(kernel, purgatory, LoadOptions(), addresses=given)
    for value in ("0x2000000", -1, 1 << 60, True):
        with pytest.raises(PlacementError, match="the address given for dt is"):
            place(kernel, purgatory, LoadOptions(), addresses=Addresses(dt=value))  # type: ignore[arg-type]
    with pytest.raises(PlacementError, match="not on a page"):
        place(kernel, purgatory, LoadOptions(), addresses=Addresses(dt=0x3000100))


def test_same_input_same_placement() -> None:
    first, second = load("le", cpus=4, panic=True), load("le", cpus=4, panic=True)
    assert [(s.addr, bytes(s.data)) for s in first.segments] == [
        (s.addr, bytes(s.data)) for s in second.segments
    ]
    assert first.debug_lines() == second.debug_lines()


def test_address_map_of_a_run() -> None:
    placed = load("le")
    names = placed.address_map
    assert names.name_at(placed.entry_addr).startswith("purgatory_start+0x0/")
    assert names.name_at(0x64).startswith("__secondary_hold+0x4/")
    start = names.addr_of("start_kernel")
    assert len(start) == 4
    assert all(names.name_at(addr).startswith("start_kernel+0x0/") for addr in start)


def test_holes_from_below_and_above() -> None:
    used = [Segment("a", 0x20000, b"", 0x10000), Segment("b", 0x50000, b"", 0x20000)]
    memory = Ram(without([(1, 0xA0000)], (0x90000, 0x91000)), used)
    assert memory.holes() == [
        (1, 0x20000),
        (0x30000, 0x50000),
        (0x70000, 0x90000),
        (0x91000, 0xA0000),
    ]
    assert memory.locate("x", 0x10000) == 0x10000
    assert memory.locate("x", 0x20000) == 0x30000
    assert memory.locate("x", 0x10000, top=True) == 0x80000
    with pytest.raises(PlacementError, match="no room for the x: 192K do not fit"):
        memory.locate("x", 0x30000)


def test_captured_digest_can_be_given() -> None:
    kernel, purgatory = pair("le")
    placed = place(kernel, purgatory, LoadOptions(), digest=b"d" * 32)
    assert variable(placed, "sha256_digest", 32) == int.from_bytes(b"d" * 32, "little")


def test_r6_of_2_6_28_rc1() -> None:
    assert load("be", entry_r6=0xFEED1234).cpu_starts[0].gpr[28] == 0xFEED1234
    assert replace(LoadOptions(), panic=True).entry_r6 == 0
