"""Blueprint: two runs compared. Parse, build the model, render."""

from __future__ import annotations

import re
from collections import OrderedDict
from contextlib import ExitStack
from threading import Lock

from flask import Blueprint, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from app import comparing, pages
from app.at import asker
from app.errors import BadOption
from app.index import Run
from app.render import send
from app.runs import cached, index, open_trace
from app.telling import told_by

blueprint = Blueprint("comparisons", __name__)

_ID = re.compile(r"[a-z2-7]{26}")
_KEPT = 16
_PAGES: OrderedDict[tuple[str, str, str], comparing.ComparePage] = OrderedDict()
_LOCK = Lock()


@blueprint.get("/compare")
def choose() -> AnyResponse:
    """Take two ids, or links that hold them, and go to their comparison."""
    ids = []
    for name in ("a", "b"):
        text = request.args.get(name, "")
        found = _ID.search(text)
        if found is None:
            raise BadOption(
                f"{name}={text[:60]!r} names no run", hint="Give the link or the id of a run."
            )
        ids.append(index().get(found[0]).id)
    return redirect(f"/t/{ids[0]}..{ids[1]}/", code=303)


@blueprint.get("/t/<run_a>..<run_b>/")
def show(run_a: str, run_b: str) -> AnyResponse:
    """Show what differs between two runs."""
    return _show(run_a, run_b, "html")


@blueprint.get("/t/<run_a>..<run_b>.<form>")
def show_twin(run_a: str, run_b: str, form: str) -> AnyResponse:
    """Show the same as text or JSON."""
    if form not in ("txt", "json"):
        raise BadOption(f"no format .{form[:16]!r}", hint="There are txt and json.")
    return _show(run_a, run_b, form)


def _show(run_a: str, run_b: str, form: str) -> AnyResponse:
    runs = (index().get(run_a), index().get(run_b))
    stage = request.args.get("stage", "")[:40]
    key = (run_a, run_b, stage)
    with _LOCK:
        page = _PAGES.get(key)
    if page is None:
        page = _made(runs, stage)
        if all(run.ended for run in runs) and not page.problem:
            with _LOCK:
                _PAGES[key] = page
                while len(_PAGES) > _KEPT:
                    _PAGES.popitem(last=False)
    response = send(page, form)
    ended = all(run.ended for run in runs)
    return cached(response, runs[0], private=bool(page.problem) or not ended)


def _made(runs: tuple[Run, Run], stage: str) -> comparing.ComparePage:
    with ExitStack() as stack:
        opened = []
        for run in runs:
            reader = open_trace(run)
            if reader is None or not reader.last_tick:
                raise pages.NoTraceYet(f"run {run.id} has nothing to compare: it is {run.status}")
            stack.enter_context(reader)
            opened.append((run, reader, told_by(run, reader), asker(run)))
        return comparing.compare_page(opened[0], opened[1], stage)
