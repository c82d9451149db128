"""Blueprint: the pages of one run, its twins, cancel and delete. Parse, build the model, render."""

from __future__ import annotations

import re
from pathlib import Path

from flask import Blueprint, Response, current_app, redirect, request, send_file, url_for
from werkzeug.wrappers import Response as AnyResponse

from app import pages, view
from app.errors import BadOption
from app.index import Index, Run, trace_path
from app.owners import own_tokens
from app.render import FORMATS, send
from app.telling import told_by
from emulator.errors import TraceError
from emulator.handoff import STAGES
from emulator.trace import TraceReader

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


@blueprint.get("/t/<run_id>/")
def show_run(run_id: str) -> AnyResponse:
    """Show a run, live while it goes on."""
    return _run(run_id, "html")


@blueprint.get("/t/<run_id>.<form>")
def show_run_twin(run_id: str, form: str) -> AnyResponse:
    """Show a run as text, JSON or SVG, or send the trace file itself."""
    if form == "bootflow":
        return _download(run_id)
    return _run(run_id, wanted(form))


def wanted(form: str) -> str:
    """Return the format that a suffix names; .html is one file to keep."""
    if form not in FORMATS:
        raise BadOption(f"no format .{form[:16]!r}", hint=f"There are {', '.join(FORMATS)}.")
    return "file" if form == "html" else form


@blueprint.get("/t/<run_id>/embed")
def embed_run(run_id: str) -> AnyResponse:
    """Show verdict and timeline of a run, for an iframe of another page."""
    return _run(run_id, "embed")


def _run(run_id: str, form: str) -> AnyResponse:
    run = index().get(run_id)
    reader = open_trace(run)
    fragment = request.args.get("fragment", "") if form == "html" else ""
    if fragment not in ("", "live", "line"):
        raise BadOption(f"no fragment {fragment[:20]!r}", hint="There are live and line.")
    token = own_token(run)
    page: pages.RunPage | pages.WaitPage
    if reader is None:
        page = pages.wait_page(run)
    else:
        with reader:
            if run.ended and not reader.last_tick:
                page = pages.wait_page(run, reader)
            else:
                widths = pages.CARD_WIDTHS if form == "png" else pages.WIDTHS
                looked = view.parse(request.args)
                page = pages.run_page(run, reader, told_by(run, reader), looked, widths)
    if isinstance(page, pages.WaitPage) and form not in ("html", "txt", "json"):
        raise pages.NoTraceYet(f"run {run_id} has no timeline: {page.sentence}")
    response = send(page, form, fragment=fragment, token=token)
    if fragment == "live" and not page.live:
        response.status_code = STOP_POLLING
    elif run.status == "deleted":
        response.status_code = 410
    private = bool(token) or reader is None or bool(fragment)
    return cached(response, run, private=private)


def cached(response: Response, run: Run, *, private: bool, tag: str = "") -> Response:
    """Say how an answer may be kept: what an ended run shows may be, and is asked about each time.

    What the machine did never changes, but every page carries its owner's words. Pages name their
    own address. Unless that is configured, it is what the reader asked for, and nothing that others
    share may keep it.

    Args:
        response: whole, or 304.
        run: whose page it is.
        private: it is for this reader, or for this moment, alone.
        tag: of `fresh.tag_of`; else its bytes are its tag.
    """
    if text_browser():
        response.headers["Cache-Control"] = "private"
    elif run.ended and not private and response.status_code in (200, 304):
        shared = "public" if current_app.config["PUBLIC_URL"] else "private"
        response.headers["Cache-Control"] = f"{shared}, no-cache"
        response.headers["Vary"] = "Cookie, HX-Request"
        if tag:
            response.set_etag(tag)
        else:
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


MESSAGE_ID = re.compile(r"[^\s<>@]{1,200}@[^\s<>@]{1,200}\Z")


def message_id(text: str) -> str:
    """Return a Message-ID without its brackets; empty stays empty.

    Raises:
        BadOption: it is none.
    """
    text = text.strip().removeprefix("<").removesuffix(">")
    if text and not (MESSAGE_ID.match(text) and text.isascii() and len(text) <= 250):
        raise BadOption(
            f"Message-ID {text[:60]!r}", hint="It looks like <20081013130455.GA1@example.com>."
        )
    return text


@blueprint.post("/t/<run_id>/edit")
def edit(run_id: str) -> AnyResponse:
    """Take the owner's title, note and Message-ID; publish or unlist the run."""
    run = index().get(run_id)
    index().check_token(run, _token(run_id))
    form = request.form
    index().describe(
        run_id,
        title=" ".join(form.get("title", run.title).split()),
        note=" ".join(form.get("note", run.note).split()),
        message_id=message_id(form.get("message_id", run.message_id)),
        listed=form.get("listed", "") not in ("", "0"),
    )
    return redirect(url_for("runs.show_run", run_id=run_id), code=303)


@blueprint.post("/t/<run_id>/delete")
def delete(run_id: str) -> AnyResponse:
    """Delete a run's files with the token that its upload printed."""
    run = index().get(run_id)
    index().check_token(run, _token(run_id))
    for one in (run, *index().descendants(run_id)):
        if not one.ended:
            current_app.config["CANCEL"](one.id)
    index().delete(run_id)
    return redirect(url_for("runs.show_run", run_id=run_id), code=303)


def _token(run_id: str) -> str:
    return request.form.get("token", "") or own_token(index().get(run_id))


def own_token(run: Run) -> str:
    """Return the delete token that this browser has of a run, or of what it was found in; or ""."""
    tokens = own_tokens()
    while run.id not in tokens and run.parent:
        run = index().get(run.parent)
    return tokens.get(run.id, "")


TEXT_BROWSERS = ("Lynx", "Links", "ELinks", "w3m")


@blueprint.app_template_global()
def text_browser() -> bool:
    """Say whether the browser shows text only, where a drawing would be a heap of words."""
    return request.headers.get("User-Agent", "").startswith(TEXT_BROWSERS)


@blueprint.app_template_global()
def stage_key() -> tuple[object, ...]:
    """Return the stages for the legend."""
    return tuple(STAGES)
