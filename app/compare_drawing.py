"""Drawings of a comparison: one aligned axis for both runs, and the fork of their instructions.

Pure geometry over `canvas.py`. A column is as wide as the longer of its two stages needs; the
shorter run fills its share, the rest is a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.axis import FOLD_WEIGHT
from app.canvas import CHAR_PX, SMALL_CHAR_PX, Canvas, Drawing
from app.drawing import short
from app.steps import Step
from app.story import Story
from emulator.compare import Column
from emulator.lanes import Stay


def _weight(ticks: int) -> float:
    return min(4 + math.log2(1 + ticks), FOLD_WEIGHT + 8) if ticks else 0.0


def aligned(
    columns: Sequence[Column],
    told: tuple[Story, Story],
    ids: tuple[str, str],
    fork: tuple[int, int] | None,
    width: int,
) -> Drawing:
    """Draw both runs on one axis, a column a stage, with their flags and the first divergence."""
    narrow = width < 600
    canvas = Canvas(32.0 if narrow else 104.0, float(width - 6), narrow)
    total = sum(max(map(_weight, c.ticks)) for c in columns) or 1.0
    x, edges = canvas.x0, []
    for column in columns:
        wide = (canvas.x1 - canvas.x0) * max(map(_weight, column.ticks)) / total
        edges.append((x, x + wide))
        x += wide
    y = 0.0
    if not narrow:
        canvas.name(12, "stage")
        canvas.name(24, "ticks in it", "e m")
        for column, (left, right) in zip(columns, edges, strict=True):
            _ruler(canvas, column, left, right)
        y = 30.0
    for side, letter in enumerate("AB"):
        y = _run(canvas, columns, edges, told[side], ids[side], side, letter, y)
    if fork is not None:
        at = _x(columns, edges, 0, fork[0])
        canvas.line(at, 28 if not narrow else 0, at, y, "badl")
        words = f"first divergence, tick {fork[0]:,}"
        half = len(words) * CHAR_PX / 2 + 6
        middle = min(max(at, canvas.x0 + half), canvas.x1 - half)
        canvas.rect(middle - half, y, 2 * half, 16, "bad-box")
        canvas.text(middle, y + 11.8, "c b inv", words)
        y += 18
    title = "both runs, aligned by stage"
    words = "; ".join(f"{c.stay.name}: A {c.ticks[0]:,}, B {c.ticks[1]:,} ticks" for c in columns)
    css = "tl narrow" if narrow else "tl wide"
    return Drawing(width, math.ceil(y + 4), css, title, words, tuple(canvas.shapes))


def _ruler(canvas: Canvas, column: Column, left: float, right: float) -> None:
    room, middle = right - left, (left + right) / 2
    for name in (column.stay.name, column.stay.stage):
        if len(name) * CHAR_PX < room:
            canvas.text(middle, 12, "c", name)
            break
    a, b = column.ticks
    options: tuple[str, ...]
    if a == b:
        options, css = (f"{a:,}", short(a)), "c m s"
    else:
        options, css = (f"A {a:,} B {b:,}", f"A {short(a)} B {short(b)}", "A != B", "!="), "c b s"
    for words in options:
        if len(words) * SMALL_CHAR_PX < room - 2:
            canvas.text(middle, 24, css, words)
            break


def _x(
    columns: Sequence[Column], edges: Sequence[tuple[float, float]], side: int, tick: int
) -> float:
    """Return where a tick of one run lies."""
    x = edges[0][0] if edges else 0.0
    for column, (left, right) in zip(columns, edges, strict=True):
        stay = (column.a, column.b)[side]
        if stay is None or stay.lo > tick:
            continue
        end = left + _filled(column, side, right - left)
        x = left + (end - left) * min((tick - stay.lo) / max(stay.hi - stay.lo, 1), 1.0)
    return x


def _filled(column: Column, side: int, room: float) -> float:
    weights = [_weight(ticks) for ticks in column.ticks]
    return room * weights[side] / max(max(weights), 1e-9)


def _run(
    canvas: Canvas,
    columns: Sequence[Column],
    edges: Sequence[tuple[float, float]],
    told: Story,
    run_id: str,
    side: int,
    letter: str,
    y: float,
) -> float:
    canvas.name(y + 15, letter, "e b")
    for column, (left, right) in zip(columns, edges, strict=True):
        stay: Stay | None = (column.a, column.b)[side]
        if stay is None:
            canvas.line(left, y + 11, right, y + 11, "hl")
            continue
        wide = _filled(column, side, right - left)
        words = f"{letter} {stay.letter} {stay.name}: ticks {stay.lo:,} - {stay.hi:,}"
        canvas.rect(left, y, wide, 22, f"seg s{stay.letter}", words, f"/t/{run_id}/{stay.lo}/")
        if wide > 8:
            canvas.text(left + wide / 2, y + 15, "c b", stay.letter)
        if wide < right - left - 1:
            canvas.line(left + wide, y + 11, right, y + 11, "ax")
    y += 25
    canvas.name(y + 9, "flag", "e f")
    steps = [step for step in told.verdict.custody if step.number > 0]
    values = [(0, told.flag_start or "as loaded", False)]
    values += [(s.tick, s.value.split(" -> ")[-1], s.is_set) for s in steps if s.write]
    for at, (tick, words, is_set) in enumerate(values):
        left = _x(columns, edges, side, tick)
        last = values[at + 1][0] if at + 1 < len(values) else told.lanes.last_tick
        right = _x(columns, edges, side, last)
        if right - left < 1:
            continue
        if is_set:
            canvas.rect(left, y, right - left, 12, "fb", words)
        else:
            canvas.rect(left + 0.8, y + 0.8, right - left - 1.6, 10.4, "fo", words)
        if len(words) * CHAR_PX + 14 < right - left:
            canvas.text(left + 6, y + 9.6, "of" if is_set else "f", words)
    for step in steps:
        x = min(max(_x(columns, edges, side, step.tick), canvas.x0 + 7), canvas.x1 - 7)
        words = f"tick {step.tick:,}: {step.title} {step.text}"
        canvas.disc(x, y + 6, 7, "dot" if step.write else "ring", words)
        canvas.text(x, y + 9.7, "c of" if step.write else "c f b", str(step.number))
    return y + 22


def forked(
    trunk: Sequence[Step], a: Sequence[Step], b: Sequence[Step], ids: tuple[str, str], width: int
) -> Drawing:
    """Draw the last common instructions, then both ways; gaps in one are hatched `skipped`."""
    narrow = width < 600
    canvas = Canvas(18.0 if narrow else 104.0, float(width - 6), narrow)
    rows = _meet(a, b)
    if narrow:
        trunk, rows = trunk[-1:], rows[:4]
    else:
        rows = rows[:11]
    gap = 14.0 if narrow else 32.0
    step = (canvas.x1 - canvas.x0 - gap) / max(len(trunk) + len(rows), 1)
    middle, x = 32.0, canvas.x0
    for common in trunk:
        _cell(canvas, common, x, middle, step, f"/t/{ids[0]}/{common.tick}/")
        x += step
    if not narrow:
        canvas.text(canvas.x0, middle + 42, "m s", "the same in both")
    for side, y in ((0, 6.0), (1, 58.0)):
        canvas.line(x, middle + 14, x + gap - 4, y + 14, "badl")
        canvas.text(canvas.x0 - 10, y + 18, "e b", "AB"[side])
        for at, pair in enumerate(rows):
            left, row = x + gap + at * step, pair[side]
            if row is None:
                canvas.rect(left, y, step, 28, "seg sH", "skipped")
                canvas.text(left + step / 2, y + 17, "c m s ha", "skipped" if step > 46 else "")
                continue
            other = pair[1 - side]
            css = "diff" if at == 0 or (other is not None and other.data != row.data) else ""
            _cell(canvas, row, left, y, step, f"/t/{ids[side]}/{row.tick}/", css)
            if row.flag:
                canvas.text(left + step / 2, y - 1 if side == 0 else y + 38, "c s b f", "flag")
    words = "; ".join(
        f"{name}: " + ", ".join(" ".join(row.text.split()) for row in rows_)
        for name, rows_ in (("same", trunk), ("A", a), ("B", b))
    )
    css = "tl narrow" if narrow else "tl wide"
    title = "the first divergence, instruction by instruction"
    return Drawing(width, 100, css, title, words, tuple(canvas.shapes))


def _meet(a: Sequence[Step], b: Sequence[Step]) -> list[tuple[Step | None, Step | None]]:
    """Align two ways by address, so that what only one runs stands against a gap."""
    out: list[tuple[Step | None, Step | None]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i].nip == b[j].nip or not out:
            out.append((a[i], b[j]))
            i, j = i + 1, j + 1
            continue
        in_b = next((k for k in range(j, len(b)) if b[k].nip == a[i].nip), None)
        in_a = next((k for k in range(i, len(a)) if a[k].nip == b[j].nip), None)
        if in_b is not None and (in_a is None or in_b - j <= in_a - i):
            out += [(None, row) for row in b[j:in_b]]
            j = in_b
        elif in_a is not None:
            out += [(row, None) for row in a[i:in_a]]
            i = in_a
        else:
            out.append((a[i], b[j]))
            i, j = i + 1, j + 1
    return out


def _cell(
    canvas: Canvas, row: Step, x: float, y: float, step: float, href: str, css: str = ""
) -> None:
    words = f"tick {row.tick:,}: {row.text}" + (f"  # {row.comment}" if row.comment else "")
    canvas.rect(
        x, y, step, 28, f"seg cell s{row.letter} {css} {'fl' * row.flag}".strip(), words, href
    )
    room = int((step - 4) / SMALL_CHAR_PX)
    name, _, rest = row.text.partition(" ")
    bold = " b" if css or row.flag else ""
    canvas.text(x + step / 2, y + 12, f"c s{bold}", name[:room])
    canvas.text(x + step / 2, y + 23, "c s", rest.strip()[:room])
