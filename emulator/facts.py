"""What a run did at the places that the rules of the hand-off speak of: compact, deterministic.

What it is: a `Facts` takes note while a run goes on: the registers with which a CPU enters
purgatory, the kernel and low memory; every access to the kernel's first 0x100 bytes; words of low
memory that a secondary executed after they had changed under it; bytes that were changed between
the loader and the kernel's entry. What it is not: a judgement (`check`), or a look at names: places
are addresses, registers and bytes are what the machine had.

The rows are those of `records.FACTS`. They become one document of the trace, with its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from emulator.cpu import PAGE_BYTES
from emulator.devicetree import MAX_TREE_BYTES
from emulator.disassembly import disassemble
from emulator.errors import BootflowError
from emulator.handoff import LOW_COPY_BYTES, STACK_BYTES
from emulator.images import read_device_tree
from emulator.machine import Access, Machine, Step
from emulator.native import EA_MASK, LOG_WRITE
from emulator.placement import Placement
from emulator.ppc64 import MSR_LE
from emulator.records import MAX_FACT_ROWS

Record = dict[str, Any]

_GPRS: Final = ("r3", "r4", "r5", "r6", "r7")
_DT_BOOT_CPU: Final = (28, 32)
"""boot_cpuid_phys of the device tree, which purgatory fills in."""
_HEADER_BYTES: Final = 40
_SHOWN_BYTES: Final = 8
_COMPARE_BYTES: Final = 64 << 10


@dataclass
class Arrival:
    """A CPU at the first instruction of a region, as the machine had it."""

    tick: int
    cpu: int
    registers: dict[str, int]
    low: bytes
    strays: list[Record] = field(default_factory=list)
    tree: str = ""


class Facts:
    """Takes note of a run. `placement` says where things lie and what the loader wrote."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.rows: dict[str, list[Record]] = {
            "entry": [], "access": [], "changed": [], "stray": [],
        }  # fmt: skip
        kernel = placement.segment("kernel")
        head = bytes(kernel.data[:LOW_COPY_BYTES]) if kernel else b""
        self.head = bytearray(head.ljust(LOW_COPY_BYTES, b"\0"))
        self._arrived: dict[int, bytes] = {}
        self._reported: set[tuple[int, int, bytes]] = set()

    def record(self) -> Record:
        """The document of the trace."""
        return {"t": "facts", **self.rows}

    def _add(self, kind: str, row: Record) -> None:
        if len(self.rows[kind]) < MAX_FACT_ROWS[kind]:
            self.rows[kind].append(row)

    # --- arrivals -----------------------------------------------------------------------------

    def arrive(self, machine: Machine, cpu: int, place: str) -> Arrival:
        """Look at a CPU that stands at the first instruction of a region."""
        registers = machine.cpus[cpu].registers().named()
        seen = Arrival(machine.tick, cpu, registers, machine.read(0, LOW_COPY_BYTES))
        if place == "kernel" and cpu == self.placement.boot_cpu:
            seen.strays = strays(machine, self.placement)
            seen.tree = _tree(machine, seen.registers["r3"])
        return seen

    def entered(self, seen: Arrival, place: str) -> None:
        """A CPU came from elsewhere into purgatory, kernel or low memory."""
        registers = seen.registers
        if place == "low":
            self._arrived[seen.cpu] = seen.low
        for row in seen.strays:
            self._add("stray", row)
        row = {name: _hex(registers[name]) for name in ("nip", "msr", *_GPRS)}
        row["text"] = seen.low.hex() if place == "low" else seen.tree
        self._add("entry", {"tick": seen.tick, "cpu": seen.cpu, "place": place, **row})

    # --- accesses -----------------------------------------------------------------------------

    def accessed(self, row: Access, stage: str, symbol: str, value: int) -> None:
        """A logged access to the kernel's first 0x100 bytes, where it was loaded."""
        at = row.addr - self.placement.kernel_addr
        inside = slice(max(at, 0), min(at + row.size, LOW_COPY_BYTES))
        old = bytes(self.head[inside])
        if row.kind == LOG_WRITE:
            raw = row.value.to_bytes(row.size, "big")
            self.head[inside] = raw[inside.start - at : inside.stop - at]
        self._add(
            "access",
            {
                "tick": row.tick, "cpu": row.cpu, "write": row.kind == LOG_WRITE,
                "at": inside.start, "size": row.size, "value": _hex(value),
                "old": "0x" + old.hex(), "nip": _hex(row.nip), "stage": stage, "symbol": symbol,
                "le": bool(row.msr & MSR_LE),
            },
        )  # fmt: skip

    # --- code that changed ----------------------------------------------------------------------

    def executed(
        self, cpu: int, ticks: tuple[int, int], steps: Sequence[Step], symbols: Sequence[str]
    ) -> None:
        """What a CPU executed, instruction by instruction, between two ticks."""
        came = self._arrived.get(cpu)
        if came is None:
            return
        for n, step in enumerate(steps):
            at = step.nip & EA_MASK
            if at > LOW_COPY_BYTES - 4:
                continue
            little = bool(step.registers.msr & MSR_LE)
            now = step.word.to_bytes(4, "little" if little else "big")
            was = came[at : at + 4]
            if now == was or (cpu, at, now) in self._reported:
                continue
            self._reported.add((cpu, at, now))
            self._add(
                "changed",
                {
                    "tick": min(ticks[0] + n + 1, ticks[1]), "cpu": cpu, "at": at,
                    "now": "0x" + now.hex(),
                    "was": "0x" + was.hex(), "nip": _hex(step.nip), "symbol": symbols[n],
                    "text": _text(now, at, little), "was_text": _text(was, at, little),
                },
            )  # fmt: skip


def _hex(value: int) -> str:
    return f"0x{value & (1 << 64) - 1:016x}"


def _text(raw: bytes, at: int, little: bool) -> str:
    line = disassemble(raw, at, big_endian=not little)[0]
    return " ".join(line.text.split())


def _tree(machine: Machine, addr: int) -> str:
    """Whether a device tree lies there: "valid" or why not."""
    addr &= EA_MASK
    if addr % 8 or addr + _HEADER_BYTES > machine.ram_bytes:
        return "no address that a device tree could have"
    head = machine.read(addr, _HEADER_BYTES)
    size = int.from_bytes(head[4:8], "big")
    if head[:4] != b"\xd0\x0d\xfe\xed":
        return f"no device tree there: it begins with 0x{head[:4].hex()}, not 0xd00dfeed"
    if not _HEADER_BYTES <= size <= min(MAX_TREE_BYTES, machine.ram_bytes - addr):
        return f"a device tree that claims {size} bytes"
    try:
        read_device_tree(machine.read(addr, size), "the device tree")
    except BootflowError as error:
        return error.message
    return "valid"


def strays(machine: Machine, placement: Placement) -> list[Record]:
    """Bytes of what the loader placed that are not as it left them, but for what is purgatory's.

    Purgatory's own are its segment, its stack, the backup of a crashed kernel's first 64 KiB, the
    boot CPU's id in the device tree; the kernel's first 0x100 bytes are told apart elsewhere.
    """
    rows: list[Record] = []
    for segment in placement.segments:
        if segment.name in ("purgatory", "backup", "stack", "handover"):
            continue
        skip = (0, LOW_COPY_BYTES) if segment.name == "kernel" else (0, 0)
        if segment.name == "device-tree":
            skip = _DT_BOOT_CPU
        rows += _differences(machine, segment.name, segment.addr, segment.data, skip)
    return rows + _elsewhere(machine, placement)


def _elsewhere(machine: Machine, placement: Placement) -> list[Record]:
    """Pages that were written although nothing of this hand-off lies there."""
    own = [(segment.addr, segment.addr + segment.mem_bytes) for segment in placement.segments]
    own += [(placement.stack_addr - STACK_BYTES, placement.stack_addr), (0, LOW_COPY_BYTES)]
    rows: list[Record] = []
    for page in machine.pages_written():
        addr = page * PAGE_BYTES
        if any(lo < addr + PAGE_BYTES and addr < hi for lo, hi in own):
            continue
        last = rows[-1] if rows else None
        if last is not None and int(last["addr"], 16) + last["size"] == addr:
            last["size"] += PAGE_BYTES
            continue
        if len(rows) == MAX_FACT_ROWS["stray"]:
            break
        now = machine.read(addr, _SHOWN_BYTES)
        rows.append({
            "segment": "", "addr": _hex(addr), "at": 0, "size": PAGE_BYTES, "old": "0x" + "00" * 8,
            "now": "0x" + now.hex(),
        })  # fmt: skip
    return rows


def _differences(
    machine: Machine, name: str, addr: int, data: bytes | memoryview, skip: tuple[int, int]
) -> list[Record]:
    rows: list[Record] = []
    for start in range(0, len(data), _COMPARE_BYTES):
        want = bytes(data[start : start + _COMPARE_BYTES])
        have = machine.read(addr + start, len(want))
        if have == want:
            continue
        for at in (n for n in range(len(want)) if have[n] != want[n]):
            offset = start + at
            if skip[0] <= offset < skip[1]:
                continue
            last = rows[-1] if rows else None
            if last is not None and offset <= last["at"] + last["size"] + _SHOWN_BYTES:
                last["size"] = offset + 1 - last["at"]
                continue
            if len(rows) == MAX_FACT_ROWS["stray"]:
                return rows
            shown = slice(at, at + _SHOWN_BYTES)
            rows.append({
                "segment": name, "addr": _hex(addr + offset), "at": offset, "size": 1,
                "old": "0x" + want[shown].hex(), "now": "0x" + have[shown].hex(),
            })  # fmt: skip
    return rows
