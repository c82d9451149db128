"""Pages as JSON documents, stable: FORMAT_VERSION grows when a key changes its meaning or goes.

64-bit values are "0x.." strings, ticks and sizes are numbers. Every key is described in KEYS, which
the help page prints; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from app import pages
from app.looping import loop_documents

FORMAT_VERSION = 1


def document(kind: str, page: Any) -> dict[str, Any]:
    """Return a page of a kind (the stem of its template) as a JSON document."""
    made: dict[str, Callable[[Any], dict[str, Any]]] = {
        "run": _run_document, "moment": _moment_document, "wait": _wait_document,
        "gallery": _gallery_document, "error": _error_document, "search": _search_document,
        "answer": _answer_document,
        "help": dataclasses.asdict, "compare": _compare_document,
    }  # fmt: skip
    return {"format_version": FORMAT_VERSION, **made[kind](page)}


def _head_document(head: pages.Head) -> dict[str, Any]:
    return {
        "id": head.id,
        "title": head.title,
        "status": head.status,
        "created": head.created,
        "asked": head.asked,
        "note": head.note,
        "message_id": head.message_id,
        "parent": head.parent,
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
        "command": list(page.command),
        "where": [_placed(row) for row in page.cpus],
        "loops": loop_documents(page.loops),
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
        "steps": moment.window.get("steps", []),
        "selected": _placed(moment.selected) if moment.selected else None,
        "in_loops": [dataclasses.asdict(loop) for loop in moment.loops],
        "moves": dataclasses.asdict(moment.moves),
        "problem": moment.problem,
    }


def _placed(row: Any) -> dict[str, Any]:
    """Return a dataclass as an object, with "line" only where the source line is known."""

    def known(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key != "line" or value}

    return dataclasses.asdict(row, dict_factory=known)


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
                "flag": row.flag,
            }
            for row in page.rows
        ],
        "limits": page.limits,
    }


def _error_document(page: Any) -> dict[str, Any]:
    return {"error": dataclasses.asdict(page)}


def _search_document(page: Any) -> dict[str, Any]:
    return {
        "run": _head_document(page.head),
        "q": page.words,
        "meaning": page.meaning,
        "hits": [_placed(hit) for hit in page.hits],
        "more": page.more,
        "problem": page.problem,
    }


def _answer_document(page: Any) -> dict[str, Any]:
    return {
        "run": _head_document(page.head),
        "from": page.tick,
        "what": page.what,
        "at": page.view.at,
        "cpu": page.view.cpu,
        "found": page.found,
        "tick": page.to,
        "lines": list(page.lines),
        "answer": page.answer,
    }


def _compare_document(page: Any) -> dict[str, Any]:
    return {
        "a": _head_document(page.a.head),
        "b": _head_document(page.b.head),
        **_placed(page.difference),
        "problem": page.problem,
    }
