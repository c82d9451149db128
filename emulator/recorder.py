"""Machine + schedule -> the record stream of a trace.

What it is: `RunSpec`, all that decides a run; `prepare`, which makes a `Run` of a spec and the
images; and `Recorder`, the one loop that hands out slices, parks CPUs that only spin, takes
checkpoints and ends the run with a named reason. What it is not: a writer of files (`trace`), nor
a replay (`session`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from emulator.adversary import Adversary, Place
from emulator.devicetree import DeviceTree
from emulator.errors import LimitError, PlacementError
from emulator.forked import in_child
from emulator.handoff import (
    CRASH_SIGNATURE,
    LOW_COPY_BYTES,
    PURGATORY_SYMBOLS,
    STAGE_BY_ID,
)
from emulator.images import KernelImage, read_device_tree, read_kernel, read_purgatory
from emulator.machine import Stop
from emulator.mmu import ACCESS_FETCH, ACCESS_READ
from emulator.options import DEFAULT_LIMIT_TICKS, DEFAULT_QUANTUM
from emulator.placement import Addresses, LoadOptions, Placement, place
from emulator.revision import ENGINE_REVISION
from emulator.run import Emit, Record, Run, hex64
from emulator.schedule import Schedule
from emulator.spin import PROBE_STEPS, Spin, find_spin
from emulator.storms import Room

MAX_LIMIT_TICKS: Final = 1 << 40
CHECKPOINT_TICKS: Final = 100_000_000
"""A state digest is taken at the first slice boundary after so many ticks."""
MAX_BLOCK_TICKS: Final = 512
"""Unicorn translates at most so many instructions at once."""
SUSPICIOUS_BYTES: Final = 128
"""A slice that stayed within so many bytes of code may be a spin: it is probed."""
MAX_STEPS_IN_LOW: Final = 4096
"""So many instructions of a secondary in low memory are looked at one by one."""


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run, besides the images."""

    mode: str = "load"
    """load (kexec) or load-panic (kdump)."""
    append: str = ""
    cpus: int = 1
    boot_cpu: int = 0
    mem_bytes: int = 1 << 30
    base_addr: int | None = None
    checks: bool = True
    debug: bool = False
    signature: bool = False
    """The old kernel leaves 0xfeed1234 in r6, as kexec_sequence of 2.6.28-rc1 did after a crash."""
    quantum: int = DEFAULT_QUANTUM
    seed: int = 0
    schedule: str = ""
    """A schedule that looks for trouble (`adversary`); "" for quantum and seed alone."""
    until: str | None = None
    """A symbol of the kernel, or a tick in decimal."""
    limit_ticks: int = DEFAULT_LIMIT_TICKS
    corrupt: int | None = None
    """Real address of a loaded byte to invert after the loader took its digest."""
    addresses: Mapping[str, int] | None = None
    """Places to use instead of choosing them (`placement.Addresses`)."""

    def to_json(self) -> Record:
        """As the trace keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunSpec:
        """The spec of a JSON object; unknown keys and wrong types are a PlacementError."""
        unknown = sorted(set(document) - set(_SPEC_TYPES))
        if unknown:
            raise PlacementError(
                f"unknown option {unknown[0]!r}", hint="see `bootflow record --help`"
            )
        for name, value in document.items():
            if type(value) not in _SPEC_TYPES[name]:
                raise PlacementError(f"option {name} is {value!r}", hint="give a value of its type")
        spec = cls(**document)
        if spec.mode not in ("load", "load-panic"):
            raise PlacementError(f"mode {spec.mode!r} is neither load nor load-panic")
        if not 0 < spec.limit_ticks <= MAX_LIMIT_TICKS:
            raise LimitError(f"limit of {spec.limit_ticks} ticks", hint="give 1..2^40")
        if not 0 <= spec.seed < 1 << 64:
            raise LimitError(f"seed {spec.seed}", hint="give a number below 2^64")
        spec.make_schedule()
        places = Addresses.__dataclass_fields__
        for name, value in (spec.addresses or {}).items():
            if name not in places or type(value) is not int:
                raise PlacementError(f"address {name!r} is {value!r}", hint=f"know {list(places)}")
        return spec

    def make_schedule(self) -> Schedule | Adversary:
        """The schedule that it asks for."""
        base = Schedule(self.quantum, self.seed)
        return Adversary(self.schedule, base) if self.schedule else base

    @property
    def load_options(self) -> LoadOptions:
        """The part of it that is the kexec loader's."""
        return LoadOptions(
            panic=self.mode == "load-panic",
            append=self.append,
            checks=self.checks,
            debug=self.debug,
            cpus=self.cpus,
            boot_cpu=self.boot_cpu,
            mem_bytes=self.mem_bytes,
            base_addr=self.base_addr,
            entry_r6=CRASH_SIGNATURE if self.signature and self.mode == "load-panic" else 0,
        )

    @property
    def asks_limit(self) -> bool:
        """The limit is the user's wish; not ours, and not that of a search for races."""
        return self.limit_ticks < DEFAULT_LIMIT_TICKS and not self.schedule

    @property
    def until_tick(self) -> int | None:
        """The tick of `until`, None when it is a symbol or absent."""
        return int(self.until) if self.until and self.until.isdecimal() else None


_NONE: Final = type(None)
_SPEC_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "mode": (str,), "append": (str,), "cpus": (int,), "boot_cpu": (int,), "mem_bytes": (int,),
    "base_addr": (int, _NONE), "checks": (bool,), "debug": (bool,),
    "signature": (bool,), "quantum": (int,), "seed": (int,), "schedule": (str,),
    "until": (str, _NONE), "limit_ticks": (int,), "addresses": (dict, _NONE),
    "corrupt": (int, _NONE),
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Images read and placed."""

    spec: RunSpec
    kernel: KernelImage
    placement: Placement

    def start(self, emit: Emit, *, counting: bool = True) -> Run:
        """A machine at tick 0."""
        until = self.spec.until if self.spec.until_tick is None else None
        if until is not None and self.kernel.symbols.find(until) is None:
            raise PlacementError(
                f"--until {until}: no such symbol in {self.kernel.name}",
                hint="give a function of the kernel, or a tick",
            )
        return Run(
            self.placement, self.kernel, seed=self.spec.seed, emit=emit, until=until,
            counting=counting,
        )  # fmt: skip

    def record(self) -> Record:
        """The placement record of the trace: what was put where."""
        p = self.placement
        places = p.purgatory_symbols
        return {
            "t": "placement",
            "engine": ENGINE_REVISION,
            "kernel_addr": hex64(p.kernel_addr),
            "kernel_bytes": self.kernel.mem_bytes,
            "link_addr": hex64(self.kernel.link_vaddr),
            "kernel_low": self.kernel.low256[:LOW_COPY_BYTES].hex(),
            "entry_addr": hex64(p.entry_addr),
            "purgatory_addr": hex64(p.purgatory_addr),
            "dt_addr": hex64(p.dt_addr),
            "stack_addr": hex64(p.stack_addr),
            "backup_addr": hex64(p.backup_addr),
            "handover_addr": hex64(p.handover_addr),
            "cpu_ids": list(p.cpu_ids),
            "boot_cpu": p.boot_cpu,
            "mem_bytes": p.mem_bytes,
            "run_at_load": p.run_at_load,
            "digest": p.digest,
            "kernel_big_endian": p.kernel_big_endian,
            "purgatory_big_endian": p.purgatory_big_endian,
            "command_line": p.command_line,
            "segments": [
                {"name": s.name, "addr": hex64(s.addr), "bytes": len(s.data), "mem": s.mem_bytes}
                for s in p.segments
            ],
            "variables": [
                {"name": row.name, "addr": hex64(places[row.name][0]), "size": row.size}
                for row in PURGATORY_SYMBOLS
                if row.name in places and row.name != "purgatory_start"
            ],
            "flags": [
                {"name": flag.name, "addr": hex64(p.kernel_addr + at), "at": at, "size": flag.size}
                for flag, at in p.flags
            ],
            "low_fields": [
                {"name": field.name, "at": at, "size": field.size, "note": field.note}
                for field, at in p.low_fields
            ],
            "debug": p.debug_lines(),
        }


def prepare(spec: RunSpec, images: Mapping[str, tuple[str, bytes]]) -> Prepared:
    """Read the images and place them.

    Args:
        spec: what is asked for.
        images: role (kernel, purgatory, dtb, initrd) -> (file name, content).

    Raises:
        ImageError, PlacementError, LimitError: the input cannot be used; nothing has run.
    """
    kernel = read_kernel(images["kernel"][1], images["kernel"][0])
    purgatory = read_purgatory(images["purgatory"][1], images["purgatory"][0])
    dtb: DeviceTree | None = None
    if "dtb" in images:
        dtb = read_device_tree(images["dtb"][1], images["dtb"][0])
    initrd = images["initrd"][1] if "initrd" in images else b""
    addresses = Addresses(**spec.addresses) if spec.addresses else None
    placement = place(
        kernel, purgatory, spec.load_options, dtb=dtb, initrd=initrd, addresses=addresses
    )
    if spec.corrupt is not None:
        placement = placement.with_corrupt_byte(spec.corrupt)
    return Prepared(spec, kernel, placement)


@dataclass(frozen=True)
class Parked:
    """A CPU that only spins: it retires nothing until a byte that it depends on changes."""

    since: int
    spin: Spin
    bytes_seen: tuple[tuple[int, bytes], ...]
    """(physical address, content) of what it reads and of the instructions it runs."""


class Recorder:
    """Runs a hand-off to its end and emits its records.

    Args:
        prepared: what to run.
        emit: takes each record.
        poll: called with the run between slices; a text ends it with the reason "cancelled".
        on_checkpoint: called when a state digest has been taken; it takes the dirty pages.
        write_tick: the tick of the write that the spec's schedule names, where it is known.
    """

    def __init__(
        self,
        prepared: Prepared,
        emit: Emit,
        *,
        poll: Callable[[Run], str | None] = lambda run: None,
        on_checkpoint: Callable[[Run], object] = lambda run: run.machine.take_dirty(),
        write_tick: int | None = None,
    ) -> None:
        self.spec = prepared.spec
        self.schedule = self.spec.make_schedule()
        if isinstance(self.schedule, Adversary):
            place = self.schedule.place
            if place is not None and write_tick is None:
                write_tick = tick_of_write(prepared, place)
            self.schedule.resolve(write_tick)
        self._room = Room()
        emit = self._counted(emit)
        self.run = prepared.start(emit)
        if isinstance(self.schedule, Adversary):
            self.schedule.attach(lambda: self.run.machine.tick)
        self._emit, self._poll, self._on_checkpoint = emit, poll, on_checkpoint
        self._parked: dict[int, Parked] = {}
        self._not_spins: set[tuple[int, int, int]] = set()
        self._slices = 0
        self._steps_in_low: dict[int, int] = {}
        self._last_checkpoint = 0
        self._bases_seen = {"hand-over"}

    def _counted(self, emit: Emit) -> Emit:
        """Count what is emitted, for the room that is left in the trace."""

        def count(record: Record) -> None:
            self._room.note(record["t"])
            emit(record)

        return count

    def record(self) -> Record:
        """Run to the end; returns the end record, which has been emitted too."""
        last = self.run.placement.boot_cpu
        self._checkpoint()
        end: Record | None = None
        while end is None:
            self._wake()
            running = [n for n in range(self.spec.cpus) if n not in self._parked]
            if not running:
                end = self._stuck()
                break
            last = self.schedule.next_cpu(last, running)
            end = self._slice(last, len(running))
            if self._due():
                self._checkpoint()
            cancelled = self._poll(self.run) if end is None else None
            if cancelled:
                end = self._end("cancelled", cancelled, last, ok=False)
        self._checkpoint()
        self.run.close_loops()
        self._emit(self.run.facts.record())
        self._emit(end)
        return end

    def _slice(self, cpu: int, running: int) -> Record | None:
        """Run one CPU for one slice; the end record when that ends the run."""
        machine = self.run.machine
        begin = machine.tick
        stop_at = self.spec.until_tick
        ceiling = self.spec.limit_ticks if stop_at is None else stop_at
        target = min(begin + self.schedule.length(self._slices, running), ceiling)
        self._slices += 1
        exact = target == ceiling or self.schedule.exact
        stop = self._go(cpu, target)
        if stop.why == "limit" and exact and 0 < target - machine.tick <= MAX_BLOCK_TICKS:
            stop = self.run.advance(cpu, target, exact=True)  # the part of a block that is left
        if stop.why == "limit" and self.schedule.probes:
            self._probe(cpu)
        if machine.tick > begin:
            self._emit_slice(cpu, begin)
        return self._ended(cpu, stop)

    def _go(self, cpu: int, target: int) -> Stop:
        """Run one CPU; a secondary in low memory step by step, for what it executes there.

        It does not stay there long: it is parked, or it goes on into the kernel.
        """
        stepped = cpu != self.run.placement.boot_cpu and self.run.in_low_memory(cpu)
        if not stepped or self._steps_in_low.get(cpu, 0) >= MAX_STEPS_IN_LOW:
            return self.run.advance(cpu, target, exact=False)
        room = min(PROBE_STEPS, target - self.run.machine.tick)
        self._steps_in_low[cpu] = self._steps_in_low.get(cpu, 0) + room
        begin = self.run.machine.tick
        steps = self.run.trace_steps(cpu, room)
        if self.run.machine.tick == begin + room:
            self._park(cpu, begin, find_spin(steps))
            return Stop("stepped")
        return self.run.advance(cpu, target, exact=False)  # it faults, and says why

    def _park(self, cpu: int, begin: int, spin: Spin | None) -> None:
        if spin is not None:
            self._parked[cpu] = Parked(begin, spin, self._depends_on(cpu, spin))
            self._watch_parked()

    def _emit_slice(self, cpu: int, begin: int) -> None:
        nip, symbol, stage = self.run.where(cpu)
        self._emit(
            {
                "t": "slice",
                "tick": begin,
                "cpu": cpu,
                "ticks": self.run.machine.tick - begin,
                "nip": hex64(nip),
                "stage": STAGE_BY_ID[stage].letter,
                "symbol": symbol,
            }
        )

    # --- parking --------------------------------------------------------------------------------

    def _probe(self, cpu: int) -> None:
        """Park a CPU whose slice stayed in one small piece of code, if it provably only spins."""
        lo, hi = self.run.machine.span()
        room = self.spec.limit_ticks if self.spec.until_tick is None else self.spec.until_tick
        key = (cpu, lo, hi)
        if hi - lo > SUSPICIOUS_BYTES or key in self._not_spins:
            return
        if self.run.machine.tick + PROBE_STEPS > room:
            return
        begin, cut = self.run.machine.tick, self.schedule.cut
        if cut is not None and begin < cut < begin + PROBE_STEPS:
            self.run.trace_steps(
                cpu, cut - begin
            )  # what loops and writes into 0x0-0x100 is no spin
            return
        spin = find_spin(self.run.trace_steps(cpu, PROBE_STEPS))
        if spin is None:
            self._not_spins.add(key)
        self._park(cpu, begin, spin)

    def _watch_parked(self) -> None:
        """A write to what a parked CPU depends on ends the slice of the writer at once."""
        seen = {place for parked in self._parked.values() for place in parked.bytes_seen}
        self.run.watch_also(sorted((at, at + len(content)) for at, content in seen))

    def _depends_on(self, cpu: int, spin: Spin) -> tuple[tuple[int, bytes], ...]:
        machine = self.run.machine
        places: set[tuple[int, int]] = set()
        wanted = [(ea, size, ACCESS_READ) for ea, size in spin.reads]
        wanted += [(step.nip, 4, ACCESS_FETCH) for step in spin.steps]
        for ea, size, access in wanted:
            physical = machine.translate(machine.cpus[cpu], ea, access)
            if physical is not None and physical + size <= machine.ram_bytes:
                places.add((physical, size))
        return tuple((at, machine.read(at, size)) for at, size in sorted(places))

    def _wake(self) -> None:
        """Un-park every CPU of which something it depends on has changed."""
        machine = self.run.machine
        woken = [
            cpu
            for cpu, parked in self._parked.items()
            if any(machine.read(at, len(seen)) != seen for at, seen in parked.bytes_seen)
        ]
        for cpu in woken:
            del self._parked[cpu]
        if woken:
            self._watch_parked()

    # --- checkpoints ------------------------------------------------------------------------------

    def _due(self) -> bool:
        """Every CHECKPOINT_TICKS, and where the boot CPU has come to a new milestone."""
        base = self.run.tracker.cpus[self.run.placement.boot_cpu].base
        new_stage = base not in self._bases_seen
        self._bases_seen.add(base)
        return new_stage or self.run.machine.tick - self._last_checkpoint >= CHECKPOINT_TICKS

    def _checkpoint(self) -> None:
        tick = self.run.machine.tick
        if tick == self._last_checkpoint and tick:
            return
        self._last_checkpoint = tick
        self._emit({"t": "checkpoint", "tick": tick, "digest": self.run.machine.state_digest()})
        self._on_checkpoint(self.run)

    # --- the end ----------------------------------------------------------------------------------

    def _ended(self, cpu: int, stop: Stop) -> Record | None:
        spec, tick = self.spec, self.run.machine.tick
        if stop.why == "fault":
            return self._end(
                "fault", f"{self.run.where(cpu)[1] or self._end_nip(cpu)}: {stop.text}", cpu
            )
        reached = self.run.tracker.until_reached
        if reached is not None:
            return self._end("until", f"--until {spec.until} reached", reached[1], ok=True)
        if spec.until_tick is not None and tick >= spec.until_tick:
            return self._end("until", f"--until {spec.until} reached", cpu, ok=True)
        if self.run.tracker.complete and spec.until is None:
            named = self.run.tracker.cpus[self.run.placement.boot_cpu].base == "start_kernel"
            place = "start_kernel" if named else "the new kernel"
            text = f"the hand-off is complete: boot CPU in {place}"
            others = spec.cpus - 1
            if others:
                text += f", {others} secondar{'y' if others == 1 else 'ies'} released"
            return self._end("complete", text, self.run.placement.boot_cpu, ok=True)
        if self._room.full:
            text = f"the trace has no room for more rows of table {self._room.full}"
            return self._end("limit", text, cpu)
        if tick >= spec.limit_ticks:
            text = f"limit of {spec.limit_ticks} ticks reached"
            return self._end("limit", text, cpu, ok=spec.asks_limit)
        return None

    def _stuck(self) -> Record:
        """Every CPU spins: say where the boot CPU does, and since when."""
        boot = self.run.placement.boot_cpu
        _, symbol, stage = self.run.where(boot)
        where = symbol or self._end_nip(boot)
        since = self._parked[boot].since
        text = f"{STAGE_BY_ID[stage].name}: spinning at {where} since tick {since}"
        if stage == "purgatory" and self.run.tracker.digest_checked:
            text = f"purgatory: SHA-256 digest mismatch, spinning at {where} since tick {since}"
        return self._end("stuck", text, boot)

    def _end_nip(self, cpu: int) -> str:
        return hex64(self.run.where(cpu)[0])

    def _end(self, reason: str, text: str, cpu: int, *, ok: bool = False) -> Record:
        nip, symbol, _ = self.run.where(cpu)
        tick = self.run.machine.tick
        self.run.event("end", tick, cpu, nip, text=text)
        return {
            "t": "end", "reason": reason, "text": text, "tick": tick, "cpu": cpu,
            "nip": hex64(nip), "symbol": symbol, "ok": ok,
        }  # fmt: skip


def tick_of_write(prepared: Prepared, place: Place) -> int | None:
    """Return the tick that ends with a write, under the spec's own schedule; None if none does."""
    answer = in_child(lambda: {"tick": _tick_of_write(prepared, place)})
    tick: int | None = answer["tick"]
    return tick


def _tick_of_write(prepared: Prepared, place: Place) -> int | None:
    ticks: list[int] = []

    def emit(record: Record) -> None:
        wrote = record["t"] == "event" and record["kind"] == "low-write"
        if wrote and (record["cpu"], int(record["addr"], 16)) == place[:2]:
            ticks.append(record["tick"])

    def poll(run: Run) -> str | None:
        return "found" if len(ticks) >= place.nth else None

    plain = replace(prepared, spec=replace(prepared.spec, schedule=""))
    Recorder(plain, emit, poll=poll).record()
    return ticks[place.nth - 1] if len(ticks) >= place.nth else None
