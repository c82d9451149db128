"""The machine on programs of a few instructions: exact ticks, watches, exceptions, shared code."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from emulator import native
from emulator.cpu import Registers
from emulator.machine import Access, Machine, Range, Step, Watch
from emulator.native import LOG_RANGE, LOG_READ, LOG_WRITE
from emulator.ppc64 import MSR_LE, MSR_ME, MSR_SF, SPR_SRR0, SPR_SRR1
from tests import asm

RAM_BYTES = 16 << 20
BASE = 0x10000
LITTLE, BIG = MSR_SF | MSR_ME | MSR_LE, MSR_SF | MSR_ME


def refuse(machine: Machine, cpu: int, args: list[int]) -> str:
    return f"hypercall {args[0]:#x}"


def make(
    *words: int,
    cpus: int = 1,
    msr: int = LITTLE,
    watches: tuple[Watch, ...] = (),
    ranges: tuple[Range, ...] = (),
    hypercall: Callable[[Machine, int, list[int]], list[int] | str] = refuse,
) -> Machine:
    machine = Machine(RAM_BYTES, cpus, watches=watches, ranges=ranges, hypercall=hypercall)
    machine.write(BASE, asm.code(*words, big_endian=not msr & MSR_LE))
    for cpu in machine.cpus:
        cpu.set_registers({"nip": BASE, "msr": msr})
    return machine


def accesses(machine: Machine, kind: int) -> list[Access]:
    return [row for row in machine.take_log() if row.kind == kind]


COUNTING = (
    asm.li(3, 0),
    asm.li(4, 50),
    asm.mtctr(4),
    asm.addi(3, 3, 1),
    asm.std(3, 0x100, 2),
    asm.ld(5, 0x100, 2),
    asm.bdnz(-12),
    asm.b(0),
)


def test_registers_round_trip() -> None:
    machine = make(asm.NOP)
    values = {f"r{n}": n * 0x0123456789ABCDEF % 2**64 for n in range(32)}
    values |= {"lr": 1, "ctr": 2**63, "cr": 0x12345678, "xer": 0xE004007F, "nip": BASE}
    machine.cpus[0].set_registers(values)
    named = machine.cpus[0].registers().named()
    assert {name: named[name] for name in values} == values


@pytest.mark.parametrize("msr", [LITTLE, BIG])
def test_every_tick_is_reached_exactly(msr: int) -> None:
    steps = make(*COUNTING, msr=msr).trace_steps(0, 120)
    assert [step.nip for step in steps[:5]] == [BASE, BASE + 4, BASE + 8, BASE + 12, BASE + 16]
    for tick in (0, 1, 2, 3, 4, 5, 6, 7, 50, 51, 119):
        machine = make(*COUNTING, msr=msr)
        machine.run(0, tick, exact=True)
        assert machine.tick == tick
        assert machine.cpus[0].registers() == steps[tick].registers


def test_slices_of_any_length_give_the_same_state() -> None:
    straight = make(*COUNTING)
    straight.run(0, 150, exact=True)
    cut = make(*COUNTING)
    rng = random.Random(1)
    while cut.tick < 150:
        cut.run(0, min(150, cut.tick + rng.randrange(1, 9)), exact=True)
    assert cut.cpus[0].registers() == straight.cpus[0].registers()
    assert cut.state_digest() == straight.state_digest()


def test_inexact_run_stops_at_a_block_and_makes_progress() -> None:
    machine = make(*COUNTING)
    assert machine.run(0, 9, exact=False).why == "limit"
    assert machine.tick == 7  # three instructions, then one turn of the loop
    assert machine.run(0, 8, exact=False).why == "limit"
    assert machine.tick == 8


def test_digest_sees_one_register_and_one_byte() -> None:
    first, second, third = make(asm.NOP), make(asm.NOP), make(asm.NOP)
    second.cpus[0].set_registers({"r7": 1})
    third.write(0x5000, b"\1")
    digests = {machine.state_digest() for machine in (first, second, third)}
    assert len(digests) == 3


def test_digest_after_take_dirty_still_sees_writes() -> None:
    one, other = make(*COUNTING), make(*COUNTING)
    for tick in (20, 60, 100):
        one.run(0, tick, exact=True)
        one.take_dirty()
        one.state_digest()
    one.run(0, 140, exact=True)
    other.run(0, 140, exact=True)
    assert one.state_digest() == other.state_digest()


@pytest.mark.parametrize("msr", [LITTLE, BIG])
def test_watched_accesses_are_logged_with_exact_ticks(msr: int) -> None:
    watch = Watch(0x40, 0x50, LOG_READ | LOG_WRITE)
    program = (
        asm.li(3, 0x1234),
        asm.std(3, 0x40, 0),
        asm.NOP,
        asm.lwz(4, 0x44, 0),
        asm.stb(3, 0x4F, 0),
        asm.std(3, 0x50, 0),
        asm.b(0),
    )
    machine = make(*program, msr=msr, watches=(watch,))
    machine.run(0, 10, exact=True)
    rows = [row for row in machine.take_log() if row.kind != LOG_RANGE]
    seen = [(row.kind, row.tick, row.nip - BASE, row.addr, row.size) for row in rows]
    assert seen == [
        (LOG_WRITE, 2, 4, 0x40, 8),
        (LOG_READ, 4, 12, 0x44, 4),
        (LOG_WRITE, 5, 16, 0x4F, 1),
    ]
    order = "little" if msr & MSR_LE else "big"
    stored = (0x1234).to_bytes(8, order)
    assert rows[0].value == int.from_bytes(stored, "big")
    assert machine.read(0x40, 8)[:4] == stored[:4]
    assert machine.read(0x50, 8) == stored
    word = int.from_bytes(stored[4:], order)
    assert machine.cpus[0].registers().gpr[4] == word


def test_watch_does_not_change_what_runs() -> None:
    watched = make(*COUNTING, watches=(Watch(0x100, 0x108, LOG_READ | LOG_WRITE),))
    plain = make(*COUNTING)
    for machine in (watched, plain):
        machine.run(0, 400, exact=True)
    assert watched.cpus[0].registers() == plain.cpus[0].registers()
    assert watched.read(0x100, 8) == plain.read(0x100, 8)
    assert len(accesses(watched, LOG_WRITE)) == 50


def test_watched_write_ends_an_inexact_slice() -> None:
    machine = make(*COUNTING, watches=(Watch(0x100, 0x108, LOG_WRITE),))
    stop = machine.run(0, 1000, exact=False)
    assert stop.why == "written"
    assert machine.tick == 7


def test_a_block_with_many_accesses_loses_none() -> None:
    stores = [asm.std(3, 8 * (n % 2), 0) for n in range(500)]
    machine = make(*stores, asm.b(0), watches=(Watch(0, 16, LOG_WRITE),))
    machine.run(0, 501, exact=True)
    assert len(accesses(machine, LOG_WRITE)) == 500


def test_many_hypercalls_end_a_slice_but_not_an_exact_one() -> None:
    def answer(machine: Machine, cpu: int, args: list[int]) -> list[int]:
        return [0]

    loop = (asm.sc(1), asm.b(-4))
    machine = make(*loop, hypercall=answer)
    assert machine.run(0, 10**6, exact=False).why == "limit"
    assert machine.tick < 10_000
    machine.run(0, 20_000, exact=True)
    assert machine.tick == 20_000


def test_ranges_are_logged_where_they_are_entered() -> None:
    program = (asm.NOP, asm.b(0x100 - 4))
    machine = make(*program, ranges=(Range(BASE + 0x100, BASE + 0x200, 5 | 1 << 20),))
    machine.write(BASE + 0x100, asm.code(asm.NOP, asm.b(0)))
    machine.run(0, 10, exact=True)
    rows = accesses(machine, LOG_RANGE)
    assert [(row.tick, row.nip, row.value & 0xFF) for row in rows][-1] == (2, BASE + 0x100, 5)


def test_stop_range_stops_exactly_there() -> None:
    ident = 1 | 1 << 20 | native.RANGE_STOP
    machine = make(asm.NOP, asm.b(0xFC), ranges=(Range(BASE + 0x100, BASE + 0x104, ident),))
    machine.write(BASE + 0x100, asm.code(asm.NOP, asm.NOP, asm.b(0)))
    machine.run(0, 1000, exact=False)
    assert (machine.tick, machine.cpus[0].nip) == (2, BASE + 0x100)


def test_hypercall_is_answered_and_counted() -> None:
    seen: list[list[int]] = []

    def answer(machine: Machine, cpu: int, args: list[int]) -> list[int]:
        seen.append(args[:2])
        return [7, 8]

    machine = make(asm.li(3, 0x58), asm.li(4, 9), asm.sc(1), asm.b(0), hypercall=answer)
    machine.run(0, 3, exact=True)
    assert (machine.tick, seen) == (3, [[0x58, 9]])
    assert machine.cpus[0].registers().gpr[3:5] == (7, 8)


def test_exception_goes_to_the_guests_vector() -> None:
    machine = make(asm.NOP, asm.TRAP, asm.NOP)
    machine.write(0x700, asm.code(asm.NOP, asm.b(0), big_endian=True))
    machine.run(0, 3, exact=True)
    cpu = machine.cpus[0]
    cpu.refresh()
    assert cpu.nip == 0x704
    assert cpu.spr(SPR_SRR0) == BASE + 4
    assert cpu.spr(SPR_SRR1) & 0x20000
    assert not cpu.msr & MSR_LE  # H_SET_MODE has not asked for little-endian interrupts


def test_exception_without_handler_ends_the_run() -> None:
    machine = make(asm.NOP, asm.TRAP)
    stop = machine.run(0, 100, exact=False)
    assert stop.why == "fault"
    assert "program check (0x700) with no handler" in stop.text
    assert (machine.tick, machine.cpus[0].nip) == (1, BASE + 4)


def test_access_outside_ram_is_a_storage_interrupt() -> None:
    machine = make(asm.lis(3, 0x7000), asm.ld(4, 0, 3), asm.b(0))
    stop = machine.run(0, 100, exact=True)
    assert stop.why == "fault"
    assert "data storage interrupt at 0x0000000070000000" in stop.text
    assert machine.tick == 1


def test_timebase_is_the_tick() -> None:
    machine = make(asm.NOP, asm.NOP, asm.mfspr(5, asm.SPR_TB), asm.NOP, asm.b(0))
    machine.run(0, 4, exact=True)
    assert machine.cpus[0].registers().gpr[5] == 2
    assert machine.tick == 4


@pytest.mark.parametrize("spr", [268, 308, 309, 849])
@pytest.mark.parametrize("msr", [LITTLE, BIG])
def test_every_clock_reads_the_tick(spr: int, msr: int) -> None:
    machine = make(asm.NOP, asm.mfspr(5, spr), asm.b(0), msr=msr)
    machine.run(0, 3, exact=True)
    assert machine.cpus[0].registers().gpr[5] == 1


def test_code_that_another_cpu_changes_is_seen() -> None:
    poll = (asm.li(3, 1), asm.b(-4))
    machine = make(*poll, cpus=2)
    machine.run(0, 20, exact=True)
    machine.cpus[1].set_registers({"nip": BASE + 0x100, "r4": asm.li(3, 2)})
    machine.write(BASE + 0x100, asm.code(asm.lis(5, 1), asm.stw(4, 0, 5), asm.b(0)))
    machine.run(1, 23, exact=True)
    machine.run(0, 26, exact=True)
    assert machine.cpus[0].registers().gpr[3] == 2


def test_code_in_a_watched_page_may_change_itself() -> None:
    watch = Watch(0x100, 0x110, LOG_WRITE)
    program = (asm.li(3, 1), asm.stw(4, 0x100, 0), asm.b(-8))
    machine = make(asm.NOP, watches=(watch,))
    machine.write(0x100, asm.code(*program))
    machine.cpus[0].set_registers({"nip": 0x100, "r4": asm.li(3, 2)})
    machine.run(0, 6, exact=True)
    assert machine.cpus[0].registers().gpr[3] == 2


def test_steps_say_what_ran() -> None:
    steps = make(*COUNTING).trace_steps(0, 9)
    assert [type(step) for step in steps] == [Step] * 9
    assert [step.word for step in steps[:3]] == list(COUNTING[:3])
    assert isinstance(steps[0].registers, Registers)


def test_counts_belong_to_each_cpu() -> None:
    machine = make(*COUNTING, cpus=2)
    machine.run(0, 10, exact=True)
    machine.run(1, 25, exact=True)
    machine.run(0, 30, exact=True)
    assert [cpu.retired for cpu in machine.cpus] == [15, 15]
