"""The parts of a page that are hundreds of small pieces, written by Python instead of templates.

A moment has 256 bytes of low memory, 300 shapes, 150 registers. Jinja calls a macro and escapes
each expression for itself: with that a page of the Debian pair cost the server 20 ms, with these
loops, which write the same bytes, and with what no cursor changes kept as text, 8 ms. Everything
that comes from a guest or a reader goes through `_escaped`; numbers and ids of runs need not.

Not here: any other markup (`templates/`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from app.canvas import Drawing, Shape
from app.kept import Kept
from app.panels import EventRow, LowRow, Register
from app.steps import RanLine

if TYPE_CHECKING:
    from app.pages import RunPage
    from app.view import View

_UNSAFE = re.compile("[&<>\"']")
_ENTITIES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"}  # as markupsafe has them
)
_kept = Kept(128)


def _escaped(text: str) -> str:
    return text.translate(_ENTITIES) if _UNSAFE.search(text) else text


def _safe(parts: Sequence[str]) -> Markup:
    return Markup("".join(parts))  # noqa: S704 -- every part is made in this file


def shapes(drawing: Drawing) -> Markup:
    """Write the shapes of a drawing as SVG; what lies behind the cursor only once."""
    behind = drawing.behind
    rest = _shapes(drawing.shapes[len(behind) :])
    if not behind:
        return rest
    return _kept.made_of(behind, "shapes", lambda: _shapes(behind)) + rest


def _shapes(rows: Sequence[Shape]) -> Markup:
    out = []
    for s in rows:
        css, title = _escaped(s.css), f"<title>{_escaped(s.text)}</title>" if s.text else ""
        if s.href:
            still = ' tabindex="-1"' if "cell" in s.css else ""
            out.append(f'<a href="{_escaped(s.href)}"{still}>')
        if s.kind == "rect":
            out.append(
                f'<rect x="{s.x}" y="{s.y}" width="{s.w}" height="{s.h}" class="{css}">'
                f"{title}</rect>"
            )
        elif s.kind == "text":
            out.append(f'<text x="{s.x}" y="{s.y}" class="{css}">{_escaped(s.text)}</text>')
        elif s.kind == "circle":
            out.append(f'<circle cx="{s.x}" cy="{s.y}" r="{s.w}" class="{css}">{title}</circle>')
        else:
            out.append(f'<path d="{s.d}" class="{css}">{title}</path>')
        out.append("</a>\n" if s.href else "\n")
    return _safe(out)


def low_rows(rows: tuple[LowRow, ...], run_id: str, tick: int, view: View) -> Markup:
    """Write the rows of low memory: a byte leads to its last write, and is followed from there."""
    run = f"/t/{run_id}/"
    # Bytes that nobody has written lead to this moment; without any, all moments have one table.
    unwritten = any(cell.tick is None for row in rows for cell in row.cells)
    here = tick if unwritten else 0
    return _kept.made_of(rows, (run, here, view), lambda: _low_rows(rows, run, here, view))


def _low_rows(rows: Sequence[LowRow], run: str, here: int, view: View) -> Markup:
    follow = _escaped(view.query(at="0x"))
    lo, size = view.place or (0, 0)
    out = []
    for row in rows:
        out.append(f'<tr><th scope="row">{row.offset:02x}</th>')
        for c in row.cells:
            chosen = " sel" if lo <= c.offset < lo + size else ""
            tick = here if c.tick is None else c.tick
            stop = 0 if c.offset == 0x5C else -1
            out.append(
                f'<td class="{_escaped(c.css)}{chosen}" title="{_escaped(c.title)}">'
                f'<a href="{run}{tick}/{follow}{c.offset:x}" tabindex="{stop}">{c.value}</a></td>'
            )
        names = ", ".join(
            f'<span class="{css}">{_escaped(text)}</span>' for css, text in row.fields
        )
        who = _escaped(row.who)
        out.append(f'<td class="who">|{who}|</td><td class="nm">{names}</td></tr>\n')
    return _safe(out)


def register(r: Register, at: str) -> Markup:
    """Write the value of a register; with `at`, the link that its name ends, to its last write."""
    if at:
        css = "v" + " ch" * r.changed + " re" * r.recent + " mut" * r.zero
        link = _escaped(f"{at}{r.name}")
        return _safe([f'<a class="{css}" href="{link}" tabindex="-1">{_escaped(r.value)}</a>'])
    value = _escaped(r.value)
    if r.changed:
        value = f"<mark>{value}</mark>"
    elif r.recent:
        value = f"<u>{value}</u>"
    elif r.zero:
        value = f'<span class="mut">{value}</span>'
    return _safe([value])


def listing(lines: Sequence[RanLine]) -> Markup:
    """Write instructions, in objdump's form."""
    out = []
    for c in lines:
        if c.source:
            out.append(f'<span class="sl">{_escaped(c.source)}</span>\n')
            continue
        if c.head:
            out.append(
                f'<span class="sy">{c.addr} &lt;{_escaped(c.symbol)}&gt;:</span>'
                f' <span class="be">{c.order}</span>\n'
            )
            continue
        text = f"{c.text:<19}" if c.comment else c.text
        flag = " flag" if c.flag else ""
        words = f'<span class="cm{flag}"> # {_escaped(c.comment)}</span>' if c.comment else ""
        line = f"{_escaped(c.margin)}{c.addr:>10}:  {_escaped(c.data)}  {_escaped(text)}{words}"
        out.append(f'<span class="ran">{line}</span>\n' if c.mark == "*" else f"{line}\n")
    return _safe(out)


def events(page: RunPage) -> Markup:
    """Write the rows of the table of events."""
    run, query = f"/t/{page.head.id}/", _escaped(page.view.query() if page.view else "")
    return _safe([_event(row, run, query) for row in page.events])


def _event(e: EventRow, run: str, query: str) -> str:
    css = ' class="here"' if e.here else "" if e.past else ' class="later"'
    cpu = "-" if e.cpu is None else e.cpu
    letter, kind = _escaped(e.letter), ""
    letter = f'<span class="L s{letter}">{letter}</span>' if letter else ""
    if e.kind.startswith("flag"):
        kind = '<b class="flag">flag</b> '
    elif e.kind not in ("stage", "end"):
        kind = f'<span class="mut">{_escaped(e.kind)}</span> '
    more = ""
    if e.count > 1 and e.kind != "low-write":
        more = f", {e.count:,} times up to tick {e.end_tick:,}"
    return (
        f'<tr{css}><td><a href="{run}{e.tick}/{query}">{e.tick:,}</a></td><td>{cpu}</td>'
        f"<td>{letter}</td><td>{kind}{_escaped(e.text)}{more}</td>"
        f'<td class="mut">{_escaped(e.symbol)}</td></tr>\n'
    )


GLOBALS: dict[str, Any] = {
    "shapes_of": shapes, "low_rows": low_rows, "register": register, "listing": listing,
    "event_rows": events,
}  # fmt: skip
"""What templates call; `create_app` gives it to them."""
