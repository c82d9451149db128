"""TABLE: hypercalls of a pseries partition and what each answers.

What it is: one row a hypercall, with the function that answers it, and the little state that
answers leave behind. What it is not: a full hypervisor. A call that is not in the table is
answered H_FUNCTION and named in an event, as a hypervisor without that function would.

Source: Linux arch/powerpc/include/asm/hvcall.h (numbers), LoPAR 14.5 (arguments and answers).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from emulator.hashtable import HashTable
from emulator.machine import Machine
from emulator.papr import (
    H_FUNCTION,
    H_PARAMETER,
    H_SUCCESS,
    PROCESS_TABLE_DEREGISTER,
    PROCESS_TABLE_HASH,
    PROCESS_TABLE_NEW,
    PROCESS_TABLE_OPERATION,
    PROCESS_TABLE_RADIX,
    PROCESS_TABLE_TYPE,
    U64,
)
from emulator.ppc64 import SPR_SPRG0

SET_MODE_LITTLE_ENDIAN, SET_MODE_TRANSLATION = 4, 3  # LoPAR 14.5.4.3.4: resources of H_SET_MODE
CONSOLE_CALL_BYTES = 16
MAX_NOTES: Final = 1024
"""Notes of one hypercall in a run; a kernel that patches itself enters 33,000 pages one by one."""


@dataclass(frozen=True)
class Partition:
    """Where console output and notes of hypercalls go."""

    put_console: Callable[[int, bytes], None]
    """(cpu, bytes) as they come out of H_PUT_TERM_CHAR."""
    note: Callable[[int, str, int], None]
    """(cpu, text, number) for every call but those of the console."""
    random: Callable[[], int]
    """Next 64-bit number from the seed of the run."""
    counts: Counter[int] = field(default_factory=Counter)
    """How often each call was made."""

    def answer(self, machine: Machine, cpu: int, args: list[int]) -> list[int] | str:
        """Answer one hypercall: args are r3..r12, the result goes to r3.."""
        row = HYPERCALLS.get(args[0])
        if row is None:
            self.note(cpu, f"hypercall {args[0]:#x} is not implemented: H_FUNCTION", args[0])
            return [H_FUNCTION]
        self.counts[row.number] += 1
        if not row.quiet and self.counts[row.number] <= MAX_NOTES:
            given = ", ".join(f"{value:#x}" for value in args[1 : 1 + row.arguments])
            last = " (further calls of it are not noted)"
            more = last if self.counts[row.number] == MAX_NOTES else ""
            self.note(cpu, f"{row.name}({given}){more}", row.number)
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
    flags, base = args[:2]
    operation, kind = flags & PROCESS_TABLE_OPERATION, flags & PROCESS_TABLE_TYPE
    if operation == PROCESS_TABLE_NEW and kind == PROCESS_TABLE_RADIX:
        machine.set_process_table(base & 0x0FFFFFFFFFFFF000)
        return [H_SUCCESS]
    if operation == PROCESS_TABLE_DEREGISTER or kind == PROCESS_TABLE_HASH:
        machine.set_process_table(-1)
        return [H_SUCCESS]
    return [H_PARAMETER]


def _on_table(call: Callable[[HashTable, list[int]], list[int]], *, narrows: bool) -> Answer:
    """A call on the hashed page table; `narrows`: a translation may be taken away by it."""

    def answer(partition: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
        if not len(machine.hash_table.words):
            return [H_FUNCTION]
        values = call(machine.hash_table, args)
        if narrows:
            machine.flush_tlbs()
        return values

    return answer


def _set_sprg0(p: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
    machine.cpus[cpu].set_sprs({SPR_SPRG0: args[0]})
    return [H_SUCCESS]


def _random(p: Partition, machine: Machine, cpu: int, args: list[int]) -> list[int]:
    return [H_SUCCESS, p.random()]


HYPERCALLS: Final[dict[int, Hypercall]] = {
    row.number: row
    for row in (
        Hypercall(0x04, "H_REMOVE", 3, _on_table(HashTable.remove, narrows=True), "page table"),
        Hypercall(0x08, "H_ENTER", 4, _on_table(HashTable.enter, narrows=False), "page table"),
        Hypercall(0x0C, "H_READ", 2, _on_table(HashTable.read, narrows=False), "page table"),
        Hypercall(
            0x10, "H_CLEAR_MOD", 2, _on_table(HashTable.clear_modified, narrows=False), "page table"
        ),
        Hypercall(
            0x14,
            "H_CLEAR_REF",
            2,
            _on_table(HashTable.clear_referenced, narrows=False),
            "page table",
        ),
        Hypercall(0x18, "H_PROTECT", 3, _on_table(HashTable.protect, narrows=True), "page table"),
        Hypercall(0x24, "H_SET_SPRG0", 1, _set_sprg0, "for a guest that may not"),
        Hypercall(0x28, "H_SET_DABR", 1, _constant(H_SUCCESS), "never matches"),
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
        Hypercall(0x134, "H_SET_XDABR", 2, _constant(H_SUCCESS), "never matches"),
        Hypercall(
            0x158, "H_BULK_REMOVE", 8, _on_table(HashTable.bulk_remove, narrows=True), "page table"
        ),
        Hypercall(0x1C8, "H_GET_CPU_CHARACTERISTICS", 0, _constant(H_FUNCTION), "not offered"),
        Hypercall(0x2EC, "H_HOME_NODE_ASSOCIATIVITY", 2, _constant(H_FUNCTION), "one node"),
        Hypercall(0x300, "H_RANDOM", 0, _random, "from the seed of the run"),
        Hypercall(0x31C, "H_SET_MODE", 4, _set_mode, "byte order and place of interrupts"),
        Hypercall(0x37C, "H_REGISTER_PROC_TBL", 4, _register_process_table, "radix or hash"),
        Hypercall(0x380, "H_SIGNAL_SYS_RESET", 1, _constant(H_FUNCTION), "not offered"),
    )
}
