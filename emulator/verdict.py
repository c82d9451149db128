"""The three-second answer: who set the flag, who read it, and did the kernel stay or move?

Pure: made from the events, the placement and the end of a trace. It judges by what happened (where
kernel code ran after the copy), not by what the flag should have caused: a flag that was set and a
kernel that moved all the same is told as just that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from emulator.evidence import Evidence, ended_as_asked
from emulator.handoff import FLAG_OFFSET, FLAGS, RUN_AT_LOAD, RUN_AT_ZERO_MAGIC
from emulator.lanes import MAX_CHANGES, Lanes, Stay, lanes
from emulator.records import MAX_FACT_ROWS
from emulator.rules import as_sentence
from emulator.trace import Event, TraceReader

FLAG_OFFSETS = {flag.at: flag.name for flag in FLAGS}
KERNEL_STAGES = ("head", "relocate", "copy")
SPINS = ("stuck", "spin", "spins", "spinning", "digest", "hang", "hung")
TOP_BITS = 0xF << 60
MAX_TOUCHES = 500
"""Of one kind, at each end of a run; a guest may touch its flag a million times."""
SHOWN_TOUCHES = 12
_SWAPPED = int.from_bytes(RUN_AT_ZERO_MAGIC.to_bytes(4, "big"), "little")


@dataclass(frozen=True)
class Step:
    """One step of the flag's chain of custody."""

    number: int
    """0 asked, then one a write or read; -1 for the outcome."""
    title: str
    stage_letter: str
    value: str
    text: str
    tick: int
    write: bool = False
    is_set: bool = False


@dataclass(frozen=True)
class Verdict:
    """What happened, against what was asked."""

    word: str
    """STAYS, MOVES, ENDED (as asked, before it was decided), STOPS, SPINS or RUNNING."""
    asked: str
    """stay or move."""
    sentence: str
    lines: tuple[str, ...]
    custody: tuple[Step, ...]

    @property
    def as_asked(self) -> bool | None:
        """Whether it came as asked; None while it runs, or if it was ended before that."""
        return came_as_asked(self.word, self.asked)


def came_as_asked(word: str, asked: str) -> bool | None:
    """Compare the word of a verdict with what was asked: stay or move."""
    if word in ("", "RUNNING", "ENDED"):
        return None
    return word == {"stay": "STAYS", "move": "MOVES"}.get(asked)


def number(value: Any) -> int | None:
    """Return an address of a placement or an event, which may be an int or "0x..", as an int."""
    if isinstance(value, str):
        return int(value, 16) if value else None
    return int(value) if value is not None else None


def flag_text(value: int | None) -> str:
    """Return a flag's value as the field writes it: "run0", 1, 0x..."""
    if value is None:
        return "?"
    if value in (RUN_AT_ZERO_MAGIC, _SWAPPED):
        return '"run0"' if value == RUN_AT_ZERO_MAGIC else '"0nur"'
    return str(value) if value < 10 else f"0x{value:08x}"


def flag_offset(event: Event, kernel_addr: int | None) -> int | None:
    """Return which flag of the loaded kernel an event touches, by its offset; None if none."""
    addr = number(event.addr)
    if addr is None or kernel_addr is None:
        return None
    offset = (addr & ~TOP_BITS) - kernel_addr
    return offset if offset in FLAG_OFFSETS else None


def verdict(reader: TraceReader) -> Verdict:
    """Judge a run, finished or not."""
    spec, placement = reader.spec, reader.placement
    kernel_addr = number(placement.get("kernel_addr"))
    row = lanes(
        reader.events("stage", limit=MAX_CHANGES),
        reader.slices(),
        int(spec.get("cpus", 1)),
        reader.last_tick,
    )
    found: Iterable[Event] | None = None
    asked = _asked(spec, placement)
    outcome = _outcome(row, int(spec.get("boot_cpu", 0)), kernel_addr)
    if reader.facts is not None:
        seen = Evidence.of_trace(reader)
        outcome = _seen_outcome(seen, row, outcome)
        if len(seen.accesses) < MAX_FACT_ROWS["access"]:  # else it is a flood, and they its start
            found = _seen_touches(seen)
    if found is None:
        kinds = ("flag-write", "flag-read")
        found = {event for kind in kinds for event in _first_and_last(reader, kind)}
    touches = _touches(reader, found, row, kernel_addr)
    word = _word(reader, outcome)
    boot = row.at(int(spec.get("boot_cpu", 0)), reader.last_tick)
    custody = (_asked_step(spec, placement), *touches, *_outcome_step(outcome, kernel_addr))
    sentence = _sentence(reader, word, asked, touches, kernel_addr)
    if word == "ENDED":
        where = f"the boot CPU was in {boot.name}" if boot else "nothing had run"
        sentence = f"{_ended(reader)}; by then {where}, and the kernel had not decided."
    lines = _lines(reader, word, asked, touches, sentence)
    return Verdict(word, asked, sentence, lines, custody)


def _seen_touches(seen: Evidence) -> list[Event]:
    """The accesses to the flag that the kernel asked, whether or not the image names it."""
    return [
        Event(
            touch.tick, touch.cpu, "flag-write" if touch.write else "flag-read",
            hex(seen.kernel_addr + touch.at), touch.size, hex(touch.value), hex(touch.nip),
            touch.symbol, "",
        )
        for touch in (*seen.flag_writes, *seen.flag_reads)
        if touch.stage in ("purgatory", *KERNEL_STAGES)
    ]  # fmt: skip


def _touches(
    reader: TraceReader, found: Iterable[Event], row: Lanes, kernel_addr: int | None
) -> tuple[Step, ...]:
    """Return the writes of the kernel's flag, and its reads by the kernel, in order.

    Of a flood the first and the last ones, numbered as if there were no others.
    """
    steps: list[Step] = []
    value = flag_at_start(reader.spec, reader.placement)
    for event in sorted(found, key=lambda event: event.tick):
        offset = flag_offset(event, kernel_addr)
        stay = row.at(event.cpu, max(event.tick - 1, 0))
        if offset is None or stay is None:
            continue
        new = number(event.value)
        value = value if offset == FLAG_OFFSET or steps else ""
        where = f"{event.symbol or 'no symbol'} on cpu {event.cpu}"
        if event.kind == "flag-write":
            shown = f"{value} -> {flag_text(new)}" if value else flag_text(new)
            title, text = "written by", f"{stay.name} stores it at kernel+0x{offset:x}: {where}."
        elif stay.stage in KERNEL_STAGES:
            shown = "1 == 1" if new == 1 else f"{flag_text(new)} != 1"
            title = "read by"
            text = f"kernel, before {_next_decision(steps)}: {where}."
        else:
            continue
        value = flag_text(new)
        write = event.kind == "flag-write"
        steps.append(
            Step(len(steps) + 1, title, stay.letter, shown, text, event.tick, write, new == 1)
        )
    if len(steps) > SHOWN_TOUCHES:
        half = SHOWN_TOUCHES // 2
        steps = [*steps[:half], *steps[-half:]]
    return tuple(replace(step, number=n) for n, step in enumerate(steps, 1))


def _first_and_last(reader: TraceReader, kind: str) -> list[Event]:
    """Return the events of a kind, of very many only those at both ends."""
    first = list(reader.events(kind, limit=MAX_TOUCHES))
    return first if len(first) < MAX_TOUCHES else first + reader.last_events(kind, MAX_TOUCHES)


def flag_at_start(spec: dict[str, Any], placement: dict[str, Any]) -> str:
    """Return what __run_at_load reads in the loaded kernel at tick 0; empty if not known.

    The loader copies it into purgatory, and makes it 1 there for a panic kernel if it is "run0".
    """
    copied = number(placement.get("run_at_load"))
    if copied is None:
        return ""
    if spec.get("mode") == "load-panic" and copied == RUN_AT_LOAD:
        return flag_text(RUN_AT_ZERO_MAGIC)
    return flag_text(copied)


def _next_decision(steps: list[Step]) -> str:
    """Name what the kernel decides by this read: relocate first, then how much to copy."""
    reads = sum(1 for step in steps if not step.write)
    return ("relocate", "the copy to 0")[reads] if reads < 2 else "going on"


def _asked_step(spec: dict[str, Any], placement: dict[str, Any]) -> Step:
    value = number(placement.get("run_at_load"))
    panic = spec.get("mode") == "load-panic"
    text = (
        "The loader puts 1 into purgatory's run_at_load (KEXEC_ON_CRASH): stay."
        if panic and value == 1
        else "A panic kernel is asked to stay where it was loaded."
        if panic
        else "The loader leaves purgatory's own copy as the kernel has it: move to 0."
    )
    return Step(0, "asked by loader", "", flag_text(value) if value is not None else "-", text, 0)


def _real(nip: str) -> int | None:
    value = number(nip)
    return None if value is None else value & ~TOP_BITS


def _outcome(row: Lanes, boot_cpu: int, kernel_addr: int | None) -> tuple[str, Stay] | None:
    """Return "STAYS" or "MOVES" and the stay that shows it, or None while it is open.

    The kernel's head is linked near 0: where it last ran before early_setup tells whether the
    kernel is where it was loaded. early_setup is linked megabytes up and tells nothing alone.
    """
    stays = row.stays.get(boot_cpu, ())
    setup = next((stay for stay in stays if stay.stage in ("early_setup", "start_kernel")), None)
    if setup is None or kernel_addr is None:
        return None
    low = _real(setup.nip)
    heads = [s for s in stays if s.stage in KERNEL_STAGES and s.lo < setup.lo]
    ran = [low, *(_real(stay.nip) for stay in heads[-1:])]
    moved = kernel_addr > 0 and any(addr is not None and addr < kernel_addr for addr in ran)
    return ("MOVES" if moved else "STAYS"), setup


def _asked(spec: dict[str, Any], placement: dict[str, Any]) -> str:
    """A crash kernel is to stay, and so is one that was linked to run where it lies."""
    kernel, link = number(placement.get("kernel_addr")), number(placement.get("link_addr"))
    linked_there = kernel and link is not None and link & ~TOP_BITS == kernel
    return "stay" if spec.get("mode") == "load-panic" or linked_there else "move"


def _seen_outcome(
    seen: Evidence, row: Lanes, found: tuple[str, Stay] | None
) -> tuple[str, Stay] | None:
    """What the rules judge by, where the trace has it: no name of a function is needed then."""
    word = {"stayed": "STAYS", "relocated": "MOVES"}.get(seen.outcome)
    stay = found[1] if found else row.at(seen.boot_cpu, seen.decided_tick or 0)
    return None if word is None or stay is None else (word, stay)


def _outcome_step(outcome: tuple[str, Stay] | None, kernel_addr: int | None) -> tuple[Step, ...]:
    if outcome is None:
        return ()
    word, stay = outcome
    value = f"stays at 0x{kernel_addr:x}" if word == "STAYS" else "moves to 0"
    nip = stay.nip.removeprefix("0x")
    return (Step(-1, "so", stay.letter, value, f"{stay.name} runs at {nip}.", stay.lo),)


def _word(reader: TraceReader, outcome: tuple[str, Stay] | None) -> str:
    if outcome is not None:
        return outcome[0]
    if reader.status == "running":
        return "RUNNING"
    if ended_as_asked(reader.end):
        return "ENDED"
    reason = str((reader.end or {}).get("reason", ""))
    return "SPINS" if any(word in SPINS for word in reason.split("-")) else "STOPS"


def _sentence(
    reader: TraceReader, word: str, asked: str, touches: tuple[Step, ...], kernel_addr: int | None
) -> str:
    if word == "RUNNING":
        return "The hand-off is still going on" + (
            f"; {_flag_clause(touches)}." if touches else "; nobody has touched the flag yet."
        )
    option = "--load-panic" if asked == "stay" else "--load"
    if word in ("STAYS", "MOVES"):
        place = f"stays at 0x{kernel_addr:x}" if word == "STAYS" else "moves to 0"
        kept = word == {"stay": "STAYS", "move": "MOVES"}[asked]
        tail = f"as {option} asks" if kept else f"but {option} asks it to {asked}"
        reads = sum(1 for step in touches if not step.write)
        times = {0: "never read it", 1: "read it once", 2: "read it twice"}
        many = "again and again" if len(touches) == SHOWN_TOUCHES else f"{reads} times"
        read = times.get(reads, f"read it {many}")
        text = f"{_flag_clause(touches)}; the kernel {read} and {place}, {tail}."
        return text + _end_clause(reader)
    return _end_text(reader)


def _flag_clause(touches: tuple[Step, ...]) -> str:
    writes = [step for step in touches if step.write]
    if not writes:
        return "Flag never written"
    last = writes[-1]
    who = last.text.split(" stores it")[0]
    value = last.value.split(" -> ")[-1]
    return f"Flag set to 1 by {who}" if last.is_set else f"Flag left at {value} by {who}"


def _end_clause(reader: TraceReader) -> str:
    end = reader.end
    if ended_as_asked(end):
        return f" {_ended(reader)}."
    if end is None or end.get("ok"):
        return ""
    return f" Then: {_end_text(reader)}"


def _ended(reader: TraceReader) -> str:
    """Say where a run was ended by its user."""
    end, spec = reader.end or {}, reader.spec
    until = end.get("reason") == "until"
    at = f"--until {spec.get('until')}" if until else f"--limit {spec.get('limit_ticks')}"
    return f"Ended at {at}, as asked"


def _end_text(reader: TraceReader) -> str:
    end = reader.end
    if end is not None:
        text = str(end.get("text") or end.get("reason"))
    else:
        text = f"The recording was {reader.status}" + (
            f": {reader.meta('why')}" if reader.meta("why") else ""
        )
    return as_sentence(text)


def _lines(
    reader: TraceReader, word: str, asked: str, touches: tuple[Step, ...], sentence: str
) -> tuple[str, ...]:
    """Return the block that is pasted into a mail: colon-aligned, like syzbot's."""
    rows = [("verdict", f"{word}, asked: {asked}"), ("", sentence)]
    for step in touches:
        text = f"{step.value}, {step.text.rstrip('.')}, tick {step.tick}"
        rows.append(("flag" if step.write else "read", text))
    corrupt = reader.spec.get("corrupt")
    if type(corrupt) is int:
        rows.append(("corrupt", f"the byte at 0x{corrupt:x}, inverted after the digest was taken"))
    if reader.end is not None:
        rows.append(("end", f"{reader.end['text'] or reader.end['reason']}"))
        rows.append(("ticks", str(reader.end["tick"])))
    return tuple(f"{name + ':' if name else '':10}{text}" for name, text in rows)
