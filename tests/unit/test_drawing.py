import random
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from app.axis import MIN_SEGMENT_PX, Span, axis, lane_spans
from app.drawing import MAX_SHAPES, Mark, Scene, mini, timeline
from app.lens import Cell

SPANS = [
    Span(0, 236, "O", "hand-over"),
    Span(236, 1416, "P", "purgatory"),
    Span(1416, 1_508_264_442, "D", "digest check", fold=True),
    Span(1_508_264_442, 1_508_330_044, "P", "purgatory"),
    Span(1_508_330_044, 1_533_444_221, "K", "kernel head"),
]
LAST = SPANS[-1].hi


def _many(count: int, seed: int) -> list[Span]:
    rng, tick, spans = random.Random(seed), 0, []
    for i in range(count):
        ticks = int(2 ** rng.uniform(0, 25))
        spans.append(Span(tick, tick + ticks, "PKRC"[i % 4], "x"))
        tick += ticks
    return spans


def test_x_is_monotone_and_tick_is_its_inverse() -> None:
    ax = axis(SPANS, 0, LAST, 104, 1394)
    ticks = sorted(random.Random(1).sample(range(LAST), 2000))
    xs = [ax.x(tick) for tick in ticks]
    assert xs == sorted(xs)
    assert ax.x(0) == 104
    assert ax.x(LAST) == 1394
    for span, left, right in zip(ax.segments, ax.edges, ax.edges[1:], strict=False):
        per_pixel = span.ticks / (right - left)
        for tick in ticks:
            if span.lo <= tick < span.hi:
                assert abs(ax.tick(ax.x(tick)) - tick) <= 1 + per_pixel * 1e-6


def test_one_segment_in_the_window_is_a_linear_axis() -> None:
    ax = axis(SPANS, 2000, 3000, 0, 1000)
    assert [ax.x(t) for t in (2000, 2250, 2500, 3000)] == [0, 250, 500, 1000]


def test_a_fold_opens_when_few_of_its_ticks_are_in_view() -> None:
    far = axis(SPANS, 0, LAST, 0, 1000)
    assert far.edges[3] - far.edges[2] == pytest.approx(
        1000 * 16 / sum((16, 4 + 7.889, 4 + 10.206, 4 + 16.001, 4 + 24.582)), rel=1e-3
    )
    near = axis(SPANS, 1416, 1416 + 4096, 0, 1000)
    assert near.x(1416 + 2048) == 500


@pytest.mark.parametrize("seed", range(8))
def test_segments_are_never_narrower_than_can_be_seen(seed: int) -> None:
    spans = _many(900, seed)
    ax = axis(spans, 0, spans[-1].hi, 104, 1394)
    widths = [b - a for a, b in zip(ax.edges, ax.edges[1:], strict=False)]
    assert min(widths) >= MIN_SEGMENT_PX - 1e-6
    assert sum(widths) == pytest.approx(1290)
    assert ax.segments[0].lo == 0
    assert ax.segments[-1].hi == spans[-1].hi
    assert any(span.merged for span in ax.segments)


def test_narrow_spans_of_a_lane_are_merged_without_losing_ticks() -> None:
    spans = _many(2000, 3)
    ax = axis(SPANS, 0, LAST, 0, 1290)
    placed = lane_spans(spans, ax, 0, LAST, 40)
    assert 0 < len(placed) <= 40
    assert placed[0][0].lo == 0
    assert placed[-1][0].hi == min(spans[-1].hi, LAST)


def test_shapes_are_bounded_for_the_worst_run() -> None:
    lanes = tuple((cpu, tuple(_many(3000, cpu))) for cpu in range(16))
    last = max(spans[-1].hi for _, spans in lanes)
    marks = tuple(Mark(last * i // 5000, "text", "O", offset=i % 256) for i in range(5000))
    flag = tuple(Mark(last * i // 500, "w", "P", i, True, "1", True) for i in range(500))
    scene = Scene(lanes, 0, marks, flag, "run0", marks, last)
    for width in (1400, 362):
        drawing = timeline(scene, width=width, cursor=last // 2)
        assert 100 < len(drawing.shapes) < MAX_SHAPES
    assert len(mini(scene).shapes) <= 200


def test_cursor_stands_on_the_right_edge_of_its_instruction() -> None:
    scene = Scene(((0, tuple(SPANS)),), 0, (), (), "", (), LAST)
    cells = [Cell(t, 0, "P") for t in range(89, 117)]
    drawing = timeline(scene, width=1400, cursor=100, cells=cells)
    now = next(s for s in drawing.shapes if "now" in s.css)
    line = [s for s in drawing.shapes if s.css == "cur"][-1]
    assert line.d.startswith(f"M{now.x + now.w:.1f}")


def test_blocks_carry_their_letter_not_only_a_colour() -> None:
    scene = Scene(((0, tuple(SPANS)),), 0, (), (), "", (), LAST)
    texts = [s.text for s in timeline(scene, width=1400).shapes if s.css == "c b"]
    assert "".join(t for t in texts if len(t) == 1) == "OPDPK"


def lines_run(scene: Scene) -> int:
    """How many lines of Python the drawing of a scene runs: its work, whatever the machine does."""
    count = 0

    def see(frame: FrameType, event: str, arg: object) -> Callable[..., object]:
        nonlocal count
        count += event == "line"
        return see

    sys.settrace(see)
    try:
        assert len(timeline(scene, width=1400).shapes) < MAX_SHAPES
    finally:
        sys.settrace(None)
    return count


def test_the_work_of_drawing_grows_with_the_changes_of_stage_not_with_their_square() -> None:
    def flood(changes: int) -> Scene:
        spans = [Span(7 * i, 7 * i + 7, "PD"[i % 2], "x") for i in range(changes)]
        return Scene(((0, tuple(spans)),), 0, (), (), "", (), 7 * changes)

    assert lines_run(flood(8000)) < 6 * lines_run(flood(2000))


def test_a_secondary_that_joins_at_the_very_end_is_seen() -> None:
    last = 1_593_549_301
    boot = (Span(0, 1_592_404_889, "D", "digest", fold=True), Span(1_592_404_889, last, "S", "s"))
    other = (Span(0, last - 2800, "H", "hold"), Span(last - 2800, last, "J", "joins"))
    scene = Scene(((0, boot), (1, other)), 0, (), (), "", (), last)
    for width in (1400, 362):
        shapes = timeline(scene, width=width).shapes
        joins = [s for s in shapes if s.css == "seg sJ"]
        assert len(joins) == 1
        assert joins[0].w > 11
        assert len([s for s in shapes if s.css == "seg sS"]) == 1  # one block, although cut
