"""What a checkpoint can be asked, each answered by a fork of it that replays a stretch of the run.

What it is: `QUERIES`, one row a question, with the ticks that it needs and the function that
answers it from a `Path`: the run at the checkpoint's tick and the recorded slices from there on.
What it is not: a search over many checkpoints (`search`), or the state itself (`Run.state`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from emulator import native
from emulator.census import Census
from emulator.cpu import Cpu, Registers
from emulator.disassembly import disassemble
from emulator.errors import DivergenceError, LimitError
from emulator.loops import Loop
from emulator.machine import Machine
from emulator.mmu import ACCESS_FETCH, ACCESS_WRITE
from emulator.operands import may_change
from emulator.ppc64 import MSR_LE
from emulator.registers import first_reader, last_writers
from emulator.run import Record, Run, hex64
from emulator.spans import spans_of

MAX_WINDOW: Final = 4096
"""Instructions in one window."""
MAX_HITS: Final = 2000
SEEN_BLOCKS: Final = 1 << 16
"""Room for different blocks in one stretch, a power of two."""
MAX_LOOP_TICKS: Final = 1 << 20
MAX_LOOP_ROWS: Final = 500
TRAIL_MAX: Final = 2_000_000
"""Blocks of which `trail` can tell; 48 MB."""


def run_slice(run: Run, cpu: int, until_tick: int) -> None:
    """Run one CPU to exactly a tick.

    Raises:
        DivergenceError: it cannot get there, although the record says so.
    """
    while run.machine.tick < until_tick:
        begin = run.machine.tick
        stop = run.advance(cpu, until_tick, exact=True)
        if run.machine.tick == until_tick:
            return  # a fault right there is the end of the record
        if stop.why == "fault" or (run.machine.tick == begin and stop.why == "limit"):
            nip, symbol, _ = run.where(cpu)
            raise DivergenceError(
                f"CPU {cpu} stops at tick {run.machine.tick} (nip 0x{nip:016x} {symbol}), but the "
                f"record has it go on to tick {until_tick}",
                hint="This is a bug of bootflow: please report it with the trace.",
            )


class Path:
    """A run, and the recorded slices that lead on from where it stands."""

    def __init__(self, run: Run, slices: Sequence[tuple[int, int]], census: Census) -> None:
        self.run, self.census = run, census
        self._slices = list(slices)

    @property
    def next_cpu(self) -> int | None:
        """The CPU whose instruction comes next, if the slices tell."""
        return self._slices[0][0] if self._slices else None

    def segments(self, until_tick: int) -> Iterator[tuple[int, int]]:
        """(cpu, last tick) of each piece up to a tick; the caller runs each before the next."""
        while self._slices and self.run.machine.tick < until_tick:
            cpu, ticks = self._slices.pop(0)
            end = self.run.machine.tick + ticks
            if end > until_tick:
                self._slices.insert(0, (cpu, end - until_tick))
                end = until_tick
            yield cpu, end

    def goto(self, tick: int) -> None:
        """Run to exactly a tick."""
        for cpu, end in self.segments(tick):
            run_slice(self.run, cpu, end)
        if self.run.machine.tick != tick:
            raise DivergenceError(
                f"tick {self.run.machine.tick} is as far as the slices go, not {tick}",
                hint="This is a bug of bootflow: please report it with the trace.",
            )


@dataclass(frozen=True)
class Query:
    """One question."""

    first_tick: Callable[[Record], int]
    """Where the checkpoint may stand at the latest."""
    last_tick: Callable[[Record], int]
    """How far its slices must reach."""
    answer: Callable[[Path, Record], Record]


def _state(path: Path, query: Record) -> Record:
    path.goto(query["tick"])
    return path.run.state(path.next_cpu)


# --- window: instructions around a tick -----------------------------------------------------------


def _before(query: Record) -> int:
    return _bounded(query, "before", 12)


def _after(query: Record) -> int:
    return _bounded(query, "after", 12)


def _bounded(query: Record, name: str, default: int) -> int:
    value = query.get(name, default)
    if type(value) is not int or not 0 <= value <= MAX_WINDOW:
        raise LimitError(f"{name} is {value!r}", hint=f"Ask for 0..{MAX_WINDOW} instructions.")
    return value


def _window(path: Path, query: Record) -> Record:
    """The instructions that retired up to a tick and after it, each with what it changed.

    With "state" in the question, the state at the tick comes with it: one replay instead of two.
    With "plain", which the session adds where no stage, hypercall or exception is near, all run in
    one go and are watched; else one by one, which takes three times as long.
    """
    tick, run = query["tick"], path.run
    path.goto(max(0, tick - _before(query)))
    wanted, state = bool(query.get("state")), None
    if wanted and run.machine.tick == tick:
        state = run.state()
    run.machine.set_watches(())
    watcher = _Watcher(run)
    if query.get("plain"):
        for cpu in run.machine.cpus:
            cpu.see_instructions(watcher.see)
    for number, end in path.segments(tick + _after(query)):
        for stop in (tick, end) if run.machine.tick < tick < end else (end,):
            if query.get("plain"):
                watcher.run_watched(number, stop)
            else:
                watcher.run_stepwise(number, stop)
            if wanted and run.machine.tick == tick:
                state = run.state()
    return {"tick": tick, "steps": watcher.steps} | ({} if state is None else {"state": state})


class _Watcher:
    """Notes every instruction that retires: what it was, and what it changed."""

    def __init__(self, run: Run) -> None:
        self.steps: list[Record] = []
        self._run = run
        self._accesses: list[tuple[int, int, bytes]] = []
        self._begun: tuple[int, int, int, str, Registers] | None = None
        """Tick, NIP, word, stage and registers before the instruction that runs now."""
        self._number, self._end = 0, 0
        for cpu in run.machine.cpus:
            cpu.see_memory(self._touch)

    def _touch(self, kind: int, addr: int, size: int) -> None:
        if addr + size <= self._run.machine.ram_bytes:
            self._accesses.append((kind, addr, self._run.machine.read(addr, size)))

    def run_stepwise(self, number: int, end: int) -> None:
        """Run a CPU to a tick, one instruction at a time: right wherever it is interrupted."""
        machine, cpu = self._run.machine, self._run.machine.cpus[number]
        self._number, now = number, cpu.registers()
        while machine.tick < end:
            self._begin(machine.tick, cpu.nip, now)
            run_slice(self._run, number, machine.tick + 1)
            now = cpu.registers()
            self._close(now)

    def run_watched(self, number: int, end: int) -> None:
        """Run a CPU to a tick in one go, noting each instruction before it runs."""
        begin, count = self._run.machine.tick, len(self.steps)
        self._number, self._end = number, end
        run_slice(self._run, number, end)
        self._close(self._run.machine.cpus[number].registers())
        if [row["tick"] for row in self.steps[count:]] != list(range(begin + 1, end + 1)):
            raise DivergenceError(
                f"the instructions of ticks {begin + 1} to {end} could not be told apart",
                hint="This is a bug of bootflow: please report it with the trace.",
            )

    def see(self, nip: int) -> None:
        """Take note of an instruction that is about to run; the first call for a tick counts."""
        s = self._run.machine.state
        signed = nip - (1 << 64) if nip >> 63 else nip
        tick = int(s[native.TICK]) + (signed - int(s[native.BLOCK_PC]) >> 2)
        if tick < self._end and (self._begun is None or self._begun[0] != tick):
            now = self._run.machine.cpus[self._number].registers()
            self._close(now)
            self._begin(tick, nip, now)

    def _begin(self, tick: int, nip: int, now: Registers) -> None:
        cpu = self._run.machine.cpus[self._number]
        self._accesses.clear()
        word, stage = (
            self._run.machine.fetch_word(cpu, nip),
            self._run.tracker.cpus[self._number].stage,
        )
        self._begun = tick, nip, word, stage, now

    def _close(self, after: Registers) -> None:
        """Note what the instruction that ran has changed."""
        if self._begun is None:
            return
        tick, nip, word, stage, before = self._begun
        self._begun, names = None, before.named()
        little = bool(before.msr & MSR_LE)
        raw_word = word.to_bytes(4, "little" if little else "big")
        self.steps.append(
            {
                "tick": tick + 1,
                "cpu": self._number,
                "nip": hex64(nip),
                "word": f"0x{word:08x}",
                "bytes": raw_word.hex(),
                "text": disassemble(raw_word, nip, big_endian=not little)[0].text,
                "symbol": self._run.names.name_at(nip),
                "stage": stage,
                "le": little,
                "changed": {
                    name: [hex64(names[name]), hex64(value)]
                    for name, value in after.named().items()
                    if value != names[name] and name != "nip"
                },
                "memory": [self._access(*row, little) for row in self._accesses],
            }
        )

    def _access(self, kind: int, addr: int, old: bytes, little: bool) -> Record:
        new = self._run.machine.read(addr, len(old))
        value, was = (int.from_bytes(raw, "little" if little else "big") for raw in (new, old))
        return {
            "kind": "w" if kind == ACCESS_WRITE else "r",
            "addr": hex64(addr),
            "size": len(old),
            "value": hex64(value),
            "old": hex64(was),
        }


# --- hits: accesses of a piece of memory within one stretch ---------------------------------------


def _hits(path: Path, query: Record) -> Record:
    """Accesses of physical [lo, hi) in ticks (from, to]: the last, the first, or all."""
    run, machine = path.run, path.run.machine
    path.goto(query["from"])
    machine.set_watches(())
    mode = {"last": native.HIT_LAST, "first": native.HIT_FIRST, "all": native.HIT_ALL}
    s = machine.state
    s[native.HIT_LO], s[native.HIT_HI] = query["lo"], query["hi"]
    s[native.HIT_MODE], s[native.HIT_COUNT] = mode[query["want"]], 0
    for cpu in machine.cpus:
        cpu.look_for(query["lo"], query["hi"], query["kinds"])
    rows: list[Record] = []
    run.on_access = lambda row: rows.append(_access(run, [*_fields(row), None]))
    for cpu_number, end in path.segments(query["to"]):
        _run_until_hit(run, cpu_number, end)
        if len(rows) >= MAX_HITS or (s[native.HIT_COUNT] and query["want"] == "first"):
            break
    if query["want"] != "all" and s[native.HIT_COUNT]:
        rows = [_access(run, s[native.HIT : native.HIT + 9].tolist())]
    return {"accesses": rows[:MAX_HITS], "more": len(rows) > MAX_HITS}


def _run_until_hit(run: Run, cpu: int, end: int) -> None:
    """Run to a tick, or a little less far once the first hit has stopped the CPU."""
    s = run.machine.state
    while run.machine.tick < end:
        if s[native.HIT_MODE] == native.HIT_FIRST and s[native.HIT_COUNT]:
            return
        begin = run.machine.tick
        run.advance(cpu, end, exact=True)
        if run.machine.tick == begin:
            return


def _fields(row: object) -> list[int]:
    return list(vars(row).values())


def _access(run: Run, fields: list[int | None]) -> Record:
    """One access as JSON; the fields of a log row, and the bytes before a write."""
    kind, tick, cpu, nip, addr, size, value, msr = (int(x or 0) for x in fields[:8])
    mask = (1 << 8 * size) - 1
    old = fields[8]
    return {
        "found": True,
        "kind": "w" if kind == native.LOG_WRITE else "r",
        "tick": tick,
        "cpu": cpu,
        "nip": hex64(nip),
        "symbol": run.names.name_at(nip % (1 << 64)),
        "addr": hex64(addr),
        "size": size,
        "value": hex64(value & mask),
        "old": None if old is None or kind != native.LOG_WRITE else hex64(old & mask),
        "le": bool(msr & MSR_LE),
    }


# --- register: where did a register change last ---------------------------------------------------


def _register(path: Path, query: Record) -> Record:
    """Between which ticks of (from, to] a register of a CPU changed last: {"from", "to"} or {}.

    "again" lists code [lo, hi) that ran later and may have changed the register and changed it
    back, unseen from outside its block: the question is to be put again with it as "inside".
    """
    machine, number = path.run.machine, query["register"]
    path.goto(query["from"])
    s, cpu = machine.state, machine.cpus[query["cpu"]]
    s[native.REGISTER], s[native.REGISTER_CPU] = number, query["cpu"]
    s[native.REGISTER_KNOWN] = s[native.REGISTER_TO] = s[native.SEEN_FULL] = 0
    seen = np.zeros((SEEN_BLOCKS, 3), np.int64)
    s[native.SEEN_ADDR], s[native.SEEN_MAX] = seen.ctypes.data, SEEN_BLOCKS
    cpu.follow_blocks(native.on_block_register)
    for lo, hi in query.get("inside", ()):
        cpu.follow_code(native.on_block_register, lo, hi)
    path.goto(query["to"])
    value = cpu.registers_by_number(number)
    known = int(s[native.REGISTER_VALUE]) % (1 << 64)
    found: Record = {}
    since = query["from"]
    if s[native.REGISTER_KNOWN] and value != known:
        return {"from": int(s[native.REGISTER_BEFORE]), "to": query["to"]}
    if s[native.REGISTER_TO]:
        since = int(s[native.REGISTER_TO])
        found = {"from": int(s[native.REGISTER_FROM]), "to": since}
    if "inside" not in query:
        if s[native.SEEN_FULL]:
            raise LimitError("too many blocks ran in one stretch", hint="Ask about another tick.")
        rows = seen[(seen[:, 0] != 0) & (seen[:, 1] >= since)]
        again = [
            (int(addr) % (1 << 64), int(addr) % (1 << 64) + int(size))
            for addr, _, size in rows.tolist()
            if _writes_twice(machine, cpu, int(addr) % (1 << 64), int(size), query["name"])
        ]
        if again:
            found["again"] = again
    return found


def _writes_twice(machine: Machine, cpu: Cpu, ea: int, size: int, name: str) -> bool:
    """Whether two instructions of a block may write a register: one alone is seen from outside."""
    physical = machine.translate(cpu, ea, ACCESS_FETCH)
    if physical is None:
        physical = ea & native.EA_MASK
    if physical + size > machine.ram_bytes:
        return True
    code = machine.read(physical, size)
    for order in ("<", ">"):  # it may have run in the other than the CPU has now
        words = struct.unpack(f"{order}{size // 4}I", code[: size & ~3])
        if sum(may_change(word, name) for word in words) > 1:
            return True
    return False


# --- trail: functions over a stretch --------------------------------------------------------------


def _trail(path: Path, query: Record) -> Record:
    """Every block that ran in [from, to), with its function: exact spans of each CPU."""
    run, machine = path.run, path.run.machine
    path.goto(query["from"])
    machine.set_trail(0, TRAIL_MAX)
    run.on_trail = None
    starts = []
    for number, end in path.segments(query["to"]):
        nip = machine.cpus[number].nip
        starts.append((machine.tick, number, nip - (1 << 64) if nip >> 63 else nip))
        run_slice(run, number, end)
    rows = machine.take_trail()
    complete = len(rows) < TRAIL_MAX
    rows = np.concatenate([np.array(starts, np.int64).reshape(-1, 3), rows])
    return {"spans": spans_of(run.names, rows, query["to"]), "complete": complete}


def _standing(path: Path, query: Record) -> Record:
    """The loops that a CPU is in at a tick: {"loops": [[head, turn, begun, since], ...]}."""
    path.goto(query["tick"])
    turns = path.run.machine.loops.standing(query["cpu"])
    return {"loops": [[x.head, x.turn, x.begun, x.since] for x in turns]}


def _loops(path: Path, query: Record) -> Record:
    """All loops, however small, that begin and end in [from, to), the longest first."""
    run, found = path.run, list[Loop]()
    path.goto(query["from"])
    run.machine.loops.begin_anew()
    run.on_loop = found.append
    path.goto(query["to"])
    run.close_loops()
    inside = [x for x in found if query["from"] <= x.first and x.last < query["to"]]
    inside.sort(key=lambda loop: -loop.ticks)
    rows = [run.loop_record(loop) for loop in inside[:MAX_LOOP_ROWS]]
    return {"loops": rows, "more": len(inside) > MAX_LOOP_ROWS}


def _loop_window(query: Record) -> tuple[int, int]:
    begin, end = query.get("from", -1), query.get("to", -1)
    numbers = type(begin) is int and type(end) is int
    if not (numbers and 0 <= begin < end <= begin + MAX_LOOP_TICKS):
        raise LimitError(
            f"loops of ticks {begin!r} to {end!r}", hint=f"Ask for at most {MAX_LOOP_TICKS} ticks."
        )
    return begin, end


def _census(path: Path, query: Record) -> Record:
    """Note every change of function in [from, to) in the memory that all forks share."""
    path.goto(query["from"])
    path.census.note(path.run)
    path.goto(query["to"])
    return {"fits": path.census.close(path.run)}


QUERIES: Final[dict[str, Query]] = {
    "state": Query(lambda q: int(q["tick"]), lambda q: int(q["tick"]), _state),
    "window": Query(
        lambda q: int(q["tick"]) - _before(q), lambda q: int(q["tick"]) + _after(q), _window
    ),
    "hits": Query(lambda q: int(q["from"]), lambda q: int(q["to"]), _hits),
    "register": Query(lambda q: int(q["from"]), lambda q: int(q["to"]), _register),
    "first-reader": Query(lambda q: int(q["from"]), lambda q: int(q["to"]), first_reader),
    "last-writers": Query(lambda q: int(q["from"]), lambda q: int(q["to"]), last_writers),
    "trail": Query(lambda q: int(q["from"]), lambda q: int(q["to"]), _trail),
    "loops": Query(lambda q: _loop_window(q)[0], lambda q: _loop_window(q)[1], _loops),
    "standing": Query(lambda q: int(q["tick"]), lambda q: int(q["tick"]), _standing),
    "census": Query(lambda q: int(q["from"]), lambda q: int(q["to"]), _census),
}
