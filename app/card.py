"""The picture of a run or a moment for link previews: 1200 x 630, PNG.

Drawn with Pillow and the font inside it, so that it looks the same on every machine and needs none
of its fonts. Colours are the light tokens of `static/bootflow.css`, read from there. Pure: a page
model in, bytes out.
"""

from __future__ import annotations

import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from app.canvas import Drawing, Shape

WIDTH, HEIGHT = 1200, 630
SCALE = 2
"""Drawn so many times larger, then scaled down: Pillow's shapes have hard edges."""
MARGIN = 44
_TOKEN = re.compile(r"--([A-Za-z0-9]+):(#[0-9a-f]{3,6})\b")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_STEP = re.compile(r"([MLHhZ])([^MLHhZ]*)")


@cache
def _tokens() -> dict[str, str]:
    """Return the light colours of the style sheet."""
    here = Path(__file__).resolve().parent
    root = here if (here / "static").is_dir() else here.parent
    css = (root / "static" / "bootflow.css").read_text().split("@media", 1)[0]
    return {
        name: "#" + "".join(c * 2 for c in value[1:]) if len(value) == 4 else value
        for name, value in _TOKEN.findall(css)
    }


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size * SCALE)


class _Sheet:
    """A picture that is drawn in the units of the card."""

    def __init__(self) -> None:
        self.colour = _tokens()
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), self.colour["bg"])
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x: float, y: float, w: float, h: float, fill: str = "", edge: str = "") -> None:
        s = SCALE
        self.draw.rectangle(
            (x * s, y * s, (x + w) * s - 1, (y + h) * s - 1),
            fill=self.colour[fill] if fill else None,
            outline=self.colour[edge] if edge else None,
            width=2 * s if edge else 1,
        )

    def words(
        self, x: float, y: float, text: str, size: int, colour: str = "ink", *,
        bold: bool = False, anchor: str = "ls",
    ) -> float:  # fmt: skip
        """Write text on the baseline y; return its width."""
        font = _font(size)
        self.draw.text(
            (x * SCALE, y * SCALE), text, fill=self.colour[colour], font=font, anchor=anchor,
            stroke_width=1 if bold else 0,
        )  # fmt: skip
        return float(font.getlength(text)) / SCALE

    def wrapped(self, x: float, y: float, text: str, size: int, room: float, lines: int) -> float:
        """Write text in at most so many lines; return the y below the last."""
        font, line, rows = _font(size), "", []
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) / SCALE > room:
                rows.append(line)
                line = word
            else:
                line = longer
        rows.append(line)
        if len(rows) > lines:
            rows = [*rows[: lines - 1], rows[lines - 1] + " .."]
        for row in rows:
            self.words(x, y, row, size)
            y += size * 1.32
        return y


def png(page: Any) -> bytes:
    """Return the card of a run or of a moment."""
    sheet = _Sheet()
    verdict, moment = page.verdict, page.moment
    sheet.words(MARGIN, 64, page.head.title[:70], 24, "mut")
    sheet.words(WIDTH - MARGIN, 64, "bootflow", 24, "ink", bold=True, anchor="rs")
    sheet.box(MARGIN, 82, WIDTH - 2 * MARGIN, 2, "line")
    bad = verdict.as_asked is False
    wide = float(_font(34).getlength(verdict.word)) / SCALE + 36
    solid = bad or verdict.word == "STAYS"
    fill = "bad" if bad else "ink" if solid else ""
    sheet.box(MARGIN, 106, wide, 56, fill, "" if fill else "ink")
    colour = "onbad" if bad else "bg" if solid else "ink"
    sheet.words(MARGIN + wide / 2, 135, verdict.word, 34, colour, bold=True, anchor="mm")
    if bad:
        sheet.words(MARGIN, 196, f"!= asked: {verdict.asked}", 24, "bad", bold=True)
    room = WIDTH - 2 * MARGIN - wide - 26
    sheet.wrapped(MARGIN + wide + 26, 130, verdict.sentence, 30, room, 3)
    _timeline(sheet, page.drawings[0], 206 if bad else 192)
    if moment is not None:
        words = f"tick {moment.tick:,}"
        if moment.step is not None:
            words += f":  {' '.join(moment.step.text.split())}"
            words += f"   # {moment.step.comment}" if moment.step.comment else ""
        sheet.words(MARGIN, HEIGHT - 36, words[:88], 24, bold=True)
    else:
        facts = "  ".join(page.head.facts)
        sheet.words(MARGIN, HEIGHT - 36, facts[:96], 22, "mut")
    small = sheet.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.quantize(200).save(out, "PNG", optimize=True)
    return out.getvalue()


_FILLS = {
    "fb": "flag", "ink": "ink", "dot": "flag", "fan": "bg2", "ring": "bg", "cut": "bg",
    "paper": "bg",
}  # fmt: skip
_EDGES = {"fo": "flag", "win": "ink", "ring": "flag", "ax": "line2", "hl": "line", "cur": "ink"}


def _timeline(sheet: _Sheet, drawing: Drawing, top: float) -> None:
    """Draw the page's own timeline, as wide as the card."""
    scale = min((WIDTH - 2 * MARGIN) / drawing.width, (HEIGHT - top - 76) / drawing.height)
    for shape in drawing.shapes:
        classes = shape.css.split()
        stage = next(
            (c[1:] for c in classes if len(c) == 2 and c[0] == "s" and c[1:].isupper()), ""
        )
        fill = stage or next((_FILLS[c] for c in classes if c in _FILLS), "")
        edge = next((_EDGES[c] for c in classes if c in _EDGES), "")
        _shape(sheet, shape, classes, fill, edge, scale, top)


def _shape(
    sheet: _Sheet, shape: Shape, classes: list[str], fill: str, edge: str, scale: float, top: float
) -> None:
    x, y = MARGIN + shape.x * scale, top + shape.y * scale
    if shape.kind == "rect":
        sheet.box(x, y, max(shape.w * scale - (0.8 if "seg" in classes else 0), 0.5),
                  shape.h * scale, fill, edge)  # fmt: skip
        if "H" in fill:
            _hatch(sheet, x, y, shape.w * scale, shape.h * scale)
        if "now" in classes:
            sheet.box(x, y, shape.w * scale, shape.h * scale, "", "ink")
    elif shape.kind == "circle":
        r, s = shape.w * scale, SCALE
        sheet.draw.ellipse(
            ((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s),
            fill=sheet.colour[fill or "bg"],
            outline=sheet.colour[edge] if edge else None, width=2,
        )  # fmt: skip
    elif shape.kind == "text":
        _text(sheet, shape, classes, x, y, scale)
    else:
        _path(sheet, shape, fill, edge, scale, top)


def _hatch(sheet: _Sheet, x: float, y: float, w: float, h: float) -> None:
    at = 0.0
    while at < w:
        end = min(at + h, w)
        sheet.draw.line(
            (
                (x + at) * SCALE, (y + h) * SCALE, (x + end) * SCALE, (y + h - (end - at)) * SCALE,
            ),
            fill=sheet.colour["line"], width=1,
        )  # fmt: skip
        at += 6.0


def _text(
    sheet: _Sheet, shape: Shape, classes: list[str], x: float, y: float, scale: float
) -> None:
    colour = next(
        (c for name, c in (("f", "flag"), ("of", "onflag"), ("inv", "bg"), ("m", "mut"))
         if name in classes), "ink",
    )  # fmt: skip
    anchor = "rs" if "e" in classes else "ms" if "c" in classes else "ls"
    size = max(round((10 if "s" in classes else 11.5) * scale * 1.08), 9)
    sheet.words(x, y, shape.text, size, colour, bold="b" in classes, anchor=anchor)


def _path(sheet: _Sheet, shape: Shape, fill: str, edge: str, scale: float, top: float) -> None:
    """Draw a path of straight lines."""
    points: list[tuple[float, float]] = []
    for letter, rest in _STEP.findall(shape.d):
        numbers = [float(n) for n in _NUMBER.findall(rest)]
        last = points[-1] if points else (0.0, 0.0)
        if letter in "ML":
            points.append((numbers[0], numbers[1]))
        elif letter == "H":
            points.append((numbers[0], last[1]))
        elif letter == "h":
            points.append((last[0] + numbers[0], last[1]))
    placed = [((MARGIN + x * scale) * SCALE, (top + y * scale) * SCALE) for x, y in points]
    if fill and len(placed) > 2:
        sheet.draw.polygon(placed, fill=sheet.colour[fill])
    elif len(placed) > 1:
        width = 3 if edge == "ink" else 2
        sheet.draw.line(placed, fill=sheet.colour[edge or "line2"], width=width)
