"""The captured hand-offs of tests/data/groundtruth as test input: states, steps, memory, a machine.

What they are: QEMU 7.2 (`-M pseries -cpu POWER9 -m 2G -smp 2`) while Debian 6.1.0-50 ran kexec -e
(`kexec_c_smp2`) or crashed into its kdump kernel (`kdump_c_smp2`), read through QEMU's gdb stub.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emulator.firmware import Partition
from emulator.images import KernelImage
from emulator.machine import Machine, Range, Step
from emulator.native import RANGE_STOP
from emulator.ppc64 import MSR_LE

DATA: Final = Path(__file__).parent.parent / "data" / "groundtruth"
CASES: Final = ("kdump_c_smp2", "kexec_c_smp2")
RAM_BYTES: Final = 2 << 30
SPECIAL: Final = ("nip", "msr", "cr", "lr", "ctr", "xer")

H_RTAS: Final = 0xF000
RTAS_ADDR: Final = 0x2FFF0000
"""/rtas/linux,rtas-base of the captured tree; what lay there was not captured."""
RTAS_CODE: Final = struct.pack(">5I", 0x7C641B78, 0x3C600000, 0x6063F000, 0x44000022, 0x4E800020)
"""mr r4,r3; li r3,0; ori r3,r3,0xf000; sc 1; blr: what QEMU's firmware has there."""

State = dict[str, int]
"""nip, msr, cr, lr, ctr, xer, r0..r31 -> value."""


@dataclass(frozen=True)
class Captured:
    """One captured step: the state before an instruction."""

    index: int
    """Instructions since the first record; two may lie between two records (SMT priority hints)."""
    word: int
    state: State


@dataclass(frozen=True)
class Difference:
    """A register that differs, and the two values."""

    register: str
    ours: int
    captured: int

    def __str__(self) -> str:
        return f"{self.register} {self.ours:#x} captured {self.captured:#x}"


@dataclass(frozen=True)
class Capture:
    """One captured hand-off."""

    case: str

    @property
    def addresses(self) -> dict[str, int]:
        raw = json.loads((DATA / self.case / "addresses.json").read_text())
        return {name: int(raw[name], 16) for name in ("kernel", "purg_base", "dt", "entry")}

    def memory(self, name: str) -> bytes:
        return gzip.decompress((DATA / self.case / f"{name}.bin.gz").read_bytes())

    def has_steps(self, name: str) -> bool:
        return (DATA / self.case / f"{name}.jsonl.gz").exists()

    def steps(self, name: str) -> list[Captured]:
        with gzip.open(DATA / self.case / f"{name}.jsonl.gz", "rt") as lines:
            return [_step(json.loads(line)) for line in lines]

    def snapshot(self, name: str, thread: str) -> State:
        """State of one CPU at a milestone; thread p01.01 is CPU 0."""
        rows = json.loads(gzip.decompress((DATA / self.case / "snapshots.json.gz").read_bytes()))
        (row,) = [row for row in rows if row["name"] == name]
        return {register: int(value, 16) for register, value in row["cpus"][thread].items()}

    def machine(self, kernel: KernelImage, after_purgatory: bool = False) -> Machine:
        """Two CPUs over memory as it was at purgatory's entry, or at the kernel's.

        The initrd is left out: nobody reads it but the digest, and its bytes were not captured.
        """
        addr = self.addresses
        machine = Machine(RAM_BYTES, 2, hypercall=_answer)
        for segment in kernel.segments:
            machine.write(addr["kernel"] + segment.vaddr - kernel.link_vaddr, bytes(segment.data))
        if after_purgatory:
            machine.write(addr["kernel"], self.memory("kernel_first4k_at_rfid"))
            machine.write(addr["purg_base"], self.memory("purgatory_seg_after_purgatory_fn"))
            machine.write(addr["dt"], self.memory("dt_seg_at_rfid"))
            machine.write(0, self.memory("low64k_at_rfid"))
        else:
            machine.write(addr["purg_base"], self.memory("purgatory_seg"))
            machine.write(addr["dt"], self.memory("dt_seg"))
            machine.write(0, self.memory("low64k_at_entry"))
        machine.write(RTAS_ADDR, RTAS_CODE)
        return machine


def _answer(machine: Machine, cpu: int, args: list[int]) -> list[int] | str:
    """Hypercalls as the product answers them, and H_RTAS: says that the call is not supported."""
    if args[0] == H_RTAS:
        _, inputs, _ = struct.unpack(">3I", machine.read(args[1], 12))
        machine.write(args[1] + 12 + 4 * inputs, struct.pack(">i", -3))
        return [0]
    partition = Partition(lambda cpu, data: None, lambda cpu, text, number: None, lambda: 0)
    return partition.answer(machine, cpu, args)


def _step(record: Mapping[str, Any]) -> Captured:
    state = {name: int(record["pc" if name == "nip" else name], 16) for name in SPECIAL}
    state |= {f"r{n}": int(value, 16) for n, value in enumerate(record["r"])}
    order: Any = "little" if state["msr"] & MSR_LE else "big"
    return Captured(record["i"], int.from_bytes(bytes.fromhex(record["op"]), order), state)


def run_to(machine: Machine, cpu: int, addr: int, limit: int = 400_000_000) -> None:
    """Run a CPU until NIP is `addr` (without its top four bits), the start of a block."""
    machine.set_ranges([Range(addr, addr + 4, RANGE_STOP | 1 << 20)])
    end = machine.tick + limit
    linear = (1 << 60) - 1
    while machine.cpus[cpu].nip & linear != addr:
        stop = machine.run(cpu, end, exact=False)
        machine.take_log()
        assert stop.why != "fault", stop
        assert machine.tick < end, f"{addr:#x} is not reached within {limit} instructions"
    machine.set_ranges([])


def differences(ours: State, captured: State) -> list[Difference]:
    return [
        Difference(name, ours[name], value)
        for name, value in captured.items()
        if ours[name] != value
    ]


def walk(machine: Machine, cpu: int, steps: Sequence[Captured]) -> list[tuple[int, Difference]]:
    """Run through captured steps; every difference in a register or an instruction word."""
    first = steps[0].index
    ours: list[Step] = machine.trace_steps(cpu, steps[-1].index - first + 1)
    found: list[tuple[int, Difference]] = []
    for captured in steps:
        step = ours[captured.index - first]
        rows = differences(step.registers.named(), captured.state)
        if step.word != captured.word:
            rows.append(Difference("word", step.word, captured.word))
        found += [(captured.index, row) for row in rows]
    return found
