"""The machine against a running QEMU: the same RAM and registers, one instruction at a time.

QEMU 7.2 or later, `-M pseries` with the CPU model whose PVR Unicorn has, through its debugger
protocol. After every instruction nip, msr, cr, lr, ctr, xer and r0..r31 are compared; between two
stretches both run on by themselves to a milestone and are compared there, low memory included.
What may differ stands in `KNOWN`, with its reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.debian import DebianPair
from emulator.cpu import Registers
from emulator.recorder import Prepared, RunSpec, prepare
from emulator.run import Run
from emulator.samples import get_sample
from tests.conftest import missing
from tests.differential.captures import differences, run_to
from tests.differential.gdbstub import Qemu

pytestmark = pytest.mark.qemu

CPU = "power10_v1.0"
"""PVR 0x00800100, which is Unicorn's."""
RAM_BYTES = 1 << 30
LOW_BYTES = 0x10000
LINEAR = 0xC000000000000000
LOAD_ADDR = 0x2000000
LOCAL_ENTRY = 8
"""A function of the kernel is called past the two words that set up its TOC."""


@dataclass(frozen=True)
class Known:
    """An instruction after which a register may differ, and why."""

    mask: int
    word: int
    reason: str


KNOWN = (
    Known(0xFC1FFFFF, 0x7C0C42A6, "mfspr rD,268: our timebase is the tick, QEMU's a clock"),
    Known(0xFC1FFFFF, 0x7C0C42E6, "mftb rD: the same"),
)


@dataclass
class Pair:
    """Our run and QEMU at the same place."""

    run: Run
    qemu: Qemu
    steps: int = 0

    def step(self, count: int) -> None:
        """Run both through `count` instructions of the boot CPU, comparing after each."""
        steps = self.run.trace_steps(0, count)
        after: list[Registers] = [step.registers for step in steps[1:]]
        after.append(self.run.machine.cpus[0].registers())
        at = 0
        while at < count:
            word = steps[at].word
            at += 2 if is_priority_hint(word) else 1
            self.qemu.step()
            self.steps += 1
            if at > count:
                return  # QEMU is one instruction further than we went
            theirs, ours = self.qemu.registers(), after[at - 1].named()
            found = differences(ours, theirs)
            if found and is_known(word):
                self.qemu.set_registers(ours)
                continue
            place = f"after {word:08x} at {steps[at - 1].nip:#x}, step {at} of {count}"
            assert found == [], f"{place}: {[str(row) for row in found]}"

    def go(self, addr: int) -> None:
        """Run both on to the start of a block."""
        run_to(self.run.machine, 0, addr & (1 << 60) - 1, limit=2_000_000_000)
        self.qemu.run_to(addr)
        ours, theirs = self.run.machine.cpus[0].registers().named(), self.qemu.registers()
        assert [str(row) for row in differences(ours, theirs)] == [], f"at {addr:#x}"
        assert self.qemu.read(0, LOW_BYTES) == self.run.machine.read(0, LOW_BYTES), f"at {addr:#x}"


def is_priority_hint(word: int) -> bool:
    """`or rN,rN,rN`: QEMU leaves its loop on some of them, and a step covers two instructions."""
    source, target, other = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    return word >> 26 == 31 and word & 0x7FF == 0x378 and source == target == other != 0


def is_known(word: int) -> bool:
    return any(word & row.mask == row.word for row in KNOWN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("qemu-system-ppc64") is None:
        missing("qemu-system-ppc64 is not installed (Debian package qemu-system-ppc)")
    return tmp_path


def start(prepared: Prepared, folder: Path) -> Iterator[Pair]:
    """Both at the first instruction of the old kernel's hand-over."""
    run = prepared.start(lambda record: None)
    blobs = {s.addr: bytes(s.data) for s in prepared.placement.segments if s.data}
    qemu = Qemu(folder, CPU, RAM_BYTES, blobs)
    try:
        qemu.write(0, bytes(LOW_BYTES))
        qemu.set_registers(run.machine.cpus[0].registers().named())
        yield Pair(run, qemu)
    finally:
        qemu.close()


@pytest.fixture
def debian(debian_pair: DebianPair, folder: Path) -> Iterator[Pair]:
    images = {
        "kernel": ("vmlinux", debian_pair.vmlinux.read_bytes()),
        "purgatory": ("kexec", debian_pair.kexec.read_bytes()),
    }
    spec = RunSpec(mode="load-panic", cpus=1, mem_bytes=RAM_BYTES, debug=True)
    yield from start(prepare(spec, images), folder)


def test_debian_kdump_goes_as_in_qemu(debian: Pair) -> None:
    """Hand-over, purgatory and its digest; the kernel's big-endian entry, relocate; early_setup."""
    find = debian.run.kernel.symbols.get
    debian.step(30_000)
    debian.go(LOAD_ADDR)
    debian.step(30_000)
    debian.go(LOAD_ADDR | find("__after_prom_start") - LINEAR + 0x20)
    debian.step(20_000)
    debian.go(LINEAR | LOAD_ADDR + find("early_setup") - LINEAR)
    debian.step(22_000)
    assert debian.steps >= 100_000
    debian.go(LINEAR | LOAD_ADDR + find("start_kernel") - LINEAR + 8)


def test_the_hash_mmu_goes_as_in_qemu(debian_pair: DebianPair, folder: Path) -> None:
    """SLB set up, translation on; a segment fault on vmemmap; the first page fault (0x300)."""
    images = {
        "kernel": ("vmlinux", debian_pair.vmlinux.read_bytes()),
        "purgatory": ("kexec", debian_pair.kexec.read_bytes()),
    }
    spec = RunSpec(
        mode="load-panic", cpus=1, mem_bytes=RAM_BYTES, checks=False, append="disable_radix"
    )
    for pair in start(prepare(spec, images), folder):
        find = pair.run.kernel.symbols.get
        loaded = LOAD_ADDR  # added to an address that the kernel is linked at
        pair.go(loaded + find("slb_initialize") + LOCAL_ENTRY)
        pair.step(300)
        pair.go(loaded + find("start_kernel") + LOCAL_ENTRY)
        pair.step(2_600)  # up to the first mftb
        pair.go(loaded + find("smp_release_cpus") + LOCAL_ENTRY)
        pair.step(1_000)
        pair.go(loaded + find("__init_single_page.constprop.0"))
        pair.step(4_000)  # its store takes 0x380
        pair.go(loaded + find("do_hash_fault") + LOCAL_ENTRY)
        pair.step(150)


@pytest.mark.parametrize("name", ["kdump-be", "kdump-le"])
def test_sample_pairs_go_as_in_qemu(name: str, folder: Path) -> None:
    """Hand-over and the begin of the digest; the sample's whole kernel, in both byte orders."""
    sample = get_sample(name)
    images = {
        "kernel": (sample.kernel, sample.kernel_bytes()),
        "purgatory": (sample.purgatory, sample.purgatory_bytes()),
    }
    spec = RunSpec(mode=sample.mode, cpus=1, mem_bytes=RAM_BYTES)
    for pair in start(prepare(spec, images), folder):
        pair.step(2_000)
        pair.go(pair.run.placement.kernel_addr)
        pair.step(2_600)
        assert pair.run.where(0)[1].startswith("cpu_idle")


def test_a_difference_is_noticed(folder: Path) -> None:
    sample = get_sample("kdump-le")
    images = {
        "kernel": (sample.kernel, sample.kernel_bytes()),
        "purgatory": (sample.purgatory, sample.purgatory_bytes()),
    }
    for pair in start(prepare(RunSpec(mode="load", mem_bytes=RAM_BYTES), images), folder):
        pair.step(5)
        pair.qemu.set_registers(pair.qemu.registers() | {"r29": 1})
        with pytest.raises(AssertionError, match="r29"):
            pair.step(5)
