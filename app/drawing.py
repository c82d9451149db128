"""Timeline geometry: CPUs to lanes, marks, labels that do not collide; shapes, no markup.

Where a tick lies is `axis.py`'s. The number of shapes is bounded, whatever the run and the window.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise

from app.axis import FOLD_WEIGHT, Axis, Span, axis, blocks, clip, cut, lane_spans, merge
from app.canvas import CHAR_PX, Canvas, Drawing, Shape
from app.lens import Cell, FlagValue, Waiting, lens
from app.looping import LoopLine
from app.looplane import loop_lane

MAX_SHAPES = 2000
MINI_WEIGHT = 7.0
MARK_PX = 4.0
MAP_HEIGHT = 24.0


@dataclass(frozen=True)
class Mark:
    """Something at one tick (or from tick to end_tick) in the lane of low memory, flag or console.

    offset and end_offset are the bytes of low memory; number is the step in the flag's history.
    """

    tick: int
    text: str
    letter: str = ""
    number: int = 0
    write: bool = False
    value: str = ""
    is_set: bool = False
    says: str = ""
    """What stands beside the mark, where there is room."""
    end_tick: int = 0
    offset: int = 0
    end_offset: int = 0


@dataclass(frozen=True)
class Scene:
    """What a timeline shows, without any geometry."""

    lanes: tuple[tuple[int, tuple[Span, ...]], ...]
    boot_cpu: int
    low: tuple[Mark, ...]
    flag: tuple[Mark, ...]
    flag_start: str
    console: tuple[Mark, ...]
    last_tick: int
    running: bool = False
    flag_name: str = "flag"
    href: str = ""
    loops: tuple[LoopLine, ...] = ()


def turns(scene: Scene) -> list[int]:
    """Return the ticks at which the first of the other CPUs comes into each of its stages."""
    first: dict[str, int] = {}
    for cpu, spans in scene.lanes:
        for span in spans[:100] if cpu != scene.boot_cpu else ():
            first[span.letter] = min(first.get(span.letter, span.lo), span.lo)
    return sorted(first.values())


def thin(marks: Sequence[Mark], ax: Axis, lo: int, hi: int) -> list[tuple[Mark, float, int]]:
    """Return (mark, x, count) of a window; marks of one kind within 4 px become one."""
    out: list[tuple[Mark, float, int]] = []
    for mark in marks:
        if not lo <= mark.tick <= hi:
            continue
        x = round(ax.x(mark.tick), 1)
        if out and x - out[-1][1] < MARK_PX and mark.write == out[-1][0].write:
            out[-1] = (out[-1][0], out[-1][1], out[-1][2] + 1)
        else:
            out.append((mark, x, 1))
    return out


def short(ticks: int) -> str:
    """Return a number of ticks in few characters: 236, 14,360, 357 k, 21.80 M, 1.51 G."""
    if ticks < 100_000:
        return f"{ticks:,}"
    for size, unit in ((10**9, "G"), (10**6, "M")):
        if ticks >= size:
            return f"{ticks / size:.2f} {unit}"
    return f"{ticks // 1000} k"


@dataclass(frozen=True)
class Backdrop:
    """A run, or a window of it, as it is drawn before there is a cursor."""

    width: int
    window: tuple[int, int]
    whole: bool
    """The window is the whole run."""
    keep: str
    shapes: tuple[Shape, ...]
    ax: Axis
    overview: Axis
    """Of the whole run."""
    top: float
    bottom: float
    flag_y: float
    description: str


def backdrop(
    scene: Scene,
    *,
    width: int,
    window: tuple[int, int] | None = None,
    unfold: bool = False,
    keep: str = "",
    spans: Mapping[int, Sequence[Span]] | None = None,
    small: Sequence[LoopLine] = (),
    cursor: int | None = None,
) -> Backdrop:
    """Draw what lies behind the cursor; of the whole run it is the same for every moment.

    Args:
        scene: what to show.
        width: 1400 for screens, 362 for telephones.
        window: ticks [lo, hi) to show; the whole run if not given.
        unfold: give long loops the room of their logarithm.
        keep: query string of the links, which keeps what the reader chose.
        spans: what each CPU did in the window, exactly (its functions); the stages if not given.
        small: loops of the window beside those of the scene.
        cursor: marked in the small picture of the whole run above a window.
    """
    canvas = _canvas(width, keep)
    end = max(scene.last_tick, 1)
    lo, hi = window or (0, end)
    boot = dict(scene.lanes).get(scene.boot_cpu, ())
    parts = cut(boot, turns(scene)) if len(boot) < 1000 else boot
    whole = axis(parts, 0, end, canvas.x0, canvas.x1)
    if spans:
        parts = busiest(spans, lo, hi)
    ax = axis(parts, lo, hi, canvas.x0, canvas.x1, cap=99.0 if unfold else FOLD_WEIGHT)
    if (lo, hi) == (0, end):
        y = _scale_bar(canvas, boot, scene)
    else:
        y = _minimap(canvas, whole, ax, lo, hi, cursor)
    y = _ruler(canvas, ax, y)
    top = y
    y = _lanes(canvas, scene, ax, lo, hi, y, spans or {})
    once = [line for line in scene.loops if line.entries == 1] if small else scene.loops
    y = loop_lane(canvas, (*once, *small), ax, (lo, hi), y, scene.href)
    y = _low_lane(canvas, scene, ax, lo, hi, y)
    y, flag_y = _flag_lane(canvas, scene, ax, lo, hi, y)
    y = _console_lane(canvas, scene, ax, lo, hi, y)
    _tears(canvas, ax, top - 4, y)
    if scene.running:
        canvas.line(canvas.x1, top, canvas.x1, y, "run")
        canvas.text(canvas.x1 - 4, y - 2, "e s ha", "running")
    return Backdrop(
        width, (lo, hi), (lo, hi) == (0, end), keep, tuple(canvas.shapes[:MAX_SHAPES]), ax, whole,
        top, y, flag_y, f"{describe(scene)}. The same as a table: events below, or .txt",
    )  # fmt: skip


def _canvas(width: int, keep: str) -> Canvas:
    narrow = width < 600
    canvas = Canvas(32.0 if narrow else 104.0, float(width - (2 if narrow else 6)), narrow)
    canvas.keep = keep
    return canvas


def timeline(
    scene: Scene,
    *,
    width: int,
    cursor: int | None = None,
    window: tuple[int, int] | None = None,
    cells: Sequence[Cell] = (),
    unfold: bool = False,
    keep: str = "",
    spans: Mapping[int, Sequence[Span]] | None = None,
    small: Sequence[LoopLine] = (),
) -> Drawing:
    """Draw a run, or a window of it; see `backdrop` and `finish`."""
    behind = backdrop(
        scene,
        width=width,
        window=window,
        unfold=unfold,
        keep=keep,
        spans=spans,
        small=small,
        cursor=cursor,
    )
    return finish(scene, behind, cursor=cursor, cells=cells)


def finish(
    scene: Scene, behind: Backdrop, *, cursor: int | None = None, cells: Sequence[Cell] = ()
) -> Drawing:
    """Draw the cursor and the lens on a backdrop.

    Args:
        scene: what to show.
        behind: drawn of the same scene.
        cursor: the tick a moment page is about.
        cells: single instructions round the cursor, for the lens.
    """
    canvas, (lo, hi), y = _canvas(behind.width, behind.keep), behind.window, behind.bottom
    if cursor is not None and lo <= cursor <= hi:
        y = _cursor(canvas, behind.ax, cursor, behind.top - 4, y, behind.flag_y)
        if cells:
            values = [FlagValue(0, scene.flag_start, False)] if scene.flag_start else []
            values += [FlagValue(m.tick, m.value, m.is_set) for m in scene.flag if m.write]
            y = lens(
                canvas, cells, cursor, behind.ax.x(cursor), y, values, scene.href, behind.keep,
                _waiting(scene, cursor),
            )  # fmt: skip
    what = "the run" if behind.whole else "a part of the run"
    title = f"timeline of {what}" + (f", cursor at tick {cursor:,}" if cursor is not None else "")
    return Drawing(
        behind.width,
        math.ceil(y + 4),
        "tl narrow" if canvas.narrow else "tl wide",
        title,
        behind.description,
        (*behind.shapes, *canvas.shapes)[:MAX_SHAPES],
        _corners(behind.ax, hi),
        () if behind.whole else _corners(behind.overview, max(scene.last_tick, 1)),
        behind.shapes if behind.whole else (),
    )


def _waiting(scene: Scene, cursor: int) -> list[Waiting]:
    """Return in which stage each CPU is at the cursor, CPUs of one stage together."""
    stages: dict[tuple[str, str], list[int]] = {}
    for cpu, spans in scene.lanes:
        at = bisect_right(spans, cursor, key=lambda span: span.lo) - 1
        if at >= 0:
            stages.setdefault((spans[at].letter, spans[at].name), []).append(cpu)
    return [Waiting(tuple(cpus), *stage) for stage, cpus in stages.items()][:8]


def _corners(ax: Axis, hi: int) -> tuple[tuple[float, int], ...]:
    starts = ((x, span.lo) for x, span in zip(ax.edges, ax.segments, strict=False))
    return (*starts, (ax.edges[-1], hi))


def busiest(spans: Mapping[int, Sequence[Span]], lo: int, hi: int) -> list[Span]:
    """Return who ran when: the spans of all CPUs on one line, without gaps or overlaps.

    Exactly one CPU retires each tick, so the axis of a window is cut where the functions of any CPU
    begin or end; where several claim a tick, it is that of the one that began last.
    """
    rows = sorted(clip([s for row in spans.values() for s in row], lo, hi), key=lambda s: s.lo)
    cuts = sorted({lo, hi, *(s.lo for s in rows), *(s.hi for s in rows)}) if rows else []
    out: list[Span] = []
    live: list[tuple[int, int, int]] = []
    first = 0
    for left, right in pairwise(cuts):
        while first < len(rows) and rows[first].lo <= left:
            heappush(live, (-rows[first].lo, rows[first].hi, first))
            first += 1
        while live and live[0][1] <= left:
            heappop(live)
        top = rows[live[0][2]] if live else Span(left, right, "", "")
        if out and (out[-1].name, out[-1].letter) == (top.name, top.letter):
            out[-1] = replace(out[-1], hi=right)
        else:
            out.append(replace(top, lo=left, hi=right))
    return out


def describe(scene: Scene) -> str:
    """Say in words what a timeline of the whole run shows."""
    parts = []
    for cpu, all_spans in scene.lanes:
        spans = all_spans[:200]
        names = [s.name for i, s in enumerate(spans) if i == 0 or s.name != spans[i - 1].name]
        if len(names) > 14:
            names = [*names[:13], "and more"]
        parts.append(f"cpu {cpu}: {', '.join(names) or 'not started'}")
    return "; ".join(parts)


def mini(scene: Scene, width: int = 330) -> Drawing:
    """Draw a run for a row of the gallery: boot CPU, the secondaries as one band, the flag."""
    canvas = Canvas(0.0, float(width), narrow=True)
    hi = max(scene.last_tick, 1)
    boot = dict(scene.lanes).get(scene.boot_cpu, ())
    ax = axis(boot, 0, hi, 0.0, float(width), cap=MINI_WEIGHT)
    for span, left, right in zip(ax.segments, ax.edges, ax.edges[1:], strict=False):
        canvas.rect(left, 0, right - left, 15, f"seg s{span.letter}", span.name)
        canvas.text((left + right) / 2, 11, "c b s", span.letter)
    others = [spans for cpu, spans in scene.lanes if cpu != scene.boot_cpu]
    held = [s for spans in others for s in spans if s.letter == "H"]
    if held:
        left, right = ax.x(min(s.lo for s in held)), ax.x(max(s.hi for s in held))
        canvas.rect(left, 17, right - left, 5, "sH", "secondaries in their hold loop")
        canvas.rect(left, 17, right - left, 5, "hl")
    if scene.flag or scene.flag_start:
        _flag_band(canvas, scene, ax, 0, hi, 25, 7)
        for mark, x, _ in thin(scene.flag, ax, 0, hi):
            canvas.disc(min(max(x, 4), width - 4), 28.5, 4, "dot" if mark.write else "ring")
    _tears(canvas, ax, -1, 33)
    words = "stages of the boot CPU, hold loop of the secondaries, flag"
    return Drawing(width, 34, "tl mini", words, describe(scene), tuple(canvas.shapes[:200]))


def _scale_bar(canvas: Canvas, boot: Sequence[Span], scene: Scene) -> float:
    """Draw the run in true scale, which says what the folds hide; as high as the minimap."""
    canvas.name(10, "all" if canvas.narrow else "true scale", "e m")
    total, wide = max(scene.last_tick, 1), canvas.x1 - canvas.x0
    bars: list[Span] = []
    for span in boot:
        if bars and bars[-1].letter == span.letter:
            bars[-1] = merge(bars[-1], span)
        else:
            bars.append(span)
    linear = Axis((Span(0, total, "", ""),), (canvas.x0, canvas.x1))
    bars = [span for span, _, _ in lane_spans(bars, linear, 0, total, 150)]
    for span in bars:
        x = canvas.x0 + span.lo / total * wide
        canvas.rect(x, 2, span.ticks / total * wide, 10, f"s{span.letter}", span.name)
    if bars:
        most = max(bars, key=lambda s: s.ticks)
        middle = canvas.x0 + (most.lo + most.hi) / 2 / total * wide
        words = f"{most.letter} {most.name}: {most.ticks / total:.1%} of {total:,} ticks"
        words = f"{most.letter} {most.ticks / total:.1%}" if canvas.narrow else words
        half = len(words) * 6.1 / 2
        middle = min(max(middle, canvas.x0 + half), canvas.x1 - half)
        canvas.text(middle, 10.3, "c s", words)
    return MAP_HEIGHT


def _minimap(canvas: Canvas, whole: Axis, ax: Axis, lo: int, hi: int, cursor: int | None) -> float:
    """Draw the whole run small, with a frame round the part that is shown below."""
    canvas.name(11, "all" if canvas.narrow else "whole run", "e m")
    for span, left, right in blocks(whole):
        canvas.rect(left, 2, right - left, 12, f"s{span.letter}", f"{span.letter} {span.name}")
        if right - left > 9:
            canvas.text((left + right) / 2, 11.5, "c s", span.letter)
    left, right = whole.x(lo), whole.x(hi)
    if cursor is not None:
        canvas.line(whole.x(cursor), 0, whole.x(cursor), 16, "cur")
    if right - left < 5:
        middle = (left + right) / 2
        left, right = middle - 2.5, middle + 2.5
    canvas.path(f"M{left:.1f} 15L{ax.edges[0]:.1f} 22H{ax.edges[-1]:.1f}L{right:.1f} 15Z", "fan")
    canvas.rect(left, 0.8, right - left, 14.4, "win", f"ticks {lo:,} - {hi:,} are shown below")
    return MAP_HEIGHT


def _ruler(canvas: Canvas, ax: Axis, y: float) -> float:
    if canvas.narrow:
        return y + 13
    canvas.name(y + 12, "stage")
    canvas.name(y + 24, "ticks in it", "e m")
    for span, left, right in blocks(ax):
        room, middle = right - left, (left + right) / 2
        for name in (*span.loop, span.name, span.label):
            name += " +" if span.merged else ""
            if len(name) * CHAR_PX < room:
                canvas.text(middle, y + 12, "c b" if span.fold else "c", name)
                break
        count = (f"x {span.turns:,}", f"x {short(span.turns)}") if span.turns else ()
        for words in (*count, f"{span.ticks:,}", short(span.ticks)):
            if len(words) * 6.1 < room - 2:
                canvas.text(middle, y + 24, "c m s", words)
                break
    return y + 30


def _lanes(
    canvas: Canvas,
    scene: Scene,
    ax: Axis,
    lo: int,
    hi: int,
    y: float,
    spans: Mapping[int, Sequence[Span]],
) -> float:
    """Draw a lane a CPU, the boot CPU first; the letter stands in every block with room for it.

    With spans, a CPU that ran in the window shows its functions over its stages.
    """
    lanes = sorted(scene.lanes, key=lambda lane: lane[0] != scene.boot_cpu)
    limit = max(8, 300 // max(len(lanes), 1))
    for cpu, stays in lanes:
        functions = spans.get(cpu, ())
        boot = cpu == scene.boot_cpu
        tall = 24.0 if boot or functions else 13.0
        canvas.name(
            y + tall / 2 + 4, f"{cpu}" if canvas.narrow else f"cpu {cpu}", f"e{' b' * boot}"
        )
        if boot and not spans:
            placed = blocks(ax)
        else:
            canvas.line(canvas.x0, y + tall / 2, canvas.x1, y + tall / 2, "hl")
            placed = [] if functions else lane_spans(stays, ax, lo, hi, limit)
        for span, left, right in placed:
            if span.letter and not (boot and spans):
                _block(canvas, scene, span, left, right, y, tall)
        for span, left, right in lane_spans(functions, ax, lo, hi, 2 * limit):
            _block(canvas, scene, span, left, right, y, tall, named=True)
        y += tall + 3
    return y + 2


def _block(
    canvas: Canvas, scene: Scene, span: Span, left: float, right: float, y: float, tall: float,
    *, named: bool = False,
) -> None:  # fmt: skip
    words = f"{span.letter} {span.name}: ticks {span.lo:,} - {span.hi:,}, {span.ticks:,}"
    href = f"{scene.href}{span.lo}/{canvas.keep}" if scene.href else ""
    canvas.rect(left, y, right - left, tall, f"seg s{span.letter}", words, href)
    label = f"{span.letter} {span.name}"
    if named and len(label) * CHAR_PX < right - left - 4:
        canvas.text(
            (left + right) / 2, y + tall / 2 + 4, "c ha" if span.letter == "H" else "c", label
        )
    elif span.letter == "H":
        canvas.rect(left, y, right - left, tall, "hl")
        if right - left > 9:
            canvas.text(min(left + 34, (left + right) / 2), y + tall / 2 + 4, "c b ha", "H")
    elif right - left > 8:
        canvas.text((left + right) / 2, y + tall / 2 + 4, "c b", span.letter)


def _low_lane(canvas: Canvas, scene: Scene, ax: Axis, lo: int, hi: int, y: float) -> float:
    """Draw writes to 0x0-0xff: y is the offset, so that a copy is a diagonal."""
    tall = 34.0
    if canvas.narrow:
        canvas.name(y + 14, "lo")
    else:
        canvas.name(y + 14, "writes to")
        canvas.name(y + 26, "0x0 - 0xff")
    canvas.line(canvas.x0, y, canvas.x1, y, "hl")
    canvas.line(canvas.x0, y + tall, canvas.x1, y + tall, "hl")
    label_end = canvas.x0
    bursts = [m for m in scene.low if m.end_tick >= lo and m.tick <= hi]
    for mark in bursts[:80]:
        xa, xb = ax.x(mark.tick), ax.x(mark.end_tick or mark.tick)
        ya, yb = y + mark.offset / 256 * tall, y + mark.end_offset / 256 * tall
        words = f"tick {mark.tick:,}: {mark.letter} {mark.text}"
        if mark.end_offset - mark.offset > 16:
            d = f"M{xa:.1f} {ya:.1f}L{xb:.1f} {yb:.1f}h4L{xa + 4:.1f} {ya:.1f}Z"
            canvas.path(d, f"s{mark.letter} edge", words)
        else:
            left = min(xa, canvas.x1 - 4)
            canvas.rect(left, min(ya, y + tall - 5), max(4.0, xb - left), 5, "ink", words)
        label = f"{mark.letter} {mark.text}"
        end = xb + 8 + len(label) * 6.1
        if not canvas.narrow and xb + 8 > label_end and end < canvas.x1:
            low = mark.end_offset - mark.offset > 16
            at = y + tall - 3 if low else min(max(ya + 9, y + 10), y + tall - 3)
            canvas.text(xb + 8, at, "s ha", label)
            label_end = end
    return y + tall + 8


def _flag_band(
    canvas: Canvas, scene: Scene, ax: Axis, lo: int, hi: int, y: float, tall: float
) -> None:
    """Draw the flag's value over time: outlined while it is not 1, solid once it is."""
    writes = [m for m in scene.flag if m.write]
    before = [m for m in writes if m.tick <= lo]
    value = (before[-1].is_set, before[-1].value) if before else (False, scene.flag_start)
    edges = [(lo, *value)]
    edges += [(m.tick, m.is_set, m.value) for m in writes if lo < m.tick <= hi]
    for index, (tick, is_set, words) in enumerate(edges[:60]):
        end = edges[index + 1][0] if index + 1 < len(edges) else hi
        left, right = ax.x(tick), ax.x(end)
        if right <= left:
            continue
        if is_set:
            canvas.rect(left, y, right - left, tall, "fb", f"value {words} from tick {tick:,}")
        else:
            canvas.rect(left + 0.8, y + 0.8, right - left - 1.6, tall - 1.6, "fo", f"value {words}")
        side = left + (14 if index else 6)
        marks = (ax.x(m.tick) - 9 - 9 * m.write for m in scene.flag if m.tick > tick)
        room = min((x for x in marks if x > left), default=right - 8) - side
        if tall > 10 and len(words) * CHAR_PX < room:
            canvas.text(side, y + tall - 2.5, "of" if is_set else "f", words)


def _flag_lane(
    canvas: Canvas, scene: Scene, ax: Axis, lo: int, hi: int, y: float
) -> tuple[float, float]:
    canvas.name(y + 6, "flag", "e f b")
    if not canvas.narrow:
        canvas.name(y + 16, scene.flag_name, "e m s")
    _flag_band(canvas, scene, ax, lo, hi, y, 12)
    marks = thin(scene.flag, ax, lo, hi)[:60]
    for index, (mark, x, count) in enumerate(marks):
        if mark.says and not canvas.narrow:
            room = (marks[index + 1][1] - 16 if index + 1 < len(marks) else canvas.x1) - x - 14
            if len(mark.says) * CHAR_PX < room:
                canvas.text(x + 11, y + 9.5, "of" if mark.is_set else "f ha", mark.says)
        shift = -9 if mark.write else 0
        words = f"tick {mark.tick:,}: {mark.text}" + (f" and {count - 1} more" if count > 1 else "")
        x = min(max(x + shift, canvas.x0 + 7), canvas.x1 - 7)
        canvas.disc(x, y + 6, 7, "dot" if mark.write else "ring", words)
        if mark.number:
            css = "c of" if mark.write else "c f b"
            canvas.text(x, y + 9.7, css, str(mark.number))
    return y + 24, y + 6


def _console_lane(canvas: Canvas, scene: Scene, ax: Axis, lo: int, hi: int, y: float) -> float:
    canvas.name(y + 9, "con" if canvas.narrow else "console")
    canvas.line(canvas.x0, y + 13, canvas.x1, y + 13, "hl")
    label_end = canvas.x0
    marks = thin(scene.console, ax, lo, hi)[:60]
    for _, x, _ in marks:
        canvas.line(x, y + 1, x, y + 13, "ax")
    for mark, x, _ in marks:
        room = int((canvas.x1 - x - 6) / 6.1)
        words = mark.text[:40]
        if room < len(words):
            words = words[: max(room - 2, 0)] + ".." if room > 8 else ""
        if words and x + 3 > label_end:
            canvas.text(x + 3, y + 9, "s ha", words)
            label_end = x + 9 + len(words) * 6.1
    return y + 17


def _tears(canvas: Canvas, ax: Axis, top: float, bottom: float) -> None:
    """Draw a zigzag over all lanes at both edges of every fold."""
    for span, left, right in blocks(ax):
        if not span.fold:
            continue
        for x in (left, right):
            points, y, side = [f"M{x:.1f} {top:.1f}"], top + 4, 2.5
            while y < bottom:
                points.append(f"L{x + side:.1f} {y:.1f}")
                y, side = y + 4, -side
            canvas.path("".join(points), "ax")


def _cursor(canvas: Canvas, ax: Axis, cursor: int, top: float, y: float, flag_y: float) -> float:
    x = ax.x(cursor)
    canvas.line(x, top, x, y, "cur")
    words = f"tick {cursor:,}"
    half = len(words) * CHAR_PX / 2 + 5
    middle = min(max(x, canvas.x0 + half), canvas.x1 - half)
    canvas.rect(middle - half, y, 2 * half, 16, "ink")
    canvas.text(middle, y + 11.8, "c b inv", words)
    return y + 16
