"""What one instruction really reads and writes: it is run with other values in its registers.

Two machines' worth of evidence for `emulator.operands`: with every register changed that the table
does not read, nothing but what it does not write may come out otherwise; and with one register
changed that it does read, something usually does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from emulator.machine import Machine
from emulator.operands import (
    COUNT,
    CR_READS,
    CR_WRITES,
    CTR,
    GPR_READS,
    GPR_WRITES,
    LR,
    PARTLY,
    READS,
    WRITES,
    masks_of,
)
from emulator.ppc64 import GPRS, MSR_FP, MSR_LE, MSR_ME, MSR_SF, SPR_SRR0, SPR_SRR1

RAM_BYTES, CODE = 1 << 20, 0x11000
MSR = MSR_SF | MSR_ME | MSR_FP | 1 << 25 | 1 << 23
XER_BITS = {2: 31, 3: 30, 4: 29, 5: 19, 6: 18}
"""Bit of a piece in `operands` -> bit of XER."""
Values = dict[str, int]


@dataclass(frozen=True)
class Outcome:
    """What came of an instruction."""

    registers: Values
    rest: tuple[object, ...]
    """Ticks, why it stopped, SRR0 and SRR1, and the memory that it wrote."""


class Oracle:
    """One machine that runs one instruction at a time."""

    def __init__(self, *, little: bool) -> None:
        self._order, self._msr = ("little", MSR | MSR_LE) if little else ("big", MSR)
        self.machine = Machine(RAM_BYTES, 1, hypercall=lambda *_: "a hypercall")
        self._fill = random.Random("memory").randbytes(RAM_BYTES)
        self.machine.write(0x8000, self._fill[0x8000:])
        self.machine.take_dirty()

    def run(self, word: int, values: Values) -> Outcome:
        """Run a word with these registers, in memory that is as it always is."""
        machine, cpu = self.machine, self.machine.cpus[0]
        raw = word.to_bytes(4, "little" if self._order == "little" else "big")
        machine.write(CODE, raw)
        cpu.drop_all_code()
        cpu.set_sprs({SPR_SRR0: 0x12340, SPR_SRR1: self._msr})
        cpu.set_registers(values | {"nip": CODE, "msr": self._msr})
        machine.flush_tlbs()
        machine.dirty[:] = 0
        begin = machine.tick
        stop = machine.run(0, begin + 1, exact=True)
        ticks = machine.tick - begin
        pages = [n << 12 for n in np.flatnonzero(machine.dirty).tolist() if n != CODE >> 12]
        written = tuple((at, machine.read(at, 4096)) for at in pages)
        for at in pages:
            machine.write(at, self._fill[at : at + 4096] if at >= 0x8000 else bytes(4096))
        cpu.refresh()
        specials = cpu.spr(SPR_SRR0), cpu.spr(SPR_SRR1)
        return Outcome(cpu.registers().named(), (ticks, stop.why, stop.text, specials, written))

    def values(self, chance: random.Random, *, addresses: bool) -> Values:
        """Registers that name memory, in pairs too; or any."""

        def one() -> int:
            if addresses:
                return chance.randrange(0x20000, 0x70000, 16)
            return chance.getrandbits(64) if chance.random() < 0.7 else chance.getrandbits(5)

        values = {name: one() for name in GPRS}
        values |= {"lr": one() & ~3, "ctr": one() & ~3, "cr": chance.getrandbits(32)}
        return values | {"xer": sum(chance.getrandbits(1) << bit for bit in (31, 30, 29, 19, 18))}


def changed(values: Values, others: Values, masks: list[int], *, read: bool) -> Values:
    """Registers in which all that a word reads, or all that it does not, has other values."""

    def wanted(place: int, mask: int) -> bool:
        return bool(masks[place] & mask) == read

    out = dict(values)
    for n, name in enumerate(GPRS):
        if wanted(GPR_READS, 1 << n):
            out[name] = others[name]
    for name, mask in (("lr", LR), ("ctr", CTR)):
        if wanted(READS, mask):
            out[name] = others[name]
    bits = masks[CR_READS] if read else ~masks[CR_READS] & 0xFFFFFFFF
    out["cr"] = values["cr"] & ~bits | ~values["cr"] & bits
    xer = sum(1 << bit for piece, bit in XER_BITS.items() if wanted(READS, 1 << piece))
    out["xer"] = values["xer"] ^ xer
    return out


def kept(values: Values, masks: list[int]) -> Values:
    """The parts of some registers that a word does not write, even partly."""
    out = {name: values[name] for n, name in enumerate(GPRS) if not masks[GPR_WRITES] >> n & 1}
    touched = masks[WRITES] | masks[PARTLY]
    out |= {name: values[name] for name, mask in (("lr", LR), ("ctr", CTR)) if not touched & mask}
    out["cr"] = values["cr"] & ~masks[CR_WRITES]
    untouched = sum(1 << bit for piece, bit in XER_BITS.items() if not touched >> piece & 1)
    return out | {"xer": values["xer"] & (untouched | (0 if touched & COUNT else 0x7F))}


def written(values: Values, masks: list[int]) -> Values:
    """The parts of some registers that a word replaces."""
    out = {name: values[name] for n, name in enumerate(GPRS) if masks[GPR_WRITES] >> n & 1}
    out |= {n: values[n] for n, mask in (("lr", LR), ("ctr", CTR)) if masks[WRITES] & mask}
    out["cr"] = values["cr"] & masks[CR_WRITES]
    return out | {
        f"xer{bit}": values["xer"] >> bit & 1
        for piece, bit in XER_BITS.items()
        if masks[WRITES] >> piece & 1
    }


def complaint(oracle: Oracle, word: int, chance: random.Random) -> str:
    """What a word does that the table does not say; "" for nothing."""
    masks = masks_of(word)
    for addresses in (True, False, True):
        values = oracle.values(chance, addresses=addresses)
        others = oracle.values(chance, addresses=addresses)
        first = oracle.run(word, values)
        if oracle.run(word, values) != first:
            return "hangs on more than these registers"
        strange = changed(values, others, masks, read=False)
        second = oracle.run(word, strange)
        if first.rest != second.rest:
            return "reads more: what it does to memory or time"
        if first.rest[1] == "fault":
            continue
        if written(first.registers, masks) != written(second.registers, masks):
            return "reads more, or does not replace what it writes"
        names = ("nip", "msr")
        if [first.registers[n] for n in names] != [second.registers[n] for n in names]:
            return "reads more: where it goes"
        for begun, outcome in ((values, first), (strange, second)):
            if kept(begun, masks) != kept(outcome.registers, masks):
                return "writes more"
    return ""


def depends(oracle: Oracle, word: int, chance: random.Random) -> bool:
    """Whether anything comes out otherwise when all that a word reads is changed."""
    masks = masks_of(word)
    for addresses in (True, False, True):
        values = oracle.values(chance, addresses=addresses)
        others = oracle.values(chance, addresses=addresses)
        first = oracle.run(word, values)
        second = oracle.run(word, changed(values, others, masks, read=True))
        if first.rest != second.rest or first.registers["nip"] != second.registers["nip"]:
            return True
        if written(first.registers, masks) != written(second.registers, masks):
            return True
    return False
