"""TABLE: hypercalls of a pseries partition and what each answers.

What it is: one row a hypercall, with the function that answers it, and the little state that
answers leave behind. What it is not: a full hypervisor. A call that is not in the table is
answered H_FUNCTION and named in an event, as a hypervisor without that function would.

Source: Linux arch/powerpc/include/asm/hvcall.h (numbers), LoPAR 14.5 (arguments and answers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from emulator.machine import Machine

U64: Final = (1 << 64) - 1
H_SUCCESS: Final = 0
H_FUNCTION: Final = -2 & U64
H_PARAMETER: Final = -4 & U64

SET_MODE_LITTLE_ENDIAN, SET_MODE_TRANSLATION = 4, 3  # LoPAR 14.5.4.3.4: resources of H_SET_MODE
CONSOLE_CALL_BYTES = 16


@dataclass(frozen=True)
class Partition:
    """Where console output and notes of hypercalls go."""

    put_console: Callable[[int, bytes], None]
    """(cpu, bytes) as they come out of H_PUT_TERM_CHAR."""
    note: Callable[[int, str, int], None]
    """(cpu, text, number) for every call but those of the console."""
    random: Callable[[], int]
    """Next 64-bit number from the seed of the run."""

    def answer(self, machine: Machine, cpu: int, args: list[int]) -> list[int] | str:
        """Answer one hypercall: args are r3..r12, the result goes to r3.."""
        row = HYPERCALLS.get(args[0])
        if row is None:
            self.note(cpu, f"hypercall {args[0]:#x} is not implemented: H_FUNCTION", args[0])
            return [H_FUNCTION]
        if not row.quiet:
            given = ", ".join(f"{value:#x}" for value in args[1 : 1 + row.arguments])
            self.note(cpu, f"{row.name}({given})", row.number)
        return row.answer(self, machine, cpu, args[1:])


Answer = Callable[[Partition, Machine, int, list[int]], list[int]]


@dataclass(frozen=True)
class Hypercall:
    """One hypercall."""

    number: int
    name: str
    arguments: int
    """How many registers from r4 on are shown."""
    answer: Answer
    note: str
    quiet: bool = False
    """Console traffic: shown as console, not as hypercall events."""


def _constant(*values: int) -> Answer:
    def answer(partition: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
        return [value & U64 for value in values]

    return answer


def _put_term_char(p: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
    length = args[1]
    if length > CONSOLE_CALL_BYTES:
        return [H_PARAMETER]
    p.put_console(cpu, b"".join(value.to_bytes(8, "big") for value in args[2:4])[:length])
    return [H_SUCCESS]


def _set_mode(p: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
    flags, resource = args[0], args[1]
    if resource == SET_MODE_LITTLE_ENDIAN:
        machine.interrupts_little_endian = bool(flags & 1)
        return [H_SUCCESS]
    if resource == SET_MODE_TRANSLATION:
        machine.interrupts_relocated = flags == 3
        return [H_SUCCESS]
    return [H_FUNCTION]


def _register_process_table(p: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
    machine.set_process_table(args[1] & 0x0FFFFFFFFFFFF000)
    return [H_SUCCESS]


def _random(p: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
    return [H_SUCCESS, p.random()]


HYPERCALLS: Final[dict[int, Hypercall]] = {
    row.number: row
    for row in (
        Hypercall(0x54, "H_GET_TERM_CHAR", 1, _constant(H_SUCCESS, 0), "nothing typed", quiet=True),
        Hypercall(0x58, "H_PUT_TERM_CHAR", 4, _put_term_char, "the console", quiet=True),
        Hypercall(0x64, "H_EOI", 1, _constant(H_SUCCESS), "no interrupts here"),
        Hypercall(0x68, "H_CPPR", 1, _constant(H_SUCCESS), "no interrupts here"),
        Hypercall(0x6C, "H_IPI", 2, _constant(H_SUCCESS), "no interrupts here"),
        Hypercall(0x74, "H_XIRR", 1, _constant(H_SUCCESS, 0), "no interrupt pending"),
        Hypercall(0xDC, "H_REGISTER_VPA", 3, _constant(H_SUCCESS), "never read"),
        Hypercall(0xE0, "H_CEDE", 0, _constant(H_SUCCESS), "goes on at once"),
        Hypercall(0xE4, "H_CONFER", 2, _constant(H_SUCCESS), "the scheduler decides anyway"),
        Hypercall(0xE8, "H_PROD", 1, _constant(H_SUCCESS), "nobody sleeps"),
        Hypercall(0x1C8, "H_GET_CPU_CHARACTERISTICS", 0, _constant(H_FUNCTION), "not offered"),
        Hypercall(0x2EC, "H_HOME_NODE_ASSOCIATIVITY", 2, _constant(H_FUNCTION), "one node"),
        Hypercall(0x300, "H_RANDOM", 0, _random, "from the seed of the run"),
        Hypercall(0x31C, "H_SET_MODE", 4, _set_mode, "byte order and place of interrupts"),
        Hypercall(0x37C, "H_REGISTER_PROC_TBL", 4, _register_process_table, "radix only"),
        Hypercall(0x380, "H_SIGNAL_SYS_RESET", 1, _constant(H_FUNCTION), "not offered"),
    )
}
