"""Loops are found with their exact counts, however the run is cut; the oracle steps one by one."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from app.debian import DebianPair
from emulator import loopkinds, samples
from emulator.loopkinds import kind_at
from emulator.loops import Loop
from emulator.machine import Machine
from emulator.ppc64 import MSR_LE, MSR_ME, MSR_SF
from emulator.recorder import Recorder, RunSpec, prepare
from emulator.samples import SAMPLES
from tests import asm

RAM_BYTES = 16 << 20
BASE = 0x10000
LITTLE, BIG = MSR_SF | MSR_ME | MSR_LE, MSR_SF | MSR_ME
LINEAR = 0xC000000000000000
MFLR_11, MTLR_11, MTCTR_11 = asm.mfspr(11, 8), asm.mtspr(8, 11), asm.mtctr(11)


def make(*words: int, msr: int = LITTLE, cpus: int = 1) -> Machine:
    machine = Machine(RAM_BYTES, cpus, hypercall=lambda machine, cpu, args: [0])
    machine.write(BASE, asm.code(*words, big_endian=not msr & MSR_LE))
    for cpu in machine.cpus:
        cpu.set_registers({"nip": BASE, "msr": msr})
    return machine


def finish(machine: Machine) -> list[Loop]:
    return machine.close_loops()


def rows(loops: list[Loop]) -> list[tuple[int, ...]]:
    """(level, head and tail from BASE in words, begin, end, ticks, turns, entries)"""
    return [
        (x.level, (x.head - BASE) // 4, (x.tail - BASE) // 4, x.first, x.last, x.ticks, x.turns,
         x.entries)
        for x in loops
    ]  # fmt: skip


COPY = (
    asm.li(4, 100),
    asm.mtctr(4),
    asm.lwz(5, 0, 3),
    asm.stw(5, 0x100, 3),
    asm.addi(3, 3, 4),
    asm.bdnz(-12),
    asm.b(0),
)


@pytest.mark.parametrize("msr", [LITTLE, BIG])
def test_a_loop_is_counted_from_its_first_turn(msr: int) -> None:
    machine = make(*COPY, msr=msr)
    machine.run(0, 600, exact=True)
    copy, spin = finish(machine)
    assert rows([copy, spin]) == [(0, 2, 5, 2, 402, 400, 100, 1), (0, 6, 6, 402, 600, 198, 198, 1)]
    assert (copy.kind, spin.kind) == ("copy", "delay")


TWICE = (
    asm.li(5, 100),
    asm.bl(12),
    asm.bl(8),
    asm.b(0),
    asm.addi(10, 5, 1),  # 4: memcpy of the purgatory, which comes back to its bdnz
    asm.mtctr(10),
    asm.bdnz(8),  # 6: the head
    asm.BLR,
    asm.addi(9, 9, 1),
    asm.b(-12),
)


def test_a_second_call_is_counted_from_its_first_turn_too() -> None:
    machine = make(*TWICE)
    machine.run(0, 700, exact=True)
    first, second = finish(machine)
    assert rows([first, second]) == [
        (0, 6, 9, 4, 306, 302, 101, 1),  # its last line has the blr too
        (0, 6, 9, 309, 611, 302, 101, 1),
    ]


def test_small_loops_are_not_told_of() -> None:
    machine = make(asm.li(4, 20), asm.mtctr(4), asm.bdnz(0), asm.NOP, asm.b(-4))
    machine.run(0, 600, exact=True)
    assert rows(finish(machine)) == [(0, 3, 4, 22, 600, 578, 289, 1)]


NESTED = (
    asm.li(6, 10),
    asm.li(4, 30),  # 1: the outer head
    asm.mtctr(4),
    asm.NOP,  # 3: the inner head
    asm.bdnz(-4),
    asm.addi(6, 6, -1),
    asm.cmpdi(6, 0),
    asm.bne(-24),
    asm.b(0),
)


def test_a_loop_in_a_loop_is_one_row_of_it() -> None:
    machine = make(*NESTED)
    machine.run(0, 651, exact=True)
    assert rows(finish(machine))[:2] == [
        (0, 1, 7, 1, 651, 650, 10, 1),
        (1, 3, 4, 3, 648, 600, 300, 10),
    ]


CALLING = (
    asm.li(6, 40),
    asm.bl(24),  # 1: the outer head; to 7
    asm.addi(6, 6, -1),
    asm.cmpdi(6, 0),
    asm.bne(-12),
    asm.b(0),
    asm.NOP,
    MFLR_11,  # 7: a function whose stub comes back through CTR, as _mcount does
    asm.bl(24),  # to 14
    MTLR_11,
    asm.li(4, 5),
    asm.mtctr(4),
    asm.bdnz(0),  # 12
    asm.BLR,
    asm.mfspr(12, 8),
    asm.mtctr(12),
    asm.BCTR,
)


def test_a_loop_goes_on_in_what_it_calls() -> None:
    machine = make(*CALLING)
    machine.run(0, 1 + 40 * 18, exact=True)
    outer, inner = finish(machine)[:2]
    assert rows([outer]) == [(0, 1, 4, 1, 721, 720, 40, 1)]
    assert (inner.level, (inner.head - BASE) // 4, inner.turns, inner.entries) == (1, 12, 200, 40)


JUMPED_INTO = (
    asm.li(6, 100),
    asm.b(12),  # to the condition
    asm.NOP,  # 2: the head
    asm.addi(6, 6, -1),
    asm.cmpdi(6, 0),  # 4
    asm.bne(-12),
    asm.b(0),
)


def test_a_loop_that_is_jumped_into_begins_with_its_first_turn() -> None:
    machine = make(*JUMPED_INTO)
    machine.run(0, 404, exact=True)
    assert rows(finish(machine))[:1] == [(0, 2, 5, 4, 404, 400, 100, 1)]


def test_a_branch_back_to_another_function_is_no_loop() -> None:
    functions = [word for _ in range(60) for word in (asm.NOP, asm.BLR)]
    calls = [asm.bl(-4 * (2 * n + 1 + n)) for n in range(1, 40)]
    start = 4 * len(functions)
    machine = make(*functions, *calls, asm.b(0))
    machine.cpus[0].set_registers({"nip": BASE + start})
    machine.run(0, 200, exact=True)
    assert [loop for loop in finish(machine) if loop.tail != loop.head] == []


def test_a_handler_does_not_end_the_loop_that_it_interrupts() -> None:
    machine = make(asm.li(4, 100), asm.mtctr(4), asm.sc(), asm.bdnz(-4), asm.b(0))
    machine.write(0xC00, asm.code(asm.NOP, asm.RFID))
    machine.interrupts_little_endian = True
    machine.run(0, 402, exact=True)
    assert rows(finish(machine))[:1] == [(0, 2, 3, 2, 402, 400, 100, 1)]


def test_ticks_of_other_cpus_are_not_a_loops_own() -> None:
    machine = make(*NESTED, cpus=3)
    pick = random.Random(3)
    left = [651, 651, 651]
    while any(left):
        cpu = pick.randrange(3)
        count = min(left[cpu], pick.choice((1, 2, 3, 7, 50, 111)))
        machine.run(cpu, machine.tick + count, exact=True)
        left[cpu] -= count
    found = finish(machine)
    for cpu in range(3):
        own = [(x.level, x.ticks, x.turns, x.entries) for x in found if x.cpu == cpu]
        assert own == [(0, 650, 10, 1), (1, 600, 300, 10)]


def test_the_end_of_a_run_ends_a_loop_where_its_cpu_stopped() -> None:
    machine = make(asm.b(0), cpus=3)
    for cpu, until in ((1, 300), (0, 500), (2, 900), (0, 1000)):
        machine.run(cpu, until, exact=True)
    spans = {x.cpu: (x.first, x.last, x.ticks, x.turns) for x in finish(machine)}
    assert spans == {0: (300, 1000, 300, 300), 1: (0, 300, 300, 300), 2: (500, 900, 400, 400)}


@pytest.mark.parametrize("program", [COPY, NESTED, CALLING, JUMPED_INTO])
def test_where_a_run_is_cut_does_not_matter(program: tuple[int, ...]) -> None:
    straight = make(*program)
    straight.run(0, 700, exact=True)
    want = finish(straight)
    assert want
    for seed in range(20):
        pick = random.Random(seed)
        machine = make(*program)
        while machine.tick < 700:
            step = min(700, machine.tick + pick.choice((1, 2, 3, 5, 64, 99)))
            if pick.random() < 0.2:
                machine.trace_steps(0, step - machine.tick)
            else:
                machine.run(0, step, exact=True)
        assert finish(machine) == want


def test_the_turn_is_known_at_every_tick() -> None:
    machine = make(*NESTED)
    seen: list[tuple[int, list[tuple[int, int]]]] = []
    while machine.tick < 300:
        machine.run(0, machine.tick + 1, exact=True)
        standing = [((x.head - BASE) // 4, x.turn) for x in machine.loops.standing(0)]
        seen.append((machine.tick, standing))
    at = dict(seen)
    assert at[3 + 2 * 9 + 1] == [(3, 10)]  # the tenth turn; nobody knows of the outer loop yet
    assert at[1 + 65 + 1] == [(1, 2)]
    assert at[1 + 65 + 2 + 2 * 9 + 1] == [(1, 2), (3, 10)]


def test_rows_are_taken_before_there_is_no_room() -> None:
    """A program of 5,000 nests, more than the table holds, loses none."""
    machine = make(
        asm.li(6, 5000), asm.bl(24), asm.addi(6, 6, -1), asm.cmpdi(6, 0), asm.beq(4), asm.b(-16),
        asm.b(0), asm.li(4, 200), asm.mtctr(4), asm.bdnz(0), asm.BLR,
    )  # fmt: skip
    taken: list[Loop] = []
    while machine.tick < 1_000_000:
        if machine.run(0, 1_000_000, exact=True).why == "log":
            taken += machine.loops.take()
    taken += finish(machine)
    assert sum(loop.turns for loop in taken if loop.tail == loop.head and loop.level == 1) > 960_000


def test_closing_sixteen_cpus_stays_within_the_table() -> None:
    """Each has as many rows waiting as it can: together more than are told of at once."""
    outer = [asm.li(6, 2)]
    for _ in range(120):
        outer += [asm.li(4, 70), asm.mtctr(4), asm.addi(7, 7, 1), asm.bdnz(-4)]
    machine = make(*outer, asm.b(0), cpus=16)
    for cpu in range(16):
        machine.run(cpu, machine.tick + 1 + 120 * (2 + 140), exact=True)
    found = finish(machine)
    assert [sum(x.cpu == cpu for x in found) for cpu in range(16)] == [120] * 16
    assert all((x.turns, x.ticks) == (70, 140) for x in found)


KINDS: dict[str, tuple[int, ...]] = {
    "delay": (asm.bdnz(0),),
    "spin": (asm.lwz(3, 0, 4), asm.cmpdi(3, 0), asm.beq(-8)),
    "scan": (asm.lbz(3, 0, 4), asm.addi(4, 4, 1), asm.cmpdi(3, 0), asm.bne(-12)),
    "fill": (asm.stw(3, 0, 4), asm.addi(4, 4, 4), asm.bdnz(-8)),
    "copy": COPY[2:6],
    "update": (asm.lwz(3, 0, 4), asm.stw(3, 0, 4), asm.stw(3, 8, 4), asm.bdnz(-12)),
    "compute": (asm.addi(3, 3, 1),) * 5 + (asm.bdnz(-20),),
    "call": (asm.bl(64), asm.bdnz(-4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_says_what_it_does(kind: str) -> None:
    for order in ("<u4", ">u4"):
        memory = np.array([0, *KINDS[kind]], order).view("<u4")
        assert loopkinds.KINDS[kind_at(memory, 1, len(KINDS[kind]), order == "<u4")] == kind


# --- what really ran: visits of the head, counted one instruction at a time -----------------------


def _judge(recorder: Recorder, steps: int) -> Counter[str]:
    """Step a hand-off and compare each loop with how often its head was visited meanwhile."""
    run = recorder.run
    visits: list[tuple[int, int, int]] = []
    emitted: list[dict[str, object]] = []
    recorder.run._emit = lambda record: emitted.append(record) if record["t"] == "loop" else None
    while run.machine.tick < steps:
        begin = run.machine.tick
        for n, step in enumerate(run.machine.trace_steps(0, 64)):
            visits.append((begin + n, 0, step.nip))
    run.close_loops()
    checked: Counter[str] = Counter()
    for loop in emitted:
        head, tail = int(str(loop["head"]), 16), int(str(loop["tail"]), 16)
        inside = [row for row in visits if loop["begin"] <= row[0] < loop["end"]]  # type: ignore[operator]
        assert inside[0][2] == head, loop
        if loop["level"] == 0:
            assert sum(row[2] == head for row in inside) == loop["turns"], loop
            assert len(inside) == loop["ticks"], loop
            after = [nip for tick, _, nip in visits if tick == loop["end"]]
            assert not after or not head <= after[0] <= tail, loop
        checked[str(loop["kind"])] += 1
    return checked


def _recorder(spec: dict[str, object], kernel: bytes, purgatory: bytes) -> Recorder:
    images = {"kernel": ("vmlinux", kernel), "purgatory": ("purgatory", purgatory)}
    return Recorder(prepare(RunSpec.from_json(spec), images), lambda record: None)


@pytest.mark.parametrize("name", ["kdump-le", "kdump-be"])
def test_loops_of_a_sample_are_those_that_its_steps_show(name: str) -> None:
    sample = next(sample for sample in SAMPLES if sample.name == name)
    spec: dict[str, object] = {"mode": sample.mode, "cpus": 1}
    folder = Path(samples.__file__).parent
    kernel, purgatory = ((folder / x).read_bytes() for x in (sample.kernel, sample.purgatory))
    recorder = _recorder(spec, kernel, purgatory)
    assert _judge(recorder, 20_000)


def test_loops_of_debians_purgatory_are_those_that_its_steps_show(debian_pair: DebianPair) -> None:
    spec: dict[str, object] = {"mode": "load-panic", "cpus": 1, "debug": True}
    recorder = _recorder(spec, debian_pair.vmlinux.read_bytes(), debian_pair.kexec.read_bytes())
    assert _judge(recorder, 30_000)["copy"] == 1
