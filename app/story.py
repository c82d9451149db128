"""What a trace tells, read once for all parts of a page; and the scene that a timeline draws of it.

No page and no geometry: `pages.py` chooses what to show, `drawing.py` where it lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from app import looping, panels
from app.axis import Span
from app.drawing import Backdrop, Mark, Scene, backdrop
from app.kept import Kept
from emulator.lanes import MAX_CHANGES, Lanes, Stay, lanes
from emulator.trace import EVENT_KINDS, Event, TraceReader
from emulator.verdict import FLAG_OFFSETS, Step, Verdict, flag_at_start, number, verdict

MAX_EVENTS = 4_000
"""Of one kind; more are counted as left out, so that a flood of one kind hides no other."""
KEPT = 64
"""Things made of a story that are kept with it; a backdrop is some 50 kB."""
MAX_LOW_WRITES = 20_000
"""Writes of low memory that the grid of its last writers is made from."""


@dataclass(frozen=True)
class Story:
    """What is read from a trace once and used by every part of a page."""

    lanes: Lanes
    rows: tuple[panels.EventRow, ...]
    low_writes: tuple[Event, ...]
    console: tuple[panels.ConsoleLine, ...]
    verdict: Verdict
    kernel_addr: int | None
    boot_cpu: int
    stopped: tuple[int, str] | None
    """CPU and words of an end that is no good."""
    flag_start: str
    running: bool
    flooded: tuple[str, ...]
    loops: tuple[looping.LoopLine, ...] = ()
    kept: Kept = field(default_factory=lambda: Kept(KEPT), compare=False, repr=False)
    """What follows from the story alone and was made once: scene, backdrops, tables of writers."""


def story(reader: TraceReader) -> Story:
    """Read a trace."""
    spec, last = reader.spec, reader.last_tick
    kernel_addr = number(reader.placement.get("kernel_addr"))
    row = lanes(
        reader.events("stage", limit=MAX_CHANGES), reader.slices(), int(spec.get("cpus", 1)), last
    )
    events: list[Event] = []
    flooded = []
    for kind in EVENT_KINDS:
        if kind != "console":  # the console has its own panel
            found = list(reader.events(kind, limit=MAX_EVENTS + 1))
            flooded += [kind] if len(found) > MAX_EVENTS else []
            events += found[:MAX_EVENTS]
    events.sort(key=lambda event: event.tick)
    low = list(reader.events("low-write", limit=MAX_LOW_WRITES))
    return Story(
        row,
        tuple(panels.event_rows(panels.in_order(events, reader.end), row, kernel_addr)),
        tuple(low),
        tuple(panels.console_lines(*reader.console_tail(panels.MAX_CONSOLE_BYTES))),
        verdict(reader),
        kernel_addr,
        int(spec.get("boot_cpu", 0)),
        _stopped(reader),
        flag_at_start(spec, reader.placement),
        reader.status == "running",
        tuple(flooded),
        looping.loop_lines(reader.loops(looping.MAX_ROWS), row),
    )


def _is_loop(told: Story, stay: Stay) -> bool:
    """While a run goes on its loops are not told of yet; the digest of the segments is one."""
    return told.running and stay.stage == "digest" and stay.hi - stay.lo > looping.FOLD_TICKS


def _stopped(reader: TraceReader) -> tuple[int, str] | None:
    end = reader.end
    if end is None or end["ok"]:
        return None
    return int(end["cpu"] or 0), panels.printable(str(end["text"] or end["reason"]))


def whole_run(
    run_id: str, told: Story, *, width: int, unfold: bool = False, keep: str = ""
) -> Backdrop:
    """Return the backdrop of a whole run, drawn once for all its moments."""
    return told.kept.get(
        ("backdrop", run_id, width, unfold, keep),
        lambda: backdrop(scene(run_id, told), width=width, unfold=unfold, keep=keep),
    )


def scene(run_id: str, told: Story) -> Scene:
    """Return what the timeline of a run shows."""
    return told.kept.get(("scene", run_id), lambda: _scene(run_id, told))


def _scene(run_id: str, told: Story) -> Scene:
    drawn = []
    last = told.lanes.last_tick
    for cpu, stays in told.lanes.stays.items():
        spans = [Span(s.lo, s.hi, s.letter, s.name, s.stage, fold=_is_loop(told, s)) for s in stays]
        if cpu == told.boot_cpu and spans and spans[0].lo > 0:
            spans[0] = replace(spans[0], lo=0)
        if cpu == told.boot_cpu:
            spans = looping.folded(spans, looping.folds(told.loops, cpu))
        if told.stopped is not None and told.stopped[0] == cpu:
            spans.append(Span(last, last + 1, "X", told.stopped[1], label="stopped"))
        drawn.append((cpu, tuple(spans)))
    steps = [step for step in told.verdict.custody if step.number > 0]
    flag = tuple(
        Mark(
            s.tick, f"{s.title} {s.text}", s.stage_letter, s.number, s.write,
            s.value.split(" -> ")[-1], s.is_set, "" if s.write else _decides(s),
        )
        for s in steps
    )  # fmt: skip
    start = told.flag_start or ("as loaded" if steps else "")
    low = tuple(
        Mark(
            row.tick, row.text, row.letter, end_tick=row.end_tick, offset=row.offset,
            end_offset=row.end_offset,
        )
        for row in told.rows if row.kind == "low-write"
    )  # fmt: skip
    console = tuple(Mark(line.tick, line.text) for line in told.console if line.text)
    offset = next(iter(_flag_offsets(told)), 0x5C)
    return Scene(
        tuple(drawn), told.boot_cpu, low, flag, start, console, last + (told.stopped is not None),
        told.running, f"kernel+0x{offset:x}", f"/t/{run_id}/", told.loops,
    )  # fmt: skip


def _decides(read: Step) -> str:
    """Return what was read and before what, `1 before relocate`, as the flag's history has it."""
    _, comma, before = read.text.split(":")[0].partition(", ")
    return f"{read.value.split()[0]} {before}" if comma and read.value else ""


def _flag_offsets(told: Story) -> Iterable[int]:
    for step in told.verdict.custody:
        for offset in FLAG_OFFSETS:
            if f"kernel+0x{offset:x}" in step.text:
                yield offset
