"""One hand-off in execution: machine, firmware and stages together.

What it is: `Run.advance` runs one CPU for a slice and turns what the machine logged into the
events of the trace; `Run.state` describes the moment it stands at. What it is not: it chooses no
slices (the recorder's schedule does, or the trace at replay) and it writes no file. Recorder and
session both drive it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from emulator import native
from emulator.cpu import Cpu
from emulator.disassembly import disassemble, trampolines
from emulator.facts import Arrival, Facts
from emulator.firmware import Partition
from emulator.handoff import LOW_COPY_BYTES, STAGE_BY_ID
from emulator.hashtable import table_bytes
from emulator.images import KernelImage
from emulator.loops import Loop
from emulator.machine import Access, Machine, Step, Stop, Watch
from emulator.mmu import ACCESS_FETCH
from emulator.placement import Placement
from emulator.ppc64 import MSR_LE
from emulator.schedule import mix
from emulator.stages import Change, CodeRow, StageTracker, code_rows, native_ranges
from emulator.storms import Storms

Record = dict[str, Any]
Emit = Callable[[Record], None]

CONSOLE_LINE_BYTES: Final = 1024
MAX_LOOPS: Final = 20_000
"""Loops that a trace tells of; a run with more is told of the first."""
WINDOW_INSTRUCTIONS: Final = 12
"""Disassembled before and after NIP in the state of a moment."""
_FLAG_ASKED: Final = ("purgatory", "head", "relocate", "copy")
"""Stages in which an access to the flag means something. Before, a copy or a checksum passes over
the whole image; from early_setup on the kernel has decided, and the word is one of many."""


def hex64(value: int) -> str:
    """A 64-bit value as JSON carries it."""
    return f"0x{value & (1 << 64) - 1:016x}"


class Run:
    """A machine set up from a placement, at tick 0.

    Args:
        placement: what lies where, and where each CPU starts.
        kernel: for symbols and size.
        seed: of the random numbers that the guest may ask for.
        emit: takes each record of the trace (event, console) as it happens.
        until: symbol at which the run is to stop, if any.
        counting: False for the bare baseline: no block hook, no watches, no events.
    """

    def __init__(
        self,
        placement: Placement,
        kernel: KernelImage,
        *,
        seed: int,
        emit: Emit,
        until: str | None = None,
        counting: bool = True,
    ) -> None:
        self.placement, self.kernel, self._emit, self._until = placement, kernel, emit, until
        self._entered: set[str] = set()
        """Regions of which the first entry has been noted, so that no stop is needed there."""
        self._arrivals: dict[tuple[int, int], Arrival] = {}
        self._interrupted: set[tuple[int, int]] = set()
        """(cpu, tick) of each exception since the log was drained."""
        self._storms = Storms()
        self.facts = Facts(placement)
        rows = self._code_rows(moved=False)
        self.tracker = StageTracker(rows, len(placement.cpu_ids), placement.boot_cpu)
        self.names = placement.address_map
        self.on_access: Callable[[Access], None] | None = None
        """Takes the accesses that a query looks for; they are no events then."""
        self.on_loop: Callable[[Loop], None] | None = None
        """Takes the loops that a query looks for; they are not recorded then."""
        self.on_trail: Callable[[npt.NDArray[np.int64]], None] | None = None
        """Takes the rows of `Machine.take_trail` after each slice."""
        self._moved = False
        self._loops = 0
        self._line = bytearray()
        self._drawn = 0
        self._seed = seed
        partition = Partition(self._put_console, self._note_hypercall, self._random)
        self.machine = Machine(
            placement.mem_bytes,
            len(placement.cpu_ids),
            watches=self._watches(),
            ranges=native_ranges(rows) if counting else (),
            hypercall=partition.answer,
            on_exception=self._note_exception,
            on_range=self._stands_at_range,
            counting=counting,
            hash_table_bytes=table_bytes(placement.device_tree.page_table_order()),
        )
        for segment in placement.segments:
            if segment.data:
                self.machine.write(segment.addr, bytes(segment.data))
        for cpu, start in zip(self.machine.cpus, placement.cpu_starts, strict=True):
            gpr = {f"r{n}": value for n, value in start.gpr.items()}
            cpu.set_registers({"nip": start.nip, "msr": start.msr} | gpr)

    def mute(self) -> None:
        """Emit nothing from here on: what runs now has been recorded."""
        self._emit = lambda record: None
        self.on_trail = None

    def _watches(self) -> list[Watch]:
        both = native.LOG_READ | native.LOG_WRITE
        rows = [Watch(0, LOW_COPY_BYTES, native.LOG_WRITE)]
        for flag, at in self.placement.flags:
            rows.append(Watch(at, at + flag.size, native.LOG_READ))
        start = self.placement.kernel_addr
        if start:
            rows.append(Watch(start, start + LOW_COPY_BYTES, both))
        return rows

    def _code_rows(self, *, moved: bool) -> list[CodeRow]:
        return code_rows(
            self.placement, self.kernel, moved=moved, until=self._until, entered=self._entered
        )

    def watch_also(self, places: Sequence[tuple[int, int]]) -> None:
        """Watch further [lo, hi) for writes, as far as watches are left: they end a writer's slice.

        What is left out is noticed at the end of a slice, which is later but not wrong: real CPUs
        give no promise of when a polling CPU sees a store.
        """
        rows = self._watches()
        pages = {row.lo & ~0xFFF for row in rows}
        for lo, hi in places:
            page = lo & ~0xFFF
            if any(row.lo <= lo and hi <= row.hi and row.kinds & native.LOG_WRITE for row in rows):
                continue
            if len(rows) == native.WATCH_MAX or len(pages | {page}) > native.WATCH_PAGE_MAX:
                break
            pages.add(page)
            rows.append(Watch(lo, hi, native.LOG_WRITE))
        self.machine.set_watches(rows)

    # --- running ------------------------------------------------------------------------------

    def advance(self, cpu: int, until_tick: int, *, exact: bool) -> Stop:
        """Run one CPU for a slice; events and console are emitted, stages followed."""
        while True:
            stop = self.machine.run(cpu, until_tick, exact=exact)
            self._drain()
            if stop.why != "log":
                return stop

    def trace_steps(self, cpu: int, count: int) -> list[Step]:
        """Run `count` instructions one by one (`Machine.trace_steps`), with their events."""
        begin = self.machine.tick
        steps = self.machine.trace_steps(cpu, count)
        self._drain()
        if self.tracker.cpus[cpu].stage == "hold" or (
            steps and steps[0].nip & native.EA_MASK < LOW_COPY_BYTES
        ):
            names = [self.names.name_at(step.nip) for step in steps]
            self.facts.executed(cpu, (begin, self.machine.tick), steps, names)
        return steps

    def in_low_memory(self, cpu: int) -> bool:
        """Whether a CPU stands in real 0x0-0x100."""
        return self.machine.cpus[cpu].nip & native.EA_MASK < LOW_COPY_BYTES

    def _drain(self) -> None:
        if self.on_trail is not None:
            self.on_trail(self.machine.take_trail())
        for row in self.machine.take_log():
            if row.kind == native.LOG_RANGE:
                self._note_range(row)
            elif self.on_access is not None:
                self.on_access(row)
            else:
                self._note_access(row)
        for loop in self.machine.loops.take():
            self._note_loop(loop)
        self._arrivals.clear()
        self._interrupted.clear()

    def close_loops(self) -> None:
        """The run ends here: tell of the loops that are open."""
        for loop in self.machine.close_loops():
            self._note_loop(loop)

    def _note_loop(self, loop: Loop) -> None:
        """Emit the record of a loop that has ended, as far as a trace has room for more."""
        if self.on_loop is not None:
            self.on_loop(loop)
            return
        self._loops += 1
        if self._loops > MAX_LOOPS:
            return
        self._emit({"t": "loop"} | self.loop_record(loop))

    def loop_record(self, loop: Loop) -> Record:
        """A loop as a trace and an answer have it."""
        return {
            "cpu": loop.cpu,
            "level": loop.level,
            "begin": loop.first,
            "end": loop.last,
            "ticks": loop.ticks,
            "turns": loop.turns,
            "entries": loop.entries,
            "head": hex64(loop.head),
            "tail": hex64(loop.tail),
            "kind": loop.kind,
            "symbol": self.names.name_at(loop.head),
        }

    def _note_range(self, row: Access) -> None:
        interrupted = (row.cpu, row.tick) in self._interrupted
        came_from = self.tracker.cpus[row.cpu].region
        change = self.tracker.enter(row.tick, row.cpu, row.nip, row.value, interrupted=interrupted)
        if change is not None:
            self._note_stage(change)
        seen = self._arrivals.get((row.cpu, row.tick))
        region = self.tracker.cpus[row.cpu].region
        is_vector = region == "vectors" or (region == "kernel-at-0" and not self.tracker.moved)
        if seen is not None and region != came_from and not is_vector:
            self.facts.entered(seen, region)
        if region in ("purgatory", "kernel") and region not in self._entered:
            self._entered.add(region)
            self.machine.set_ranges(native_ranges(self._set_rows()), anew=False)
        if self.tracker.moved and not self._moved:
            self._kernel_moved()

    def _set_rows(self) -> list[CodeRow]:
        self.tracker.rows = self._code_rows(moved=self.tracker.moved)
        return self.tracker.rows

    def _kernel_moved(self) -> None:
        """From here on the kernel's names and stages belong to its copy at 0."""
        self._moved = True
        self.names = self.names.moved(True)
        self.machine.set_ranges(native_ranges(self._set_rows()))

    def _stands_at_range(self, cpu: int) -> None:
        """A CPU stands at the first instruction of a row with `stop`: look at it while it does."""
        machine = self.machine
        at = machine.cpus[cpu].nip & native.EA_MASK
        kernel = self.placement.kernel_addr
        if at < LOW_COPY_BYTES:
            place = "low"
        elif kernel <= at < kernel + self.kernel.mem_bytes:
            place = "kernel"
        else:
            place = "purgatory"
        self._arrivals[cpu, machine.tick] = self.facts.arrive(machine, cpu, place)

    def _random(self) -> int:
        self._drawn += 1
        return mix(self._seed ^ 0x52414E44, self._drawn)

    # --- events ---------------------------------------------------------------------------------

    def event(
        self,
        kind: str,
        tick: int,
        cpu: int,
        nip: int,
        *,
        addr: int | None = None,
        size: int | None = None,
        value: int | None = None,
        text: str = "",
    ) -> None:
        """Emit one event record."""
        self._emit(
            {
                "t": "event",
                "tick": tick,
                "cpu": cpu,
                "kind": kind,
                "addr": None if addr is None else hex64(addr),
                "size": size,
                "value": None if value is None else hex64(value),
                "nip": hex64(nip),
                "symbol": self.names.name_at(nip),
                "text": text,
            }
        )

    def _note_stage(self, change: Change) -> None:
        name = STAGE_BY_ID[change.stage].name
        self.event("stage", change.tick, change.cpu, change.nip, text=change.stage)
        if change.released:
            self.event("cpu-released", change.tick, change.cpu, change.nip, text=name)

    def _note_access(self, row: Access) -> None:
        """A watched access: a write into 0x0-0x100, or a touch of a flag."""
        stage = self.tracker.cpus[row.cpu].stage
        writes = row.kind == native.LOG_WRITE
        head = self.placement.kernel_addr
        if head and head - 8 < row.addr < head + LOW_COPY_BYTES and self._is_fact(row, stage):
            symbol = self.names.name_at(row.nip)
            self.facts.accessed(row, stage, symbol, self._ordered(row))
        if writes and row.addr < LOW_COPY_BYTES:
            self.event(
                "low-write", row.tick, row.cpu, row.nip,
                addr=row.addr, size=row.size, value=self._ordered(row),
                text=self._field_at(row.addr, row.size),
            )  # fmt: skip
            if self.placement.kernel_addr:
                return
        if stage not in _FLAG_ASKED:
            return
        base = 0 if row.addr < LOW_COPY_BYTES else self.placement.kernel_addr
        if base == 0 and self.placement.kernel_addr and not self.tracker.moved:
            return
        for flag, at in self.placement.flags:
            start = base + at
            if start < row.addr + row.size and row.addr < start + flag.size:
                self.event(
                    "flag-write" if writes else "flag-read", row.tick, row.cpu, row.nip,
                    addr=row.addr, size=row.size, value=self._ordered(row), text=flag.name,
                )  # fmt: skip

    def _is_fact(self, row: Access, stage: str) -> bool:
        """Whether the rules ask for an access to the kernel's first bytes.

        Until the kernel has decided where to run: all writes, and its own reads. After that, who is
        not in the kernel yet.
        """
        if row.kind == native.LOG_WRITE:
            return not self.tracker.decided or stage in ("hand-over", "hold", "purgatory", "digest")
        return row.cpu == self.placement.boot_cpu and stage in ("head", "relocate", "copy")

    def _ordered(self, row: Access) -> int:
        """The value of an access in the byte order that the CPU had."""
        raw = row.value.to_bytes(row.size, "big")
        return int.from_bytes(raw, "little" if row.msr & MSR_LE else "big")

    def _field_at(self, addr: int, size: int) -> str:
        for field, at in self.placement.low_fields:
            if addr < at + field.size and at < addr + size and field.size < 0x20:
                return field.name
        return ""

    def _note_hypercall(self, cpu: int, text: str, number: int) -> None:
        self.tracker.called(cpu)
        nip = self.machine.cpus[cpu].nip - 4
        self.event("hypercall", self.machine.tick, cpu, nip, value=number, text=text)

    def _note_exception(self, cpu: int, name: str, vector: int, nip: int) -> str:
        self._interrupted.add((cpu, self.machine.tick))
        self.event("exception", self.machine.tick, cpu, nip, value=vector, text=name)
        return self._storms.note(cpu, self.machine.tick, name, nip)

    def _put_console(self, cpu: int, data: bytes) -> None:
        self.tracker.called(cpu)
        if not data:
            return
        tick = self.machine.tick
        self._emit({"t": "console", "tick": tick, "cpu": cpu, "data": data.hex()})
        nip = self.machine.cpus[cpu].nip - 4
        for byte in data:
            if byte == 10 or len(self._line) >= CONSOLE_LINE_BYTES:
                text = self._line.decode("latin-1").strip("\r\n\0")
                if text:
                    self.event("console", tick, cpu, nip, text=text)
                self._line.clear()
            else:
                self._line.append(byte)

    # --- the moment -----------------------------------------------------------------------------

    def where(self, number: int) -> tuple[int, str, str]:
        """(nip, symbol, stage id) of a CPU now."""
        nip = self.machine.cpus[number].nip
        return nip, self.names.name_at(nip), self.tracker.cpus[number].stage

    def state(self, next_cpu: int | None = None) -> Record:
        """The moment as `show --json` prints it; 64-bit values are "0x" strings.

        Args:
            next_cpu: the CPU that runs next. If it stands at the first instruction of a stage, it
                is in that stage, as the stage's event says, although nothing of it has run.
        """
        placement, machine = self.placement, self.machine
        return {
            "tick": machine.tick,
            "cpus": [self._cpu_state(cpu, cpu.number == next_cpu) for cpu in machine.cpus],
            "low_memory": machine.read(0, LOW_COPY_BYTES).hex(),
            "kernel_low": machine.read(placement.kernel_addr, LOW_COPY_BYTES).hex(),
            "kernel_addr": hex64(placement.kernel_addr),
            "flags": self._flags(),
            "disassembly": {str(cpu.number): self._disassembly(cpu) for cpu in machine.cpus},
        }

    def _cpu_state(self, cpu: Cpu, is_next: bool) -> Record:
        nip, symbol, stage = self.where(cpu.number)
        since = self.tracker.cpus[cpu.number].since
        if is_next and self.tracker.peek(cpu.number, nip) != stage:
            stage, since = self.tracker.peek(cpu.number, nip), self.machine.tick
        registers = cpu.registers()
        return {
            "cpu": cpu.number,
            "id": self.placement.cpu_ids[cpu.number],
            "ticks": cpu.retired,
            "stage": stage,
            "stage_letter": STAGE_BY_ID[stage].letter,
            "stage_since": since,
            "symbol": symbol,
            "lr_symbol": self.names.name_at(registers.lr) if registers.lr else "",
            "registers": {name: hex64(value) for name, value in registers.named().items()},
            "loops": [
                {
                    "head": hex64(turn.head), "tail": hex64(turn.tail),
                    "turn": turn.turn + (turn.head == nip),  # that of the next instruction
                    "since": turn.since, "symbol": self.names.name_at(turn.head),
                }
                for turn in self.machine.loops.standing(cpu.number)
            ],
        }  # fmt: skip

    def _flags(self) -> list[Record]:
        order = "big" if self.placement.kernel_big_endian else "little"
        rows = []
        for flag, at in self.placement.flags:
            addr = self.placement.kernel_addr + at
            raw = self.machine.read(addr, flag.size)
            value = int.from_bytes(raw, order)  # type: ignore[arg-type]
            rows.append(
                {"name": flag.name, "addr": hex64(addr), "size": flag.size, "value": hex64(value)}
            )
        return rows

    def _disassembly(self, cpu: Cpu) -> list[Record]:
        """Instructions around NIP, in the byte order that the CPU has now, or that they tell."""
        nip = cpu.nip
        physical = self.machine.translate(cpu, nip, ACCESS_FETCH)
        if physical is None:
            return []
        before = min(WINDOW_INSTRUCTIONS, (physical & 0xFFF) // 4)
        after = min(WINDOW_INSTRUCTIONS, (0x1000 - (physical & 0xFFF)) // 4)
        code = self.machine.read(physical - 4 * before, 4 * (before + after))
        little = bool(cpu.msr & MSR_LE)
        turned = trampolines(code) if little else frozenset()
        start = nip - 4 * before
        rows = []
        for index, shown in enumerate(disassemble(code, start, big_endian=not little)):
            big = 4 * index in turned
            line = disassemble(shown.raw, shown.addr, big_endian=True)[0] if big else shown
            rows.append(
                {
                    "addr": hex64(line.addr),
                    "bytes": line.raw.hex(),
                    "text": line.text,
                    "symbol": self.names.name_at(line.addr),
                    "le": little and not big,
                }
            )
        return rows
