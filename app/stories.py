"""Blueprint: the story of a run: notes pinned to its ticks, one after the other, and as a mail.

A sample's notes come from its table (`emulator/samples/notes.py`); the owner of a run pins his own
with the token that the upload gave out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from app import moments, pages
from app.at import asker
from app.checks import beside_of, report_of
from app.errors import BadOption
from app.fresh import notes_of
from app.index import Run
from app.panels import printable
from app.render import fit
from app.runs import cached, index, open_trace, own_token
from app.samples import sample_of_run
from app.telling import told_by
from app.view import View
from emulator.handoff import STAGES
from emulator.samples.notes import Note, pin
from emulator.trace import TraceReader
from emulator.verdict import Verdict

blueprint = Blueprint("stories", __name__)

PLAY_SECONDS = 8
MAX_TEXT = 1000


@dataclass(frozen=True)
class StoryPage:
    """All notes of a run."""

    head: pages.Head
    verdict: Verdict
    notes: tuple[Note, ...]
    thread: str
    is_sample: bool
    beside: tuple[str, str] | None = None
    """Title and id of the sample that this one is to be read beside."""
    view: View = field(default_factory=View)
    """What links keep: the defaults."""


@blueprint.get("/t/<run_id>/story/")
def show_story(run_id: str) -> AnyResponse:
    """Show the notes of a run, in order."""
    return _story(run_id, "html")


@blueprint.get("/t/<run_id>/story.txt")
def show_story_text(run_id: str) -> AnyResponse:
    """The story as a mail."""
    return _story(run_id, "txt")


@blueprint.get("/t/<run_id>/story/<int:number>/")
def show_note(run_id: str, number: int) -> AnyResponse:
    """Show one note with the moment that it speaks of; `?play=1` goes on by itself."""
    run = index().get(run_id)
    with _trace(run) as reader:
        story = _page(run, reader)
        if not 1 <= number <= len(story.notes):
            raise pages.NoSuchTick(
                f"note {number}: the story has {len(story.notes)}", hint=f"See /t/{run_id}/story/"
            )
        told, tick = told_by(run, reader), story.notes[number - 1].tick
        moment = moments.moment_page(run, reader, told, tick, asker(run), View())
    text = render_template(
        "note.html", page=moment, story=story, number=number, stages=STAGES,
        play=request.args.get("play", "") == "1", play_seconds=PLAY_SECONDS,
    )  # fmt: skip
    broken = moment.moment is not None and bool(moment.moment.problem)
    response = Response(text, 503 if broken else 200, mimetype="text/html")
    return cached(response, run, private=broken or not story.is_sample)


def _story(run_id: str, form: str) -> AnyResponse:
    run = index().get(run_id)
    with _trace(run) as reader:
        page = _page(run, reader)
    if form == "txt":
        response = Response(fit(render_template("story.txt", page=page)), mimetype="text/plain")
    else:
        token = own_token(run)
        text = render_template("story.html", page=page, stages=STAGES, token=token)
        response = Response(text, mimetype="text/html")
    return cached(response, run, private=not page.is_sample)


def _trace(run: Run) -> TraceReader:
    reader = open_trace(run) if run.ended else None
    if reader is None:
        raise pages.NoTraceYet(
            f"run {run.id} has not ended: its story is told when it has", hint=f"See /t/{run.id}/"
        )
    return reader


def _page(run: Run, reader: TraceReader) -> StoryPage:
    sample = sample_of_run(run.id)
    notes = [Note(note.tick, note.text) for note in notes_of(run.id)]
    if sample is not None:
        notes += pin(sample, report_of(run, reader).seen)
    notes.sort(key=lambda note: note.tick)
    return StoryPage(
        pages.head(run),
        told_by(run, reader).verdict,
        tuple(notes),
        sample.thread if sample is not None else "",
        sample is not None,
        beside_of(sample),
    )


@blueprint.post("/t/<run_id>/story/")
def pin_note(run_id: str) -> AnyResponse:
    """Pin a note of the run's owner to a tick; an empty text takes the note there away."""
    run = index().get(run_id)
    index().check_token(run, request.form.get("token", "") or own_token(run))
    digits = request.form.get("tick", "").replace(",", "").strip()
    if not digits.isdecimal() or len(digits) > 16:
        raise BadOption(f"tick {digits[:40]!r} is not a number", hint="Write it as 1234 or 1,234.")
    with _trace(run) as reader:
        last = reader.last_tick
    if int(digits) > last:
        raise pages.NoSuchTick(f"tick {digits}: the run has ticks 0 to {last}")
    text = printable(" ".join(request.form.get("text", "").split()))
    if len(text) > MAX_TEXT:
        raise BadOption(f"a note of {len(text)} characters", hint=f"At most {MAX_TEXT} fit.")
    index().pin(run_id, int(digits), text)
    return redirect(url_for("stories.show_story", run_id=run_id), code=303)


@blueprint.app_template_global()
def notes_at(run_id: str, tick: int) -> tuple[tuple[int, Note], ...]:
    """The notes pinned to a tick, each with its number in the story; for the page of a moment."""
    if sample_of_run(run_id) is None and not notes_of(run_id):
        return ()
    run = index().get(run_id)
    if not run.ended:
        return ()
    with _trace(run) as reader:
        notes = _page(run, reader).notes
    return tuple((n, note) for n, note in enumerate(notes, 1) if note.tick == tick)
