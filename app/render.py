"""A page model becomes HTML, an htmx fragment, SVG, text or JSON.

Text is ASCII of at most 75 columns, so that it can be quoted in a mail. JSON is stable:
FORMAT_VERSION grows when a key changes its meaning or goes away. Fragments are blocks of the
page's own template.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Response, current_app, render_template

from app import pages
from emulator.handoff import STAGES

FORMAT_VERSION = 1
TEXT_COLUMNS = 75
FORMATS = ("txt", "json", "svg")
STEMS = {"RunPage": "run", "WaitPage": "wait", "GalleryPage": "gallery", "ErrorPage": "error"}
END_OF_DRAWING_CSS = "/* end of what a drawing needs */"


def stem(page: Any) -> str:
    """Return the template of a page."""
    if isinstance(page, pages.RunPage) and page.moment is not None:
        return "moment"
    return STEMS[type(page).__name__]


def render(page: Any, form: str = "html", *, fragment: str = "", **more: Any) -> Response:
    """Render a page.

    Args:
        page: a model of `pages.py`, or an error page.
        form: html, txt, json or svg.
        fragment: name of the only block of the HTML template to send.
        more: what the template needs beside the page (the reader's own token).
    """
    if form == "json":
        text = json.dumps(document(page), indent=1) + "\n"
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
    """Break lines of more than 75 columns; what is printed stays ASCII."""
    lines = []
    for line in text.rstrip().splitlines():
        line = line.rstrip().encode("ascii", "replace").decode()
        if len(line) <= TEXT_COLUMNS:
            lines.append(line)
            continue
        indent = len(line) - len(line.lstrip())
        margin = " " * min(indent + 2 if indent or ":" not in line[:14] else 10, 24)
        lines += textwrap.wrap(
            line, TEXT_COLUMNS, subsequent_indent=margin, drop_whitespace=True,
            break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines) + "\n"


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


def document(page: Any) -> dict[str, Any]:
    """Return a page as a JSON document; 64-bit values are "0x.." strings."""
    made: dict[str, Callable[[Any], dict[str, Any]]] = {
        "run": _run_document, "moment": _moment_document, "wait": _wait_document,
        "gallery": _gallery_document, "error": _error_document,
    }  # fmt: skip
    return {"format_version": FORMAT_VERSION, **made[stem(page)](page)}


def _head_document(head: pages.Head) -> dict[str, Any]:
    return {
        "id": head.id,
        "title": head.title,
        "status": head.status,
        "created": head.created,
        "asked": head.asked,
        "facts": list(head.facts),
    }


def _run_document(page: pages.RunPage) -> dict[str, Any]:
    verdict = page.verdict
    return {
        "run": _head_document(page.head),
        "verdict": {
            "word": verdict.word,
            "asked": verdict.asked,
            "as_asked": verdict.as_asked,
            "sentence": verdict.sentence,
            "lines": list(verdict.lines),
        },
        "flag_history": [dataclasses.asdict(step) for step in verdict.custody],
        "last_tick": page.last_tick,
        "digest": page.digest,
        "images": _images_document(page.images),
        "placement": list(page.placement),
        "where": [dataclasses.asdict(row) for row in page.cpus],
        "events": [dataclasses.asdict(row) for row in page.events],
        "events_left_out": page.more_events,
        "console": [dataclasses.asdict(line) for line in page.console],
    }


def _images_document(images: tuple[tuple[str, str, str, int], ...]) -> list[dict[str, Any]]:
    names = ("role", "name", "sha256", "size_bytes")
    return [dict(zip(names, image, strict=True)) for image in images]


def _moment_document(page: pages.RunPage) -> dict[str, Any]:
    moment = page.moment
    if moment is None:
        return _run_document(page)
    writers = "".join(row.who for row in moment.low)
    ticks = [cell.tick for row in moment.low for cell in row.cells]
    state = {key: value for key, value in moment.state.items() if key != "disassembly"}
    return {
        **_run_document(page),
        **state,
        "tick": moment.tick,
        "low_memory_writers": writers,
        "low_memory_write_ticks": ticks,
        "disassembly": moment.state.get("disassembly", {}),
        "moves": dataclasses.asdict(moment.moves),
        "problem": moment.problem,
    }


def _wait_document(page: pages.WaitPage) -> dict[str, Any]:
    return {
        "run": _head_document(page.head),
        "sentence": page.sentence,
        "hint": page.hint,
        "images": _images_document(page.images),
    }


def _gallery_document(page: pages.GalleryPage) -> dict[str, Any]:
    return {
        "runs": [
            {
                **_head_document(row.head),
                "word": row.word,
                "as_asked": row.as_asked,
                "sentence": row.sentence,
                "ticks": row.ticks,
            }
            for row in (*page.own, *page.listed)
        ],
        "limits": page.limits,
    }


def _error_document(page: Any) -> dict[str, Any]:
    return {"error": dataclasses.asdict(page)}
