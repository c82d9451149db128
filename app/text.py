"""What the command line prints about a moment or an event: ASCII, at most 75 columns, no tabs.

Registers are the block of a powerpc oops, code is in objdump's form, so that a line can go into a
mail as it is. Pure: documents in, lines out. The web's text twins are templates; this is not them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from app.exploring import Explored
from app.panels import code_lines, register_block
from emulator.check import Report
from emulator.explanation import Sentence
from emulator.handoff import RUN_AT_ZERO_MAGIC, STAGE_BY_ID
from emulator.trace import Event

COLUMNS = 75

Json = dict[str, Any]


def fit(line: str, indent: int = 4) -> list[str]:
    """Break a line of more than 75 columns; what is printed is ASCII."""
    line = line.rstrip().encode("ascii", "replace").decode()
    if len(line) <= COLUMNS:
        return [line]
    return textwrap.wrap(line, COLUMNS, subsequent_indent=" " * indent, break_on_hyphens=False)


def moment_lines(state: Json, last_tick: int, cpu: int | None = None) -> Iterator[str]:
    """Yield the text of a moment: registers and code of each CPU, low memory, the flags.

    Of several CPUs at one place only the first is printed whole; of the others, what differs.
    """
    yield f"tick {state['tick']} of {last_tick}"
    for rows in _by_place([row for row in state["cpus"] if cpu is None or row["cpu"] == cpu]):
        first = rows[0]
        yield ""
        yield from _cpu_lines(first)
        listing = state.get("disassembly", {}).get(str(first["cpu"]), [])
        yield from _code_lines(listing, first["registers"]["nip"])
        if rows[1:]:
            yield ""
            yield from _same_place_lines(first, rows[1:])
    yield ""
    yield "low memory"
    yield from hex_lines(bytes.fromhex(state["low_memory"]))
    if state["flags"]:
        yield ""
    for flag in state["flags"]:
        value = flag_value(flag["value"], flag["size"])
        yield from fit(f"{flag['name']} at {flag['addr']}, {flag['size']} bytes: {value}")


def flag_value(value: str | None, size: int | None) -> str:
    """Return a value in the width of its memory: `0x00000001`, `0x72756e30 ("run0")`."""
    if value is None:
        return "unreadable"
    shown = f"0x{int(value, 16):0{2 * (size or 1)}x}"
    return f'{shown} ("run0")' if size == 4 and int(value, 16) == RUN_AT_ZERO_MAGIC else shown


def _by_place(cpus: list[Json]) -> list[list[Json]]:
    """Group CPUs that are at the same instruction, in the same state of the machine."""
    groups: dict[tuple[Any, ...], list[Json]] = {}
    for row in cpus:
        registers = row["registers"]
        groups.setdefault((row["stage"], registers["nip"], registers["msr"]), []).append(row)
    return list(groups.values())


def _same_place_lines(first: Json, others: list[Json]) -> Iterator[str]:
    """Yield one line for CPUs that differ from the first in the same way."""
    differing: dict[tuple[str, ...], list[str]] = {}
    for row in others:
        changes = tuple(
            f"{name} = {_short(value)}"
            for name, value in row["registers"].items()
            if value != first["registers"].get(name)
        )
        differing.setdefault(changes, []).append(str(row["cpu"]))
    for changes, names in differing.items():
        line = f"cpu {', '.join(names)}: as cpu {first['cpu']}"
        yield from fit(f"{line}, but {', '.join(changes)}" if changes else line)


def _short(value: str) -> str:
    return f"0x{int(value, 16):x}"


def _cpu_lines(row: Json) -> Iterator[str]:
    stage = STAGE_BY_ID.get(row["stage"])
    name = f"{stage.letter} {stage.name}" if stage else str(row["stage"])
    yield from fit(f"cpu {row['cpu']}: {name}, {row['ticks']} ticks")
    block = register_block(row)
    value = {name: register.value for name, register in block.special.items()}
    yield f"NIP:  {value['nip']} LR: {value['lr']} CTR: {value['ctr']}"
    msr = f"MSR:  {value['msr']} {block.msr_names}  CR: {value['cr']}  XER: {value['xer']}"
    yield from fit(msr, indent=6)
    for label, registers in block.rows:
        yield f"{label} {' '.join(register.value for register in registers)}"
    yield from fit(f"NIP [{value['nip']}] {_place(value['nip'], block.symbol, block.line)}")
    yield from fit(f"LR [{value['lr']}] {_place(value['lr'], block.lr_symbol, block.lr_line)}")


def _place(address: str, symbol: str, line: str) -> str:
    return (symbol or f"0x{int(address, 16):x}") + (f" ({line})" if line else "")


def _code_lines(listing: list[Json], nip: str) -> Iterator[str]:
    if listing:
        yield "code"
    for line in code_lines(listing, nip):
        if line.source:
            yield line.source
        elif line.text:
            yield from fit(f"{'=>' if line.next else '  '} {line.addr}: {line.data}  {line.text}")
        else:
            yield from fit(f"{line.addr} <{line.symbol}>: {line.order}")


def hex_lines(data: bytes) -> Iterator[str]:
    """Yield a dump of sixteen bytes a line, as `xxd` and xmon lay it out."""
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        words = " ".join(row[i : i + 4].hex() for i in range(0, len(row), 4))
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{at:016x} {words}  |{shown}|"


def event_lines(events: Iterable[Event]) -> Iterator[str]:
    """Yield one line an event; its symbol stands below where it does not fit beside."""
    for event in events:
        cpu = "-" if event.cpu is None else str(event.cpu)
        line = f"{event.tick:>13} {cpu:>2} {event.kind:<12} {_what(event)}".rstrip()
        if event.symbol and len(line) + len(event.symbol) + 2 <= COLUMNS:
            yield f"{line}  {event.symbol}"
            continue
        yield from fit(line, indent=30)
        if event.symbol:
            yield from fit(f"{'':30}{event.symbol}", indent=30)


def _what(event: Event) -> str:
    if event.addr is None:
        return event.text
    at = f"0x{int(event.addr, 16):x}"
    if event.value is None:
        return f"{at} {event.text}"
    arrow = "->" if event.kind == "flag-read" else "<-"
    return f"{at} {arrow} {flag_value(event.value, event.size)} {event.text}"


def check_lines(
    report: Report,
    why: Sequence[Sentence],
    found: Explored | None,
    command: Callable[[str], str] = lambda schedule: "",
) -> Iterator[str]:
    """Yield the text of a check: outcome, why, schedules, then a block a rule.

    Args:
        report: what the rules say.
        why: the deciding branches.
        found: what exploring the schedules came to.
        command: the command line that records the run again under a schedule.
    """
    lines = report.lines()
    yield from lines[:3]
    for sentence in why:
        yield f"why:      {sentence.text}"
    if found is not None:
        yield from _explored_lines(found, command)
    yield from lines[3:]


def _explored_lines(found: Explored, command: Callable[[str], str]) -> Iterator[str]:
    races = len(found.races)
    yield f"schedules: {found.tried} tried, {races or 'no'} race{'s' * (races != 1)} found"
    for race in found.found:
        yield f"{'race:' if race.kind == 'race' else 'chance:':<9} {race.sentence}"
        yield f"          schedule {race.schedule}"
        if race.trace is not None:
            yield f"          trace {race.trace}"
        if command(race.schedule):
            yield f"          $ {command(race.schedule)}"


def schedule_document(found: Explored, command: Callable[[str], str]) -> Json:
    """Return what exploring the schedules came to, as JSON."""

    def rows(kind: str) -> list[Json]:
        return [
            {
                "rules": list(race.rules),
                "schedule": race.schedule,
                "text": race.in_words,
                "command": command(race.schedule),
                "trace": None if race.trace is None else str(race.trace),
            }
            for race in found.found
            if race.kind == kind
        ]

    return {"tried": found.tried, "races": rows("race"), "held": rows("held")}
