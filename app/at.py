"""Blueprint: one tick of a run and what leads from it: twins, fragments, accesses, embed view.

Parse, build the model, render; no logic. The pages of the run itself are `runs.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flask import Blueprint, Response, current_app, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from app import fresh, moments, pages, seeking, view
from app.asking import Answers, Json
from app.errors import BadOption
from app.index import Run
from app.render import render, send
from app.runs import cached, index, open_trace, text_browser, wanted
from app.telling import told_by
from emulator.trace import TraceReader

blueprint = Blueprint("at", __name__)

FRAGMENTS = ("line",)


def asker(run: Run) -> moments.AskAll:
    """Return how to ask the session of a run; answers of an ended run are kept."""
    answers: Answers = current_app.extensions["bootflow.answers"]
    return lambda questions: answers.ask_all(run.id, _list(questions), keep=run.ended)


def _list(questions: Sequence[Json]) -> list[Json]:
    return list(questions)


@blueprint.get("/t/<run_id>/<int:tick>/")
def show_moment(run_id: str, tick: int) -> AnyResponse:
    """Show the machine at one tick."""
    return _moment(run_id, tick, "html")


@blueprint.get("/t/<run_id>/<int:tick>.<form>")
def show_moment_twin(run_id: str, tick: int, form: str) -> AnyResponse:
    """Show a moment as text, JSON, SVG or picture, or as one HTML file to keep."""
    return _moment(run_id, tick, wanted(form))


@blueprint.get("/t/<run_id>/<int:tick>/embed")
def embed_moment(run_id: str, tick: int) -> AnyResponse:
    """Show verdict and timeline of a moment, for an iframe of another page."""
    return _moment(run_id, tick, "embed")


def _moment(run_id: str, tick: int, form: str) -> AnyResponse:
    run = index().get(run_id)
    tag = "" if text_browser() else fresh.tag_of(run)
    if fresh.has(tag):
        return cached(Response(status=304), run, private=False, tag=tag)
    bodies: fresh.Bodies = current_app.extensions["bootflow.bodies"]
    return bodies.known(tag) or bodies.keep(tag, _new_moment(run, tick, form, tag))


def _new_moment(run: Run, tick: int, form: str, tag: str) -> Response:
    looked = view.parse(request.args)
    fragment = request.args.get("fragment", "") if form == "html" else ""
    if fragment and fragment not in FRAGMENTS:
        raise BadOption(f"no fragment {fragment[:20]!r}", hint=f"There is {FRAGMENTS[0]}.")
    reader = open_trace(run)
    if reader is None:
        raise pages.NoTraceYet(
            f"run {run.id} has no ticks: {pages.wait_page(run).sentence}",
            hint=f"See /t/{run.id}/",
        )
    with reader:
        told = told_by(run, reader)
        if fragment or form == "svg":
            page = moments.line_page(run, reader, told, tick, asker(run), looked)
        else:
            widths = pages.CARD_WIDTHS if form == "png" else pages.WIDTHS
            page = moments.moment_page(run, reader, told, tick, asker(run), looked, widths)
    moment = page.moment
    broken = moment is not None and bool(moment.problem)
    private = moment is not None and moment.is_partial
    response = send(page, form, fragment=fragment)
    if broken:
        response.status_code = 503
    return cached(response, run, private=private, tag=tag)


@blueprint.get("/t/<run_id>/go")
def go(run_id: str) -> AnyResponse:
    """Take the tick of the form, which people write as 1,234,567, and go there."""
    run = index().get(run_id)
    looked = view.parse(request.args)
    text = request.args.get("tick", "").replace(",", "").replace("_", "").strip()
    if not re.fullmatch(r"[0-9]{1,16}", text):
        raise BadOption(f"tick {text[:40]!r} is not a number", hint="Write it as 1234 or 1,234.")
    return _to(run, int(text), looked)


def _to(run: Run, tick: int, looked: view.View) -> AnyResponse:
    path = url_for("at.show_moment", run_id=run.id, tick=tick)
    return redirect(path + looked.query(), code=303)


@blueprint.get("/t/<run_id>/<int:tick>/seek")
def seek(run_id: str, tick: int) -> AnyResponse:
    """Go to the access of a byte or register that is asked for, or a step further."""
    page, run = _answer(run_id, tick)
    if page.found and page.to is not None:
        return _to(run, page.to, page.view)
    return cached(send(page, "html"), run, private=True)


@blueprint.get("/t/<run_id>/<int:tick>/seek.<form>")
def seek_twin(run_id: str, tick: int, form: str) -> AnyResponse:
    """Say as text or JSON where a question or a step leads."""
    if form not in ("txt", "json"):
        raise BadOption(f"no format .{form[:16]!r}", hint="There are txt and json.")
    page, run = _answer(run_id, tick)
    return cached(render(page, form), run, private=True)


def _trace_of(run: Run) -> TraceReader:
    """Open the trace of a run that has started, or say that it has not."""
    reader = open_trace(run)
    if reader is None:
        raise pages.NoTraceYet(f"run {run.id} has no ticks yet")
    return reader


def _answer(run_id: str, tick: int) -> tuple[seeking.AnswerPage, Run]:
    run = index().get(run_id)
    looked = view.parse(request.args)
    with _trace_of(run) as reader:
        told = told_by(run, reader)
        moments.check_tick(told, tick)
        what = request.args.get("what", "")
        return seeking.answer_page(run, reader, told, tick, looked, what, asker(run)), run


@blueprint.get("/t/<run_id>/<int:tick>/turn")
def turn(run_id: str, tick: int) -> AnyResponse:
    """Go to where a turn of a loop begins that a CPU is in."""
    run = index().get(run_id)
    looked = view.parse({key: value for key, value in request.args.items() if key != "turn"})
    head, number = request.args.get("head", ""), request.args.get("turn", "").replace(",", "")
    if not re.fullmatch(r"0x[0-9a-f]{1,16}", head) or not re.fullmatch(r"[0-9]{1,16}", number):
        raise BadOption(
            f"head={head[:20]!r}, turn={number[:20]!r}", hint="For example head=0x48a0858&turn=2."
        )
    with _trace_of(run) as reader:
        told = told_by(run, reader)
    moments.check_tick(told, tick)
    loop, wanted_turn = int(head, 16), max(int(number), 1)
    found = seeking.turn_tick(told, tick, looked.cpu or 0, loop, wanted_turn, asker(run))
    return _to(run, found, looked)


@blueprint.get("/t/<run_id>/search")
def search(run_id: str) -> AnyResponse:
    """Find symbols, addresses, ticks and kinds of events in a run."""
    return _search(run_id, "html")


@blueprint.get("/t/<run_id>/search.<form>")
def search_twin(run_id: str, form: str) -> AnyResponse:
    """Show what a search finds as text or JSON."""
    if form not in ("txt", "json"):
        raise BadOption(f"no format .{form[:16]!r}", hint="There are txt and json.")
    return _search(run_id, form)


def _search(run_id: str, form: str) -> AnyResponse:
    run = index().get(run_id)
    words = " ".join(request.args.get("q", "").split())[:200]
    reader = open_trace(run)
    if reader is None:
        raise pages.NoTraceYet(f"run {run_id} has nothing to search yet")
    with reader:
        told = told_by(run, reader)
        page = seeking.search_page(run, reader, told, words, asker(run))
    response = render(page, form)
    return cached(response, run, private=bool(page.problem))
