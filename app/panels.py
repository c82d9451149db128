"""The parts of a page that show one thing each: CPUs, registers, low memory, events, console.

Frozen dataclasses made by pure functions from rows of a trace and replies of a session; no Flask,
no markup, no I/O. `pages.py` puts them together.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from emulator.handoff import FLAGS, SECONDARY_ENTRY
from emulator.lanes import Lanes, stage_id, stage_letter, stage_name
from emulator.ppc64 import MSR_DR, MSR_IR, MSR_LE, MSR_PR, msr_names
from emulator.trace import ConsoleChunk, Event
from emulator.verdict import flag_offset, flag_text, number

LOW_BYTES = 256
SPINLOOP = "__secondary_hold_spinloop"
NUMBERS = (SPINLOOP, "__secondary_hold_acknowledge")
"""Fields of low memory that hold a number, which is shown with their name."""
HOLD = "hold"
"""Stage of a secondary in its hold loop."""
MAX_CONSOLE_LINES = 5_000
MAX_CONSOLE_BYTES = 1 << 20
"""What pages keep of a console: its last lines. A guest can print 16 MiB of newlines."""
_NOT_TEXT = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True)
class EventRow:
    """One event, or several of one kind in a row."""

    tick: int
    end_tick: int
    cpu: int | None
    letter: str
    kind: str
    text: str
    symbol: str
    count: int = 1
    offset: int = -1
    end_offset: int = -1
    here: bool = False
    past: bool = True


@dataclass(frozen=True)
class CpuRow:
    """Where one CPU is, in a line."""

    cpu: int
    boot: bool
    letter: str
    stage: str
    nip: str
    symbol: str
    mode: str
    since: int | None
    doing: str
    doing_tick: int | None
    line: str = ""
    """`file:line` of NIP."""


@dataclass(frozen=True)
class Register:
    """One register of the oops block."""

    name: str
    value: str
    changed: bool
    zero: bool
    recent: bool = False
    """One of the last instructions changed it."""


@dataclass(frozen=True)
class RegisterBlock:
    """All registers of a CPU, in the order of an oops."""

    cpu: int
    letter: str
    symbol: str
    lr_symbol: str
    msr_names: str
    special: dict[str, Register]
    rows: tuple[tuple[str, tuple[Register, ...]], ...]
    line: str = ""
    """`file:line` of NIP,"""
    lr_line: str = ""
    """and of LR."""


@dataclass(frozen=True)
class CodeLine:
    """One instruction, or the symbol or source line before it (text empty)."""

    addr: str
    data: str
    text: str
    symbol: str
    order: str
    next: bool
    source: str = ""


@dataclass(frozen=True)
class LowCell:
    """One byte of low memory."""

    offset: int
    value: str
    letter: str
    tick: int | None
    title: str
    css: str


@dataclass(frozen=True)
class LowRow:
    """Sixteen bytes of low memory and the fields that begin in them."""

    offset: int
    cells: tuple[LowCell, ...]
    fields: tuple[tuple[str, str], ...]

    @property
    def who(self) -> str:
        """The last writers' letters."""
        return "".join(cell.letter for cell in self.cells)


@dataclass(frozen=True)
class ConsoleLine:
    """One line that the guest printed, and when its first byte came out."""

    tick: int
    cpu: int
    text: str


def printable(text: str) -> str:
    """Return text as ASCII with a dot for the rest."""
    return _NOT_TEXT.sub(".", text)


def msr_mode(msr: int) -> str:
    """Return what matters of an MSR in words: byte order and translation."""
    order = "LE" if msr & MSR_LE else "BE"
    fetch, data = bool(msr & MSR_IR), bool(msr & MSR_DR)
    words = {(0, 0): "off", (1, 1): "on", (1, 0): "for code only", (0, 1): "for data only"}
    return f"{order}, MMU {words[fetch, data]}" + (", user" if msr & MSR_PR else "")


def in_order(events: Iterable[Event], end: Mapping[str, Any] | None) -> Iterator[Event]:
    """Yield events by tick; what one tick brings in the order of cause and effect.

    A store comes before what it leads to, and a CPU leaves the hold loop before it joins. That the
    hand-off is complete is of no CPU: the boot CPU and every secondary have come so far.

    Args:
        events: in the order of their ticks.
        end: how the run ended, as the trace has it.
    """
    whole = end is not None and end.get("reason") == "complete"
    for _, group in groupby(events, key=lambda event: event.tick):
        for event in sorted(group, key=lambda event: _CAUSES.get(event.kind, 0)):
            of_all = whole and event.kind == "end"
            yield event._replace(cpu=None, nip=None, symbol="") if of_all else event


_CAUSES = {"cpu-released": 1, "stage": 2, "end": 3}
"""Kinds of events that come of others at the same tick -> their place behind them."""


def event_rows(events: Iterable[Event], lanes: Lanes, kernel_addr: int | None) -> list[EventRow]:
    """Turn events into rows; neighbours that tell the same become one row with a count."""
    rows: list[EventRow] = []
    for event in events:
        row = _event_row(event, lanes, kernel_addr)
        if rows and _same(rows[-1], row):
            last = rows[-1]
            rows[-1] = replace(
                last,
                end_tick=row.end_tick,
                count=last.count + 1,
                offset=min(last.offset, row.offset),
                end_offset=max(last.end_offset, row.end_offset),
            )
        else:
            rows.append(row)
    return [replace(row, text=_low_text(row)) if row.kind == "low-write" else row for row in rows]


def _same(last: EventRow, row: EventRow) -> bool:
    if (last.kind, last.cpu, last.letter) != (row.kind, row.cpu, row.letter):
        return False
    if row.kind == "low-write":
        near = row.tick - last.end_tick <= 64
        return near and (row.offset == last.end_offset or row.end_offset == last.offset)
    if row.kind in ("hypercall", "exception", "console"):
        return last.text == row.text
    return False


def _event_row(event: Event, lanes: Lanes, kernel_addr: int | None) -> EventRow:
    letter = lanes.letter_of(event.cpu, event.tick) if event.cpu is not None else ""
    offset = end = -1
    text = printable(event.text)
    if event.kind == "stage":
        letter = stage_letter(stage_id(event.text))
        identifier = stage_id(event.text)
        text = "joins the new kernel" if identifier == "joins" else ""
        text = text or f"enters {stage_name(identifier)}"
    elif event.kind == "low-write":
        offset = (number(event.addr) or 0) & (LOW_BYTES - 1)
        end = min(offset + (event.size or 1), LOW_BYTES)
        value = "?" if event.value is None else f"0x{number(event.value):x}"
        text = f"{value} {text.removeprefix('__secondary_hold_')}".strip()
    elif event.kind.startswith("flag-"):
        text = _flag_event_text(event, kernel_addr)
    elif event.kind == "cpu-released":
        text = "leaves the hold loop"
    elif event.kind == "end":
        text = text or "the run ends"
    if not text:
        text = event.value or ""
    return EventRow(
        event.tick, event.tick, event.cpu, letter, event.kind, text, event.symbol,
        offset=offset, end_offset=end,
    )  # fmt: skip


def _flag_event_text(event: Event, kernel_addr: int | None) -> str:
    offset = flag_offset(event, kernel_addr)
    addr = number(event.addr)
    where = f"kernel+0x{offset:x}" if offset is not None else f"0x{addr or 0:x}"
    value = flag_text(number(event.value))
    return f"{where} <- {value}" if event.kind == "flag-write" else f"{where} is read: {value}"


def _low_text(row: EventRow) -> str:
    if row.count == 1:
        return f"0x{row.offset:02x} <- {row.text}"
    return f"0x{row.offset:02x}-0x{row.end_offset - 1:02x} by {row.count} stores"


def console_lines(chunks: Iterable[ConsoleChunk], cut_bytes: int = 0) -> list[ConsoleLine]:
    """Cut the console into lines, each with the tick of its first byte; empty lines are left out.

    Args:
        chunks: the console, or its end.
        cut_bytes: how many bytes came before; what of them is missing is said in a first line.
    """
    lines: deque[ConsoleLine] = deque(maxlen=MAX_CONSOLE_LINES)
    text, tick, cpu, found = bytearray(), 0, 0, 0
    for chunk in chunks:
        *whole, rest = chunk.data.translate(None, b"\0\r").split(b"\n")
        for piece in whole:
            if text or piece:
                if not text:
                    tick, cpu = chunk.tick, chunk.cpu
                found += 1
                lines.append(ConsoleLine(tick, cpu, _line(text + piece)))
                text.clear()
        if rest:
            if not text:
                tick, cpu = chunk.tick, chunk.cpu
            text += rest
    if text:
        found += 1
        lines.append(ConsoleLine(tick, cpu, _line(text)))
    cut = [f"{cut_bytes:,} bytes"] * (cut_bytes > 0)
    cut += [f"{found - len(lines):,} lines"] * (found > len(lines))
    if cut and lines:
        said = f"[{' and '.join(cut)} of console before this are not shown; the trace has them]"
        return [ConsoleLine(lines[0].tick, lines[0].cpu, said), *lines]
    return list(lines)


def _line(text: bytearray) -> str:
    return printable(text.decode("ascii", "replace").replace("\t", "        "))


def cpu_rows(
    cpus: Sequence[dict[str, Any]],
    lanes: Lanes,
    released: dict[int, int],
    boot_cpu: int,
    tick: int,
    polled: str = "",
    coming: Mapping[int, str] | None = None,
) -> tuple[CpuRow, ...]:
    """Say for every CPU of a session's reply where it is, why, and what it does next.

    Args:
        cpus: its registers and place, a CPU each.
        lanes: the stages of the run.
        released: tick at which a CPU left the hold loop.
        boot_cpu: the one that hands over.
        tick: of the moment.
        polled: what the hold loop waits for, `0x38 = 0`; "" if nobody knows.
        coming: the next instruction of a CPU.
    """
    rows, coming = [], coming or {}
    for state in cpus:
        cpu, registers = int(state["cpu"]), state["registers"]
        stay = lanes.at(cpu, tick)
        msr = number(registers["msr"]) or 0
        doing, doing_tick = _doing(cpu, lanes, released, tick)
        identifier = stay.stage if stay else str(state.get("stage", ""))
        words = [f"polls {polled}"] if polled and identifier == HOLD else []
        words += ["parked: spins, retires nothing"] * bool(state.get("parked"))
        if not words and coming.get(cpu):
            words.append(f"next: {coming[cpu]}")
        doing = "; ".join([*words, doing])
        rows.append(
            CpuRow(
                cpu, cpu == boot_cpu, stage_letter(identifier), stage_name(identifier),
                str(registers["nip"]).removeprefix("0x"), str(state.get("symbol", "")),
                msr_mode(msr), stay.lo if stay else None, doing, doing_tick,
                printable(str(state.get("line", ""))),
            )
        )  # fmt: skip
    return tuple(rows)


def staged_cpu_rows(
    lanes: Lanes, released: dict[int, int], boot_cpu: int, tick: int
) -> tuple[CpuRow, ...]:
    """Say of every CPU what the trace alone knows: its stage, since when, and what comes next."""
    rows = []
    for cpu in sorted(lanes.stays):
        stay = lanes.at(cpu, tick)
        identifier = stay.stage if stay else ""
        doing, doing_tick = _doing(cpu, lanes, released, tick)
        rows.append(
            CpuRow(
                cpu, cpu == boot_cpu, stage_letter(identifier) if stay else "",
                stage_name(identifier), "-", "", "", stay.lo if stay else None, doing, doing_tick,
            )
        )  # fmt: skip
    return tuple(rows)


def _doing(cpu: int, lanes: Lanes, released: dict[int, int], tick: int) -> tuple[str, int | None]:
    row = lanes.stays.get(cpu, ())
    after = next((stay for stay in row if stay.lo > tick), None)
    if after is not None and (after.stage == HOLD or released.get(cpu, -1) <= tick):
        return f"enters {after.name} at", after.lo
    if released.get(cpu, -1) > tick:
        return "released at", released[cpu]
    return ("no further stage" if row else "never ran"), None


def sampled_cpu_rows(
    samples: dict[int, tuple[int, str, str, str]], lanes: Lanes, boot_cpu: int
) -> tuple[CpuRow, ...]:
    """Say where every CPU was last seen, from its last slice: (end tick, nip, stage, symbol)."""
    rows = []
    for cpu in sorted(lanes.stays):
        stay = lanes.at(cpu, lanes.last_tick)
        tick, nip, stage, symbol = samples.get(cpu, (0, "", "", ""))
        identifier = stay.stage if stay else stage
        doing = "last ran at" if nip else "has not run yet"
        rows.append(
            CpuRow(
                cpu, cpu == boot_cpu, stage_letter(identifier) if identifier else "",
                stage_name(identifier), nip.removeprefix("0x"), symbol, "",
                stay.lo if stay else None, doing, tick if nip else None,
            )
        )  # fmt: skip
    return tuple(rows)


def polled_word(fields: Iterable[Field], memory: bytes, *, big_endian: bool) -> str:
    """Return what the hold loop of this kernel waits for, `0x38 = 0`; "" if it is not known."""
    for row in fields:
        if row.name == SPINLOOP and len(memory) >= row.at + row.size:
            return f"0x{row.at:x} = {_value(row, memory, big_endian)}"
    return ""


def _value(row: Field, memory: bytes, big_endian: bool) -> str:
    order: Literal["big", "little"] = "big" if big_endian else "little"
    value = int.from_bytes(memory[row.at : row.at + row.size], order)
    return f"0x{value:x}" if value > 9 else str(value)


def register_block(
    state: dict[str, Any], changed: Container[str] = (), recent: Container[str] = ()
) -> RegisterBlock:
    """Lay out one CPU's registers, with those that the last instructions changed."""
    values = state["registers"]
    names = ["nip", "lr", "ctr", "msr", "cr", "xer", *(f"r{i}" for i in range(32))]
    made = {}
    for name in names:
        value = number(values[name]) or 0
        digits = 8 if name in ("cr", "xer") else 16
        made[name] = Register(
            name, f"{value:0{digits}x}", name in changed, value == 0, name in recent
        )
    rows = tuple(
        (f"GPR{i:02}:", tuple(made[f"r{j}"] for j in range(i, i + 4))) for i in range(0, 32, 4)
    )
    return RegisterBlock(
        int(state["cpu"]),
        str(state.get("stage_letter") or stage_letter(str(state.get("stage", "")))),
        str(state.get("symbol", "")),
        str(state.get("lr_symbol", "")),
        msr_names(number(values["msr"]) or 0),
        {name: made[name] for name in names[:6]},
        rows,
        printable(str(state.get("line", ""))),
        printable(str(state.get("lr_line", ""))),
    )


def code_lines(lines: Sequence[dict[str, Any]], nip: str) -> tuple[CodeLine, ...]:
    """Turn a session's disassembly into lines; function and source line stand before them."""
    out: list[CodeLine] = []
    function, source = None, ""
    for line in lines:
        addr, symbol = number(line["addr"]) or 0, str(line.get("symbol", ""))
        name = symbol.split("+")[0]
        order = "LE" if line.get("le") else "BE"
        if name and (name, order) != function:
            function, source = (name, order), ""
            out.append(CodeLine(f"{addr:016x}", "", "", symbol, order, False))
        place = printable(str(line.get("line", "")))
        if place and place != source:
            source = place
            out.append(CodeLine("", "", "", "", order, False, place))
        data = " ".join(re.findall("..", str(line["bytes"])))
        here = addr == number(nip)
        out.append(CodeLine(f"{addr:x}", data, printable(str(line["text"])), "", order, here))
    return tuple(out)


@dataclass(frozen=True)
class Field:
    """A named field of low memory at its place in this kernel."""

    name: str
    at: int
    size: int
    css: str


def low_fields(rows: Sequence[dict[str, Any]]) -> tuple[Field, ...]:
    """Return the fields of low memory that the placement found in this kernel, and no others."""
    flag = FLAGS[0].at
    known = {str(row["name"]): (int(row["at"]), int(row["size"])) for row in rows}
    found = []
    for name, (at, size) in known.items():
        if 0 <= at < LOW_BYTES:
            css = "fl" if at == flag else "" if at in (0, SECONDARY_ENTRY) else "o"
            found.append(Field(name, at, size if size <= 8 else 4, css))
    return tuple(sorted(found, key=lambda row: row.at))


def low_grid(
    memory: bytes,
    writes: Iterable[Event],
    lanes: Lanes,
    fields: tuple[Field, ...],
    *,
    big_endian: bool = False,
) -> tuple[LowRow, ...]:
    """Lay out 0x0-0xff: every byte, who wrote it last, and the fields that have a name."""
    writers: list[tuple[str, int, str] | None] = [None] * LOW_BYTES
    for event in writes:
        start = (number(event.addr) or 0) & (LOW_BYTES - 1)
        letter = lanes.letter_of(event.cpu, event.tick) or "X"
        who = (letter, event.tick, f"cpu {event.cpu} {event.symbol}".strip())
        for at in range(start, min(start + (event.size or 1), LOW_BYTES)):
            writers[at] = who
    letters = [who[0] for who in writers if who]
    common = max(set(letters), key=letters.count) if letters else ""
    memory = memory.ljust(LOW_BYTES, b"\0")
    rows = []
    for base in range(0, LOW_BYTES, 16):
        cells = tuple(
            _low_cell(at, memory[at], writers[at], common, fields) for at in range(base, base + 16)
        )
        names = tuple(
            _named(row, memory, big_endian) for row in fields if base <= row.at < base + 16
        )
        rows.append(LowRow(base, cells, names))
    return tuple(rows)


def _low_cell(
    at: int,
    value: int,
    who: tuple[str, int, str] | None,
    common: str,
    fields: tuple[Field, ...],
) -> LowCell:
    css = [] if value else ["z"]
    title = f"0x{at:02x}"
    for row in fields:
        if row.at <= at < row.at + row.size:
            css += ["a"] + ["a1"] * (at == row.at) + ["a2"] * (at == row.at + row.size - 1)
            css += [row.css] if row.css else []
            title += f" {row.name}"
    if who is None:
        return LowCell(at, f"{value:02x}", ".", None, f"{title}: not written yet", " ".join(css))
    letter, tick, where = who
    if letter != common:
        css.append(f"s{letter}")
    title += f": last written at tick {tick:,} by {letter}, {where}"
    return LowCell(at, f"{value:02x}", letter, tick, title, " ".join(css))


def _named(row: Field, memory: bytes, big_endian: bool) -> tuple[str, str]:
    """Return (css, text) of a field; the flag is shown with its value, as the kernel reads it."""
    css = {"fl": "flag", "o": "mut"}.get(row.css, "")
    name = row.name.removeprefix("__secondary_hold_")
    if row.css == "fl":
        order: Literal["big", "little"] = "big" if big_endian else "little"
        value = int.from_bytes(memory[row.at : row.at + row.size], order)
        name += f" = {flag_text(value)}"
    elif row.name in NUMBERS:
        name += f" = {_value(row, memory, big_endian)}"
    return css, f"0x{row.at:02x} {name}"
