"""The machine against two captured hand-offs, register by register.

Started from a captured state over captured memory, a CPU goes through every recorded step with
the recorded instruction, nip, msr, cr, lr, ctr, xer and r0..r31. Where it cannot, the table
`KNOWN` says why; its rows are shown as expected failures.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from app.debian import DebianPair
from emulator.handoff import LOW_COPY_BYTES
from emulator.images import KernelImage, read_kernel, read_purgatory
from emulator.machine import Machine
from emulator.placement import LoadOptions, place
from emulator.recorder import Prepared, RunSpec
from emulator.run import Record, Run
from tests.differential.captures import CASES, Capture, Difference, differences, run_to, walk

pytestmark = pytest.mark.real

BOOT, SECONDARY = "p01.01", "p01.02"
SPR_PVR, PVR_CAPTURED, PVR_OURS = 287, 0x004E1200, 0x00800100


@dataclass(frozen=True)
class Known:
    """A register that differs at some steps, and why it must."""

    where: str
    register: str
    reason: str


KNOWN = (
    Known("steps_kernel_entry", "r0", "mfspr r0,PVR: Unicorn's CPU is a POWER10, theirs a POWER9"),
)

MILESTONES = {
    "kdump_c_smp2": (
        ("relocate done", 0x2000D088),
        ("early_setup", 0x2200A3C4),
        ("start_here_common", 0x2000D974),
        ("start_kernel", 0x22003CD0),
        ("smp_release_cpus+8", 0x2002FD88),
    ),
    "kexec_c_smp2": (
        ("relocate done", 0x289D088),
        ("copy #1 done", 0x289D0C8),
        ("4: now at 0-copy", 0xD0E0),
        ("copy done -> start_here_multiplatform", 0xD0F0),
        ("start_here_multiplatform", 0xD8CC),
        ("early_setup", 0x200A3C4),
        ("start_here_common", 0xD974),
        ("start_kernel", 0x2003CD0),
        ("smp_release_cpus+8", 0x2FD88),
    ),
}
LOW_MEMORY = {"early_setup": "low64k_at_early_setup", "start_kernel": "low64k_at_start_kernel"}


@pytest.fixture(scope="module")
def kernel(debian_pair: DebianPair) -> KernelImage:
    return read_kernel(debian_pair.vmlinux.read_bytes(), "vmlinux")


@pytest.fixture(params=CASES)
def capture(request: pytest.FixtureRequest) -> Capture:
    return Capture(request.param)


def shown(found: list[tuple[int, Difference]], where: str) -> list[str]:
    """Differences that the table does not know."""
    known = {row.register for row in KNOWN if row.where == where}
    return [f"step {n}: {row}" for n, row in found if row.register not in known][:20]


def at_purgatory(capture: Capture, kernel: KernelImage) -> Machine:
    machine = capture.machine(kernel)
    machine.cpus[0].set_registers(capture.snapshot("purgatory_start", BOOT))
    return machine


def at_kernel(capture: Capture, kernel: KernelImage) -> Machine:
    machine = capture.machine(kernel, after_purgatory=True)
    machine.cpus[0].set_registers(capture.snapshot("kernel entry (BE)", BOOT))
    return machine


def test_purgatory_goes_through_every_captured_step(capture: Capture, kernel: KernelImage) -> None:
    steps = capture.steps("steps_purgatory")
    assert (len(steps), steps[-1].index) == (20_000, 20_018)
    found = walk(at_purgatory(capture, kernel), 0, steps)
    assert shown(found, "steps_purgatory") == []


def test_secondary_goes_through_every_captured_step(capture: Capture, kernel: KernelImage) -> None:
    machine = at_purgatory(capture, kernel)
    machine.cpus[1].set_registers(capture.snapshot("slave60_p01.02", SECONDARY))
    steps = capture.steps("steps_secondary_p01_02")
    assert len(steps) == 400
    assert shown(walk(machine, 1, steps), "steps_secondary") == []
    assert machine.read(0, 0x1000) == capture.memory("low4k_secondaries_parked")


def test_kernel_entry_goes_through_every_captured_step(
    capture: Capture, kernel: KernelImage
) -> None:
    steps = capture.steps("steps_kernel_entry")
    assert len(steps) >= 60
    found = walk(at_kernel(capture, kernel), 0, steps)
    assert shown(found, "steps_kernel_entry") == []
    values = {(row.ours, row.captured) for _, row in found}
    assert values == {(PVR_OURS, PVR_CAPTURED), (PVR_OURS >> 16, PVR_CAPTURED >> 16)}


def test_kernel_entry_does_not_differ_at_all_given_the_captured_pvr(
    capture: Capture, kernel: KernelImage
) -> None:
    """The reason in the table is the whole reason."""
    machine = at_kernel(capture, kernel)
    machine.cpus[0].set_sprs({SPR_PVR: PVR_CAPTURED})
    assert walk(machine, 0, capture.steps("steps_kernel_entry")) == []


def test_kdump_kernel_goes_through_every_step_after_our_own_relocate(kernel: KernelImage) -> None:
    """From the kernel's entry on the machine is left alone: registers and memory are its own."""
    capture = Capture("kdump_c_smp2")
    machine = at_kernel(capture, kernel)
    run_to(machine, 0, 0x2000D088)
    steps = capture.steps("steps_after_relocate")
    assert len(steps) == 14_375
    assert shown(walk(machine, 0, steps), "steps_after_relocate") == []


def test_milestones_and_released_secondary(capture: Capture, kernel: KernelImage) -> None:
    """The kernel runs on by itself from its entry for 25 to 50 million instructions.

    At every captured milestone its registers are compared, at two of them the low 64 KiB; then the
    secondary goes through its captured steps over the memory that our boot CPU left.
    """
    machine = at_kernel(capture, kernel)
    for name, addr in MILESTONES[capture.case]:
        run_to(machine, 0, addr)
        rows = differences(machine.cpus[0].registers().named(), capture.snapshot(name, BOOT))
        assert shown([(machine.tick, row) for row in rows], name) == [], name
        if name in LOW_MEMORY:
            assert machine.read(0, 0x10000) == capture.memory(LOW_MEMORY[name]), name
    machine.run(0, machine.tick + 2000, exact=True)
    steps = capture.steps("steps_generic_secondary_p01_02")
    released = int.from_bytes(machine.read(0x38, 8), "little")
    assert released == steps[0].state["nip"]
    machine.cpus[1].set_registers(steps[0].state)
    assert shown(walk(machine, 1, steps), "steps_generic_secondary") == []


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: f"{row.where}-{row.register}")
def test_known_difference(
    row: Known, capture: Capture, kernel: KernelImage, request: pytest.FixtureRequest
) -> None:
    """Each row of the table as an expected failure: one that no longer differs must go."""
    request.applymarker(pytest.mark.xfail(reason=row.reason, strict=True))
    machine = at_kernel(capture, kernel)
    found = [difference for _, difference in walk(machine, 0, capture.steps(row.where))]
    assert row.register not in {difference.register for difference in found}


# --- our own old kernel's hand-over -------------------------------------------------------------


class Own:
    """A run with our own hand-over, its CPUs at the places where the captured ones were seen."""

    def __init__(self, capture: Capture, kernel: KernelImage, pair: DebianPair) -> None:
        self.capture = capture
        purgatory = read_purgatory(pair.kexec.read_bytes(), "kexec")
        panic = capture.case.startswith("kdump")
        base = capture.addresses["kernel"]
        options = LoadOptions(panic=panic, cpus=2, mem_bytes=2 << 30, base_addr=base)
        self.placement = place(kernel, purgatory, options)
        events: list[Record] = []
        spec = RunSpec(mode="load-panic" if panic else "load", cpus=2, mem_bytes=2 << 30)
        self.run: Run = Prepared(spec, kernel, self.placement).start(events.append)
        machine = self.run.machine
        run_to(machine, 0, self.placement.entry_addr)
        self.boot = machine.cpus[0].registers().named()
        run_to(machine, 1, 0x60)
        self.secondary = machine.cpus[1].registers().named()


@pytest.fixture(params=CASES)
def own(request: pytest.FixtureRequest, kernel: KernelImage, debian_pair: DebianPair) -> Own:
    return Own(Capture(request.param), kernel, debian_pair)


def test_boot_cpu_enters_purgatory_in_the_captured_state(own: Own) -> None:
    theirs = own.capture.snapshot("purgatory_start", BOOT)
    entry = own.placement.entry_addr
    assert theirs["nip"] == theirs["r4"] == theirs["lr"] == own.capture.addresses["entry"]
    assert (own.boot["nip"], own.boot["r4"], own.boot["lr"]) == (entry, entry, entry)
    same = ("r3", "r5")
    assert {name: own.boot[name] for name in same} == {name: theirs[name] for name in same}
    leftovers = 0x02802000  # VEC, VSX and FP: what the old kernel had switched on last
    assert own.boot["msr"] == theirs["msr"] & ~leftovers


def test_secondary_arrives_at_0x60_in_the_captured_state(own: Own) -> None:
    theirs = own.capture.snapshot("slave60_p01.02", SECONDARY)
    for name in ("nip", "msr", "r3", "r4", "r10"):
        assert own.secondary[name] == theirs[name], name
    flag = own.run.machine.read(own.secondary["r5"], 4)
    assert int.from_bytes(flag, "little") == own.secondary["r4"] == 1
    linear = (1 << 60) - 1
    assert theirs["r5"] & linear < own.capture.addresses["kernel"]


def test_0x60_bytes_are_the_captured_ones_when_the_secondary_arrives(own: Own) -> None:
    """The first 0x100 bytes at 0 are those of purgatory's entry: the kernel's but for one."""
    ours = own.run.machine.read(0, LOW_COPY_BYTES)
    assert ours == own.capture.memory("low64k_at_entry")[:LOW_COPY_BYTES]
