"""The device tree of a pseries partition of N CPUs, as the firmware would give it.

What it is: one function that builds the tree a kernel needs to come up on bootflow's machine:
radix or hash MMU, XICS, one virtual console, hypercalls. What it is not: a copy of QEMU's tree: no
PCI, no disks, no hotplug, no RTAS code. Deterministic: no seed, no clock in it.
Sources: a dump of QEMU 7.2 (-M pseries,dumpdtb -cpu power10); the trees that kexec handed over in
two captured hand-offs; LoPAR 2.x for the ibm,* properties.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from emulator.devicetree import DeviceTree, Node

TIMEBASE_HZ: Final = 512_000_000
"""The timebase of every POWER server since POWER5."""
CLOCK_HZ: Final = 1_000_000_000
LOGICAL_PVR_POWER10: Final = 0x0F000006
"""LoPAR: the logical PVR of Power ISA 3.1, what a partition sees after negotiation."""
XICS_PHANDLE: Final = 0x1111
VTY: Final = "/vdevice/vty@71000000"


def _cells(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def _strings(*values: str) -> bytes:
    return b"".join(value.encode("ascii") + b"\0" for value in values)


HYPERTAS: Final = (
    "hcall-pft", "hcall-term", "hcall-dabr", "hcall-interrupt", "hcall-tce", "hcall-vio",
    "hcall-splpar", "hcall-join", "hcall-bulk", "hcall-set-mode", "hcall-sprg0", "hcall-debug",
)  # fmt: skip
"""Function sets that the firmware offers, as QEMU names them (LoPAR table 214)."""

_VEC5_RADIX: Final = bytes.fromhex("1900200000a005" + "00" * 15 + "8000400040")
"""Negotiated options: byte 5 = 0xa0 associativity form 2 (so /rtas has its tables), byte 23 = 0
XICS, byte 24 = 0x40 radix MMU, byte 26 = 0x40 radix GTSE."""

_VEC5_HASH: Final = _VEC5_RADIX[:24] + bytes(3)
"""The same with byte 24 = 0, hash MMU, and without GTSE."""

_PA_FEATURES: Final = bytes.fromhex(
    "4200f63fc7c080f080000000000000000000800080008000000080008000800080008000"
    "c000800080008000800080008000800080008000800080008000800080000000"
)
"""ibm,pa-features as QEMU gives them to a POWER9 or POWER10; byte 40 offers the radix MMU."""


@dataclass(frozen=True)
class Partition:
    """What a pseries partition has; all of it reaches the kernel through the tree."""

    cpu_ids: tuple[int, ...]
    mem_bytes: int
    boot_cpu_id: int = 0
    hash_mmu: bool = False
    """The old kernel has negotiated the hash MMU, not radix. A kernel that knows no radix does not
    ask; hash is always there."""


_SEGMENT_PAGE_SIZES: Final = (
    0xC, 0, 2, 0xC, 0, 0x18, 0x38,
    0x10, 0x110, 2, 0x10, 1, 0x18, 8,
    0x18, 0x100, 1, 0x18, 0,
)  # fmt: skip
"""For the hash MMU: (shift, L and LP of the SLB, count, (shift, LP of the entry) ...), as QEMU has
them with cap-hpt-max-page-size=16M; without pages of 16 MiB a kernel whose pages have 4 KiB enters
262,144 of them for a gigabyte."""


def build_partition(partition: Partition) -> DeviceTree:
    """The device tree of a partition: XICS, one virtual console; no disks, no RTAS code.

    The /rtas node offers hypercalls only: without linux,rtas-base the kernel makes no RTAS call.
    """
    root = Node("", {
        "#address-cells": _cells(2),
        "#size-cells": _cells(2),
        "compatible": _strings("bootflow,pseries"),
        "model": _strings("IBM pSeries (emulated by bootflow)"),
        "device_type": _strings("chrp"),
    })  # fmt: skip
    root.children = [
        Node("aliases", {"hvterm": _strings(VTY)}),
        _chosen(_VEC5_HASH if partition.hash_mmu else _VEC5_RADIX),
        _cpus(partition),
        Node("interrupt-controller", {
            "#interrupt-cells": _cells(2),
            "compatible": _strings("IBM,ppc-xicp"),
            "device_type": _strings("PowerPC-External-Interrupt-Presentation"),
            "ibm,interrupt-server-ranges": _cells(0, max(partition.cpu_ids) + 1),
            "interrupt-controller": b"",
            "linux,phandle": _cells(XICS_PHANDLE),
            "phandle": _cells(XICS_PHANDLE),
        }),
        Node("memory@0", {
            "device_type": _strings("memory"),
            "ibm,associativity": _cells(1, 0),
            "reg": struct.pack(">QQ", 0, partition.mem_bytes),
        }),
        Node("rtas", {
            "ibm,associativity-reference-points": _cells(1),
            "ibm,hypertas-functions": _strings(*HYPERTAS),
            "ibm,lrdr-capacity": struct.pack(
                ">QQI", partition.mem_bytes, 1 << 28, len(partition.cpu_ids)
            ),
            "ibm,max-associativity-domains": _cells(1, 1),
            "ibm,numa-distance-table": _cells(1) + bytes([10]),
            "ibm,numa-lookup-index-table": _cells(1, 0),
        }),
        _vdevice(),
    ]  # fmt: skip
    return DeviceTree(root, [], partition.boot_cpu_id, "device tree of the partition")


def wants_hash(command_line: str) -> bool:
    """Whether a kernel's command line turns the radix MMU off, as Linux reads it (kstrtobool)."""
    wanted = False
    for word in command_line.split(" "):
        name, _, value = word.partition("=")
        if name == "disable_radix":
            wanted = value[:1].lower() not in ("n", "0", "f") and value[:2].lower() != "of"
    return wanted


def _chosen(options: bytes) -> Node:
    return Node("chosen", {
        "ibm,arch-vec-5-platform-support": _cells(0x178018C0, 0x19001A40),
        "ibm,architecture-vec-5": options,
        "linux,pci-probe-only": _cells(0),
        "linux,stdout-path": _strings(VTY),
        "stdout-path": _strings(VTY),
    })  # fmt: skip


def _vdevice() -> Node:
    vty = Node("vty@71000000", {
        "compatible": _strings("hvterm1"),
        "device_type": _strings("serial"),
        "interrupts": _cells(0x1100, 0),
        "reg": _cells(0x71000000),
    })  # fmt: skip
    return Node("vdevice", {
        "#address-cells": _cells(1),
        "#interrupt-cells": _cells(2),
        "#size-cells": _cells(0),
        "compatible": _strings("IBM,vdevice"),
        "device_type": _strings("vdevice"),
        "interrupt-controller": b"",
    }, [vty])  # fmt: skip


def _cpus(partition: Partition) -> Node:
    page_table_order = max(18, (partition.mem_bytes - 1).bit_length() - 7)
    nodes = [_cpu(cpu_id, page_table_order) for cpu_id in partition.cpu_ids]
    return Node("cpus", {"#address-cells": _cells(1), "#size-cells": _cells(0)}, nodes)


def _cpu(cpu_id: int, page_table_order: int) -> Node:
    return Node(f"PowerPC,POWER10@{cpu_id:x}", {
        "64-bit": b"",
        "clock-frequency": _cells(CLOCK_HZ),
        "cpu-version": _cells(LOGICAL_PVR_POWER10),
        "d-cache-block-size": _cells(128),
        "d-cache-line-size": _cells(128),
        "d-cache-size": _cells(0x8000),
        "device_type": _strings("cpu"),
        "i-cache-block-size": _cells(128),
        "i-cache-line-size": _cells(128),
        "i-cache-size": _cells(0x8000),
        "ibm,chip-id": _cells(0),
        "ibm,dec-bits": _cells(56),
        "ibm,dfp": _cells(1),
        "ibm,pa-features": _PA_FEATURES,
        "ibm,pft-size": _cells(0, page_table_order),
        "ibm,ppc-interrupt-gserver#s": _cells(cpu_id, 0),
        "ibm,ppc-interrupt-server#s": _cells(cpu_id),
        "ibm,processor-radix-AP-encodings": _cells(0xC, 0xA0000010, 0x20000015, 0x4000001E),
        "ibm,processor-segment-sizes": _cells(0x1C, 0x28, 0xFFFFFFFF, 0xFFFFFFFF),
        "ibm,purr": _cells(1),
        "ibm,segment-page-sizes": _cells(*_SEGMENT_PAGE_SIZES),
        "ibm,slb-size": _cells(32),
        "ibm,spurr": _cells(1),
        "ibm,vmx": _cells(2),
        "reg": _cells(cpu_id),
        "slb-size": _cells(32),
        "status": _strings("okay"),
        "timebase-frequency": _cells(TIMEBASE_HZ),
    })  # fmt: skip
