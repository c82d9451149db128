"""Markup that Python writes: nothing of a guest gets out of its place, nothing stale is kept."""

from __future__ import annotations

import pytest

from app import markup
from app.canvas import Drawing, Shape
from app.kept import Kept
from app.panels import EventRow, LowCell, LowRow, Register
from app.steps import RanLine
from app.view import View

HOSTILE = """<script>alert("'x'")</script>&"""
ESCAPED = "&lt;script&gt;alert(&#34;&#39;x&#39;&#34;)&lt;/script&gt;&amp;"


def drawing(*shapes: Shape, behind: tuple[Shape, ...] = ()) -> Drawing:
    return Drawing(10, 10, "tl", "t", "d", (*behind, *shapes), behind=behind)


@pytest.mark.parametrize("kind", ["rect", "text", "circle", "path"])
def test_texts_of_shapes_are_escaped(kind: str) -> None:
    text = markup.shapes(drawing(Shape(kind, HOSTILE, text=HOSTILE, href=HOSTILE)))
    assert text.count(ESCAPED) == 3
    assert "<script" not in text
    assert text.startswith(f'<a href="{ESCAPED}"><{kind} ')


def test_backdrop_is_written_once_and_its_own_shapes_each_time() -> None:
    behind = (Shape("text", "a", text="behind"),)
    first = markup.shapes(drawing(Shape("text", "b", text="one"), behind=behind))
    other = markup.shapes(drawing(Shape("text", "b", text="two"), behind=behind))
    assert [first.count(word) for word in ("behind", "one", "two")] == [1, 1, 0]
    assert [other.count(word) for word in ("behind", "one", "two")] == [1, 0, 1]
    equal = (Shape("text", "a", text="Behind"),)
    assert "Behind" in markup.shapes(drawing(behind=equal))


def test_low_memory_leads_to_the_last_write_or_stays_here() -> None:
    cells = (
        LowCell(0x5C, "01", "P", 77, HOSTILE, "fl"),
        LowCell(0x5D, "00", ".", None, "0x5d: not written yet", "z"),
    )
    rows = (LowRow(0x50, cells, (("flag", HOSTILE),)),)
    view = View(width=4096)
    text = markup.low_rows(rows, "r", 123, view)
    assert '<a href="/t/r/77/?w=4096&amp;at=0x5c" tabindex="0">01</a>' in text
    assert '<a href="/t/r/123/?w=4096&amp;at=0x5d" tabindex="-1">00</a>' in text
    assert text.count(ESCAPED) == 2
    assert 'href="/t/r/124/' in markup.low_rows(rows, "r", 124, view)
    assert 'class="fl sel"' in markup.low_rows(rows, "r", 123, View(at="0x5c"))
    assert "sel" not in text


def test_registers_are_marked() -> None:
    at = "/t/r/5/seek?what=last-write&cpu=1&at="
    assert markup.register(Register("r3", "1f", False, False), "") == "1f"
    assert markup.register(Register("r3", "1f", True, False, True), "") == "<mark>1f</mark>"
    assert markup.register(Register("r3", "1f", False, False, True), "") == "<u>1f</u>"
    assert markup.register(Register("r3", "0", False, True), "") == '<span class="mut">0</span>'
    assert markup.register(Register("r3", "0", True, True, True), at) == (
        '<a class="v ch re mut" href="/t/r/5/seek?what=last-write&amp;cpu=1&amp;at=r3"'
        ' tabindex="-1">0</a>'
    )


def test_listing_and_events_are_escaped() -> None:
    head = RanLine(1, "c0", "", "", "", HOSTILE, "BE", "", head=True)
    line = RanLine(2, "c4", "60 00", HOSTILE, HOSTILE, "", "BE", "*", flag=True)
    text = markup.listing([head, line])
    assert text.count(ESCAPED) == 3
    assert '<span class="cm flag"> # ' in text
    row = EventRow(7, 9, None, "P", HOSTILE, HOSTILE, HOSTILE, count=3)
    event = markup._event(row, "/t/r/", "?w=16")
    assert event.count(ESCAPED) == 3
    assert '<a href="/t/r/7/?w=16">7</a></td><td>-</td>' in event
    assert "3 times up to tick 9" in event


def test_kept_things_are_bounded_and_belong_to_their_key() -> None:
    kept, made = Kept(2), list[str]()

    def make(name: str) -> str:
        return kept.get(name, lambda: made.append(name) or name)  # type: ignore[func-returns-value]

    assert [make(name) for name in "abacab"] == list("abacab")
    assert made == ["a", "b", "c", "b"]
    one, other = [1], [1]
    assert kept.made_of(one, "", lambda: "one") == "one"
    assert kept.made_of(other, "", lambda: "other") == "other"
    assert kept.made_of(one, "", lambda: "new") == "one"
