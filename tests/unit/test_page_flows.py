"""What a moment's page leads to, through Flask's test client and a fabricated session."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app, guide
from app.index import Index, trace_path
from app.seeking import NotFound, turn_tick
from app.story import story
from app.view import BadView
from emulator.errors import SessionError
from emulator.trace import TraceReader, TraceWriter
from tests import fabricated

ROOT = Path(__file__).parents[2]
A, B = "a" * 26, "b" * 26
FILES = {
    "kernel": {"name": "vmlinux", "sha256": "0" * 64, "size_bytes": 1},
    "purgatory": {"name": "kexec", "sha256": "1" * 64, "size_bytes": 1},
}
TICK = fabricated.FLAG_TICK


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    made = create_app({"DATA_DIR": tmp_path, "QUERY": lambda _run, q: fabricated.answer(q)})
    index: Index = made.extensions["bootflow.index"]
    for run_id, moves in ((A, True), (B, False)):
        spec = fabricated.SPEC | ({"mode": "load"} if moves else {})
        made.config[run_id] = index.add(
            spec=spec, files=FILES, listed=True, title=run_id[:3], run_id=run_id
        )[1]
        fabricated.write_trace(trace_path(tmp_path, run_id), moves=moves)
        index.set_status(run_id, "finished", word="MOVES" if moves else "STAYS")
    yield made
    index.close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_a_boosted_link_gets_title_and_content_only(client: FlaskClient) -> None:
    part = client.get(f"/t/{B}/{TICK}/", headers={"HX-Request": "true", "HX-Boosted": "true"})
    assert part.text.startswith("<title>STAYS - tick 1,508,330,035")
    assert "<html" not in part.text
    assert "GPR00:" in part.text
    assert "HX-Request" in part.headers["Vary"]
    lost = {"HX-Request": "true", "HX-Boosted": "true", "HX-History-Restore-Request": "true"}
    assert "<html" in client.get(f"/t/{B}/{TICK}/", headers=lost).text


def test_zooming_gets_the_timeline_only(client: FlaskClient) -> None:
    url = f"/t/{B}/{TICK}/?from={TICK - 100}&to={TICK + 100}"
    part = client.get(f"{url}&fragment=line").text
    assert "<svg" in part
    assert "GPR00:" not in part
    assert "data-whole=" in part
    assert "P master" in part  # the functions of the window
    assert client.get(f"/t/{B}/{TICK}/?fragment=nonsense").status_code == 400


def test_compressed_view_and_move_are_small(client: FlaskClient) -> None:
    for headers, most in (({}, 100_000), ({"HX-Boosted": "true", "HX-Request": "true"}, 30_000)):
        answer = client.get(f"/t/{B}/{TICK}/", headers={"Accept-Encoding": "gzip", **headers})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert len(answer.data) < most


@pytest.mark.parametrize(
    ("query", "tick"),
    [
        ("at=0x5c&what=last-write", 9 + 4 * 11),
        ("at=0x40&what=last-write", 191),
        ("at=0x200005c%2B4&what=next-read", 1_508_330_099),
        ("at=0x200005c%2B4&what=next", 1_508_330_099),
        ("at=r7&cpu=1&what=last-write", TICK - 1),
        ("at=cr&cpu=1&what=next-read", TICK + 5),
        ("at=r7&what=next-insn", TICK + 1),
        ("at=r7&cpu=2&what=next-slice", fabricated.RELEASED + 100),
    ],
)
def test_seek_goes_to_the_access(client: FlaskClient, query: str, tick: int) -> None:
    answer = client.get(f"/t/{B}/{TICK}/seek?{query}")
    assert answer.status_code == 303
    where = answer.headers["Location"]
    assert where.startswith(f"/t/{B}/{tick}/?")
    assert "at=" in where


def test_what_nobody_reads_is_an_answer(client: FlaskClient) -> None:
    """Overwritten unread, or never read: said on a page of its own, and by its twins."""
    url = f"/t/{B}/{TICK}/seek"
    asked = "?cpu=1&at=r14&what=next-read"
    page = client.get(url + asked)
    assert page.status_code == 200
    said = f"cpu 1 r14: overwritten unread at tick {TICK + 9} by li r14,0 at master+0xf0/0x110"
    assert said in page.text
    assert f'href="/t/{B}/{TICK + 9}/?cpu=1&amp;at=r14"' in page.text
    assert f'href="/t/{B}/{TICK}/?cpu=1&amp;at=r14"' in page.text
    text = client.get(f"{url}.txt{asked}").text
    assert f"answer:   cpu 1 r14: overwritten unread at tick {TICK + 9}" in text
    assert max(map(len, text.splitlines())) <= 75
    document = client.get(f"{url}.json{asked}").get_json()
    assert (document["found"], document["tick"]) == (False, TICK + 9)
    assert document["answer"]["outcome"] == "overwritten"
    never = client.get(f"{url}?at=r13&what=next-read")
    assert f"its value at tick {TICK} is not read up to the last tick," in never.text
    read = client.get(f"{url}.json?at=xer&what=next-read").get_json()
    assert (read["found"], read["tick"]) == (True, TICK + 5)


def test_steps_of_one_cpu_are_links(client: FlaskClient) -> None:
    """Without scripts: each step is a plain link that keeps the CPU."""
    page = client.get(f"/t/{B}/{TICK}/?cpu=2").text
    moved = client.get(f"/t/{B}/{TICK}.json?cpu=2").get_json()["moves"]
    assert moved["cpu"] == 2
    keys = {"j": "previous_cpu_tick", "k": "next_cpu_tick", "{": "previous_slice"}
    for key, name in (keys | {")": "next_cpu_slice", "J": "previous_cpu_event"}).items():
        assert moved[name] is not None, name
        query = "?cpu=2" if "cpu" in name or key == "{" else ""
        assert f'data-key="{key}" href="/t/{B}/{moved[name]}/{query}"' in page
    for number in (0, 1, 3):
        assert f'href="/t/{B}/{TICK}/?cpu={number}" aria-label="CPU {number}"' in page


def test_a_search_of_low_memory_names_the_kernel_s_own(client: FlaskClient) -> None:
    page = client.get(f"/t/{B}/search?q=writes+to+0x5c").text
    assert f'href="/t/{B}/search?q=writes%20to%200x200005c"' in page
    assert "also:     writes to 0x200005c" in client.get(f"/t/{B}/search.txt?q=writes+0x5c").text
    for words in ("writes+to+0x200005c", "flag-read"):
        assert "also:" not in client.get(f"/t/{B}/search.txt?q={words}").text


def test_previous_access(client: FlaskClient) -> None:
    answer = client.get(f"/t/{B}/1508330099/seek?at=0x200005c%2B4&what=previous")
    assert answer.headers["Location"].startswith(f"/t/{B}/{TICK}/")


def test_a_turn_is_asked_for_from_the_end_of_a_loop_entered_once(tmp_path: Path) -> None:
    """In its first turn the session does not know a loop yet; the trace does."""
    asked: list[dict[str, Any]] = []

    def ask_all(questions: Any) -> list[tuple[dict[str, Any], str]]:
        asked.extend(questions)
        return [({"found": True, "tick": 5000}, "")]

    fabricated.write_trace(tmp_path / "t", moves=False)
    with TraceReader(tmp_path / "t") as reader:
        told = story(reader)
    digest, delay = 0x1EFF0030, 0x1EFF0858
    assert turn_tick(told, 4461, 0, digest, 2, ask_all) == 5000
    assert asked.pop()["tick"] == 1_508_264_399
    assert turn_tick(told, 4600, 0, 0x1EFF31A0, 2, ask_all) == 5000
    assert asked.pop()["tick"] == 4600  # of 4 entries: only the session knows this one's end
    with pytest.raises(NotFound, match=r"master\+0x58 that cpu 0 is in has 65536 turns, no turn 7"):
        turn_tick(told, TICK, 0, delay, 70_000, ask_all)
    with pytest.raises(BadView, match="there is no CPU 9"):
        turn_tick(told, TICK, 9, delay, 1, ask_all)
    assert not asked


@pytest.mark.parametrize(
    ("query", "status", "slug"),
    [("at=r1&cpu=9&what=last-write", 400, "bad-option"),
     ("cpu=9&what=next-insn", 400, "bad-option"),
     ("what=next", 400, "bad-option"), ("at=0x5c&what=fly", 400, "bad-option"),
     ("at=0x7000&what=next", 404, "not-found"), ("at=0x7000&what=previous", 404, "not-found")],
)  # fmt: skip
def test_seek_that_finds_nothing_says_so(
    client: FlaskClient, query: str, status: int, slug: str
) -> None:
    answer = client.get(f"/t/{B}/{TICK}/seek?{query}")
    assert (answer.status_code, f"error: {slug}" in answer.text) == (status, True)


@pytest.mark.parametrize(
    ("words", "count", "first"),
    [
        ("relocate", 1, 1_508_330_104),
        ("first NIP = relocate", 1, 1_508_330_104),
        ("writes to 0x5c", 1, 9 + 4 * 11),
        ("all writes to 0x40", 4, 9 + 4 * 8),
        ("reads of 0x200005c+4", 2, 1_508_330_099),
        ("flag-read", 2, 1_508_330_099),
        ("1,508,330,035", 1, TICK),
        ("Linux version", 1, 1_531_868_500),
        ("0x2000000", 1, 1_508_330_044),
        ("nothing at all", 0, 0),
    ],
)
def test_search(client: FlaskClient, words: str, count: int, first: int) -> None:
    found = client.get(f"/t/{B}/search.json", query_string={"q": words}).get_json()
    assert len(found["hits"]) == count, found
    assert [hit["tick"] for hit in found["hits"]][:1] == ([first] if count else [])
    page = client.get(f"/t/{B}/search", query_string={"q": words}).text
    assert f"{first:,}" in page or not count


def test_a_selected_place_shows_the_way_of_its_value(client: FlaskClient) -> None:
    page = client.get(f"/t/{B}/{TICK}/?at=0x200005c%2B4").text
    assert "Followed: __run_at_load" in page
    assert "<b>stored</b>" in page
    assert "<b>loader</b> in memory at tick 0" in page
    text = client.get(f"/t/{B}/{TICK}.txt?at=0x200005c%2B4").text
    assert "followed: __run_at_load" in text
    document = client.get(f"/t/{B}/{TICK}.json?at=r7&cpu=0").get_json()
    assert document["selected"]["name"] == "cpu 0 r7"


def test_a_session_that_knows_no_window_still_shows_its_state(app: Flask) -> None:
    def query(_run: str, question: dict[str, Any]) -> dict[str, Any]:
        if question["q"] != "state":
            raise SessionError("unknown query", hint="Ask for state.")
        return fabricated.answer(question)

    app.config["QUERY"] = query
    answer = app.test_client().get(f"/t/{B}/{TICK}/")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert "could not be run again" in answer.text
    assert "GPR00:" in answer.text


def test_compare_in_every_format(client: FlaskClient) -> None:
    page = client.get(f"/t/{A}..{B}/").text
    assert "moves to 0" in page
    assert "!= written" in page
    document = client.get(f"/t/{A}..{B}.json").get_json()
    assert [row["name"] for row in document["flag"] if not row["same"]]
    assert document["stages"][0]["same"]
    text = client.get(f"/t/{A}..{B}.txt").text
    assert text.isascii()
    assert "!= kernel" in text
    chosen = client.get(f"/t/{A}..{B}.json?stage=relocate.1").get_json()
    assert chosen["at"] == "relocate"


TWINS = (
    "/runs.txt", "/help.txt", f"/t/{A}.txt", f"/t/{B}/{TICK}.txt", f"/t/{B}/{TICK}.txt?at=r7&cpu=1",
    f"/t/{B}/{TICK}.txt?at=0x200005c%2B4", f"/t/{A}..{B}.txt", f"/t/{A}/check.txt",
    f"/t/{A}/story.txt", f"/t/{A}/search.txt?q=accesses+to+0x200005c%2B4", f"/t/{B}/9999999999.txt",
    f"/t/{'c' * 26}.txt",
)  # fmt: skip


@pytest.mark.parametrize("path", TWINS)
def test_no_line_of_a_text_is_longer_than_75_columns(client: FlaskClient, path: str) -> None:
    text = client.get(path, headers={"Host": "localhost"}).text
    long = [line for line in text.splitlines() if len(line) > 75]
    assert all(line.startswith("http") and " " not in line for line in long), long
    assert text.isascii()
    assert "\t" not in text
    assert "\n\n\n" not in text


def test_compare_takes_links(client: FlaskClient) -> None:
    answer = client.get("/compare", query_string={"a": A, "b": f"http://localhost/t/{B}/77/?w=1"})
    assert answer.headers["Location"] == f"/t/{A}..{B}/"
    assert client.get("/compare?a=x&b=y").status_code == 400


def test_picture_file_and_embed(client: FlaskClient) -> None:
    for path in (f"/t/{B}.png", f"/t/{B}/{TICK}.png"):
        assert client.get(path).data.startswith(b"\x89PNG")
    page = client.get(f"/t/{B}/{TICK}/").text
    assert f'property="og:image" content="http://localhost/t/{B}/{TICK}.png"' in page
    kept = client.get(f"/t/{B}/{TICK}.html")
    assert "attachment" in kept.headers["Content-Disposition"]
    assert "<script" not in kept.text
    assert not re.search(r'(href|action|src)="/', kept.text)
    embed = client.get(f"/t/{B}/{TICK}/embed")
    assert "frame-ancestors *" in embed.headers["Content-Security-Policy"]
    assert "frame-ancestors 'self'" in client.get("/").headers["Content-Security-Policy"]
    assert "<script" not in embed.text
    assert "<form" not in embed.text


def test_owner_describes_publishes_and_unlists(app: Flask) -> None:
    client, token = app.test_client(), app.config[B]
    form = {"token": "wrong", "title": "x"}
    assert client.post(f"/t/{B}/edit", data=form).status_code == 403
    form = {"token": token, "title": "A title", "note": "One  line", "listed": "",
            "message_id": "<1@example.com>"}  # fmt: skip
    assert client.post(f"/t/{B}/edit", data=form).status_code == 303
    page = client.get(f"/t/{B}/").text
    assert "One line" in page
    assert 'href="https://lore.kernel.org/r/1@example.com"' in page
    assert "patchwork.ozlabs.org/project/linuxppc-dev/patch/1@example.com/" in page
    assert B not in client.get("/runs.txt").text
    assert client.post(f"/t/{B}/edit", data=form | {"message_id": "no"}).status_code == 400
    client.post(f"/t/{B}/edit", data=form | {"listed": "1"})
    assert "Thread 1@example.com" in client.get("/runs.txt").text


@pytest.mark.parametrize(
    ("query", "ids"),
    [("outcome=stays", {B}), ("outcome=moves", {A}), ("outcome=not-as-asked", set()),
     ("kernel=vmlinux", {A, B}), ("purgatory=nosuch", set()), ("flag=__run_at_load", {A, B}),
     ("flag=__kdump_flag", set()), ("q=aaa", {A})],
)  # fmt: skip
def test_gallery_is_filtered(client: FlaskClient, query: str, ids: set[str]) -> None:
    found = client.get(f"/runs.json?{query}").get_json()
    assert {row["id"] for row in found["runs"]} == ids


def test_run_that_was_ended_as_asked_is_neither_right_nor_wrong(client: FlaskClient) -> None:
    app = client.application
    index, spec = app.extensions["bootflow.index"], fabricated.SPEC | {"until": "relocate"}
    run, _ = index.add(spec=spec, files=FILES, title="ended", listed=True)
    writer = TraceWriter(trace_path(app.config["DATA_DIR"], run.id))
    writer.start(spec, [])
    for record in fabricated.records():
        if record.get("tick", 0) < 1_508_300_000:
            writer.apply(record)
    writer.apply(fabricated.end("--until relocate reached", reason="until", tick=1_508_300_000))
    writer.finish()
    index.set_status(run.id, "finished", word="ENDED")
    (row,) = client.get("/runs.json?outcome=ended").get_json()["runs"]
    assert (row["id"], row["word"], row["as_asked"]) == (run.id, "ENDED", None)
    missed = client.get("/runs.json?outcome=not-as-asked").get_json()["runs"]
    assert run.id not in {each["id"] for each in missed}
    page = client.get(f"/t/{run.id}/").text
    assert '<span class="tag move">ENDED</span>' in page
    assert "Ended at --until relocate, as asked; by then the boot CPU was in purgatory" in page
    assert client.get(f"/t/{run.id}/check.json").get_json()["outcome"] == "stopped"


def test_an_index_of_an_older_bootflow_gets_the_new_columns(tmp_path: Path) -> None:
    import sqlite3

    index = Index(tmp_path)
    index.add(spec=fabricated.SPEC, files=FILES, run_id=A)
    index.close()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("ALTER TABLE run DROP COLUMN note")
        db.execute("ALTER TABLE run DROP COLUMN message_id")
    db.close()
    again = Index(tmp_path)
    assert (again.get(A).note, again.get(A).message_id) == ("", "")
    again.close()


def test_help_names_every_address(app: Flask) -> None:
    named = " ".join(f"{row.url} {row.formats}" for row in guide.ADDRESSES)
    for rule in app.url_map.iter_rules():
        if rule.endpoint in ("static", "guide.icon") or "<form>" in rule.rule:
            continue
        short = rule.rule.replace("<run_id>", "<id>").replace("<int:tick>", "<tick>")
        short = short.replace("<int:number>", "<number>")
        short = short.replace("<run_a>..<run_b>", "<id1>..<id2>")
        assert short in named, rule.rule


def test_help_names_every_key() -> None:
    script = (ROOT / "static/bootflow.js").read_text()
    acts = script.split("const ACTS = {")[1].split("\n  };")[0]
    found = set(re.findall(r'^    "?([^\s":]+)"?: ', acts, re.MULTILINE)) - {"="}
    for path in (ROOT / "templates").glob("*.html"):
        found |= set(re.findall(r'data-key="([^"{]+)"', path.read_text()))
    moves = re.findall(r'm\.move\([^"]*"([^"]+)"', (ROOT / "templates/moment.html").read_text())
    steps = (ROOT / "templates/_macros.html").read_text().split("macro steps")[1]
    found |= {*moves, *re.findall(r'move\([^"]*"([^"]+)"', steps)}
    named = {key for row in guide.KEYS for key in row.keys}
    assert found <= named, found - named
    assert named - found <= {"1", "2", "3", "4", "?", "h", "l"}, named - found


def test_help_names_every_field(client: FlaskClient) -> None:
    named = {name for name, _ in guide.FIELDS}
    for path in (f"/t/{B}.json", f"/t/{B}/{TICK}.json"):
        assert set(client.get(path).get_json()) <= named
    document = json.loads(client.get("/help.json").text)
    assert {row["url"] for row in document["addresses"]} == {row.url for row in guide.ADDRESSES}
    assert client.get("/help/").status_code == 200
