"""Debian's purgatory itself judges the placement: it hashes all segments and enters the kernel.

Bare Unicorn, no hooks but the address translation of real mode and the console: 1.6 thousand
million instructions, 2-3 seconds.
"""

import struct
from dataclasses import replace
from typing import Any

import pytest
import unicorn as uc
from unicorn import ppc_const as ppc

from app.debian import DebianPair
from emulator.images import read_kernel, read_purgatory
from emulator.placement import LoadOptions, Placement, place

pytestmark = pytest.mark.real

MEGABYTE = 1 << 20
TIMEOUT_MICROSECONDS = 60 * MEGABYTE
MISMATCH = b"sha256 digests do not match"


class Cpu:
    """One CPU over its own RAM, in real mode only."""

    def __init__(self, placed: Placement, cpu: int) -> None:
        self.console = b""
        self.engine = uc.Uc(uc.UC_ARCH_PPC, uc.UC_MODE_PPC64 | uc.UC_MODE_BIG_ENDIAN)
        self.engine.ctl_set_tlb_mode(uc.UC_TLB_VIRTUAL)
        self.engine.mem_map(0, placed.mem_bytes)
        self.engine.hook_add(uc.UC_HOOK_TLB_FILL, self._translate)
        self.engine.hook_add(uc.UC_HOOK_INTR, self._hypercall)
        for segment in placed.segments:
            self.engine.mem_write(segment.addr, bytes(segment.data))
        start = placed.cpu_starts[cpu]
        self.nip = start.nip
        self.engine.reg_write(ppc.UC_PPC_REG_MSR, start.msr)
        for number, value in start.gpr.items():
            self.engine.reg_write(ppc.UC_PPC_REG_0 + number, value)

    def _translate(self, engine: Any, vaddr: int, access: int, entry: Any, user: object) -> bool:
        entry.paddr = vaddr & 0x0FFFFFFFFFFFF000
        entry.perms = uc.UC_PROT_ALL
        return True

    def _hypercall(self, engine: Any, number: int, user: object) -> None:
        length = self.register(5)
        words = struct.pack(">QQ", self.register(6), self.register(7))
        self.console += words[: min(length, 16)]
        if MISMATCH in self.console:
            engine.emu_stop()
        engine.reg_write(ppc.UC_PPC_REG_3, 0)

    def register(self, number: int) -> int:
        return int(self.engine.reg_read(ppc.UC_PPC_REG_0 + number))

    @property
    def msr(self) -> int:
        return int(self.engine.reg_read(ppc.UC_PPC_REG_MSR))

    def run(self, until: int) -> int:
        """Run to an address (SMT priority hints end emu_start early); return where it stands."""
        for _ in range(1000):
            self.engine.emu_start(self.nip, until, timeout=TIMEOUT_MICROSECONDS)
            self.nip = int(self.engine.reg_read(ppc.UC_PPC_REG_PC))
            if self.nip == until or MISMATCH in self.console:
                break
        return self.nip


def load(pair: DebianPair, panic: bool) -> Placement:
    kernel = read_kernel(pair.vmlinux.read_bytes(), "vmlinux")
    purgatory = read_purgatory(pair.kexec.read_bytes(), "kexec")
    options = LoadOptions(panic=panic, debug=True, cpus=2, append="console=hvc0")
    return place(kernel, purgatory, options, initrd=b"initrd" * 20000)


@pytest.mark.parametrize("panic", [False, True])
def test_purgatory_accepts_the_digest_and_enters_the_kernel(
    debian_pair: DebianPair, panic: bool
) -> None:
    placed = load(debian_pair, panic)
    cpu = Cpu(placed, 0)
    assert cpu.run(placed.entry_addr) == placed.entry_addr
    # as captured: MSR 0x8000000000001003, r3 = physical id, r4 = LR = entry, r5 = 0
    assert cpu.msr == 0x8000000000001003
    assert [cpu.register(number) for number in (3, 4, 5, 6)] == [0, placed.entry_addr, 0, 0]
    assert cpu.engine.reg_read(ppc.UC_PPC_REG_LR) == placed.entry_addr
    low = bytes(cpu.engine.mem_read(0, 0x100))
    assert low == bytes(cpu.engine.mem_read(placed.entry_addr, 0x100))
    assert cpu.run(placed.kernel_addr) == placed.kernel_addr
    # as captured: big-endian, r3 = dt, r4 = kernel, r5 = 0, r6 = &run_at_load, r7 = flag
    assert cpu.msr & 1 == 0
    flag_addr = placed.purgatory_symbols["run_at_load"][0]
    expected = [placed.dt_addr, placed.kernel_addr, 0, flag_addr, placed.run_at_load, 0, 0]
    assert [cpu.register(number) for number in range(3, 10)] == expected
    flag = bytes(cpu.engine.mem_read(placed.kernel_addr + 0x5C, 4))
    assert flag == struct.pack("<I", 1 if panic else 0x72756E30)
    assert cpu.console.startswith(b"I'm in purgatory")


def test_wrong_digest_is_noticed(debian_pair: DebianPair) -> None:
    """One flipped byte of the kernel: purgatory says so and never reaches the kernel."""
    placed = load(debian_pair, panic=True)
    kernel = placed.segment("kernel")
    assert kernel is not None
    flipped = bytearray(kernel.data)
    flipped[0x100000] ^= 1
    broken = replace(
        placed,
        segments=tuple(
            replace(s, data=bytes(flipped)) if s.name == "kernel" else s for s in placed.segments
        ),
    )
    cpu = Cpu(broken, 0)
    assert cpu.run(placed.kernel_addr) != placed.kernel_addr
    assert MISMATCH in cpu.console
    spin = placed.purgatory_symbols["purgatory"][0] + 0x48  # b .
    for _ in range(2000):  # every character of the message ends emu_start
        cpu.engine.emu_start(cpu.nip, placed.kernel_addr, timeout=MEGABYTE // 4)
        cpu.nip = int(cpu.engine.reg_read(ppc.UC_PPC_REG_PC))
        if cpu.nip == spin:
            break
    assert placed.address_map.name_at(cpu.nip) == "purgatory+0x48/0x70"


def test_secondary_arrives_at_0x60_in_the_captured_state(debian_pair: DebianPair) -> None:
    """As captured: big-endian, MSR ...1002, r3 = physical id, r4 = 1, r5 = &kexec_flag, r10."""
    placed = load(debian_pair, panic=True)
    cpu = Cpu(placed, 1)
    cpu.engine.mem_write(placed.kexec_flag_addr, struct.pack("<I", 1))
    purgatory_head = placed.entry_addr
    cpu.engine.mem_write(0, bytes(cpu.engine.mem_read(purgatory_head, 0x100)))
    assert cpu.run(0x60) == 0x60
    assert cpu.msr == 0x8000000000001002
    expected = {3: 1, 4: 1, 5: placed.kexec_flag_addr, 10: 0x60, 11: 0x8000000000001002}
    assert {number: cpu.register(number) for number in expected} == expected
    assert cpu.run(0xB0) == 0xB0, "the hold loop's first read of __secondary_hold_spinloop"
    assert struct.unpack("<Q", cpu.engine.mem_read(0x40, 8)) == (1,)
