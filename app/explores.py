"""Blueprint: exploring the schedules of a run: who asks, how far it is, what was found.

The panel is a part of the check's page (`checks.py`); the search is the worker's (`explorer.py`).
Whoever has the link of a run may explore it; who started it, or owns the run, may stop it, and of
an unlisted run everyone who has the link, as with the run itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, current_app, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from app.command import record_line
from app.errors import BadOption, reads_html
from app.explorations import LIMITS, Exploration, Explorations
from app.index import NoSuchRun, Run, WrongToken
from app.owners import EXPLORATIONS, own_tokens, remember
from app.pages import NoTraceYet
from app.panels import printable
from app.runs import index, open_trace, own_token
from app.uploads import check_room
from emulator.adversary import words_of
from emulator.check import Report
from emulator.errors import BootflowError
from emulator.revision import check_engine
from emulator.trace import TraceReader

blueprint = Blueprint("explores", __name__)

DEFAULT_SEEDS = 32
ReportOf = Callable[[Run, TraceReader], Report]


@dataclass(frozen=True)
class Evidence:
    """A rule that a race breaks, and the moment of the race's own run that shows it."""

    rule: str
    tick: int | None
    cpu: int | None
    text: str


@dataclass(frozen=True)
class FoundRow:
    """A schedule that changes what the rules say."""

    kind: str
    rules: tuple[str, ...]
    sentence: str
    schedule: str
    command: str
    run_id: str
    """The run of a race; empty for rules that hold, or if it was deleted."""
    run_status: str
    evidence: tuple[Evidence, ...]
    """Of a race whose run has ended."""


@dataclass(frozen=True)
class Panel:
    """The exploration of a run, as pages show it."""

    run_id: str
    status: str
    """Empty if nobody has asked for one."""
    seeds: int
    tried: int
    planned: int
    text: str
    rows: tuple[FoundRow, ...]
    refused: str
    """Why this run cannot be explored; empty if it can."""
    may_cancel: bool
    parent: tuple[str, str] | None
    """Id and title of the run that this one was found by exploring."""
    own_schedule: str
    """What the run's own schedule does, if it has one that looks for trouble."""
    most_seeds: int = LIMITS.seeds

    @property
    def waits(self) -> bool:
        """The search waits or goes on."""
        return self.status in ("queued", "running")

    @property
    def live(self) -> bool:
        """What is shown will change: the search goes on, or a race is being recorded."""
        recording = any(row.run_status in ("queued", "running") for row in self.rows)
        return self.waits or recording

    @property
    def races(self) -> int:
        """How many were found."""
        return sum(row.kind == "race" for row in self.rows)

    @property
    def sentence(self) -> str:
        """How it stands."""
        found = f"{self.races or 'no'} race{'s' * (self.races != 1)} found"
        if self.status == "queued":
            return "Waiting for the worker."
        if self.status == "running":
            of = f" of {self.planned}" if self.planned else ""
            return f"{self.tried}{of} schedules tried, {found} so far."
        counts = f"{self.tried} of {self.planned} schedules tried, {found}"
        if self.status == "finished" and not self.planned:
            return "One CPU has one schedule: nothing to explore."
        ends = {"finished": "", "cancelled": "; cancelled"}.get(self.status, f"; {self.status}")
        return f"{counts}{ends}{': ' if self.text else ''}{self.text}."


def rows() -> Explorations:
    """Return the explorations of this application."""
    found: Explorations = current_app.extensions["bootflow.explorations"]
    return found


def panel(run: Run, reader: TraceReader, report_of: ReportOf) -> Panel:
    """Make the panel of an ended run."""
    row = rows().of_run(run.id)
    found = row.found if row is not None else []
    names = {role: str(file.get("name", role)) for role, file in run.files.items()}
    schedule = str(reader.spec.get("schedule") or "")
    return Panel(
        run.id,
        row.status if row is not None else "",
        row.seeds if row is not None else DEFAULT_SEEDS,
        row.tried if row is not None else 0,
        row.planned if row is not None else 0,
        printable(row.text) if row is not None else "",
        tuple(_found_row(each, reader.spec, names, report_of) for each in found),
        _refused(run, reader),
        row is not None and _may_cancel(run, row, ""),
        _parent(run),
        words_of(schedule) if schedule else "",
    )


def _found_row(
    found: dict[str, Any], spec: dict[str, Any], names: dict[str, str], report_of: ReportOf
) -> FoundRow:
    rules = tuple(str(rule) for rule in found["rules"])
    verbs = {"race": ("fails", "fail"), "held": ("holds", "hold")}[found["kind"]]
    words = words_of(found["schedule"], found["write_tick"])
    status, evidence = _race_run(str(found["run"]), rules, report_of)
    return FoundRow(
        found["kind"],
        rules,
        f"{', '.join(rules)} {verbs[len(rules) != 1]} when {words}.",
        found["schedule"],
        record_line({**spec, "schedule": found["schedule"]}, names),
        str(found["run"]) if status else "",
        status,
        evidence,
    )


def _race_run(
    run_id: str, rules: tuple[str, ...], report_of: ReportOf
) -> tuple[str, tuple[Evidence, ...]]:
    """Return the status of a race's run, empty if there is none, and what shows the race."""
    try:
        run = index().get(run_id)
        reader = open_trace(run) if run.ended else None
        if run.status == "deleted" or reader is None:
            return ("" if run.status == "deleted" else run.status), ()
        with reader:
            report = report_of(run, reader)
    except NoSuchRun:
        return "", ()
    except BootflowError:
        return run.status, ()
    failed = [row for row in report.failed if row.rule.id in rules]
    return run.status, tuple(
        Evidence(row.rule.id, row.found.tick, row.found.cpu, row.found.text) for row in failed
    )


def _parent(run: Run) -> tuple[str, str] | None:
    if not run.parent:
        return None
    try:
        return run.parent, printable(index().get(run.parent).title) or "another run"
    except NoSuchRun:
        return None


def _refused(run: Run, reader: TraceReader) -> str:
    if run.status != "finished":
        return f"the run is {run.status}; a finished one can be explored"
    if int(reader.spec.get("cpus", 1)) < 2:
        return "one CPU has one schedule"
    try:
        check_engine(reader.placement.get("engine"))
    except BootflowError as exc:
        return exc.message
    return ""


def _may_cancel(run: Run, row: Exploration, token: str) -> bool:
    if not run.listed:
        return True
    tokens = (token, own_tokens(EXPLORATIONS).get(row.id, ""))
    return any(rows().is_token(row, each) for each in tokens) or _owns(run, token)


def _owns(run: Run, token: str) -> bool:
    for each in (token, own_token(run)):
        try:
            index().check_token(run, each)
        except WrongToken:
            continue
        return True
    return False


def document(shown: Panel) -> dict[str, Any]:
    """Return a panel as JSON."""
    return {
        "status": shown.status,
        "tried": shown.tried,
        "of": shown.planned,
        "seeds": shown.seeds,
        "text": shown.sentence,
        **{
            kind: [_row_document(row) for row in shown.rows if row.kind == of]
            for kind, of in (("races", "race"), ("held", "held"))
        },
    }


def _row_document(row: FoundRow) -> dict[str, Any]:
    return {
        "rules": list(row.rules),
        "schedule": row.schedule,
        "text": row.sentence,
        "command": row.command,
        "run": row.run_id or None,
        "evidence": [
            {"id": each.rule, "tick": each.tick, "cpu": each.cpu, "text": each.text}
            for each in row.evidence
        ],
    }


@blueprint.post("/t/<run_id>/check/explore")
def explore(run_id: str) -> AnyResponse:
    """Queue an exploration of a run."""
    run = index().get(run_id)
    reader = open_trace(run) if run.ended else None
    if reader is None:
        raise NoTraceYet(f"run {run_id} has no finished trace to explore", hint=f"See /t/{run_id}/")
    with reader:
        refused = _refused(run, reader)
    if refused:
        raise BadOption(f"this run cannot be explored: {refused}")
    check_room()
    row, token = rows().add(run, _seeds(request.form.get("schedules", "")))
    current_app.config["EXPLORE"](row.id)
    path = url_for("checks.show_check", run_id=run_id)
    if reads_html():
        response: AnyResponse = redirect(f"{path}#schedules", code=303)
        if not _owns(run, ""):
            remember(response, row.id, token, EXPLORATIONS)
    else:
        base = (current_app.config["PUBLIC_URL"] or request.host_url).rstrip("/")
        text = f"{base}{path}\nstate:        {row.status}\ncancel token: {token}\n"
        response = Response(text, 201, mimetype="text/plain")
        response.headers["Location"] = f"{base}{path}"
    response.headers["Cache-Control"] = "no-store"
    return response


def _seeds(text: str) -> int:
    text = text.strip() or str(DEFAULT_SEEDS)
    if not (text.isascii() and text.isdecimal()) or len(text) > 6:
        raise BadOption(f"schedules {text[:20]!r} is not a number")
    if int(text) > LIMITS.seeds:
        raise BadOption(
            f"{int(text)} schedules; at most {LIMITS.seeds} random orders are possible",
            hint="The command line has no such limit: bootflow check TRACE --schedules N.",
        )
    return int(text)


@blueprint.post("/t/<run_id>/check/explore/cancel")
def cancel(run_id: str) -> AnyResponse:
    """Stop the exploration of a run; what it has found stays."""
    run = index().get(run_id)
    row = rows().of_run(run_id)
    if row is not None and not row.ended:
        if not _may_cancel(run, row, request.form.get("token", "")):
            raise WrongToken(
                "only who started it, or the owner of the run, may stop this exploration",
                hint="The token was printed once, in the answer to the request.",
            )
        rows().change(row.id, status="cancelled", text="")
    return redirect(url_for("checks.show_check", run_id=run_id) + "#schedules", code=303)
