"""One tiny run of the whole machine, so that nothing is compiled or imported later.

What it is: what a session process does before it gives up opening files. What it is not: a test,
though a build of Unicorn that does not fit is found here, with a clear error.
"""

from __future__ import annotations

import struct

from emulator import census, dwarf, registers
from emulator.disassembly import disassemble
from emulator.machine import Machine, Range, Watch
from emulator.native import LOG_READ, LOG_WRITE
from emulator.ppc64 import MSR_LE, MSR_ME, MSR_SF

_RAM_BYTES = 16 << 20
_CODE = (0x38600001, 0x90600008, 0x80800008, 0x7D4C42A6, 0x48000000)
"""li r3,1; stw r3,8(0); lwz r4,8(0); mftb r10; b ."""


def run_once() -> None:
    """Run five instructions on one CPU, through every kind of hook."""
    machine = Machine(
        _RAM_BYTES,
        1,
        watches=[Watch(0, 16, LOG_READ | LOG_WRITE)],
        ranges=[Range(0x1000, 0x2000, 1)],
        hypercall=lambda machine, cpu, args: [0],
    )
    machine.write(0x1000, struct.pack("<5I", *_CODE))
    machine.cpus[0].set_registers({"nip": 0x1000, "msr": MSR_SF | MSR_ME | MSR_LE})
    machine.run(0, 3, exact=True)
    machine.trace_steps(0, 2)
    machine.run(0, 100, exact=False)
    machine.take_log()
    machine.state_digest()
    census.warm_up()
    dwarf.warm_up()
    registers.warm_up()
    machine.close_loops()
    disassemble(machine.read(0x1000, 4), 0x1000, big_endian=False)
