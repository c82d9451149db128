"""Blueprint: the check of a run, as page, text and JSON.

The rules are judged from the trace alone; the sentences that say why ask the run's session, and a
page whose session does not answer does without them and says so.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from flask import Blueprint, Response, current_app, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from app import explores, pages
from app.errors import BadOption
from app.index import Run
from app.render import fit
from app.runs import STOP_POLLING, cached, index, open_trace
from app.samples import sample_of_run, sample_run_id
from app.telling import told_by
from app.view import View
from emulator.check import Report, check_trace
from emulator.errors import BootflowError, SessionError
from emulator.explanation import Sentence, explain
from emulator.handoff import STAGES
from emulator.samples import Sample, get_sample
from emulator.trace import TraceReader
from emulator.verdict import Verdict

blueprint = Blueprint("checks", __name__)

KEPT = 64
_REPORTS: OrderedDict[str, Report] = OrderedDict()
_WHYS: OrderedDict[str, tuple[Sentence, ...]] = OrderedDict()
_LOCK = Lock()


@dataclass(frozen=True)
class CheckPage:
    """What the rules say of one run."""

    head: pages.Head
    verdict: Verdict
    report: Report
    why: tuple[Sentence, ...]
    problem: str
    """Why there is no `why`."""
    note: str
    beside: tuple[str, str] | None
    """Title and id of the sample that this one is to be read beside."""
    has_story: bool
    view: View = field(default_factory=View)
    """What links keep: the defaults."""


@blueprint.get("/t/<run_id>/check/")
def show_check(run_id: str) -> AnyResponse:
    """Show the rules, each passed, failed or not applicable."""
    return _check(run_id, "html")


@blueprint.get("/t/<run_id>/check.<form>")
def show_check_twin(run_id: str, form: str) -> AnyResponse:
    """Show the rules as text or JSON."""
    if form not in ("txt", "json"):
        raise BadOption(f"no format .{form[:16]!r}", hint="There are txt and json.")
    return _check(run_id, form)


def _check(run_id: str, form: str) -> AnyResponse:
    run = index().get(run_id)
    reader = open_trace(run)
    if reader is None or not run.ended:
        if reader is not None:
            reader.close()
        raise pages.NoTraceYet(
            f"run {run_id} has not ended: its rules are judged when it has",
            hint=f"See /t/{run_id}/",
        )
    fragment = request.args.get("fragment", "") if form == "html" else ""
    if fragment not in ("", "schedules"):
        raise BadOption(f"no fragment {fragment[:20]!r}", hint="There is schedules.")
    with reader:
        schedules = explores.panel(run, reader, report_of)
        if fragment:
            return _fragment(schedules)
        report = report_of(run, reader)
        if form == "json":
            document = report.document()
            if schedules.status:
                document["schedules"] = explores.document(schedules)
            text = json.dumps(document, indent=1) + "\n"
            response = Response(text, mimetype="application/json")
            return cached(response, run, private=schedules.live)
        page = _page(run, reader, report)
    if form == "txt":
        text = fit(render_template("check.txt", page=page, schedules=schedules))
        response = Response(text, mimetype="text/plain")
    else:
        text = render_template("check.html", page=page, schedules=schedules, stages=STAGES)
        response = Response(text, mimetype="text/html")
    return cached(response, run, private=bool(page.problem) or schedules.live)


def _fragment(schedules: explores.Panel) -> AnyResponse:
    """Answer the page that follows an exploration; it stops to ask when all is there."""
    template = current_app.jinja_env.get_template("check.html")
    context: dict[str, Any] = {"schedules": schedules}
    current_app.update_template_context(context)
    text = "".join(template.blocks["schedules"](template.new_context(context)))
    response = Response(text, 200 if schedules.live else STOP_POLLING, mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    return response


def _page(run: Run, reader: TraceReader, report: Report) -> CheckPage:
    why, problem = _why(run, report)
    sample = sample_of_run(run.id)
    return CheckPage(
        pages.head(run),
        told_by(run, reader).verdict,
        report,
        why,
        problem,
        sample.note if sample is not None else "",
        beside_of(sample),
        sample is not None,
    )


def beside_of(sample: Sample | None) -> tuple[str, str] | None:
    """Title and run id of the sample that one is to be read beside."""
    if sample is None or not sample.beside:
        return None
    other = get_sample(sample.beside)
    return other.title, sample_run_id(other)


def report_of(run: Run, reader: TraceReader) -> Report:
    """The report of an ended run, judged once and kept a while."""
    found: Report | None = _kept(_REPORTS, run.id)
    if found is None:
        found = check_trace(reader)
        _keep(_REPORTS, run.id, found)
    return found


def _why(run: Run, report: Report) -> tuple[tuple[Sentence, ...], str]:
    found: tuple[Sentence, ...] | None = _kept(_WHYS, run.id)
    if found is not None:
        return found, ""
    query = current_app.config["QUERY"]
    try:
        told = explain(report.seen, lambda question: query(run.id, question))
    except SessionError as error:
        return (), f"{error.message} {error.hint}".strip()
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        return (), f"the session's answer lacks something: {error!r}"
    _keep(_WHYS, run.id, told)
    return told, ""


def _kept(store: OrderedDict[str, Any], key: str) -> Any:
    with _LOCK:
        return store.get(key)


def _keep(store: OrderedDict[str, Any], key: str, value: Any) -> None:
    with _LOCK:
        store[key] = value
        while len(store) > KEPT:
            store.popitem(last=False)


@blueprint.app_template_global()
def check_of(run_id: str) -> Report | None:
    """The report of a run for other pages; None while there is none."""
    try:
        run = index().get(run_id)
        reader = open_trace(run) if run.ended else None
        if reader is None:
            return None
        with reader:
            return report_of(run, reader)
    except BootflowError:
        return None
