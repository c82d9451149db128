"""The pages of the rules and of the stories, and the command line's check, on real traces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from werkzeug.datastructures import MultiDict

from app import create_app
from app.cli import main
from app.index import Index, trace_path
from app.samples import sample_run_id, sample_spec
from app.sessions import PoolLimits, SessionPool
from app.uploads import parse_spec
from emulator.errors import SessionError
from emulator.evidence import Evidence
from emulator.recorder import RunSpec
from emulator.rules import RULES
from emulator.samples import SAMPLES, Sample, get_sample
from emulator.samples.notes import PLACES, STORIES, pin, story_key, story_of
from emulator.trace import ImageFile, TraceReader

POSTED, MEANT = get_sample("posted-be"), get_sample("meant-be")
BROWSER = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with two samples recorded, and a run of somebody's own."""
    data = tmp_path_factory.mktemp("data")
    (data / "traces").mkdir()
    index = Index(data)
    with SessionPool(PoolLimits(record_seconds=60.0), keep_spare=False) as pool:
        for sample in (POSTED, MEANT):
            run_id, spec = sample_run_id(sample), sample_spec(sample)
            images = [
                ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
                ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
            ]
            files = {image.role: {"name": image.name, "sha256": "0" * 64, "size_bytes": 1}
                     for image in images}  # fmt: skip
            index.add(spec=spec, files=files, title=sample.title, listed=True, run_id=run_id)
            pool.record(run_id, trace_path(data, run_id), spec, images)
            index.set_status(run_id, "finished", word="MOVES")
    index.close()
    return data


@pytest.fixture
def own(folder: Path) -> tuple[str, str]:
    """A run that is no sample: id and token."""
    index = Index(folder)
    run, token = index.add(spec=sample_spec(POSTED), files={}, title="mine")
    trace_path(folder, run.id).write_bytes(trace_path(folder, sample_run_id(POSTED)).read_bytes())
    index.set_status(run.id, "finished", word="MOVES")
    index.close()
    return run.id, token


@pytest.fixture
def client(folder: Path) -> Iterator[FlaskClient]:
    def query(run_id: str, question: dict[str, Any]) -> dict[str, Any]:
        raise SessionError("no session here", hint="Try again.")

    app = create_app({"DATA_DIR": folder, "QUERY": query})
    yield app.test_client()
    app.extensions["bootflow.index"].close()


def test_page_names_every_rule_and_its_evidence(client: FlaskClient) -> None:
    run_id = sample_run_id(POSTED)
    answer = client.get(f"/t/{run_id}/check/", headers=BROWSER)
    assert answer.status_code == 200
    for rule in RULES:
        assert f'id="{rule.id}"' in answer.text
        assert rule.source in answer.text.replace("&#39;", "'")
    assert answer.text.count('<b class="bad">failed</b>') == 3
    assert f'href="/t/{sample_run_id(MEANT)}/check/"' in answer.text
    assert "No answer from the session: no session here" in answer.text


def test_twins(client: FlaskClient) -> None:
    run_id = sample_run_id(POSTED)
    text = client.get(f"/t/{run_id}/check.txt")
    assert text.mimetype == "text/plain"
    assert max(len(line) for line in text.text.splitlines()) <= 75
    assert "failed  flag-written" in text.text
    document = client.get(f"/t/{run_id}/check.json").get_json()
    assert list(document) == ["outcome", "at", "flag", "rules"]
    assert client.get(f"/t/{run_id}/check.svg").status_code == 400
    assert client.get(f"/t/{'a' * 26}/check/").status_code == 404


def test_run_page_leads_there_in_one_click(client: FlaskClient) -> None:
    run_id = sample_run_id(POSTED)
    page = client.get(f"/t/{run_id}/", headers=BROWSER).text
    assert f'href="/t/{run_id}/check/"' in page
    assert "3 rules of the hand-off failed" in page
    assert "no rule of the hand-off failed" in client.get(f"/t/{sample_run_id(MEANT)}/").text


def test_story_is_told_in_steps_and_as_a_mail(client: FlaskClient) -> None:
    run_id = sample_run_id(POSTED)
    count = len(story_of(POSTED))
    page = client.get(f"/t/{run_id}/story/", headers=BROWSER).text
    assert page.count(f'href="/t/{run_id}/story/') >= count
    mail = client.get(f"/t/{run_id}/story.txt").text
    assert max(len(line) for line in mail.splitlines()) <= 75
    assert mail.count(f"http://localhost/t/{run_id}/") == count + 1
    assert f"http://localhost/t/{sample_run_id(MEANT)}/story/" in mail
    assert mail.isascii()
    last = client.get(f"/t/{run_id}/story/{count}/", headers=BROWSER)
    assert last.status_code == 503  # the session does not answer; the note is there all the same
    assert 'rel="prev"' in last.text
    assert 'rel="next"' not in last.text
    playing = client.get(f"/t/{run_id}/story/1/?play=1").text
    assert f"url=/t/{run_id}/story/2/?play=1" in playing
    assert client.get(f"/t/{run_id}/story/{count + 1}/").status_code == 404


def test_owner_pins_notes_and_nobody_else(client: FlaskClient, own: tuple[str, str]) -> None:
    run_id, token = own
    assert "none yet" in client.get(f"/t/{run_id}/story/").text
    form = {"tick": "91,133", "text": "look <here>", "token": token}
    assert client.post(f"/t/{run_id}/story/", data=form | {"token": "x"}).status_code == 403
    assert client.post(f"/t/{run_id}/story/", data=form).status_code == 303
    page = client.get(f"/t/{run_id}/story/").text
    assert "look &lt;here&gt;" in page
    assert f'href="/t/{run_id}/91133/"' in page
    assert "look <here>" in client.get(f"/t/{run_id}/story.txt").text
    for bad, status in ((form | {"tick": "x"}, 400), (form | {"tick": "9" * 9}, 404),
                        (form | {"text": "y" * 1001}, 400)):  # fmt: skip
        assert client.post(f"/t/{run_id}/story/", data=bad).status_code == status
    client.post(f"/t/{run_id}/story/", data=form | {"text": ""})
    assert "none yet" in client.get(f"/t/{run_id}/story/").text


def test_every_sample_has_a_story_whose_places_are_known() -> None:
    used = {story_key(sample) for sample in SAMPLES}
    assert used == set(STORIES)
    for sample in SAMPLES:
        for place, text in story_of(sample):
            assert place in PLACES
            assert text.isascii()


def test_notes_are_pinned_in_order_of_time(folder: Path) -> None:
    for sample in (POSTED, MEANT):
        with TraceReader(trace_path(folder, sample_run_id(sample))) as reader:
            notes = pin(sample, Evidence.of_trace(reader))
            assert {note.text for note in notes} == {text for _, text in story_of(sample)}
            assert [note.tick for note in notes] == sorted(note.tick for note in notes)
            assert notes[-1].tick <= reader.last_tick


@pytest.mark.parametrize(
    ("sample", "place", "just_ran"),
    [(POSTED, "compare", "cmpd r18,r1"), (MEANT, "marks", "cmpdi r18,1")],
)
def test_note_of_the_snippet_stands_at_its_compare(
    folder: Path, sample: Sample, place: str, just_ran: str
) -> None:
    path = trace_path(folder, sample_run_id(sample))
    with TraceReader(path) as reader:
        notes = pin(sample, Evidence.of_trace(reader))
    text = dict(story_of(sample))[place]
    (tick,) = [note.tick for note in notes if note.text == text]
    with SessionPool(keep_spare=False) as pool:
        question = {"q": "window", "tick": tick, "before": 1, "after": 0}
        answer = pool.query("run", path, question)
    assert " ".join(answer["steps"][-1]["text"].split()) == just_ran


def test_command_line_exits_1_when_a_rule_fails(folder: Path) -> None:
    failing = str(trace_path(folder, sample_run_id(POSTED)))
    done = CliRunner().invoke(main, ["check", failing, "--json"])
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert list(document) == ["outcome", "at", "flag", "rules"]
    text = CliRunner().invoke(main, ["check", failing])
    assert text.exit_code == 1
    assert re.search(r"why:\s+master\+0xdc `cmpd r18,r1`: r18 = 1 was loaded", text.stdout)
    assert max(len(line) for line in text.stdout.splitlines()) <= 75
    passing = str(trace_path(folder, sample_run_id(MEANT)))
    assert CliRunner().invoke(main, ["check", passing, "--json"]).exit_code == 0


def test_command_line_explores_and_records_the_race(tmp_path: Path) -> None:
    sample, path = get_sample("race-be"), tmp_path / "race.bootflow"
    with SessionPool(PoolLimits(record_seconds=60.0), keep_spare=False) as pool:
        images = [
            ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
            ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
        ]
        pool.record("race", path, sample_spec(sample), images)
    done = CliRunner().invoke(main, ["check", str(path), "--schedules", "1", "--json"])
    assert done.exit_code == 1
    (race,) = json.loads(done.stdout)["schedules"]["races"]
    assert race["command"].startswith("bootflow record --load-panic kernel-be.elf --purgatory")
    assert race["command"].endswith(f"--schedule={race['schedule']}")
    assert race["rules"] == ["flag-written", "flag-value", "outcome"]
    again = CliRunner().invoke(main, ["check", race["trace"], "--json"])
    failed = [row["id"] for row in json.loads(again.stdout)["rules"] if row["status"] == "failed"]
    assert failed == ["flag-written", "flag-value", "outcome", "bounds"]


@pytest.mark.parametrize(("mode", "carried"), [("load-panic", True), ("load", False)])
def test_signature_is_a_crash_kernels(mode: str, carried: bool) -> None:
    limit = {"max_cpus": 16, "max_mem_bytes": 4 << 30}
    spec = parse_spec(MultiDict({"mode": mode, "signature": "1"}), limit)
    assert spec["signature"] is carried
    assert RunSpec.from_json(spec).load_options.entry_r6 == (0xFEED1234 if carried else 0)
