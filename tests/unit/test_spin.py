"""What counts as a spin, on loops that really run."""

from __future__ import annotations

import pytest

from emulator.spin import PROBE_STEPS, Spin, find_spin
from tests import asm
from tests.unit.test_machine import make


def probe(*words: int, **registers: int) -> Spin | None:
    machine = make(*words)
    machine.cpus[0].set_registers(registers)
    return find_spin(machine.trace_steps(0, PROBE_STEPS))


def test_branch_to_itself() -> None:
    spin = probe(asm.NOP, asm.b(0))
    assert spin is not None
    assert (len(spin.steps), spin.reads) == (1, ())


def test_polling_says_what_it_reads() -> None:
    spin = probe(asm.ld(12, 0x38, 0), asm.cmpdi(12, 0), asm.beq(-8))
    assert spin is not None
    assert spin.reads == ((0x38, 8),)


def test_polling_through_a_register_and_halfway_in() -> None:
    spin = probe(asm.li(9, 0), asm.lwz(4, -4, 5), asm.cmpdi(4, 0), asm.beq(-8), r5=0x1004)
    assert spin is not None
    assert set(spin.reads) == {(0x1000, 4)}


@pytest.mark.parametrize(
    "loop",
    [
        pytest.param((asm.li(4, 9999), asm.mtctr(4), asm.bdnz(0)), id="delay"),
        pytest.param((asm.addi(3, 3, 1), asm.b(-4)), id="counter"),
        pytest.param((asm.std(3, 0x200, 0), asm.b(-4)), id="store"),
        pytest.param((asm.mfspr(3, asm.SPR_TB), asm.b(-4)), id="timebase"),
    ],
)
def test_loops_that_do_something_are_none(loop: tuple[int, ...]) -> None:
    assert probe(*loop) is None


def test_store_of_the_same_value_is_not_proved_harmless() -> None:
    assert probe(asm.li(3, 0), asm.stw(3, 0x200, 0), asm.b(-4)) is None
