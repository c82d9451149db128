"""The model of a moment: one tick of a run, as its trace and its session tell it.

Everything that the page says is here, once, for HTML, text, JSON, SVG and the card alike; no Flask,
no markup. The trace alone gives verdict, lanes, events, low memory's writers and console; the
session adds registers, memory and the instructions round the cursor. Without an answer of the
session the page says so and shows what the trace knows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app import pages, panels
from app.axis import Span
from app.canvas import Drawing
from app.drawing import finish, short, timeline
from app.index import Run
from app.lens import BACK, ON, Cell
from app.looping import LoopLine, Standing, loop_lines, standing
from app.moves import Moves, moves
from app.steps import (
    BACK as STEPS_BACK,
)
from app.steps import (
    ON as STEPS_ON,
)
from app.steps import (
    RanLine,
    Step,
    at_tick,
    flag_or_hex,
    listing,
    recent_registers,
    steps,
)
from app.story import Story, scene, whole_run
from app.view import MIN_WINDOW, View
from emulator.lanes import stage_id, stage_letter, stage_name
from emulator.trace import LoopRow, TraceReader
from emulator.verdict import flag_text, number

Json = dict[str, Any]
AskAll = Callable[[Sequence[Json]], list[tuple[Json, str]]]
"""Questions to the run's session -> (answer, "") or ({}, what went wrong) of each."""

ZOOMS = (1 << 24, 1 << 16, 4096, 256)
FUNCTIONS_TICKS = 1 << 20
"""A window of at most so many ticks shows functions instead of stages."""
FUNCTIONS_WIDTH = 400
LOOPS_TICKS = 1 << 18
"""A window of at most so many ticks shows every loop, not only those that the trace tells of."""


@dataclass(frozen=True)
class Zoom:
    """A link that shows another part of the run."""

    name: str
    query: str
    current: bool
    key: str = ""
    dead: bool = False
    """It leads to what is shown: no link, but it keeps its place."""


@dataclass(frozen=True)
class Link:
    """One step of the way that a value came, the newest first."""

    tick: int | None
    cpu: int | None
    letter: str
    what: str
    """stored, loaded, computed, copied, or loader: it was there at tick 0."""
    text: str
    symbol: str
    where: str
    """The place or register that held it then, and what it held."""
    line: str = ""
    """`file:line` of the instruction."""


@dataclass(frozen=True)
class Selected:
    """The byte, word or register that the reader follows."""

    name: str
    value: str
    chain: tuple[Link, ...]
    place: bool
    """It lies in memory, so that it can be read too."""
    problem: str = ""


@dataclass(frozen=True)
class Moment:
    """The state of the machine at one tick."""

    tick: int
    cpus: tuple[panels.CpuRow, ...]
    registers: tuple[panels.RegisterBlock, ...]
    code: tuple[tuple[int, tuple[RanLine, ...]], ...]
    low: tuple[panels.LowRow, ...]
    kernel_differs: tuple[tuple[int, str, str], ...]
    flags: tuple[Json, ...]
    active_cpu: int
    moves: Moves
    zooms: tuple[Zoom, ...]
    steps: tuple[Step, ...]
    step: Step | None
    selected: Selected | None
    state: Json
    window: Json
    problem: str = ""
    steps_problem: str = ""
    loops: tuple[Standing, ...] = ()
    """The loops that the CPUs are in."""
    sampled: bool = False
    """The session has not looked through the run yet: later it can show functions here."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """All CPUs."""
        return tuple(row.cpu for row in self.cpus)

    @property
    def is_partial(self) -> bool:
        """Something of it was not to be had now, and may be later."""
        unanswered = self.selected is not None and bool(self.selected.problem)
        return bool(self.problem or self.steps_problem) or self.sampled or unanswered

    @property
    def same_code(self) -> dict[int, int]:
        """CPUs whose listing is that of an earlier one -> which."""
        first: dict[tuple[RanLine, ...], int] = {}
        return {
            cpu: first[lines] for cpu, lines in self.code if first.setdefault(lines, cpu) != cpu
        }

    @property
    def announcement(self) -> str:
        """What a screen reader says when the cursor has moved."""
        words = f"tick {self.tick:,}"
        if self.step is None:
            return words
        return f"{words}: cpu {self.step.cpu} {self.step.text}. {self.step.comment or 'no change'}"


def moment_page(
    run: Run,
    reader: TraceReader,
    told: Story,
    tick: int,
    ask_all: AskAll,
    view: View,
    widths: tuple[int, ...] = pages.WIDTHS,
) -> pages.RunPage:
    """Make the page of one tick of a run.

    Args:
        run: its row of the index.
        reader: its trace.
        told: what was read from it.
        tick: 0 up to the last tick.
        ask_all: asks the run's session.
        view: what the reader chose to look at.
        widths: of the drawings.

    Raises:
        NoSuchTick: the run does not reach that tick.
    """
    last = told.lanes.last_tick
    check_tick(told, tick)
    span = view.span(tick, last)
    answers = _answers(tick, span, view, ask_all)
    state, problem = answers["state"]
    window, steps_problem = answers["window"]
    flags = [(number(f["addr"]) or 0, int(f["size"])) for f in state.get("flags", [])]
    rows = steps(window, flags)
    moment = _moment(told, reader, tick, view, state, rows)
    moment = replace(
        moment,
        problem=problem,
        steps_problem=steps_problem,
        sampled=_sampled(answers),
        window={"steps": window.get("steps", [])},
        selected=_selected(view, told, moment, *answers.get("selected", ({}, ""))),
        loops=standing(told.loops, state, tick),
    )
    console = [line for line in told.console if line.tick <= tick]
    after = next((line for line in told.console if line.tick > tick), None)
    events = [row for row in told.rows if not view.kind or row.kind == view.kind]
    shown, more_events = _around(events, tick)
    spans = function_spans(answers.get("functions", ({}, ""))[0], told)
    return pages.RunPage(
        pages.head(run), told.verdict, last,
        drawings(
            run.id, told, tick, view, _cells(reader, told, tick, rows), spans,
            _small(answers, told), widths,
        ),
        moment.cpus, shown, more_events, tuple(console[-200:]), after,
        pages.placement_lines(reader), (), reader.digest or "", view, moment, told.flooded,
    )  # fmt: skip


def line_page(
    run: Run, reader: TraceReader, told: Story, tick: int, ask_all: AskAll, view: View
) -> pages.RunPage:
    """Make only what the timeline and its links need: for zooming and panning."""
    check_tick(told, tick)
    span = view.span(tick, told.lanes.last_tick)
    answers = _answers(tick, span, replace(view, at=""), ask_all, state=False)
    window, steps_problem = answers["window"]
    rows = steps(window, ())
    spans = function_spans(answers.get("functions", ({}, ""))[0], told)
    moment = replace(
        _moment(told, reader, tick, view, {}, rows), window=window, steps_problem=steps_problem,
        sampled=_sampled(answers),
    )  # fmt: skip
    return pages.RunPage(
        pages.head(run), told.verdict, told.lanes.last_tick,
        drawings(
            run.id, told, tick, view, _cells(reader, told, tick, rows), spans,
            _small(answers, told),
        ),
        (), (), 0, (), None, (), (), "", view, moment,
    )  # fmt: skip


def check_tick(told: Story, tick: int) -> None:
    """Raise NoSuchTick unless the run has this tick."""
    last = told.lanes.last_tick
    if not 0 <= tick <= last:
        more = " so far" if told.running else ""
        raise pages.NoSuchTick(f"tick {tick}: the run has ticks 0 to {last}{more}")


def _answers(
    tick: int, span: tuple[int, int] | None, view: View, ask_all: AskAll, *, state: bool = True
) -> dict[str, tuple[Json, str]]:
    """Ask the session all that the page needs, at once.

    The state comes with the window, by one replay; it is asked for alone only if that fails.
    """
    window = {"q": "window", "tick": tick, "before": STEPS_BACK, "after": STEPS_ON}
    asked: dict[str, Json] = {"window": window | ({"state": True} if state else {})}
    if span is not None and span[1] - span[0] <= FUNCTIONS_TICKS:
        asked["functions"] = {
            "q": "functions", "from": span[0], "to": span[1], "width": FUNCTIONS_WIDTH,
        }  # fmt: skip
    if span is not None and span[1] - span[0] <= LOOPS_TICKS:
        asked["loops"] = {"q": "loops", "from": span[0], "to": span[1]}
    if view.place is not None:
        addr, size = view.place
        asked["selected"] = {"q": "chain", "tick": tick, "addr": addr, "size": size}
    elif view.register:
        cpu = view.cpu or 0
        asked["selected"] = {"q": "chain", "tick": tick, "cpu": cpu, "register": view.register}
    answers = dict(zip(asked, ask_all(list(asked.values())), strict=True))
    found, _ = answers["window"]
    if state:
        answers["state"] = (found.get("state", {}), "")
        if "state" not in found:
            answers["state"] = ask_all([{"q": "state", "tick": tick}])[0]
    return answers


def _small(answers: dict[str, tuple[Json, str]], told: Story) -> tuple[LoopLine, ...]:
    """Return the loops of a window that are too small for the trace."""
    found, _ = answers.get("loops", ({}, ""))
    rows = [LoopRow(*(row[name] for name in LoopRow._fields)) for row in found.get("loops", [])]
    known = {(line.cpu, line.head, line.begin) for line in told.loops}
    lines = loop_lines(rows, told.lanes)
    return tuple(line for line in lines if (line.cpu, line.head, line.begin) not in known)


def _sampled(answers: dict[str, tuple[Json, str]]) -> bool:
    functions, problem = answers.get("functions", ({}, ""))
    return bool(problem) or not functions.get("exact", True)


def drawings(
    run_id: str,
    told: Story,
    tick: int,
    view: View,
    cells: Sequence[Cell],
    spans: dict[int, list[Span]],
    small: Sequence[LoopLine] = (),
    widths: tuple[int, ...] = pages.WIDTHS,
) -> tuple[Drawing, ...]:
    """Draw the timeline, for screens and for telephones."""
    drawn = scene(run_id, told)
    window = view.span(tick, told.lanes.last_tick)
    keep, unfold = view.query(), view.width == -1
    if window is None:
        behind = [whole_run(run_id, told, width=w, unfold=unfold, keep=keep) for w in widths]
        return tuple(finish(drawn, one, cursor=tick, cells=cells) for one in behind)
    return tuple(
        timeline(
            drawn, width=w, cursor=tick, window=window, cells=cells, unfold=unfold, keep=keep,
            spans=spans, small=small,
        )
        for w in widths
    )  # fmt: skip


def function_spans(answer: Json, told: Story) -> dict[int, list[Span]]:
    """Turn the answer of a "functions" query into lanes; empty if there is none."""
    lanes: dict[int, list[Span]] = {}
    if not answer.get("spans") or not answer.get("exact", True):
        return lanes  # a sample of a long window: its stages say more
    for cpu in told.lanes.stays:
        lanes[cpu] = []
    for row in answer["spans"][:2000]:
        letter = stage_letter(stage_id(str(row.get("stage", ""))))
        name = panels.printable(str(row.get("symbol", ""))).split("+")[0] or stage_name(
            stage_id(str(row.get("stage", "")))
        )
        span = Span(int(row["from"]), int(row["to"]), letter, name)
        lanes.setdefault(int(row["cpu"]), []).append(span)
    for rows in lanes.values():
        rows.sort(key=lambda span: span.lo)
    return lanes


def _cells(reader: TraceReader, told: Story, tick: int, rows: Sequence[Step]) -> list[Cell]:
    """Return the instructions for the lens: as they ran, or who ran when if nobody could say."""
    if rows:
        out = []
        for row in rows:
            if not tick - BACK < row.tick <= tick + ON:
                continue
            touched = "w" if any(touch.write for touch in row.memory) else "r"
            words = f"tick {row.tick:,}: cpu {row.cpu}, {row.text}"
            words += f"  # {row.comment}" if row.comment else ""
            out.append(
                Cell(
                    row.tick, row.cpu, row.letter, row.mnemonic, row.order,
                    touched if row.flag else "", words,
                )
            )  # fmt: skip
        return out
    lo, hi = max(tick - BACK, 0), tick + ON
    cells = []
    for item in reader.slices(lo, hi):
        for at in range(max(item.tick, lo), min(item.tick + item.ticks, hi)):
            letter = told.lanes.letter_of(item.cpu, at + 1)
            words = f"tick {at + 1:,}: cpu {item.cpu}, {letter}"
            cells.append(Cell(at + 1, item.cpu, letter, words=words))
    return cells


def _moment(
    told: Story, reader: TraceReader, tick: int, view: View, state: Json, rows: Sequence[Step]
) -> Moment:
    cpus = state.get("cpus", [])
    step = at_tick(rows, tick)
    low = bytes.fromhex(state.get("low_memory", ""))
    kernel_low = bytes.fromhex(state.get("kernel_low", ""))
    fields = panels.low_fields(reader.placement.get("low_fields") or [])
    big = bool(reader.placement.get("kernel_big_endian"))
    active = _active(reader, told, tick, step, view)
    code = _code(state, rows, tick)
    return Moment(
        tick,
        _where(cpus, told, reader, tick, panels.polled_word(fields, low, big_endian=big), code),
        tuple(
            panels.register_block(
                cpu,
                {name for name, _, _ in step.changed} if step and step.cpu == cpu["cpu"] else set(),
                recent_registers(rows, int(cpu["cpu"]), tick),
            )
            for cpu in cpus
        ),
        code,
        _low_rows(told, low, fields, tick, big_endian=big) if state else (),
        _differences(low, kernel_low),
        tuple(_flag_value(flag) for flag in state.get("flags", [])),
        active,
        moves(told, reader, tick, active),
        zooms(view, tick, told.lanes.last_tick),
        tuple(rows),
        step,
        None,
        state,
        {},
    )


def _where(
    cpus: list[Json],
    told: Story,
    reader: TraceReader,
    tick: int,
    polled: str,
    code: Sequence[tuple[int, Sequence[RanLine]]],
) -> tuple[panels.CpuRow, ...]:
    """Say where every CPU is: by its registers, or without them by what the trace knows."""
    released = {e.cpu: e.tick for e in reader.events("cpu-released") if e.cpu is not None}
    if not cpus:
        return panels.staged_cpu_rows(told.lanes, released, told.boot_cpu, tick)
    return panels.cpu_rows(cpus, told.lanes, released, told.boot_cpu, tick, polled, _coming(code))


def _coming(code: Sequence[tuple[int, Sequence[RanLine]]]) -> dict[int, str]:
    """Return the next instruction of each CPU."""
    return {
        cpu: " ".join(line.text.split())
        for cpu, lines in code
        for line in lines
        if line.mark == "=>"
    }


def _low_rows(
    told: Story, low: bytes, fields: tuple[panels.Field, ...], tick: int, *, big_endian: bool
) -> tuple[panels.LowRow, ...]:
    """Return low memory and its writers: the same rows as long as neither changes."""
    count = bisect_right(told.low_writes, tick, key=lambda event: event.tick)
    return told.kept.get(
        ("low", low, count, fields, big_endian),
        lambda: panels.low_grid(
            low, told.low_writes[:count], told.lanes, fields, big_endian=big_endian
        ),
    )


def _active(reader: TraceReader, told: Story, tick: int, step: Step | None, view: View) -> int:
    """Return the CPU that the page opens: the chosen one, else the one that ran last."""
    if view.cpu is not None and view.cpu in told.lanes.stays:
        return view.cpu
    if step is not None:
        return step.cpu
    ran = [item.cpu for item in reader.slices(max(tick - 1, 0), tick)] if tick else []
    return ran[-1] if ran else told.boot_cpu


def _code(
    state: Json, rows: Sequence[Step], tick: int
) -> tuple[tuple[int, tuple[RanLine, ...]], ...]:
    """Return each CPU's listing: as it ran if it ran near the cursor, else what lies round NIP."""
    out = []
    nips = {int(cpu["cpu"]): str(cpu["registers"]["nip"]) for cpu in state.get("cpus", [])}
    for name, lines in sorted(state.get("disassembly", {}).items(), key=lambda i: int(i[0])):
        cpu = int(name)
        ran = listing(rows, cpu, tick)
        out.append((cpu, ran or _standing(lines, nips.get(cpu, "0"))))
    return tuple(out)


def _standing(lines: Sequence[Json], nip: str) -> tuple[RanLine, ...]:
    return tuple(
        RanLine(
            0,
            c.addr,
            c.data,
            c.text,
            "",
            c.symbol,
            c.order,
            "=>" * c.next,
            head=not c.text and not c.source,
            source=c.source,
        )
        for c in panels.code_lines(lines, nip)
    )


def _selected(
    view: View, told: Story, moment: Moment, answer: Json, problem: str
) -> Selected | None:
    """Say of the selected byte or register what it holds and which way the value came."""
    if view.place is not None:
        addr, size = view.place
        name = f"0x{addr:x}" + (f", {size} bytes" if size > 1 else "")
        value = "".join(
            cell.value for row in moment.low for cell in row.cells
            if addr <= cell.offset < addr + size
        )  # fmt: skip
        for flag in moment.flags:
            if (flag["at"], flag["size"]) == view.place:
                name, value = f"{flag['name']} at {name}", f"{flag['shown']}"
    elif view.register:
        cpu = view.cpu or 0
        name = f"cpu {cpu} {view.register}"
        named = [row["registers"] for row in moment.state.get("cpus", []) if row["cpu"] == cpu]
        value = str(named[0].get(view.register, "")).removeprefix("0x") if named else ""
    else:
        return None
    links = tuple(_link(row, told) for row in answer.get("links", [])[:40])
    return Selected(name, value, links, view.place is not None, problem)


def _link(row: Json, told: Story) -> Link:
    tick = row.get("tick")
    where = str(row.get("register") or "")
    if row.get("addr") is not None:
        place = f"{number(row['addr']) or 0:x}"
        where = {"stored": f"{where} -> {place}", "loaded": f"{place} -> {where}"}.get(
            str(row.get("what")), place
        )
    if row.get("value") is not None:
        where += f" = {flag_or_hex(number(row['value']) or 0, int(row.get('size') or 8))}"
    return Link(
        int(tick) if tick is not None else None, row.get("cpu"),
        told.lanes.letter_of(row.get("cpu"), int(tick)) if tick is not None else "",
        panels.printable(str(row.get("what", ""))), panels.printable(str(row.get("text") or "")),
        panels.printable(str(row.get("symbol") or "")), panels.printable(where.strip()),
        panels.printable(str(row.get("line") or "")),
    )  # fmt: skip


def zooms(view: View, tick: int, last: int) -> tuple[Zoom, ...]:
    """Return the links that show another part of the run: named widths, nearer, farther, aside."""
    out = []
    for width in (0, *ZOOMS, -1):
        if width < last:
            name = {0: "whole run", -1: "unfold"}.get(width) or short(width)
            current = view.window is None and view.width == width
            out.append(Zoom(name, view.query(width=width, window=None), current, f"w{width}"))
    span = view.span(tick, last)
    lo, hi = span or (0, max(last, 1))
    wide, end = hi - lo, max(last, 1)
    middle = tick if lo <= tick <= hi else (lo + hi) // 2
    half = max(wide // 8, MIN_WINDOW // 2)
    out.append(_aside("in", view, middle - half, middle + half, end))
    out.append(_aside("out", view, middle - 2 * wide, middle + 2 * wide, end))
    out.append(_aside("earlier", view, lo - wide // 2, hi - wide // 2, end))
    out.append(_aside("later", view, lo + wide // 2, hi + wide // 2, end))
    shown = view.query(width=min(view.width, 0) if span is None else 0, window=span)
    return tuple(replace(zoom, dead=not zoom.current and zoom.query == shown) for zoom in out)


def _aside(name: str, view: View, lo: int, hi: int, end: int) -> Zoom:
    """Return the link to [lo, hi), moved inside of the run."""
    wide = min(hi - lo, end)
    lo = min(max(lo, 0), end - wide)
    window = None if wide == end else (lo, lo + wide)
    return Zoom(name, view.query(width=0, window=window), False, name)


def _flag_value(flag: Json) -> Json:
    value = number(flag["value"]) or 0
    at = number(flag["addr"]) or 0
    return {
        **flag,
        "at": at,
        "shown": flag_text(value),
        "digits": f"{value:0{2 * int(flag['size'])}x}",
    }


def _differences(low: bytes, kernel_low: bytes) -> tuple[tuple[int, str, str], ...]:
    """Return (offset, at real 0, in the kernel image) of each word that differs."""
    out = []
    for at in range(0, min(len(low), len(kernel_low)), 4):
        left, right = low[at : at + 4], kernel_low[at : at + 4]
        if left != right:
            out.append((at, left.hex(" "), right.hex(" ")))
    return tuple(out)


def _around(rows: list[panels.EventRow], tick: int) -> tuple[tuple[panels.EventRow, ...], int]:
    """Return the events round a tick, those at it marked, and how many are left out."""
    at = bisect_right([row.tick for row in rows], tick)
    lo, hi = max(at - 14, 0), min(at + 12, len(rows))
    shown = tuple(
        replace(row, here=row.tick <= tick <= row.end_tick, past=row.tick <= tick)
        for row in rows[lo:hi]
    )
    return shown, len(rows) - len(shown)
