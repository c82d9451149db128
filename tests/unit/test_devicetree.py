"""Device trees: round trip, bounds, the captured trees, dtc's opinion."""

import gzip
import struct
import subprocess
from pathlib import Path

import pytest

from emulator.devicetree import MAX_DEPTH, DeviceTree, Node, parse_device_tree
from emulator.errors import BootflowError, ImageError, LimitError
from emulator.partition import TIMEBASE_HZ, Partition, build_partition, wants_hash

DATA = Path(__file__).parent.parent / "data" / "groundtruth"
CASES = pytest.mark.parametrize("case", ["kexec_c_smp2", "kdump_c_smp2"])


def captured(case: str) -> DeviceTree:
    data = gzip.decompress((DATA / case / "dt_seg.bin.gz").read_bytes())
    return parse_device_tree(data, case)


def small() -> DeviceTree:
    child = Node("memory@0", {"reg": struct.pack(">QQ", 0, 1 << 30), "device_type": b"memory\0"})
    root = Node("", {"#address-cells": b"\0\0\0\2", "#size-cells": b"\0\0\0\2", "empty": b""})
    root.children.append(child)
    return DeviceTree(root, [(0x1000, 0x234)], 3)


def test_round_trip() -> None:
    tree = parse_device_tree(small().to_bytes(), "t")
    assert tree.root == small().root
    assert tree.reservations == [(0x1000, 0x234)]
    assert tree.boot_cpuid == 3
    assert tree.memory() == [(0, 1 << 30)]
    assert tree.to_bytes() == small().to_bytes()
    assert len(tree.sha256) == 64


@CASES
def test_captured_trees_read_and_write_back(case: str) -> None:
    tree = captured(case)
    again = parse_device_tree(tree.to_bytes(), "again")
    assert again.root == tree.root
    assert again.reservations == tree.reservations
    assert tree.cpu_ids() == (0, 1)
    assert tree.memory() == [(0, 2 << 30)]
    assert tree.firmware_range() == (0x2FFF0000, 0x2FFF083C)


def test_find_with_and_without_unit_address() -> None:
    tree = captured("kexec_c_smp2")
    by_name = tree.find("/vdevice/vty")
    assert by_name is tree.find("/vdevice/vty@71000001")
    assert by_name is not None
    assert by_name.text("compatible") == "hvterm1"
    assert tree.find("/") is tree.root
    assert tree.find("/nothing/here") is None


def test_hardware_threads_are_cpus() -> None:
    tree = build_partition(Partition((0, 1), 1 << 30))
    cpus = tree.find("/cpus")
    assert cpus is not None
    cpus.children[0].properties["ibm,ppc-interrupt-server#s"] = struct.pack(">4I", 0, 1, 2, 3)
    cpus.children[1].properties["ibm,ppc-interrupt-server#s"] = struct.pack(">2I", 8, 9)
    assert tree.cpu_ids() == (0, 1, 2, 3, 8, 9)
    cpus.children[0].properties["status"] = b"disabled\0"
    assert tree.cpu_ids() == (8, 9)


@pytest.mark.parametrize("cpus", [1, 4, 16])
def test_partition_has_what_the_kernel_reads(cpus: int) -> None:
    ids = tuple(range(cpus))
    tree = build_partition(Partition(ids, 1 << 30, boot_cpu_id=cpus - 1))
    assert tree.cpu_ids() == ids
    assert tree.memory() == [(0, 1 << 30)]
    assert tree.boot_cpuid == cpus - 1
    assert tree.root.text("device_type") == "chrp"
    chosen, cpu, rtas = (tree.find(path) for path in ("/chosen", "/cpus/PowerPC,POWER10", "/rtas"))
    assert chosen is not None
    assert cpu is not None
    assert rtas is not None
    vector = chosen.properties["ibm,architecture-vec-5"]
    assert (len(vector), vector[23], vector[24], vector[26]) == (27, 0, 0x40, 0x40)
    assert cpu.cells("timebase-frequency") == (TIMEBASE_HZ,)
    assert cpu.properties["ibm,pa-features"][2 + 40] & 0x80, "radix is offered"
    assert b"hcall-term\0" in rtas.properties["ibm,hypertas-functions"]
    assert "linux,rtas-base" not in rtas.properties
    console = tree.find(chosen.text("stdout-path"))
    assert console is not None
    assert console.text("compatible") == "hvterm1"
    assert build_partition(Partition(ids, 1 << 30, cpus - 1)).to_bytes() == tree.to_bytes()


def test_partition_that_negotiated_hash() -> None:
    radix, hashed = (
        build_partition(Partition((0, 1), 1 << 30, hash_mmu=hash_mmu)) for hash_mmu in (False, True)
    )
    vectors = []
    for tree in (radix, hashed):
        chosen = tree.find("/chosen")
        assert chosen is not None
        vectors.append(chosen.properties.pop("ibm,architecture-vec-5"))
    assert vectors[1] == vectors[0][:24] + bytes(3)
    assert radix.root == hashed.root, "nothing else differs"
    assert hashed.page_table_order() == 23
    assert DeviceTree(Node("")).page_table_order() == 0


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", False),
        ("console=hvc0 disable_radix", True),
        ("disable_radix=yes quiet", True),
        ("disable_radix=off", False),
        ("disable_radix=0", False),
        ("disable_radix disable_radix=no", False),
        ("no_disable_radix disable_radixx", False),
    ],
)
def test_who_asks_for_hash(line: str, wanted: bool) -> None:
    assert wants_hash(line) == wanted


def test_partition_agrees_with_the_captured_machine() -> None:
    """What both trees say of a CPU, they say alike; the differences are a table."""
    reasons = {
        "cpu-version": "POWER10 instead of POWER9",
        "ibm,pft-size": "1 GiB instead of 2 GiB",
        "ibm,segment-page-sizes": "16 MiB too, as QEMU with cap-hpt-max-page-size=16M",
    }
    ours = build_partition(Partition((0, 1), 1 << 30)).find("/cpus/PowerPC,POWER10@1")
    theirs = captured("kexec_c_smp2").find("/cpus/PowerPC,POWER9@1")
    assert ours is not None
    assert theirs is not None
    both = set(ours.properties) & set(theirs.properties)
    different = {name for name in both if ours.properties[name] != theirs.properties[name]}
    assert different == set(reasons)
    assert set(theirs.properties) - both == {"ibm,my-drc-index", "phandle", "slof,from-fdt"}
    assert set(ours.properties) == both


def test_dtc_reads_what_we_write(dtc: Path, tmp_path: Path) -> None:
    blob = tmp_path / "t.dtb"
    blob.write_bytes(build_partition(Partition((0, 8, 16), 1 << 30)).to_bytes())
    done = subprocess.run(
        [dtc, "-q", "-I", "dtb", "-O", "dts", blob], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "PowerPC,POWER10@10 {" in done.stdout


def test_dtc_makes_the_same_tree_of_our_text(dtc: Path, tmp_path: Path) -> None:
    tree = captured("kdump_c_smp2")
    source = tmp_path / "t.dts"
    source.write_text(tree.to_text())
    blob = tmp_path / "t.dtb"
    subprocess.run([dtc, "-q", "-f", "-I", "dts", "-O", "dtb", "-o", blob, source], check=True)
    again = parse_device_tree(blob.read_bytes(), "again")
    assert again.root == tree.root
    assert again.reservations == tree.reservations


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, 0x12345678, "magic 0x12345678"),
        (4, 1 << 20, "total size 1048576 does not fit"),
        (4, 1 << 30, "the limit is"),
        (4, 8, "total size 8"),
        (8, 0x7FFFFFF0, "a block lies outside"),
        (12, 0x7FFFFFF0, "a block lies outside"),
        (16, 0x7FFFFFF0, "the memory reservations have no end"),
        (20, 3, "version 3"),
        (24, 99, "compatible with 99"),
    ],
)
def test_damaged_header(at: int, value: int, words: str) -> None:
    blob = bytearray(small().to_bytes())
    struct.pack_into(">I", blob, at, value)
    with pytest.raises(BootflowError) as caught:
        parse_device_tree(bytes(blob), "t.dtb")
    assert words in caught.value.message


def test_every_cut_is_an_error() -> None:
    blob = small().to_bytes()
    for size in range(len(blob)):
        with pytest.raises(ImageError):
            parse_device_tree(blob[:size], "t.dtb")


def test_too_deep_is_a_limit() -> None:
    node = Node("x")
    for _ in range(MAX_DEPTH):
        node = Node("x", {}, [node])
    with pytest.raises(LimitError, match="levels"):
        parse_device_tree(DeviceTree(node).to_bytes(), "t.dtb")
