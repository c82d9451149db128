"""Blueprint: the pages of one run, its twins, cancel and delete. Parse, build the model, render."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from flask import Blueprint, Response, current_app, redirect, request, send_file, url_for
from werkzeug.wrappers import Response as AnyResponse

from app import pages
from app.errors import BadOption
from app.index import Index, Run, trace_path
from app.owners import own_tokens
from app.render import FORMATS, render
from app.story import Story, story
from emulator.errors import TraceError
from emulator.handoff import STAGES
from emulator.trace import EVENT_KINDS, TraceReader

blueprint = Blueprint("runs", __name__)

STOP_POLLING = 286


def index() -> Index:
    """Return the index of this application."""
    found: Index = current_app.extensions["bootflow.index"]
    return found


def open_trace(run: Run) -> TraceReader | None:
    """Return a run's trace, or None if it has none (yet)."""
    path = trace_path(Path(current_app.config["DATA_DIR"]), run.id)
    if run.status in ("queued", "verifying", "deleted") or not path.is_file():
        return None
    try:
        return TraceReader(path)
    except TraceError:
        if run.ended:
            raise
        return None  # the worker has created the file, but not yet its tables


_STORIES: OrderedDict[str, Story] = OrderedDict()
_STORIES_KEPT = 16
_STORIES_LOCK = Lock()


def told_by(run: Run, reader: TraceReader) -> Story:
    """Return what a trace tells; of an ended run it is read once and kept a while."""
    if not run.ended or reader.status == "running":
        return story(reader)
    key = f"{reader.path} {run.status}"
    with _STORIES_LOCK:
        if key in _STORIES:
            _STORIES.move_to_end(key)
            return _STORIES[key]
    told = story(reader)
    with _STORIES_LOCK:
        _STORIES[key] = told
        if len(_STORIES) > _STORIES_KEPT:
            _STORIES.popitem(last=False)
    return told


@blueprint.get("/t/<run_id>/")
def show_run(run_id: str) -> AnyResponse:
    """Show a run, live while it goes on."""
    return _run(run_id, "html")


@blueprint.get("/t/<run_id>.<form>")
def show_run_twin(run_id: str, form: str) -> AnyResponse:
    """Show a run as text, JSON or SVG, or send the trace file itself."""
    if form == "bootflow":
        return _download(run_id)
    return _run(run_id, _form(form))


def _form(form: str) -> str:
    if form not in FORMATS:
        raise BadOption(f"no format .{form[:16]!r}", hint=f"There are {', '.join(FORMATS)}.")
    return form


def _run(run_id: str, form: str) -> AnyResponse:
    run = index().get(run_id)
    reader = open_trace(run)
    fragment = "live" if request.args.get("fragment") == "live" and form == "html" else ""
    token = own_tokens().get(run_id, "")
    page: pages.RunPage | pages.WaitPage
    if reader is None:
        page = pages.wait_page(run)
    else:
        with reader:
            if run.ended and not reader.last_tick:
                page = pages.wait_page(run, reader)
            else:
                page = pages.run_page(
                    run, reader, told_by(run, reader), width=_width(), kind=_kind()
                )
    if isinstance(page, pages.WaitPage) and form == "svg":
        raise pages.NoTraceYet(f"run {run_id} has no timeline: {page.sentence}")
    response = render(page, form, fragment=fragment, token=token, fragment_only=bool(fragment))
    if fragment and not page.live:
        response.status_code = STOP_POLLING
    elif run.status == "deleted":
        response.status_code = 410
    return _cached(response, run, private=bool(token) or reader is None or bool(fragment))


@blueprint.get("/t/<run_id>/<int:tick>/")
def show_moment(run_id: str, tick: int) -> AnyResponse:
    """Show the machine at one tick."""
    return _moment(run_id, tick, "html")


@blueprint.get("/t/<run_id>/<int:tick>.<form>")
def show_moment_twin(run_id: str, tick: int, form: str) -> AnyResponse:
    """Show a moment as text, JSON or SVG."""
    return _moment(run_id, tick, _form(form))


def _moment(run_id: str, tick: int, form: str) -> AnyResponse:
    run = index().get(run_id)
    reader = open_trace(run)
    if reader is None:
        raise pages.NoTraceYet(
            f"run {run_id} has no ticks: {pages.wait_page(run).sentence}",
            hint=f"See /t/{run_id}/",
        )
    with reader:
        query = current_app.config["QUERY"]
        told = told_by(run, reader)
        page = pages.moment_page(run, reader, told, tick, query, width=_width(), kind=_kind())
    response = render(page, form)
    broken = page.moment is not None and bool(page.moment.problem)
    if broken:
        response.status_code = 503
    return _cached(response, run, private=broken)


@blueprint.get("/t/<run_id>/go")
def go(run_id: str) -> AnyResponse:
    """Take the tick of the form, which people write as 1,234,567, and go there."""
    run = index().get(run_id)
    text = request.args.get("tick", "").replace(",", "").replace("_", "").strip()
    if not re.fullmatch(r"[0-9]{1,16}", text):
        raise BadOption(f"tick {text[:40]!r} is not a number", hint="Write it as 1234 or 1,234.")
    width = request.args.get("w", "")
    return redirect(
        url_for("runs.show_moment", run_id=run.id, tick=int(text), w=width or None), code=303
    )


def _width() -> int:
    text = request.args.get("w", "0")
    if not re.fullmatch(r"-1|[0-9]{1,16}", text):
        raise BadOption(f"w={text[:20]!r}: not a number of ticks", hint="For example w=4096.")
    width = int(text)
    return max(width, 16) if width > 0 else width


def _kind() -> str:
    kind = request.args.get("kind", "")
    if kind and kind not in EVENT_KINDS:
        raise BadOption(f"no events of kind {kind[:20]!r}", hint=f"One of {', '.join(EVENT_KINDS)}")
    return kind


def _cached(response: Response, run: Run, *, private: bool) -> Response:
    """Say how long an answer may be kept: an ended run's pages never change."""
    if run.ended and not private and response.status_code == 200:
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        response.headers["Vary"] = "Cookie"
        response.add_etag()
        response.make_conditional(request)
    else:
        response.headers["Cache-Control"] = "no-store"
    return response


def _download(run_id: str) -> AnyResponse:
    run = index().get(run_id)
    path = trace_path(Path(current_app.config["DATA_DIR"]), run.id)
    if not run.ended or not path.is_file():
        raise pages.NoTraceYet(f"run {run_id} has no finished trace to take away")
    return send_file(path, mimetype="application/vnd.sqlite3", as_attachment=True)


@blueprint.post("/t/<run_id>/cancel")
def cancel(run_id: str) -> AnyResponse:
    """Stop a run; what it has recorded stays. Who has the link of an unlisted run may."""
    run = index().get(run_id)
    if run.listed:
        index().check_token(run, _token(run_id))
    if not run.ended:
        current_app.config["CANCEL"](run_id)
    return redirect(url_for("runs.show_run", run_id=run_id), code=303)


@blueprint.post("/t/<run_id>/delete")
def delete(run_id: str) -> AnyResponse:
    """Delete a run's files with the token that its upload printed."""
    run = index().get(run_id)
    index().check_token(run, _token(run_id))
    if not run.ended:
        current_app.config["CANCEL"](run_id)
    index().delete(run_id)
    return redirect(url_for("runs.show_run", run_id=run_id), code=303)


def _token(run_id: str) -> str:
    return request.form.get("token", "") or own_tokens().get(run_id, "")


@blueprint.app_template_global()
def stage_key() -> tuple[object, ...]:
    """Return the stages for the legend."""
    return tuple(STAGES)
