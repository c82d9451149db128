"""The timeline's axis: ticks to x and back, by segments as wide as the logarithm of their ticks.

A hand-off has stages of 20 instructions and of 1.5 thousand million, so it is not linear: each
segment (the boot CPU in one stage) gets a width that grows with the logarithm of its ticks, and is
linear inside. x(tick) is monotone and continuous, tick(x) is its inverse. At most (x1 - x0) / 11
segments are made, whatever the window. Pure numbers; shapes are `drawing.py`'s.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

MIN_SEGMENT_PX = 11.0
FOLD_WEIGHT = 16.0


@dataclass(frozen=True)
class Span:
    """One CPU in one stage, for the ticks lo <= t < hi."""

    lo: int
    hi: int
    letter: str
    name: str
    label: str = ""
    fold: bool = False
    loop: tuple[str, ...] = ()
    """Name of the long loop that it is a part of, ever shorter."""
    turns: int = 0
    """How many that loop has."""
    merged: bool = False

    @property
    def ticks(self) -> int:
        """How many ticks it lasts, over all CPUs."""
        return self.hi - self.lo


@dataclass(frozen=True)
class Axis:
    """The monotone map between ticks and x; edges has one x more than there are segments."""

    segments: tuple[Span, ...]
    edges: tuple[float, ...]

    def x(self, tick: float) -> float:
        """Return the x of a tick; outside of the window, its nearest end."""
        at = bisect_right([s.lo for s in self.segments], tick) - 1
        at = min(max(at, 0), len(self.segments) - 1)
        span, left, right = self.segments[at], self.edges[at], self.edges[at + 1]
        share = (tick - span.lo) / max(span.ticks, 1)
        return left + (right - left) * min(max(share, 0.0), 1.0)

    def tick(self, x: float) -> int:
        """Return the tick at x, the inverse of x()."""
        at = min(max(bisect_right(self.edges, x) - 1, 0), len(self.segments) - 1)
        span, left, right = self.segments[at], self.edges[at], self.edges[at + 1]
        share = (x - left) / (right - left) if right > left else 0.0
        return span.lo + round(span.ticks * min(max(share, 0.0), 1.0))


def clip(spans: Sequence[Span], lo: int, hi: int) -> list[Span]:
    """Cut the spans to the window; those without a tick in it are dropped."""
    cut = (replace(s, lo=max(s.lo, lo), hi=min(s.hi, hi)) for s in spans)
    return [s for s in cut if s.ticks > 0]


def weight(span: Span, cap: float) -> float:
    """Return how wide a segment wants to be, in no unit."""
    value = 4 + math.log2(1 + span.ticks)
    return min(value, cap) if span.fold or cap < FOLD_WEIGHT else value


def axis(
    spans: Sequence[Span], lo: int, hi: int, x0: float, x1: float, *, cap: float = FOLD_WEIGHT
) -> Axis:
    """Lay the segments of the window [lo, hi) out between x0 and x1.

    Args:
        spans: the boot CPU's, in order, without gaps.
        lo: first tick of the window.
        hi: first tick behind it.
        x0: left edge of the plot.
        x1: right edge of the plot.
        cap: largest weight of a fold; below 16 it caps every segment (small pictures).
    """
    segments = coarse(clip(spans, lo, hi)) or [Span(lo, max(hi, lo + 1), "", "")]
    weights = [weight(s, cap) for s in segments]
    while len(segments) > 1 and (x1 - x0) * min(weights) / sum(weights) < MIN_SEGMENT_PX:
        at = min(range(len(segments) - 1), key=lambda i: segments[i].ticks + segments[i + 1].ticks)
        segments[at : at + 2] = [merge(segments[at], segments[at + 1])]
        weights[at : at + 2] = [weight(segments[at], cap)]
    edges, total = [x0], sum(weights)
    for value in weights:
        edges.append(edges[-1] + (x1 - x0) * value / total)
    edges[-1] = x1
    return Axis(tuple(segments), tuple(edges))


def cut(spans: Sequence[Span], ticks: Sequence[int]) -> list[Span]:
    """Cut the boot CPU's spans at ticks where something happens elsewhere, so that it gets room."""
    out = list(spans)
    for tick in ticks:
        for at, span in enumerate(out):
            if span.lo < tick < span.hi:
                out[at : at + 1] = [replace(span, hi=tick), replace(span, lo=tick)]
                break
    return out


def blocks(ax: Axis) -> list[tuple[Span, float, float]]:
    """Return (span, left, right) of an axis; segments that were only cut are one block again."""
    out: list[tuple[Span, float, float]] = []
    for span, left, right in zip(ax.segments, ax.edges, ax.edges[1:], strict=False):
        before = out[-1][0] if out else span
        same = (before.letter, before.name, before.loop) == (span.letter, span.name, span.loop)
        if out and same and not (before.merged or span.merged):
            out[-1] = (replace(before, hi=span.hi), out[-1][1], right)
        else:
            out.append((span, left, right))
    return out


def coarse(spans: list[Span], limit: int = 400) -> list[Span]:
    """Merge the shortest neighbours until at most limit spans remain, in a few passes."""
    ticks = 1
    while len(spans) > limit:
        kept: list[Span] = []
        for span in spans:
            if kept and kept[-1].ticks + span.ticks <= ticks:
                kept[-1] = merge(kept[-1], span)
            else:
                kept.append(span)
        spans, ticks = kept, ticks * 2
    return spans


def merge(left: Span, right: Span) -> Span:
    """Make one span of two neighbours; it takes the letter of the longer."""
    longer = left if left.ticks >= right.ticks else right
    return replace(longer, lo=left.lo, hi=right.hi, merged=True)


def lane_spans(
    spans: Sequence[Span], ax: Axis, lo: int, hi: int, limit: int
) -> list[tuple[Span, float, float]]:
    """Return (span, left, right) of one lane, the narrow ones merged until at most limit remain."""
    placed = [(s, ax.x(s.lo), ax.x(s.hi)) for s in clip(spans, lo, hi)]
    minimum = 1.0
    while len(placed) > limit or (minimum == 1.0 and placed):
        kept: list[tuple[Span, float, float]] = []
        for span, left, right in placed:
            before, before_left, before_right = kept[-1] if kept else (span, left, right)
            if kept and right - left < minimum and before_right - before_left < minimum:
                kept[-1] = (merge(before, span), before_left, right)
            else:
                kept.append((span, left, right))
        placed, minimum = kept, minimum * 2
    return placed
