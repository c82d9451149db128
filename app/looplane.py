"""The lane of loops on a timeline: a bar a loop, its name and count in it, inner ones below.

Geometry of one lane, beside `drawing.py`'s others; which loops there are is `looping.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.axis import Axis
from app.canvas import SMALL_CHAR_PX, Canvas
from app.looping import LoopLine

MAX_BARS = 60
MIN_PX = 4.0
LEVELS = 3
TALL, STEP = 13.0, 15.0

Bar = tuple[float, float, LoopLine]


def loop_lane(
    canvas: Canvas,
    loops: Sequence[LoopLine],
    ax: Axis,
    window: tuple[int, int],
    y: float,
    href: str,
) -> float:
    """Draw the loops of a window below y; return where they end: y itself if there are none.

    A loop is a bar if it is wide enough to be seen; of many, the widest. Rows are by nesting: what
    lies in an outer loop stands below it.
    """
    lo, hi = window
    bars = [
        (max(ax.x(line.begin), canvas.x0), min(ax.x(line.end), canvas.x1), line)
        for line in loops
        if line.begin < hi and line.end > lo
    ]
    bars = [bar for bar in bars if bar[1] - bar[0] >= MIN_PX]
    bars = sorted(bars, key=lambda bar: bar[0] - bar[1])[:MAX_BARS]
    rows = _rows(sorted(bars, key=lambda bar: (bar[2].begin, bar[2].level)))
    for number, row in enumerate(rows):
        if number == 0:
            canvas.name(y + 10, "lp" if canvas.narrow else "loops")
        for left, right, line in row:
            _bar(canvas, left, right, line, y, href)
        y += STEP
    return y + 4 if rows else y


def _rows(bars: Sequence[Bar]) -> list[list[Bar]]:
    """Put each bar into the first row in which it overlaps none, inner ones below outer ones."""
    rows: list[list[Bar]] = []
    shift = min((bar[2].level for bar in bars), default=0)
    for bar in bars:
        for number in range(min(bar[2].level - shift, LEVELS), LEVELS):
            if number == len(rows):
                rows.append([])
            if number < len(rows) and all(
                bar[0] >= other[1] - 0.5 or bar[1] <= other[0] + 0.5 for other in rows[number]
            ):
                rows[number].append(bar)
                break
    return [row for row in rows if row]


def _bar(canvas: Canvas, left: float, right: float, line: LoopLine, y: float, href: str) -> None:
    words = (
        f"cpu {line.cpu}, {line.letter}: {line.name} {line.count}, {line.ticks:,} instructions, "
        f"{line.does}; ticks {line.begin:,} - {line.end:,}"
    )
    link = f"{href}{line.begin}/{canvas.keep}" if href else ""
    canvas.rect(left, y, right - left, TALL, "seg lp", words, link)
    for label in line.labels:
        if len(label) * SMALL_CHAR_PX + 4 < right - left:
            if left <= canvas.x0 and right >= canvas.x1:  # the cursor is in the middle of it
                canvas.text(left + 6, y + 9.8, "s", label)
            else:
                canvas.text((left + right) / 2, y + 9.8, "c s", label)
            return
