"""Page models: frozen dataclasses made from the index, a trace and a session's reply.

Everything that a page says is here, once, for HTML, text, JSON and SVG alike; how it looks is in
`templates/`. No Flask, no markup.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from app import panels
from app.drawing import Drawing, mini, short, timeline
from app.index import Run
from app.story import Story, scene, story
from emulator.errors import BootflowError, SessionError
from emulator.lanes import Lanes
from emulator.trace import TraceReader
from emulator.verdict import Verdict, flag_text, number

Query = Callable[[str, dict[str, Any]], dict[str, Any]]

WIDE, NARROW = 1400, 362
LENS_BACK, LENS_ON = 12, 16
ZOOMS = (1 << 24, 1 << 16, 4096, 256)


class NoSuchTick(BootflowError):
    """The run has no such tick."""

    slug = "no-such-tick"


class NoTraceYet(BootflowError):
    """The run has not started, so that there is nothing to look at."""

    slug = "not-started"


@dataclass(frozen=True)
class Head:
    """What a run is: the line above the verdict."""

    id: str
    title: str
    status: str
    created: str
    facts: tuple[str, ...]
    ended: bool
    listed: bool
    asked: str


@dataclass(frozen=True)
class Zoom:
    """A link that shows another part of the run: width 0 is the whole."""

    name: str
    width: int
    current: bool


@dataclass(frozen=True)
class Moves:
    """Where the links beside the tick go; None where there is nothing."""

    previous_tick: int | None
    next_tick: int | None
    previous_event: int | None
    next_event: int | None
    previous_flag: int | None
    next_flag: int | None


@dataclass(frozen=True)
class Moment:
    """The state of the machine at one tick."""

    tick: int
    cpus: tuple[panels.CpuRow, ...]
    registers: tuple[panels.RegisterBlock, ...]
    code: tuple[tuple[int, tuple[panels.CodeLine, ...]], ...]
    low: tuple[panels.LowRow, ...]
    kernel_differs: tuple[tuple[int, str, str], ...]
    flags: tuple[dict[str, Any], ...]
    active_cpu: int
    moves: Moves
    state: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class RunPage:
    """One run, at one tick if moment is given."""

    head: Head
    verdict: Verdict
    last_tick: int
    drawings: tuple[Drawing, ...]
    cpus: tuple[panels.CpuRow, ...]
    events: tuple[panels.EventRow, ...]
    more_events: int
    console: tuple[panels.ConsoleLine, ...]
    next_console: panels.ConsoleLine | None
    placement: tuple[str, ...]
    images: tuple[tuple[str, str, str, int], ...]
    digest: str
    zooms: tuple[Zoom, ...] = ()
    kind: str = ""
    moment: Moment | None = None
    flooded: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        """The run still goes on: the page asks again."""
        return not self.head.ended

    @property
    def telling_tick(self) -> int:
        """The most telling moment: the flag's last write, or its first read, or the end."""
        steps = [step for step in self.verdict.custody if step.number > 0]
        writes = [step for step in steps if step.write]
        touched = writes[-1:] or steps[:1]
        return touched[0].tick if touched else self.last_tick


@dataclass(frozen=True)
class WaitPage:
    """A run that has no trace: queued, refused, or deleted."""

    head: Head
    live: bool
    sentence: str
    hint: str = ""
    images: tuple[tuple[str, str, str, int], ...] = ()


@dataclass(frozen=True)
class GalleryRow:
    """One run in the gallery."""

    head: Head
    word: str
    as_asked: bool | None
    sentence: str
    ticks: int
    mini: Drawing | None


@dataclass(frozen=True)
class GalleryPage:
    """The runs, and the form that makes a new one."""

    own: tuple[GalleryRow, ...]
    listed: tuple[GalleryRow, ...]
    words: str
    limits: dict[str, int]


def head(run: Run) -> Head:
    """Return what a run is, from its row of the index."""
    spec = run.spec
    facts = [str(file["name"]) for role, file in run.files.items() if role == "kernel"]
    facts += [f"{role}: {file['name']}" for role, file in run.files.items() if role != "kernel"]
    facts += [options(spec), f"{spec.get('cpus', 1)} CPU{'s' * (spec.get('cpus', 1) != 1)}"]
    facts[-1] += f", {size_text(int(spec.get('mem_bytes') or 0))}" if spec.get("mem_bytes") else ""
    title = run.title or " <- ".join(str(file["name"]) for file in run.files.values())
    return Head(
        run.id,
        panels.printable(title),
        run.status,
        run.created_utc.replace("T", " ").replace("Z", " UTC"),
        tuple(panels.printable(fact) for fact in facts if fact),
        run.ended,
        run.listed,
        run.asked,
    )


def options(spec: dict[str, Any]) -> str:
    """Return what was asked in the words of kexec's command line."""
    words = ["--load-panic" if spec.get("mode") == "load-panic" else "--load"]
    if spec.get("append"):
        words.append(f'--append="{spec["append"]}"')
    if spec.get("checks") is False:
        words.append("--no-checks")
    if spec.get("debug"):
        words.append("--debug")
    return " ".join(words)


def size_text(size_bytes: int) -> str:
    """Return a size in the largest unit that divides it."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift} {unit}"
    return f"{size_bytes:,} bytes"


def run_page(
    run: Run, reader: TraceReader, told: Story, *, width: int = 0, kind: str = ""
) -> RunPage:
    """Make the page of a run, while it goes on and after."""
    drawn = scene(run.id, told)
    last = told.lanes.last_tick
    samples = _last_samples(reader, told.lanes)
    rows = [row for row in told.rows if not kind or row.kind == kind]
    return RunPage(
        replace(head(run), facts=head(run).facts + _found(reader)),
        told.verdict,
        last,
        tuple(timeline(drawn, width=w, unfold=width == -1) for w in (WIDE, NARROW)),
        panels.sampled_cpu_rows(samples, told.lanes, told.boot_cpu),
        tuple(_window(rows, 300, told.running)),
        max(len(rows) - 300, 0),
        told.console[-200:],
        None,
        _placement_lines(reader),
        _images(reader),
        reader.digest or "",
        kind=kind,
        flooded=told.flooded,
    )


def _window(rows: list[panels.EventRow], limit: int, tail: bool) -> list[panels.EventRow]:
    return rows[-limit:] if tail else rows[:limit]


def _found(reader: TraceReader) -> tuple[str, ...]:
    """Return what the session found out about the images, where it says so."""
    found = reader.placement.get("purgatory_found")
    return (panels.printable(str(found)),) if found else ()


def _placement_lines(reader: TraceReader) -> tuple[str, ...]:
    return tuple(panels.printable(str(line)) for line in reader.placement.get("debug", [])[:200])


def _images(reader: TraceReader) -> tuple[tuple[str, str, str, int], ...]:
    infos = reader.image_infos().values()
    return tuple((info.role, info.name, info.sha256, info.size_bytes) for info in infos)


def _last_samples(reader: TraceReader, row: Lanes) -> dict[int, tuple[int, str, str, str]]:
    """Return (end tick, nip, stage, symbol) of each CPU's last slice, or of its last stage."""
    samples = {
        cpu: (stays[-1].lo, stays[-1].nip, stays[-1].stage, stays[-1].symbol)
        for cpu, stays in row.stays.items()
        if stays
    }
    for item in reader.slices(max(row.last_tick - (1 << 20), 0)):
        samples[item.cpu] = (item.tick + item.ticks, item.nip, item.stage, item.symbol)
    return samples


def moment_page(
    run: Run,
    reader: TraceReader,
    told: Story,
    tick: int,
    query: Query,
    *,
    width: int = 0,
    kind: str = "",
) -> RunPage:
    """Make the page of one tick of a run.

    Args:
        run: its row of the index.
        reader: its trace.
        told: what was read from it.
        tick: 0 up to the last tick.
        query: asks the run's session; raises SessionError.
        width: how many ticks round the cursor the timeline shows; 0 all, -1 all with folds open.
        kind: show events of this kind only.

    Raises:
        NoSuchTick: the run does not reach that tick.
    """
    last = told.lanes.last_tick
    if not 0 <= tick <= last:
        more = " so far" if told.running else ""
        raise NoSuchTick(f"tick {tick}: the run has ticks 0 to {last}{more}")
    state, problem = _ask(query, run.id, tick)
    before = _ask(query, run.id, tick - 1)[0] if tick and state else {}
    cells = _cells(reader, told.lanes, tick)
    active = next((cpu for t, cpu, _ in cells if t == tick), told.boot_cpu)
    if width > 0:
        lo = min(max(tick - width // 2, 0), max(last - width, 0))
        window = (lo, min(lo + width, max(last, 1)))
    drawn = scene(run.id, told)
    drawings = tuple(
        timeline(
            drawn, width=w, cursor=tick, window=window if width > 0 else None, cells=cells,
            unfold=width == -1,
        )
        for w in (WIDE, NARROW)
    )  # fmt: skip
    console = [line for line in told.console if line.tick <= tick]
    after = next((line for line in told.console if line.tick > tick), None)
    moment = _moment(told, reader, tick, state, before, active, problem)
    rows = [row for row in told.rows if not kind or row.kind == kind]
    shown, more_events = _around(rows, tick)
    return RunPage(
        head(run), told.verdict, last, drawings, moment.cpus, shown, more_events,
        tuple(console[-200:]), after, _placement_lines(reader), (), reader.digest or "",
        tuple(Zoom(short_name(w), w, w == width) for w in (0, *ZOOMS, -1) if w < last), kind,
        moment,
        told.flooded,
    )  # fmt: skip


def short_name(width: int) -> str:
    """Name a zoom."""
    return {0: "whole run", -1: "unfold"}.get(width) or short(width)


def _ask(query: Query, run_id: str, tick: int) -> tuple[dict[str, Any], str]:
    try:
        return query(run_id, {"q": "state", "tick": tick}), ""
    except SessionError as error:
        return {}, f"{error.message} {error.hint}".strip()


def _cells(reader: TraceReader, row: Lanes, tick: int) -> list[tuple[int, int, str]]:
    """Return (tick, cpu, letter) of the instructions round a tick: number t made state t."""
    lo, hi = max(tick - LENS_BACK, 0), tick + LENS_ON
    cells = []
    for item in reader.slices(lo, hi):
        for at in range(max(item.tick, lo), min(item.tick + item.ticks, hi)):
            cells.append((at + 1, item.cpu, row.letter_of(item.cpu, at + 1)))
    return cells


def _moment(
    told: Story,
    reader: TraceReader,
    tick: int,
    state: dict[str, Any],
    before: dict[str, Any],
    active: int,
    problem: str,
) -> Moment:
    cpus = state.get("cpus", [])
    old = {int(cpu["cpu"]): cpu for cpu in before.get("cpus", [])}
    released = {e.cpu: e.tick for e in reader.events("cpu-released") if e.cpu is not None}
    low = bytes.fromhex(state.get("low_memory", ""))
    writes = (event for event in told.low_writes if event.tick <= tick)
    kernel_low = bytes.fromhex(state.get("kernel_low", ""))
    fields = panels.low_fields(reader.placement.get("low_fields") or [])
    big = bool(reader.placement.get("kernel_big_endian"))
    nips = {str(cpu["cpu"]): str(cpu["registers"]["nip"]) for cpu in cpus}
    code = tuple(
        (int(cpu), panels.code_lines(lines, nips.get(cpu, "0")))
        for cpu, lines in sorted(state.get("disassembly", {}).items(), key=lambda i: int(i[0]))
    )
    return Moment(
        tick,
        panels.cpu_rows(cpus, told.lanes, released, told.boot_cpu, tick),
        tuple(panels.register_block(cpu, old.get(int(cpu["cpu"]))) for cpu in cpus),
        code,
        panels.low_grid(low, writes, told.lanes, fields, big_endian=big) if state else (),
        _differences(low, kernel_low),
        tuple(_flag_value(flag) for flag in state.get("flags", [])),
        active,
        _moves(told, tick),
        state,
        problem,
    )


def _flag_value(flag: dict[str, Any]) -> dict[str, Any]:
    value = number(flag["value"]) or 0
    return {**flag, "shown": flag_text(value), "digits": f"{value:0{2 * int(flag['size'])}x}"}


def _differences(low: bytes, kernel_low: bytes) -> tuple[tuple[int, str, str], ...]:
    """Return (offset, at real 0, in the kernel image) of each word that differs."""
    out = []
    for at in range(0, min(len(low), len(kernel_low)), 4):
        left, right = low[at : at + 4], kernel_low[at : at + 4]
        if left != right:
            out.append((at, left.hex(" "), right.hex(" ")))
    return tuple(out)


def _moves(told: Story, tick: int) -> Moves:
    last = told.lanes.last_tick
    events = sorted({row.tick for row in told.rows if row.tick <= last})
    flags = sorted({step.tick for step in told.verdict.custody if step.number > 0})
    return Moves(
        tick - 1 if tick else None,
        tick + 1 if tick < last else None,
        *_neighbours(events, tick),
        *_neighbours(flags, tick),
    )


def _neighbours(ticks: list[int], tick: int) -> tuple[int | None, int | None]:
    left, right = bisect_left(ticks, tick), bisect_right(ticks, tick)
    return (ticks[left - 1] if left else None), (ticks[right] if right < len(ticks) else None)


def _around(rows: list[panels.EventRow], tick: int) -> tuple[tuple[panels.EventRow, ...], int]:
    """Return the events round a tick, those at it marked, and how many are left out."""
    at = bisect_right([row.tick for row in rows], tick)
    lo, hi = max(at - 14, 0), min(at + 12, len(rows))
    shown = tuple(
        replace(row, here=row.tick <= tick <= row.end_tick, past=row.tick <= tick)
        for row in rows[lo:hi]
    )
    return shown, len(rows) - len(shown)


def wait_page(run: Run, reader: TraceReader | None = None) -> WaitPage:
    """Make the page of a run that has no tick to show: not started, refused, deleted."""
    sentences = {
        "queued": "Waiting for a free worker.",
        "running": "Starting.",
        "verifying": "Running the uploaded trace again; it is shown if the same comes out.",
        "deleted": "Deleted by its owner. What is left: title, hashes, verdict.",
        "cancelled": "Cancelled before it began.",
    }
    sentence = sentences.get(run.status, "")
    if run.verdict:
        sentence = f"{sentence} {run.verdict}".strip()
    error = reader.error if reader is not None else None
    return WaitPage(
        head(run),
        not run.ended,
        panels.printable(sentence or f"The run is {run.status}."),
        panels.printable(str(error["hint"])) if error else "",
        _images(reader) if reader is not None else _uploaded(run),
    )


def _uploaded(run: Run) -> tuple[tuple[str, str, str, int], ...]:
    return tuple(
        (role, panels.printable(str(f["name"])), str(f["sha256"]), int(f["size_bytes"]))
        for role, f in run.files.items()
    )


def gallery_row(run: Run, reader: TraceReader | None) -> GalleryRow:
    """Make a row of the gallery; reader is None for a run without a trace."""
    word, sentence, ticks, drawing = run.word, run.verdict, run.ticks, None
    as_asked = word == {"stay": "STAYS", "move": "MOVES"}.get(run.asked) if word else None
    if reader is not None:
        told = story(reader)
        drawing = mini(scene(run.id, told))
        word, sentence, as_asked = told.verdict.word, told.verdict.sentence, told.verdict.as_asked
        ticks = told.lanes.last_tick
    return GalleryRow(
        head(run), word or run.status.upper(), as_asked, panels.printable(sentence), ticks, drawing
    )
