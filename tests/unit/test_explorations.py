"""Exploring a run from the page: asked for, followed, stopped; what is found becomes runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import DEFAULTS, create_app, exploring, warden, worker
from app.explorations import LIMITS, Exploration, Explorations, Limits
from app.explorer import Explorer
from app.index import Index, trace_path, upload_path
from emulator.revision import ENGINE_REVISION
from emulator.trace import ImageFile, TraceWriter
from tests import fabricated

FILES = {
    "kernel": {"name": "vmlinux", "sha256": "0" * 64, "size_bytes": 1},
    "purgatory": {"name": "kexec", "sha256": "1" * 64, "size_bytes": 1},
}
SCHEDULE = "writer:cpu0:0x38:2:50"
RACE = {"t": "race", "rules": ["flag-value"], "schedule": SCHEDULE, "write_tick": 131}
HELD = {"t": "held", "rules": ["bounds"], "schedule": "random:3", "write_tick": None}
DONE = {"t": "explored", "tried": 2, "failed": []}
BROWSER = {"Accept": "text/html"}


def progress(tried: int) -> dict[str, Any]:
    return {"t": "progress", "tick": tried, "of": 2}


@dataclass
class Bench:
    """A data directory with the page over it."""

    data: Path
    index: Index
    client: FlaskClient
    asked: list[str]
    recorded: list[str] = field(default_factory=list)

    @property
    def rows(self) -> Explorations:
        return Explorations(self.index)

    def add(self, *, listed: bool = False, cpus: int = 4, script: Any = ()) -> tuple[str, str]:
        """Add a finished run; its exploration sends what the script says."""
        spec = fabricated.SPEC | {"cpus": cpus, "append": json.dumps(list(script))}
        run, token = self.index.add(spec=spec, files=FILES, listed=listed, title="a run")
        writer = TraceWriter(trace_path(self.data, run.id))
        writer.start(
            spec, [ImageFile("kernel", "vmlinux", b"k"), ImageFile("purgatory", "k", b"p")]
        )
        for record in fabricated.records():
            engine = {"engine": ENGINE_REVISION} if record["t"] == "placement" else {}
            writer.apply(record | engine)
        writer.apply(fabricated.end())
        writer.finish()
        self.index.set_status(run.id, "finished", word="STAYS")
        return run.id, token

    def ask(self, run_id: str, seeds: int = 1) -> Exploration:
        row, _ = self.rows.add(self.index.get(run_id), seeds)
        return row

    def explorer(self, limits: Limits = LIMITS) -> Explorer:
        return Explorer(self.data, self.index, self.recorded.append, limits)

    def row(self, run_id: str) -> Exploration:
        found = self.rows.of_run(run_id)
        assert found is not None
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(exploring, "ENGINE", "tests.fake_explorer")
    asked: list[str] = []
    config = {"DATA_DIR": tmp_path, "QUERY": lambda run_id, q: fabricated.answer(q)}
    app = create_app(config | {"EXPLORE": asked.append, "ENQUEUE": asked.append})
    (tmp_path / "traces").mkdir()
    index = app.extensions["bootflow.index"]
    yield Bench(tmp_path, index, app.test_client(), asked)
    index.close()


# --- the page -----------------------------------------------------------------------------------


def test_anyone_may_ask_once(bench: Bench) -> None:
    run_id, _ = bench.add(listed=True)
    page = bench.client.get(f"/t/{run_id}/check/", headers=BROWSER)
    assert f'action="/t/{run_id}/check/explore"' in page.text
    assert "no-cache" in page.headers["Cache-Control"]
    assert "schedules" not in bench.client.get(f"/t/{run_id}/check.json").get_json()
    answer = bench.client.post(f"/t/{run_id}/check/explore", data={"schedules": "7"})
    assert answer.status_code == 201
    assert bench.asked == [bench.row(run_id).id]
    assert bench.row(run_id).seeds == 7
    again = bench.client.post(f"/t/{run_id}/check/explore", data={"schedules": "7"})
    assert (again.status_code, "this run is being explored" in again.text) == (429, True)
    page = bench.client.get(f"/t/{run_id}/check/", headers=BROWSER)
    assert "Waiting for the worker." in page.text
    assert 'hx-trigger="every 1s"' in page.text
    assert page.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("cpus", "form", "headers", "status", "words"),
    [
        (4, {"schedules": "257"}, {}, 400, "at most 256"),
        (4, {"schedules": "-1"}, {}, 400, "is not a number"),
        (1, {}, {}, 400, "one CPU has one schedule"),
        (4, {}, {"Origin": "http://evil.example"}, 403, "another site"),
    ],
)
def test_what_is_refused(
    bench: Bench, cpus: int, form: Any, headers: Any, status: int, words: str
) -> None:
    run_id, _ = bench.add(cpus=cpus)
    answer = bench.client.post(f"/t/{run_id}/check/explore", data=form, headers=headers)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert bench.asked == []


def test_queue_is_bounded(bench: Bench) -> None:
    for _ in range(LIMITS.waiting):
        assert bench.client.post(f"/t/{bench.add()[0]}/check/explore").status_code == 201
    answer = bench.client.post(f"/t/{bench.add()[0]}/check/explore")
    assert (answer.status_code, "explorations wait or go on" in answer.text) == (429, True)


def test_who_started_it_or_owns_the_run_may_stop_it(bench: Bench) -> None:
    run_id, owner = bench.add(listed=True)
    cancel = f"/t/{run_id}/check/explore/cancel"
    answer = bench.client.post(f"/t/{run_id}/check/explore")
    token = answer.text.split("cancel token: ")[1].strip()
    assert bench.client.post(cancel, data={"token": "x"}).status_code == 403
    assert bench.row(run_id).status == "queued"
    assert bench.client.post(cancel, data={"token": token}).status_code == 303
    assert bench.row(run_id).status == "cancelled"
    bench.client.post(f"/t/{run_id}/check/explore")
    assert bench.client.post(cancel, data={"token": owner}).status_code == 303
    assert bench.row(run_id).status == "cancelled"
    bench.client.post(f"/t/{run_id}/check/explore", headers=BROWSER)  # the browser knows it
    assert 'id="stop-exploring"' in bench.client.get(f"/t/{run_id}/check/", headers=BROWSER).text
    assert bench.client.post(cancel).status_code == 303
    assert bench.row(run_id).status == "cancelled"


# --- the worker's job ---------------------------------------------------------------------------


def test_race_becomes_a_run_of_its_own(bench: Bench) -> None:
    run_id, token = bench.add(listed=True, script=[progress(1), RACE, HELD, progress(2), DONE])
    bench.explorer().explore(bench.ask(run_id).id)
    row = bench.row(run_id)
    assert (row.status, row.tried, row.planned, row.text) == ("finished", 2, 2, "")
    (child_id,) = bench.recorded
    child = bench.index.get(child_id)
    assert (child.parent, child.listed, child.status) == (run_id, True, "queued")
    assert child.spec["schedule"] == SCHEDULE
    assert upload_path(bench.data, child_id, "kernel").read_bytes() == b"k"
    bench.index.check_token(child, token)  # it has the same owner
    text = bench.client.get(f"/t/{run_id}/check.txt").text
    assert "2 of 2 schedules tried, 1 race found." in text
    assert "flag-value fails when right after CPU 0's 2nd write at 0x38" in " ".join(text.split())
    assert f"--schedule={SCHEDULE}" in text
    assert f"/t/{child_id}/check/" in text
    assert max(len(line) for line in text.splitlines()) <= 75
    document = bench.client.get(f"/t/{run_id}/check.json").get_json()["schedules"]
    assert [row["run"] for row in document["races"]] == [child_id]
    assert [row["rules"] for row in document["held"]] == [["bounds"]]
    page = bench.client.get(f"/t/{run_id}/check/", headers=BROWSER).text
    assert "is being recorded" in page
    assert 'hx-trigger="every 1s"' in page  # until the race can be looked at


def test_race_leads_back_and_shows_its_tick(bench: Bench) -> None:
    run_id, _ = bench.add(script=[RACE, progress(2), DONE])
    bench.explorer().explore(bench.ask(run_id).id)
    (child_id,) = bench.recorded
    spec = bench.index.get(child_id).spec
    writer = TraceWriter(trace_path(bench.data, child_id))
    writer.start(spec, [ImageFile("kernel", "vmlinux", b"k")])
    for record in fabricated.records():
        writer.apply(record)
    writer.apply(fabricated.end())
    writer.finish()
    bench.index.set_status(child_id, "finished", word="STAYS")
    page = bench.client.get(f"/t/{child_id}/check/", headers=BROWSER).text
    assert f'href="/t/{run_id}/check/#schedules">a run</a>' in page
    assert f'href="/t/{run_id}..{child_id}/"' in page
    assert "Its own schedule: right after CPU 0" in page
    assert f"/t/{run_id}/check/#schedules" in bench.client.get(f"/t/{child_id}/").text
    assert f"/t/{run_id}/" in bench.client.get(f"/t/{child_id}.txt").text
    fragment = bench.client.get(f"/t/{run_id}/check/?fragment=schedules")
    assert fragment.status_code == 286  # nothing will change any more
    assert "<h1" not in fragment.text
    assert f'href="/t/{run_id}..{child_id}/">beside this one' in fragment.text


def test_same_race_is_kept_once(bench: Bench) -> None:
    run_id, _ = bench.add(script=[RACE, progress(2), DONE])
    for _ in range(2):
        bench.explorer().explore(bench.ask(run_id).id)
    assert len(bench.recorded) == 1
    assert bench.row(run_id).found[0]["run"] == bench.recorded[0]


def test_cancel_ends_it_and_keeps_what_was_found(bench: Bench) -> None:
    run_id, _ = bench.add(script=[progress(1), RACE, ["sleep", 30]])
    row = bench.ask(run_id)
    thread = threading.Thread(target=bench.explorer().explore, args=(row.id,))
    thread.start()
    _wait(lambda: bool(bench.row(run_id).found))
    assert "schedules tried, 1 race found so far" in bench.client.get(f"/t/{run_id}/check.txt").text
    began = time.monotonic()
    assert bench.client.post(f"/t/{run_id}/check/explore/cancel").status_code == 303
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < 5
    assert bench.row(run_id).status == "cancelled"
    assert len(bench.row(run_id).found) == 1


@pytest.mark.parametrize("crowd", [True, False])
def test_what_uses_too_much_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, crowd: bool
) -> None:
    monkeypatch.setattr(warden, "MAX_PROCESSES", 0 if crowd else 1000)
    monkeypatch.setattr(warden, "memory_is_short", lambda meminfo: not crowd)
    monkeypatch.setattr(warden, "INTERVAL_SECONDS", 0.2)
    run_id, _ = bench.add(script=[progress(1), ["sleep", 30]])
    bench.explorer().explore(bench.ask(run_id).id)
    row = bench.row(run_id)
    words = "processes in one session" if crowd else "the machine ran out of memory"
    assert (row.status, words in row.text) == ("failed", True), row.text


def test_deleted_run_is_not_explored_on(bench: Bench) -> None:
    run_id, _ = bench.add(script=[progress(1), ["sleep", 30]])
    row = bench.ask(run_id)
    thread = threading.Thread(target=bench.explorer().explore, args=(row.id,))
    thread.start()
    _wait(lambda: bench.row(run_id).tried == 1)
    bench.index.delete(run_id)
    thread.join(10)
    assert not thread.is_alive()
    assert bench.row(run_id).text == "the run was deleted"


def test_stopped_worker_leaves_it_queued_and_gives_up_the_third_time(bench: Bench) -> None:
    run_id, _ = bench.add(script=[progress(1), ["sleep", 30]])
    row = bench.ask(run_id)
    for attempt in range(LIMITS.attempts):
        explorer = bench.explorer()
        thread = threading.Thread(target=explorer.explore, args=(row.id,))
        thread.start()
        began = attempt + 1
        _wait(lambda n=began: (bench.row(run_id).attempts, bench.row(run_id).tried) == (n, 1))
        explorer.stopping = True
        thread.join(10)
        assert bench.row(run_id).status == "queued"
        assert bench.row(run_id).attempts == attempt + 1
    bench.explorer().explore(row.id)
    assert (bench.row(run_id).status, bench.row(run_id).text) == (
        "killed", "the worker was stopped 2 times while it ran",
    )  # fmt: skip


def test_restarted_worker_goes_on_with_what_was_running(bench: Bench) -> None:
    run_id, _ = bench.add(script=[progress(2), DONE])
    row = bench.ask(run_id)
    bench.rows.change(row.id, status="running", attempts=1)  # the worker before it was killed
    serving = worker.Worker(bench.data, engine="tests.fake_engine")
    serving.start()
    try:
        _wait(lambda: bench.row(run_id).status == "finished", seconds=30)
    finally:
        serving.stop()
    assert (bench.row(run_id).attempts, bench.row(run_id).tried) == (2, 2)


def test_time_for_it_is_bounded(bench: Bench) -> None:
    run_id, _ = bench.add(script=[progress(1), ["sleep", 30]])
    bench.explorer(Limits(seconds=4.0)).explore(bench.ask(run_id).id)
    assert bench.row(run_id).status == "finished"
    told = " ".join(bench.client.get(f"/t/{run_id}/check.txt").text.split())
    assert "1 of 2 schedules tried, no races found: the time for it was over." in told


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ([["die"]], ""),
        ([{"t": "error", "slug": "session", "message": "it broke", "hint": ""}], "it broke"),
        ([RACE | {"schedule": "x"}], "lacks something"),
        ([RACE | {"rules": ["no such rule"]}], "is none"),
        ([{"t": "progress", "tick": "x", "of": 1}], "lacks something"),
    ],
)
def test_what_the_session_sends_is_not_believed(bench: Bench, script: Any, words: str) -> None:
    run_id, _ = bench.add(script=script)
    bench.explorer().explore(bench.ask(run_id).id)
    row = bench.row(run_id)
    assert row.status == "failed"
    assert words in row.text
    assert row.text
    assert bench.recorded == []


def test_race_goes_with_its_run_and_is_as_public(bench: Bench) -> None:
    run_id, _ = bench.add(script=[RACE, progress(2), DONE])
    bench.explorer().explore(bench.ask(run_id).id)
    (child_id,) = bench.recorded
    assert not bench.index.get(child_id).listed
    bench.index.describe(run_id, title="t", note="", message_id="", listed=True)
    assert bench.index.get(child_id).listed
    bench.index.describe(run_id, title="t", note="", message_id="", listed=False)
    assert not bench.index.get(child_id).listed
    bench.index.delete(run_id)
    assert bench.index.get(child_id).status == "deleted"
    assert not upload_path(bench.data, child_id, "kernel").exists()


def _wait(true: Any, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_races_of_races_are_as_public_and_go_too(bench: Bench) -> None:
    first, _ = bench.add(listed=True)
    second, _ = bench.index.add(spec={}, files={}, listed=True, parent=bench.index.get(first))
    third, _ = bench.index.add(spec={}, files={}, listed=True, parent=second)
    bench.index.describe(first, title="t", note="", message_id="", listed=False)
    assert not any(bench.index.get(each).listed for each in (first, second.id, third.id))
    bench.index.delete(first)
    assert {bench.index.get(each).status for each in (second.id, third.id)} == {"deleted"}


def test_race_found_while_its_run_is_deleted_goes_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = bench.add(listed=True, script=[RACE, progress(2), DONE])
    add = bench.index.add

    def slow(**given: Any) -> Any:
        bench.index.delete(run_id)
        return add(**given)

    monkeypatch.setattr(bench.index, "add", slow)
    bench.explorer().explore(bench.ask(run_id).id)
    assert not bench.recorded
    assert not list((bench.data / "traces").iterdir())
    assert bench.index.recent() == []
    assert bench.row(run_id).text == "the run was deleted"


def test_exploring_again_forgets_nothing(bench: Bench) -> None:
    run_id, _ = bench.add(script=[RACE, progress(2), DONE])
    bench.explorer().explore(bench.ask(run_id).id)
    found = bench.row(run_id).found
    assert len(found) == 1
    again = bench.ask(run_id)
    assert bench.row(run_id).found == found
    bench.rows.change(again.id, status="cancelled")
    assert bench.row(run_id).found == found


def test_no_race_is_stored_where_the_disk_is_full(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = bench.add(script=[RACE, progress(2), DONE])
    monkeypatch.setitem(DEFAULTS, "MIN_FREE_BYTES", 1 << 62)
    bench.explorer().explore(bench.ask(run_id).id)
    assert not bench.recorded
    assert "no room for the race" in bench.row(run_id).text
    assert not list((bench.data / "uploads").glob("*"))


def test_owner_of_a_run_owns_what_was_found_in_it(bench: Bench) -> None:
    run_id, token = bench.add()
    child, _ = bench.index.add(spec={}, files={}, parent=bench.index.get(run_id))
    bench.index.set_status(child.id, "running")
    bench.client.set_cookie("bootflow_runs", f"{run_id}.{token}")
    assert bench.client.post(f"/t/{child.id}/edit", data={"title": "x"}).status_code == 303
    assert bench.client.post(f"/t/{child.id}/delete").status_code == 303
    assert bench.index.get(child.id).status == "deleted"


def test_recordings_of_races_are_cancelled_with_their_run(bench: Bench) -> None:
    run_id, token = bench.add()
    child, _ = bench.index.add(spec={}, files={}, parent=bench.index.get(run_id))
    cancelled: list[str] = []
    bench.client.application.config["CANCEL"] = cancelled.append
    assert bench.client.post(f"/t/{run_id}/delete", data={"token": token}).status_code == 303
    assert cancelled == [child.id]


def test_explorations_take_no_place_of_a_runs_token(bench: Bench) -> None:
    run_id, token = bench.add(listed=True)
    bench.client.set_cookie("bootflow_runs", f"{'a' * 26}.{token}")
    answer = bench.client.post(f"/t/{run_id}/check/explore", headers=BROWSER)
    assert answer.status_code == 303
    assert [cookie.split("=")[0] for cookie in answer.headers.getlist("Set-Cookie")] == [
        "bootflow_explorations"
    ]
