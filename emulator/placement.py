"""The kexec loader's part: choose addresses, link the purgatory, patch it, write the device tree.

What it is: images and options in, everything that lies in RAM at tick 0 out; pure. The search for
holes, the order of the segments, the symbols and the digest are those of kexec-tools for ppc64.
What it is not: kexec's reading of /proc. Where the old kernel would lie is assumed: for --load at 0
and as large as the new one, which is therefore placed above it; a crash kernel's area begins at
32 MiB. --base says otherwise.
Sources: kexec-tools kexec/arch/ppc64/kexec-elf-ppc64.c, crashdump-ppc64.c, kexec/kexec.c
(behaviour); linux kernel/kexec_file.c for the purgatory inside a vmlinux; two captured hand-offs.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from typing import Final

from emulator import handover
from emulator.coredump import build_core_header
from emulator.devicetree import DeviceTree, Node
from emulator.errors import LimitError, PlacementError, size_words
from emulator.handoff import (
    BACKUP_BYTES,
    FLAG_OFFSET,
    FLAGS,
    LOW_COPY_BYTES,
    LOW_FIELDS,
    PAGE_BYTES,
    PURGATORY_SYMBOLS,
    RMO_TOP,
    RUN_AT_LOAD,
    RUN_AT_ZERO_MAGIC,
    SHA256_REGIONS,
    STACK_BYTES,
    Flag,
    LowField,
)
from emulator.handover import CpuStart, cpu_starts, handover_code
from emulator.images import KernelImage, PurgatoryImage
from emulator.memory import Ram, Segment, check_overlaps, without
from emulator.options import Addresses, LoadOptions, check_addresses, check_options
from emulator.partition import Partition, build_partition, wants_hash
from emulator.patching import Patcher, segments_digest
from emulator.relocations import LinkedPurgatory, layout_purgatory, link_purgatory
from emulator.symbols import AddressMap, AddressRow, NamedPlaces, SymbolTable

__all__ = ["Addresses", "LoadOptions", "Placement", "Segment", "place"]

DEFAULT_BASE: Final = 0x2000000
CRASH_BYTES: Final = 256 << 20
"""Size of the crash kernel's area, as crashkernel=256M in the captured hand-off."""
COMMAND_LINE_BYTES: Final = 2048
"""COMMAND_LINE_SIZE of ppc64."""
_KEXEC_ARCH_PPC64: Final = 21 << 16
_KEXEC_ON_CRASH: Final = 1


@dataclass(frozen=True)
class Placement:
    """Everything that is decided before tick 0."""

    segments: tuple[Segment, ...]
    kernel_addr: int
    entry_addr: int
    """purgatory_start"""
    purgatory_addr: int
    dt_addr: int
    stack_addr: int
    backup_addr: int
    """0 unless a crash kernel is loaded."""
    toc_addr: int
    purgatory_symbols: dict[str, tuple[int, int]]
    """Name -> (address, size) as linked; of an ELFv1 function its code."""
    purgatory_big_endian: bool
    kernel_big_endian: bool
    cpu_ids: tuple[int, ...]
    boot_cpu: int
    mem_bytes: int
    options: LoadOptions
    run_at_load: int | None
    """The flag that purgatory will store, None if it has none."""
    cpu_starts: tuple[CpuStart, ...]
    address_map: AddressMap
    handover_addr: int
    kexec_flag_addr: int
    command_line: str
    device_tree: DeviceTree
    purgatory_elf_bytes: int
    digest: str
    """SHA-256 that purgatory compares with, hex; "" if it does not check."""
    flags: tuple[tuple[Flag, int], ...] = ()
    """The flags that this kernel has, each with its offset in the image."""
    low_fields: tuple[tuple[LowField, int], ...] = ()
    """The named fields of the first 0x100 bytes of this kernel, with offsets."""

    def segment(self, name: str) -> Segment | None:
        """The segment of that name."""
        return next((segment for segment in self.segments if segment.name == name), None)

    def with_corrupt_byte(self, addr: int) -> Placement:
        """The same with every bit of one loaded byte inverted; the digest stays the loader's.

        Raises:
            PlacementError: the loader put nothing at that real address.
        """
        for n, segment in enumerate(self.segments):
            at = addr - segment.addr
            if 0 <= at < len(segment.data):
                data = bytearray(segment.data)
                data[at] ^= 0xFF
                changed = replace(segment, data=bytes(data))
                return replace(
                    self, segments=(*self.segments[:n], changed, *self.segments[n + 1 :])
                )
        raise PlacementError(
            f"no loaded byte at {addr:#x} to corrupt",
            hint=f"The kernel lies at {self.kernel_addr:#x}; --debug prints every segment.",
        )

    def debug_lines(self) -> list[str]:
        """What `kexec -d` prints about the same load, in its words."""
        symbols = {name: self._word(name) for name in ("panic_kernel", "backup_start", "debug")}
        loaded = [s for s in self.segments if s.name not in ("handover", "stack")]
        flags = _KEXEC_ARCH_PPC64 | (_KEXEC_ON_CRASH if self.options.panic else 0)
        flag = 0 if self.run_at_load is None else self.run_at_load
        lines = []
        if self.options.panic:
            lines.append(f"Command line after adding elfcorehdr: {self.command_line}")
        lines += [
            f"Modified cmdline:{self.command_line}",
            f"info->entry is {self.entry_addr:#x}",
            f"kernel is {self.kernel_addr:x}",
            f"dt_offset is {self.dt_addr:x}",
            f"run_at_load flag is {flag:x}",
            f"panic_kernel is {symbols['panic_kernel']:x}",
            f"backup_start is {symbols['backup_start']:x}",
            f"stack is {self.stack_addr:x}",
            f"toc_addr is {self.toc_addr:x}",
            f"purgatory size is {self.purgatory_elf_bytes}",
            f"debug is {symbols['debug']}",
            f"opal_base is {self._word('opal_base'):x}",
            f"opal_entry is {self._word('opal_entry'):x}",
            f"kexec_load: entry = {self.entry_addr:#x} flags = {flags:#x}",
            f"nr_segments = {len(loaded)}",
        ]
        for index, segment in enumerate(loaded):
            lines.append(f"segment[{index}].bufsz = {len(segment.data):#x}")
            lines.append(f"segment[{index}].mem   = {segment.addr:#x}")
            lines.append(f"segment[{index}].memsz = {segment.mem_bytes:#x}")
        return lines

    def _word(self, name: str) -> int:
        """Value of a purgatory variable as patched, 0 if it has none."""
        place = self.purgatory_symbols.get(name)
        purgatory = self.segment("purgatory")
        if place is None or purgatory is None:
            return 0
        row = next(row for row in PURGATORY_SYMBOLS if row.name == name)
        at = place[0] - purgatory.addr
        raw = bytes(purgatory.data[at : at + row.size])
        return int.from_bytes(raw, "big" if self.purgatory_big_endian else "little")


def place(
    kernel: KernelImage,
    purgatory: PurgatoryImage,
    options: LoadOptions,
    *,
    dtb: DeviceTree | None = None,
    initrd: bytes = b"",
    addresses: Addresses | None = None,
    digest: bytes | None = None,
) -> Placement:
    """Do what `kexec --load` or `--load-panic` does, for a machine that is not running yet.

    Args:
        kernel: what is loaded.
        purgatory: what is linked, patched and entered.
        options: what kexec's command line says.
        dtb: the machine's device tree; a partition of our own if None.
        initrd: the ramdisk, b"" for none.
        addresses: places to use instead of choosing them.
        digest: SHA-256 to store instead of computing it, for a captured load of which some
            segment's bytes are not at hand.

    Raises:
        PlacementError: something overlaps, does not fit, or is not in the device tree.
        ImageError: the purgatory cannot be linked, or lacks a symbol that the hand-off needs.
    """
    given = addresses or Addresses()
    return _Loader(kernel, purgatory, options, dtb, initrd, given, digest).load()


class _Loader:
    def __init__(
        self,
        kernel: KernelImage,
        purgatory: PurgatoryImage,
        options: LoadOptions,
        dtb: DeviceTree | None,
        initrd: bytes,
        addresses: Addresses,
        digest: bytes | None,
    ) -> None:
        check_options(options)
        check_addresses(addresses)
        self.kernel = kernel
        self.purgatory = purgatory
        self.options = options
        self.initrd = initrd
        self.given = addresses
        self.given_digest = digest
        self.tree = _machine_tree(options, dtb)
        self.cpu_ids = _cpu_ids(self.tree, options)
        base = options.base_addr if options.base_addr is not None else addresses.kernel
        self.base = _default_base(kernel, options) if base is None else base
        top = min(options.mem_bytes, RMO_TOP)
        if options.panic:
            top = min(top, self.base + CRASH_BYTES)
        self.crash_end = top
        self.rtas = self.tree.firmware_range()
        ranges = without([(self.base, top)], self.rtas) if top > self.base else []
        self.ram = Ram(ranges)

    def load(self) -> Placement:
        ram, given, options = self.ram, self.given, self.options
        image = _kernel_bytes(self.kernel)
        kernel = ram.add("kernel", image, self.kernel.mem_bytes, given.kernel)
        backup = elfcorehdr = None
        if options.panic:
            backup = ram.add("backup", bytes(BACKUP_BYTES), BACKUP_BYTES, given.backup)
            core = build_core_header(
                options.mem_bytes,
                (self.base, self.crash_end),
                backup.addr,
                self.rtas,
                len(self.cpu_ids),
                self.purgatory.big_endian,
                self._old_kernel_addr([]),
            )
            elfcorehdr = ram.add("elfcorehdr", core, len(core), given.elfcorehdr)
        layout = layout_purgatory(self.purgatory.parsed)
        purgatory = ram.add("purgatory", b"", layout.mem_bytes, given.purgatory, align=layout.align)
        initrd = None
        if self.initrd:
            initrd = ram.add("initrd", self.initrd, len(self.initrd), given.initrd)
        command_line = self._command_line(elfcorehdr)
        self._fix_tree(command_line, backup, elfcorehdr, initrd)
        size = len(self.tree.to_bytes()) + 16  # with the reservation of the tree itself
        dt = ram.add("device-tree", b"", size, given.dt, top=True)
        self.tree.reservations.append((dt.addr, size))
        dt = self._replace(dt, self.tree.to_bytes())
        stack = self._stack_top()
        linked = link_purgatory(self.purgatory.parsed, purgatory.addr, given.purgatory_buffer)
        table = _table(self.purgatory, linked)
        symbols = table.addresses()
        patcher = Patcher(self.purgatory, linked, symbols)
        run_at_load = self._patch(patcher, kernel, dt, stack, backup, linked)
        digest = self._patch_digest(patcher, purgatory.name)
        purgatory = self._replace(purgatory, bytes(linked.data))
        taken = Segment("stack", stack - STACK_BYTES, b"", STACK_BYTES)
        old_addr = self._old_kernel_addr([*ram.taken, taken])
        old = Segment(
            "handover",
            old_addr,
            handover_code(self.purgatory.big_endian),
            handover.HANDOVER_BYTES,
        )
        ram.taken.append(old)
        check_overlaps(self.ram.taken, options.mem_bytes)
        return self._placement(
            kernel, purgatory, dt, stack, backup, old, linked, table, symbols, command_line,
            run_at_load, digest,
        )  # fmt: skip

    def _placement(
        self,
        kernel: Segment,
        purgatory: Segment,
        dt: Segment,
        stack: int,
        backup: Segment | None,
        old: Segment,
        linked: LinkedPurgatory,
        table: SymbolTable,
        symbols: dict[str, tuple[int, int]],
        command_line: str,
        run_at_load: int | None,
        digest: str,
    ) -> Placement:
        big = self.purgatory.big_endian
        return Placement(
            segments=tuple(sorted(self.ram.taken, key=lambda segment: segment.addr)),
            kernel_addr=kernel.addr,
            entry_addr=linked.entry_addr,
            purgatory_addr=purgatory.addr,
            dt_addr=dt.addr,
            stack_addr=stack,
            backup_addr=backup.addr if backup else 0,
            toc_addr=linked.toc_addr,
            purgatory_symbols=symbols,
            purgatory_big_endian=big,
            kernel_big_endian=self.kernel.big_endian,
            cpu_ids=self.cpu_ids,
            boot_cpu=self.options.boot_cpu,
            mem_bytes=self.options.mem_bytes,
            options=self.options,
            run_at_load=run_at_load,
            cpu_starts=cpu_starts(
                old.addr, linked.entry_addr, self.cpu_ids, self.options.boot_cpu, big,
                self.options.entry_r6,
            ),
            address_map=_address_map(
                self.kernel, kernel.addr, purgatory, table, old.addr, self.options.panic
            ),
            handover_addr=old.addr,
            kexec_flag_addr=old.addr + handover.FLAG_OFFSET_BYTES,
            command_line=command_line,
            device_tree=self.tree,
            purgatory_elf_bytes=len(self.purgatory.elf),
            digest=digest,
            flags=_kernel_flags(self.kernel),
            low_fields=_low_fields(self.kernel),
        )  # fmt: skip

    def _replace(self, segment: Segment, data: bytes) -> Segment:
        """Fill a segment whose place is already taken."""
        new = replace(segment, data=data)
        self.ram.taken[self.ram.taken.index(segment)] = new
        return new

    def _command_line(self, elfcorehdr: Segment | None) -> str:
        line = self.options.append
        chosen = self.tree.find("/chosen")
        if not line and chosen is not None:
            words = chosen.text("bootargs").split(" ")
            line = " ".join(word for word in words if not word.startswith("elfcorehdr=")).strip()
        if elfcorehdr is not None:
            line += f" elfcorehdr={elfcorehdr.addr // 1024}K"  # kexec's blank, after "" too
        if any(not 32 <= ord(char) < 127 for char in line):
            raise PlacementError(
                "the command line holds a character that is not printable ASCII",
                hint="Check --append, or bootargs in the device tree.",
            )
        if len(line) >= COMMAND_LINE_BYTES:
            raise LimitError(
                f"the command line has {len(line)} characters; the limit is"
                f" {COMMAND_LINE_BYTES - 1}",
                hint="Shorten --append.",
            )
        return line

    def _fix_tree(
        self,
        command_line: str,
        backup: Segment | None,
        elfcorehdr: Segment | None,
        initrd: Segment | None,
    ) -> None:
        """What kexec changes in the tree: /chosen, usable memory, reservations but its own."""
        tree = self.tree
        chosen = tree.find("/chosen")
        if chosen is None:
            chosen = Node("chosen")
            tree.root.children.insert(0, chosen)
        for name in ("linux,initrd-start", "linux,initrd-end", "bootargs"):
            chosen.properties.pop(name, None)
        chosen.properties["linux,booted-from-kexec"] = b""
        reserved: list[tuple[int, int]] = []
        if backup is not None and elfcorehdr is not None:
            reserved.append((BACKUP_BYTES, self.base - BACKUP_BYTES))
            reserved.append((backup.addr, BACKUP_BYTES))
            reserved.append((elfcorehdr.addr, len(elfcorehdr.data)))
            tree.limit_memory(self.crash_end)
        if initrd is not None:
            end = initrd.addr + len(initrd.data)
            chosen.properties["linux,initrd-start"] = struct.pack(">Q", initrd.addr)
            chosen.properties["linux,initrd-end"] = struct.pack(">Q", end)
            reserved.append((initrd.addr, len(initrd.data)))
        if self.rtas is not None:
            reserved.append((self.rtas[0], self.rtas[1] - self.rtas[0]))
        chosen.properties["bootargs"] = command_line.encode("ascii") + b"\0"
        tree.reservations = [row for row in reserved if row[1] > 0]

    def _stack_top(self) -> int:
        if self.given.stack is not None:
            return self.given.stack
        return self.ram.locate("stack", STACK_BYTES) + STACK_BYTES

    def _old_kernel_addr(self, taken: list[Segment]) -> int:
        """Where the old kernel's hand-over lies: in memory that the new kernel does not run over.

        That is above a crash kernel's area, and above the place at 0 that another kernel moves to.
        """
        size = handover.HANDOVER_BYTES
        low = self.crash_end if self.options.panic else _page_up(self.kernel.mem_bytes)
        for start in (low, handover.DEFAULT_ADDR):
            old = Ram(without([(start, self.options.mem_bytes)], self.rtas), list(taken))
            if any(high - _page_up(at) >= size for at, high in old.holes()):
                break
        return old.locate("old kernel's hand-over", size)

    def _patch(
        self,
        patcher: Patcher,
        kernel: Segment,
        dt: Segment,
        stack: int,
        backup: Segment | None,
        linked: LinkedPurgatory,
    ) -> int | None:
        patcher.low_code(self.kernel.low256)
        patcher.number("kernel", kernel.addr)
        patcher.number("dt_offset", dt.addr)
        patcher.number("stack", stack)
        if linked.toc_addr:
            patcher.number("my_toc", linked.toc_addr)
        patcher.number("debug", int(self.options.debug))
        if backup is not None:
            patcher.number("panic_kernel", 1)
            patcher.number("backup_start", backup.addr)
        if patcher.size("run_at_load") == 8:
            return self._patch_proposed(patcher)
        flag = patcher.read("run_at_load")
        if self.options.panic and flag == RUN_AT_ZERO_MAGIC:
            flag = RUN_AT_LOAD
            patcher.number("run_at_load", flag)
        return flag

    def _patch_proposed(self, patcher: Patcher) -> int:
        """The thread's snippet 3: a variable of 8 bytes, set to 1 under KEXEC_ON_CRASH."""
        flag = RUN_AT_LOAD if self.options.panic else 0
        patcher.doubleword("run_at_load", flag)
        return flag

    def _patch_digest(self, patcher: Patcher, purgatory: str) -> str:
        """Regions and digest of all segments but the purgatory, memory sizes, by address."""
        loaded = sorted(
            (s for s in self.ram.taken if s.name != purgatory), key=lambda segment: segment.addr
        )
        if not self.options.checks:
            if not patcher.number("skip_checks", 1):
                # a purgatory older than --no-checks: let it hash nothing
                patcher.store("sha256_digest", hashlib.sha256(b"").digest())
            return ""
        names = [name for name in ("sha256", "purgatory_sha256") if patcher.has(f"{name}_digest")]
        if not names:
            return ""
        if len(loaded) > SHA256_REGIONS:
            raise PlacementError(
                f"{len(loaded)} segments, but purgatory's digest has room for {SHA256_REGIONS}",
                hint="Load without checks (--no-checks).",
            )
        digest = self.given_digest or segments_digest(loaded)
        patcher.regions([(segment.addr, segment.mem_bytes) for segment in loaded])
        patcher.store(f"{names[0]}_digest", digest)
        return digest.hex()


def _page_up(value: int) -> int:
    return -(-value // PAGE_BYTES) * PAGE_BYTES


def _default_base(kernel: KernelImage, options: LoadOptions) -> int:
    """Leave out, as kexec does, the running kernel and the page on which it ends."""
    if options.panic or _page_up(kernel.mem_bytes) <= DEFAULT_BASE:
        return DEFAULT_BASE
    return _page_up(_page_up(kernel.mem_bytes) + 1)


def _machine_tree(options: LoadOptions, dtb: DeviceTree | None) -> DeviceTree:
    if dtb is None:
        ids = tuple(range(options.cpus))
        hash_mmu = wants_hash(options.append)
        return build_partition(
            Partition(ids, options.mem_bytes, ids[options.boot_cpu], hash_mmu=hash_mmu)
        )
    tree = dtb.copy()
    top = max((start + size for start, size in tree.memory()), default=0)
    if not top:
        raise PlacementError(
            f"{tree.name}: no memory node with a reg property",
            hint="Give the tree of a whole machine, not an overlay.",
        )
    if top > options.mem_bytes:
        raise PlacementError(
            f"{tree.name}: memory up to {top:#x}, but the machine has"
            f" {size_words(options.mem_bytes)}",
            hint=f"Use --mem {top >> 20}M.",
        )
    return tree


def _cpu_ids(tree: DeviceTree, options: LoadOptions) -> tuple[int, ...]:
    ids = tree.cpu_ids()
    if len(ids) < options.cpus:
        raise PlacementError(
            f"{tree.name}: {len(ids)} CPUs in the device tree, {options.cpus} asked for",
            hint=f"Use --cpus {max(1, len(ids))} or another --dtb.",
        )
    return ids[: options.cpus]


def _kernel_bytes(kernel: KernelImage) -> bytes | memoryview:
    """The image from its lowest byte; a view when there is one PT_LOAD, else joined."""
    if len(kernel.segments) == 1:
        return kernel.segments[0].data
    image = bytearray(max(s.vaddr + len(s.data) for s in kernel.segments) - kernel.link_vaddr)
    for segment in kernel.segments:
        at = segment.vaddr - kernel.link_vaddr
        image[at : at + len(segment.data)] = segment.data
    return bytes(image)


def _table(image: PurgatoryImage, linked: LinkedPurgatory) -> SymbolTable:
    """The purgatory's symbols at the addresses it was linked to."""
    opd = None
    section = image.parsed.find_section(".opd")
    if section is not None and section.index in linked.section_addr:
        addr = linked.section_addr[section.index]
        at = addr - linked.addr
        opd = (addr, bytes(linked.data[at : at + section.size]))
    return SymbolTable(image.parsed, linked.section_addr, opd)


def _address_map(
    kernel: KernelImage,
    kernel_addr: int,
    purgatory: Segment,
    table: SymbolTable,
    handover_addr: int,
    panic: bool,
) -> AddressMap:
    link, size = kernel.link_vaddr, kernel.mem_bytes
    places = NamedPlaces(
        {name: (handover_addr + at, bytes_) for name, (at, bytes_) in handover.PLACES.items()}
    )
    to = kernel.run_addr
    rows = (
        AddressRow(purgatory.addr, purgatory.addr + purgatory.mem_bytes, table, 0, "purgatory"),
        AddressRow(handover_addr, handover_addr + handover.CODE_BYTES, places, 0, "handover"),
        AddressRow(kernel_addr, kernel_addr + size, kernel.symbols, link - kernel_addr, "kernel"),
        AddressRow(to, to + size, kernel.symbols, link - to, "kernel at 0"),
        AddressRow(0, LOW_COPY_BYTES, kernel.symbols, link, "low memory"),
    )
    return AddressMap(rows, kernel_at_zero=not panic)


def _kernel_flags(kernel: KernelImage) -> tuple[tuple[Flag, int], ...]:
    """The flags of this kernel: by symbol, or by the magic at the place that is ABI."""
    found = []
    magic = RUN_AT_ZERO_MAGIC.to_bytes(4, "big" if kernel.big_endian else "little")
    for flag in FLAGS:
        addr = kernel.symbols.find(flag.symbol)
        if addr is not None:
            found.append((flag, addr - kernel.link_vaddr))
        elif flag.at == FLAG_OFFSET and kernel.low256[flag.at : flag.at + flag.size] == magic:
            found.append((flag, flag.at))
    return tuple((flag, at) for flag, at in found if 0 <= at <= kernel.mem_bytes - flag.size)


def _low_fields(kernel: KernelImage) -> tuple[tuple[LowField, int], ...]:
    """The fields of real 0x0-0x100 that this kernel has, by symbol, else where the place is ABI."""
    found = []
    for row in LOW_FIELDS:
        addr = kernel.symbols.find(row.symbol) if row.symbol else None
        if addr is not None and addr - kernel.link_vaddr < LOW_COPY_BYTES:
            found.append((row, addr - kernel.link_vaddr))
        elif addr is None and row.at is not None:
            magic = RUN_AT_ZERO_MAGIC.to_bytes(4, "big" if kernel.big_endian else "little")
            unnamed = row.at == FLAG_OFFSET and kernel.low256[row.at : row.at + 4] == magic
            if unnamed or row.name in ("entry", "__secondary_hold"):
                found.append((row, row.at))
    return tuple(sorted(found, key=lambda item: item[1]))
