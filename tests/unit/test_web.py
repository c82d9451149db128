import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app, fresh
from app.index import Index, trace_path, upload_path
from app.samples import add_sample_runs
from emulator.errors import SessionError
from emulator.trace import TraceWriter
from tests import fabricated

FILES = {
    "kernel": {"name": "vmlinux", "sha256": "0" * 64, "size_bytes": 1},
    "purgatory": {"name": "kexec", "sha256": "1" * 64, "size_bytes": 1},
}
BROWSER = {"Accept": "text/html,application/xhtml+xml"}


@dataclass
class Site:
    app: Flask
    client: FlaskClient
    index: Index
    enqueued: list[str]
    cancelled: list[str]

    def add(self, *, finish: bool = True, listed: bool = True, **more: Any) -> tuple[str, str]:
        spec = fabricated.SPEC | ({"mode": "load"} if more.get("moves") else {})
        run, token = self.index.add(spec=spec, files=FILES, listed=listed, title="a run")
        path = trace_path(self.index.data_dir, run.id)
        fabricated.write_trace(path, finish=finish, **more)
        status = "finished" if finish else "running"
        self.index.set_status(run.id, status, word="STAYS" if finish else "")
        return run.id, token


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    enqueued: list[str] = []
    cancelled: list[str] = []

    def query(run_id: str, question: dict[str, Any]) -> dict[str, Any]:
        if question.get("tick") == 666:
            raise SessionError("the session died", hint="Try again.")
        return fabricated.answer(question)

    config = {
        "DATA_DIR": tmp_path, "QUERY": query, "ENQUEUE": enqueued.append,
        "CANCEL": cancelled.append, "MAX_UPLOAD_BYTES": 100_000, "TESTING": False,
    }  # fmt: skip
    app = create_app(config)
    yield Site(app, app.test_client(), app.extensions["bootflow.index"], enqueued, cancelled)
    app.extensions["bootflow.index"].close()


def _form(**more: Any) -> dict[str, Any]:
    files = {
        "kernel": (io.BytesIO(b"\x7fELFk"), "vmlinux"),
        "purgatory": (io.BytesIO(b"p"), "kexec"),
    }
    return {**files, **more}


def test_curl_gets_the_permalink_as_text(site: Site) -> None:
    answer = site.client.post(
        "/", data=_form(mode="load", cpus="2", mem="512M", title="hello", corrupt="0x2000040")
    )
    assert answer.status_code == 201
    lines = answer.text.splitlines()
    run_id = lines[0].rstrip("/").rsplit("/", 1)[1]
    assert lines[0] == answer.headers["Location"] == f"http://localhost/t/{run_id}/"
    assert lines[1] == "state:        queued"
    assert site.enqueued == [run_id]
    run = site.index.get(run_id)
    assert (run.spec["mode"], run.spec["cpus"], run.spec["mem_bytes"]) == ("load", 2, 512 << 20)
    assert run.spec["corrupt"] == 0x2000040
    assert not run.listed
    assert upload_path(site.index.data_dir, run_id, "kernel").read_bytes() == b"\x7fELFk"
    assert run.files["kernel"]["size_bytes"] == 5
    token = lines[3].split()[-1]
    site.index.check_token(run, token)
    assert site.client.get(f"/t/{run_id}.txt").text.count("queued") == 1


def test_a_browser_is_redirected_and_knows_its_run_again(site: Site) -> None:
    answer = site.client.post("/", data=_form(), headers=BROWSER | {"Origin": "http://localhost"})
    assert answer.status_code == 303
    page = site.client.get("/", headers=BROWSER).text
    assert "Yours" in page
    assert answer.headers["Location"] in page
    assert "HttpOnly" in answer.headers["Set-Cookie"]


def test_a_trace_is_stored_unread_and_waits_for_its_verification(site: Site) -> None:
    data = {"trace": (io.BytesIO(b"no trace at all"), "x.bootflow"), "title": "theirs"}
    answer = site.client.post("/", data=data)
    assert answer.status_code == 201
    run_id = answer.headers["Location"].rstrip("/").rsplit("/", 1)[1]
    assert answer.text.splitlines()[:2] == [answer.headers["Location"], "state:        queued"]
    assert site.enqueued == [run_id]
    run = site.index.get(run_id)
    assert (run.spec, list(run.files), run.asked) == ({}, ["trace"], "")
    assert upload_path(site.index.data_dir, run_id, "trace").read_bytes() == b"no trace at all"
    site.index.set_status(run_id, "verifying")
    fabricated.write_trace(trace_path(site.index.data_dir, run_id))  # not to be seen before its end
    page = site.client.get(f"/t/{run_id}/", headers=BROWSER)
    assert "Running the uploaded trace again" in page.text
    assert "__run_at_load" not in page.text
    assert page.headers["Cache-Control"] == "no-store"
    assert site.client.get(f"/t/{run_id}/7/").status_code == 404
    assert site.client.get(f"/t/{run_id}.bootflow").status_code == 404


def test_a_trace_comes_alone(site: Site) -> None:
    answer = site.client.post("/", data=_form(trace=(io.BytesIO(b"t"), "x")))
    assert answer.status_code == 400
    assert "not both" in answer.text
    answer = site.client.post("/", data={"trace": (io.BytesIO(b""), "x")})
    assert answer.status_code == 400
    answer = site.client.post("/", data={"trace": (io.BytesIO(bytes(200_000)), "x")})
    assert answer.status_code == 413
    assert "100,000 bytes are allowed" in answer.text
    assert site.enqueued == []
    assert not list(site.index.data_dir.glob("uploads/*/*"))


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"mode": "boot"}, 400, "load or load-panic"),
        ({"cpus": "17"}, 413, "1 to 16"),
        ({"cpus": "x"}, 400, "not a number"),
        ({"boot_cpu": "4"}, 400, "there is no CPU 4: --cpus 4 gives 0 to 3"),
        ({"mem": "1T"}, 400, "not a size"),
        ({"mem": "64G"}, 413, "at most 4 GiB"),
        ({"until": "a b"}, 400, "symbol or a tick"),
        ({"cpu": "2"}, 400, "unknown field 'cpu'"),
        ({"cpu": "2"}, 400, "cpus"),
        ({"boot-cpu": "1", "boot_cpu": "0"}, 400, "twice"),
        ({"initrd": "tiny.cpio"}, 400, "not a file"),
        ({"vmlinuz": (io.BytesIO(b"x"), "v")}, 400, "unknown field 'vmlinuz'"),
        ({"mode": "load", "load-panic": "1"}, 400, "load or load-panic"),
        ({"limit": "many"}, 400, "not a number"),
    ],
)
def test_bad_options_are_named(site: Site, more: dict[str, Any], status: int, words: str) -> None:
    answer = site.client.post("/", data=_form(**more))
    assert answer.status_code == status
    assert words in answer.text
    assert answer.mimetype == "text/plain"
    assert site.enqueued == []


def test_fields_may_have_the_names_of_the_command_line(site: Site) -> None:
    more = {
        "load": "1", "boot-cpu": "1", "no_checks": "1", "command-line": "quiet", "limit": "5000",
        "quantum": "40", "seed": "7", "base": "0x4000000", "mem": "512M", "until": "start_kernel",
    }  # fmt: skip
    answer = site.client.post("/", data=_form(**more, initrd=(io.BytesIO(b"cpio"), "tiny.cpio")))
    assert answer.status_code == 201, answer.text
    run = site.index.get(site.enqueued[0])
    assert run.spec == {
        "mode": "load", "append": "quiet", "cpus": 4, "boot_cpu": 1, "mem_bytes": 512 << 20,
        "base_addr": 0x4000000, "checks": False, "debug": False, "seed": 7,
        "until": "start_kernel", "quantum": 40, "limit_ticks": 5000, "signature": False,
    }  # fmt: skip
    assert run.files["initrd"]["name"] == "tiny.cpio"


def test_a_missing_or_empty_file_is_named(site: Site) -> None:
    answer = site.client.post("/", data={"kernel": (io.BytesIO(b"x"), "vmlinux")})
    assert answer.status_code == 400
    assert "purgatory" in answer.text
    form = {"kernel": (io.BytesIO(b""), "vmlinux"), "purgatory": (io.BytesIO(b"p"), "kexec")}
    assert "empty" in site.client.post("/", data=form).text


def test_too_large_an_upload_names_limit_and_cure(site: Site) -> None:
    form = {"kernel": (io.BytesIO(b"x" * 200_000), "v"), "purgatory": (io.BytesIO(b"p"), "k")}
    answer = site.client.post("/", data=form)
    assert answer.status_code == 413
    assert "100,000 bytes are allowed" in answer.text
    assert "strip" in answer.text
    site.app.config["MAX_UPLOAD_BYTES"] = 64 << 20
    assert "64 MiB for all files" in site.client.get("/").text


def test_a_full_queue_is_429(site: Site) -> None:
    site.app.config["MAX_QUEUED"] = 1
    assert site.client.post("/", data=_form()).status_code == 201
    answer = site.client.post("/", data=_form())
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")


def test_samples_that_wait_take_no_place_in_the_queue(site: Site) -> None:
    site.app.config["MAX_QUEUED"] = 1
    assert add_sample_runs(site.index.data_dir, site.index, lambda run_id: None)
    assert site.client.post("/", data=_form()).status_code == 201


def test_a_form_of_another_site_is_refused(site: Site) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = site.client.post("/", data=_form(), headers=headers)
        assert answer.status_code == 403
    assert site.enqueued == []


def test_finished_run_says_the_verdict_in_every_format(site: Site) -> None:
    run_id, _ = site.add()
    html = site.client.get(f"/t/{run_id}/")
    assert 'class="tag stay">STAYS<' in html.text
    assert "hx-get" not in html.text
    text = site.client.get(f"/t/{run_id}.txt").text
    assert "verdict:  STAYS, asked: stay" in text
    document = site.client.get(f"/t/{run_id}.json").get_json()
    assert document["verdict"]["word"] == "STAYS"
    assert document["format_version"] == 1
    assert document["last_tick"] == fabricated.LAST_TICK
    svg = site.client.get(f"/t/{run_id}.svg")
    assert svg.mimetype == "image/svg+xml"
    assert "<svg" in svg.text
    assert "sha256-" in svg.headers["Content-Security-Policy"]


def test_running_run_polls_and_stops(site: Site) -> None:
    run_id, _ = site.add(finish=False)
    page = site.client.get(f"/t/{run_id}/")
    assert 'hx-trigger="every 500ms"' in page.text
    assert page.headers["Cache-Control"] == "no-store"
    fragment = site.client.get(f"/t/{run_id}/?fragment=live")
    assert fragment.status_code == 200
    assert "<html" not in fragment.text
    assert "<svg" in fragment.text
    site.index.set_status(run_id, "killed")
    assert site.client.get(f"/t/{run_id}/?fragment=live").status_code == 286


def test_moment_shows_cpus_registers_memory_and_flag(site: Site) -> None:
    run_id, _ = site.add()
    page = site.client.get(f"/t/{run_id}/{fabricated.FLAG_TICK}/").text
    for words in (
        "master+0xf4/0x110", "&lt;SF,ME,LE&gt;", "LE, MMU off", "|HHHHHHHHOOOOOOOO|",
        "__run_at_load = 1", "= the cursor", "I&#39;m in purgatory", "nothing more until tick",
    ):  # fmt: skip
        assert words in page, words
    assert "flag 200005c: &#34;run0&#34; -&gt; 1" in page  # what the last instruction did
    assert 'class="seg cell sP now fl"' in page  # and its cell in the lens
    after = site.client.get(f"/t/{run_id}/{fabricated.FLAG_TICK + 2}/").text
    assert "<mark>r7 0 -> 1</mark>" in after
    twin = site.client.get(f"/t/{run_id}/{fabricated.FLAG_TICK}.txt").text
    for field in ("__kdump_flag", "iSeries"):  # fields of 2.6, which this kernel does not have
        assert field not in page
        assert field not in twin
    assert f"/t/{run_id}/{fabricated.FLAG_TICK - 1}/" in page
    assert f"/t/{run_id}/{fabricated.FLAG_TICK + 1}/" in page


def test_moment_as_json_is_what_show_prints(site: Site) -> None:
    run_id, _ = site.add()
    document = site.client.get(f"/t/{run_id}/{fabricated.FLAG_TICK}.json").get_json()
    assert document["tick"] == fabricated.FLAG_TICK
    assert set(document["cpus"][0]) >= {"cpu", "ticks", "stage", "symbol", "registers"}
    assert len(document["low_memory"]) == 512
    assert len(document["low_memory_writers"]) == 256
    assert document["flags"][0]["name"] == "__run_at_load"


def test_last_writer_depends_on_the_tick(site: Site) -> None:
    run_id, _ = site.add()
    at = lambda tick: site.client.get(f"/t/{run_id}/{tick}.json").get_json()  # noqa: E731
    assert at(0)["low_memory_writers"] == "." * 256
    assert at(9)["low_memory_writers"] == "O" * 8 + "." * 248
    assert at(150)["low_memory_writers"][0x40:0x48] == "O" * 8
    assert at(151)["low_memory_writers"][0x40:0x48] == "H" * 8
    assert at(fabricated.RELEASED)["low_memory_writers"][0x38:0x40] == "S" * 8


@pytest.mark.parametrize(
    "what", ["runs.txt", "t/{id}.txt", "t/{id}/0.txt", "t/{id}/1508330035.txt"]
)
def test_text_is_ascii_of_75_columns(site: Site, what: str) -> None:
    run_id, _ = site.add()
    answer = site.client.get("/" + what.format(id=run_id))
    assert answer.mimetype == "text/plain"
    assert answer.text.isascii()
    assert "\t" not in answer.text
    assert max(map(len, answer.text.splitlines())) <= 75


PATHS = ("/t/{}/", "/t/{}/5/", "/t/{}/5.json", "/t/{}/5.txt", "/t/{}/5.svg", "/t/{}/5/embed")


@pytest.mark.parametrize("path", [*PATHS, "/t/{}/5.png", "/t/{}/check/"])
@pytest.mark.parametrize("accepts", ["gzip", "identity"])
def test_finished_pages_are_kept_and_asked_about(site: Site, path: str, accepts: str) -> None:
    run_id, _ = site.add()
    path, headers = path.format(run_id), {"Accept-Encoding": accepts}
    answer = site.client.get(path, headers=headers)
    assert answer.headers["Cache-Control"] == "private, no-cache"
    for known in (answer.headers["ETag"], f'"else", {answer.headers["ETag"]}'):
        again = site.client.get(path, headers={**headers, "If-None-Match": known})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["Cache-Control"] == "private, no-cache"
        assert again.headers["ETag"].removeprefix("W/") == answer.headers["ETag"].removeprefix("W/")
    other = site.client.get(path, headers={**headers, "If-None-Match": '"else"'})
    assert (other.status_code, other.data) == (200, answer.data)


def test_reader_who_has_the_page_costs_no_session_a_question(site: Site) -> None:
    run_id, _ = site.add()
    path = f"/t/{run_id}/5/"
    tag = site.client.get(path).headers["ETag"]
    site.app.config["QUERY"] = None  # whoever asks now fails
    assert site.client.get(path, headers={"If-None-Match": tag}).status_code == 304
    packed = site.client.get(path, headers={"Accept-Encoding": "gzip"})
    plain = site.client.get(path)
    assert gzip.decompress(packed.data) == plain.data
    assert packed.headers["ETag"] == f"W/{plain.headers['ETag']}"
    assert site.client.get(f"/t/{run_id}/7/").status_code == 500


@pytest.mark.parametrize("path", PATHS)
def test_title_and_note_change_at_once(site: Site, path: str) -> None:
    run_id, token = site.add()
    path, titled = path.format(run_id), not path.endswith(".svg")
    before = site.client.get(path)
    form = {"token": token, "title": "a better title", "note": "what it shows"}
    assert site.client.post(f"/t/{run_id}/edit", data=form).status_code == 303
    after = site.client.get(path, headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    assert ("a better title" in after.text) is titled
    assert site.client.get(path).data == after.data


def test_pinned_note_is_seen_at_once(site: Site) -> None:
    run_id, token = site.add()
    tag = site.client.get(f"/t/{run_id}/5/").headers["ETag"]
    form = {"token": token, "tick": "5", "text": "look here"}
    assert site.client.post(f"/t/{run_id}/story/", data=form).status_code == 303
    after = site.client.get(f"/t/{run_id}/5/", headers={"If-None-Match": tag})
    assert (after.status_code, "look here" in after.text) == (200, True)


def test_parts_for_htmx_are_other_bodies_than_pages(site: Site) -> None:
    run_id, _ = site.add()
    boosted = {"HX-Request": "true", "HX-Boosted": "true"}
    page = site.client.get(f"/t/{run_id}/5/")
    part = site.client.get(f"/t/{run_id}/5/", headers=boosted)
    assert page.text.startswith("<!doctype html>")
    assert part.text.startswith("<title>")
    assert site.client.get(f"/t/{run_id}/5/").data == page.data
    assert site.client.get(f"/t/{run_id}/5/", headers=boosted).data == part.data


def test_kept_bodies_are_bounded(site: Site) -> None:
    run_id, _ = site.add()
    bodies = fresh.Bodies(kept_bytes=30_000)
    site.app.extensions["bootflow.bodies"] = bodies
    for tick in range(12):
        assert site.client.get(f"/t/{run_id}/{tick}/").status_code == 200
        assert bodies._bytes == sum(len(body) for body, _ in bodies._kept.values()) <= 30_000
    assert 1 <= len(bodies._kept) < 12


def test_every_answer_is_strict(site: Site) -> None:
    run_id, _ = site.add()
    for path in ("/", f"/t/{run_id}/", f"/t/{run_id}.txt", "/t/none/", "/static/bootflow.css"):
        answer = site.client.get(path)
        answer.close()
        headers = answer.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        ("/t/nosuchrun/", 404, "no-such-run"),
        ("/t/{id}/99999999999/", 404, "no-such-tick"),
        ("/t/{id}/go?tick=abc", 400, "bad-option"),
        ("/t/{id}.pdf", 400, "bad-option"),
        ("/t/{id}/?kind=nonsense", 400, "bad-option"),
        ("/t/{id}/5/?w=x", 400, "bad-option"),
        ("/nothing", 404, "not-found"),
    ],
)
def test_errors_have_one_shape(site: Site, path: str, status: int, slug: str) -> None:
    run_id, _ = site.add()
    answer = site.client.get(path.format(id=run_id))
    assert answer.status_code == status
    assert f"error: {slug}" in answer.text


def test_an_error_as_text_and_json_says_the_same(site: Site) -> None:
    run_id, _ = site.add()
    text = site.client.get(f"/t/{run_id}/99999999999.txt")
    document = json.loads(site.client.get(f"/t/{run_id}/99999999999.json").text)
    assert document["error"]["slug"] == "no-such-tick"
    assert document["error"]["message"] in text.text.replace("\n", " ")


def test_unknown_exception_tells_nothing(site: Site) -> None:
    def query(*_: Any) -> dict[str, Any]:
        raise RuntimeError("secret path /etc/x")

    run_id, _ = site.add()
    site.app.config["QUERY"] = query
    answer = site.client.get(f"/t/{run_id}/5/")
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_what_could_not_be_answered_is_nobody_elses_page(site: Site) -> None:
    run_id, _ = site.add()
    path = f"/t/{run_id}/5/?at=0x5c"
    known = site.app.config["QUERY"]

    def busy(run: str, question: dict[str, Any]) -> dict[str, Any]:
        if question["q"] == "chain":
            raise SessionError("too many queries at once")
        answer: dict[str, Any] = known(run, question)
        return answer

    site.app.config["QUERY"] = busy
    assert "too many queries" in site.client.get(path).text
    site.app.config["QUERY"] = known
    assert "too many queries" not in site.app.test_client().get(path).text


def test_a_dead_session_leaves_what_the_trace_knows(site: Site) -> None:
    run_id, _ = site.add()
    answer = site.client.get(f"/t/{run_id}/666/")
    assert answer.status_code == 503
    assert "the session died" in answer.text
    assert "enters purgatory" in answer.text
    assert answer.text.count("released at <a") == 3, "where every CPU is, without registers"
    assert answer.headers["Cache-Control"] == "no-store"


def test_tick_form_takes_people_s_numbers(site: Site) -> None:
    run_id, _ = site.add()
    answer = site.client.get(f"/t/{run_id}/go?tick=1,508,330,035&w=256")
    assert answer.headers["Location"] == f"/t/{run_id}/1508330035/?w=256"


def test_zoom_and_kind_are_in_the_address(site: Site) -> None:
    run_id, _ = site.add()
    page = site.client.get(f"/t/{run_id}/{fabricated.FLAG_TICK}/?w=256&kind=flag-read")
    assert "a part of the run" in page.text
    assert "is read: 1" in page.text
    assert "enters purgatory<" not in page.text


def test_a_refused_image_says_why_and_what_to_do(site: Site) -> None:
    run, _ = site.index.add(spec=fabricated.SPEC, files=FILES)
    path = trace_path(site.index.data_dir, run.id)
    path.parent.mkdir(exist_ok=True)
    writer = TraceWriter(path)
    writer.start(fabricated.SPEC, [])
    error = {"t": "error", "slug": "not-elf", "message": "vmlinux: no ELF", "hint": "Give one."}
    writer.apply(error)
    writer.abort("failed", "vmlinux: no ELF")
    site.index.set_status(run.id, "failed", verdict="vmlinux: no ELF")
    page = site.client.get(f"/t/{run.id}/").text
    assert "FAILED" in page
    assert "vmlinux: no ELF" in page
    assert "Give one." in page
    assert "Give one." in site.client.get(f"/t/{run.id}.txt").text
    assert site.client.get(f"/t/{run.id}.json").get_json()["hint"] == "Give one."
    assert site.client.get(f"/t/{run.id}.svg").status_code == 404


def test_a_run_that_stopped_ends_in_a_block_of_its_own(site: Site) -> None:
    run, _ = site.index.add(spec=fabricated.SPEC, files=FILES)
    path = trace_path(site.index.data_dir, run.id)
    path.parent.mkdir(exist_ok=True)
    writer = TraceWriter(path)
    writer.start(fabricated.SPEC, [])
    for record in fabricated.records():
        if record.get("tick", 0) + record.get("ticks", 0) < 1_508_264_443:
            writer.apply(record)
    words = "purgatory: SHA-256 digest mismatch, spinning at purgatory+0x48"
    writer.apply(fabricated.end(words, ok=False, reason="stuck", tick=1_508_264_442))
    writer.finish()
    site.index.set_status(run.id, "finished", word="SPINS")
    page = site.client.get(f"/t/{run.id}/").text
    assert 'class="tag bad">SPINS<' in page
    assert "digest mismatch" in page
    assert 'class="seg sX"' in page
    assert "!= asked: stay" in page


def test_cancel_of_a_listed_run_needs_the_token(site: Site) -> None:
    run_id, token = site.add(finish=False)
    assert site.client.post(f"/t/{run_id}/cancel").status_code == 403
    assert site.client.post(f"/t/{run_id}/cancel", data={"token": token}).status_code == 303
    assert site.cancelled == [run_id]
    unlisted, _ = site.add(finish=False, listed=False)
    assert site.client.post(f"/t/{unlisted}/cancel").status_code == 303


def test_delete_leaves_a_tombstone(site: Site) -> None:
    run_id, token = site.add()
    assert site.client.post(f"/t/{run_id}/delete", data={"token": "wrong"}).status_code == 403
    assert site.client.post(f"/t/{run_id}/delete", data={"token": token}).status_code == 303
    assert not trace_path(site.index.data_dir, run_id).exists()
    answer = site.client.get(f"/t/{run_id}/")
    assert answer.status_code == 410
    assert "Deleted by its owner" in answer.text
    assert site.client.get(f"/t/{run_id}/5/").status_code == 404
    assert run_id not in site.client.get("/").text


def test_gallery_filters_by_words(site: Site) -> None:
    run_id, _ = site.add()
    site.add(listed=False)
    page = site.client.get("/").text
    assert len(re.findall(r'class="runrow"', page)) == 1
    assert run_id in site.client.get("/?q=stays asked:stay vmlinux").text
    assert run_id not in site.client.get("/?q=moves").text
    document = site.client.get("/runs.json").get_json()
    assert [run["id"] for run in document["runs"]] == [run_id]


def test_a_damaged_trace_does_not_take_the_gallery_down(site: Site) -> None:
    good, _ = site.add()
    bad, _ = site.add()
    path = trace_path(site.index.data_dir, bad)
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)
    page = site.client.get("/")
    assert page.status_code == 200
    assert good in page.text
    assert bad in page.text
    answer = site.client.get(f"/t/{bad}/")
    assert answer.status_code == 422
    assert "trace-corrupt" in answer.text


def test_trace_can_be_taken_away_when_finished(site: Site) -> None:
    run_id, _ = site.add()
    answer = site.client.get(f"/t/{run_id}.bootflow")
    assert answer.data.startswith(b"SQLite format 3")
    answer.close()


def test_hostile_titles_are_text(site: Site) -> None:
    site.client.post("/", data=_form(title="<script>alert(1)</script>", listed="1"))
    page = site.client.get("/").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
