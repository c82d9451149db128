"""A page model becomes HTML, an htmx fragment, SVG, text or JSON.

Text is ASCII of at most 75 columns, so that it can be quoted in a mail. JSON is
`documents.py`'s, the card `card.py`'s. Fragments are blocks of the page's own template.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Response, current_app, render_template, request
from markupsafe import Markup

from app import card, documents, pages
from emulator.handoff import STAGES

TEXT_COLUMNS = 75
FORMATS = ("txt", "json", "svg", "png", "html")
STEMS = {
    "RunPage": "run", "WaitPage": "wait", "GalleryPage": "gallery", "ErrorPage": "error",
    "SearchPage": "search", "HelpPage": "help", "ComparePage": "compare",
    "AnswerPage": "answer",
}  # fmt: skip
EMBED_POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors *"
)
END_OF_DRAWING_CSS = "/* end of what a drawing needs */"


def stem(page: Any) -> str:
    """Return the template of a page."""
    if isinstance(page, pages.RunPage) and page.moment is not None:
        return "moment"
    return STEMS[type(page).__name__]


def send(page: Any, form: str, *, fragment: str = "", **more: Any) -> Response:
    """Render a page as its reader wants it: whole, as a fragment, embedded, as a file, as a card.

    Args:
        page: a model of `pages.py`.
        form: html, txt, json, svg, png, embed, or file (one HTML file that needs no server).
        fragment: name of the only block of the HTML template to send.
        more: what the template needs beside the page.
    """
    if form == "png":
        return Response(card.png(page), mimetype="image/png")
    if form == "embed":
        text = render_template("embed.html", page=page, stages=STAGES)
        response = Response(text, mimetype="text/html")
        response.headers["Content-Security-Policy"] = EMBED_POLICY
        return response
    if form == "file":
        return _file(page)
    if form == "html" and not fragment and _wants_part():
        parts = [
            render(page, fragment=name, **more).get_data(as_text=True) for name in ("title", "main")
        ]
        return Response(f"<title>{parts[0]}</title>{parts[1]}", mimetype="text/html")
    response = render(page, form, fragment=fragment, **more)
    if fragment == "live":  # the title tells the state of the run, too
        title = render(page, fragment="title").get_data()
        response.set_data(b"<title>" + title + b"</title>" + response.get_data())
    return response


def _wants_part() -> bool:
    """Say whether htmx asks for the content of #main; a lost history entry needs the whole page."""
    headers = request.headers
    return headers.get("HX-Boosted") == "true" and "HX-History-Restore-Request" not in headers


def _file(page: Any) -> Response:
    """Render a page as one HTML file: style inside, no script, links lead to this server."""
    static = Path(str(current_app.static_folder))
    css = (static / "bootflow.css").read_text()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    site = (current_app.config["PUBLIC_URL"] or request.host_url).rstrip("/")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'"
    style = Markup('<meta http-equiv="Content-Security-Policy" content="{}">\n<style>{}</style>')
    style = style.format(policy, Markup(css))  # noqa: S704 -- our own style sheet
    text = render_template(f"{stem(page)}.html", page=page, stages=STAGES, file_style=style)
    for name in ("href", "action"):
        text = text.replace(f'{name}="/', f'{name}="{site}/')
    response = Response(text, mimetype="text/html")
    tick = f"-{page.moment.tick}" if page.moment is not None else ""
    name = f"bootflow-{page.head.id}{tick}.html"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def render(page: Any, form: str = "html", *, fragment: str = "", **more: Any) -> Response:
    """Render a page.

    Args:
        page: a model of `pages.py`, or an error page.
        form: html, txt, json or svg.
        fragment: name of the only block of the HTML template to send.
        more: what the template needs beside the page (the reader's own token).
    """
    if form == "json":
        text = json.dumps(documents.document(stem(page), page), indent=1) + "\n"
        return Response(text, mimetype="application/json")
    context = {"page": page, "stages": STAGES, **more}
    if form == "txt":
        return Response(fit(render_template(f"{stem(page)}.txt", **context)), mimetype="text/plain")
    if form == "svg":
        return _svg(page)
    if fragment:
        template = current_app.jinja_env.get_template(f"{stem(page)}.html")
        current_app.update_template_context(context)
        block: Callable[[Any], Iterator[str]] = template.blocks[fragment]
        parts = block(template.new_context(context))
        return Response("".join(parts), mimetype="text/html")
    return Response(render_template(f"{stem(page)}.html", **context), mimetype="text/html")


def fit(text: str) -> str:
    """Break lines of more than 75 columns; what is printed stays ASCII.

    A word that is longer, which is an address, stands alone at the very left.
    """
    lines = []
    for line in _BLANK.sub("\n\n", text.rstrip()).splitlines():
        line = line.rstrip().encode("ascii", "replace").decode()
        if len(line) <= TEXT_COLUMNS:
            lines.append(line)
            continue
        margin = " " * _margin(line)
        parts = textwrap.wrap(
            line, TEXT_COLUMNS, subsequent_indent=margin, drop_whitespace=True,
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        lines += [part if len(part) <= TEXT_COLUMNS else part.strip() for part in parts]
    return "\n".join(lines) + "\n"


_BLANK = re.compile(r"\n{3,}")
_EVENT_ROW = re.compile(r"[> ] *\d+ +\S+ \S? ")
_CPU_ROW = re.compile(r" ?\d+[ *] \S .{22} ")
_NOTE_ROW = re.compile(r"\[\d+\] ")


def _margin(line: str) -> int:
    """Return how far the second line of a broken row is indented: to its last column."""
    for row in (_EVENT_ROW, _CPU_ROW, _NOTE_ROW):
        match = row.match(line)
        if match:
            return match.end()
    indent = len(line) - len(line.lstrip())
    if indent > 20:
        return indent
    return min(indent + 2 if indent or ":" not in line[:14] else 10, 24)


@lru_cache(maxsize=1)
def _drawing_css(path: Path) -> tuple[str, str]:
    """Return the part of the style sheet that a drawing needs, and its hash for the CSP."""
    css = path.read_text().split(END_OF_DRAWING_CSS)[0]
    digest = hashlib.sha256(css.encode()).digest()
    return css, base64.b64encode(digest).decode()


def _svg(page: Any) -> Response:
    """Render the wide drawing alone; its style travels inside, allowed by hash."""
    css, digest = _drawing_css(Path(str(current_app.static_folder)) / "bootflow.css")
    drawing = dataclasses.replace(page.drawings[0], css="tl")
    response = Response(
        render_template("timeline.svg", drawing=drawing, css=css), mimetype="image/svg+xml"
    )
    response.headers["Content-Security-Policy"] = f"default-src 'none'; style-src 'sha256-{digest}'"
    return response
