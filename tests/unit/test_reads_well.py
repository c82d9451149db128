"""Run, moment and gallery as `curl .txt` and `lynx -dump` show them: golden files of 80 columns."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app, index
from app.index import trace_path
from tests import fabricated

RUN = "abcdefghijklmnopqrstuvwxyz"
FILES = {
    "kernel": {"name": "vmlinux", "sha256": "0" * 64, "size_bytes": 1},
    "purgatory": {"name": "kexec", "sha256": "1" * 64, "size_bytes": 1},
}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    monkeypatch.setattr(index, "utc_now", lambda: "2026-11-22T15:40:07Z")

    def query(_run_id: str, question: dict[str, Any]) -> dict[str, Any]:
        return fabricated.answer(question)

    app = create_app({"DATA_DIR": tmp_path, "QUERY": query})
    runs = app.extensions["bootflow.index"]
    runs.add(
        spec=fabricated.SPEC, files=FILES, listed=True, run_id=RUN, title="a kdump on 4 CPUs",
        note="what the thread is about", message_id="20081013130455.GA1@example.com",
    )  # fmt: skip
    fabricated.write_trace(trace_path(tmp_path, RUN))
    runs.set_status(RUN, "finished", word="STAYS", ticks=fabricated.LAST_TICK)
    yield app.test_client()
    runs.close()


PAGES = {
    "gallery": ("/runs.txt", "/"),
    "run": (f"/t/{RUN}.txt", f"/t/{RUN}/"),
    "moment": (f"/t/{RUN}/{fabricated.FLAG_TICK}.txt", f"/t/{RUN}/{fabricated.FLAG_TICK}/"),
    "search": (f"/t/{RUN}/search.txt?q=flag-read", f"/t/{RUN}/search?q=flag-read"),
    "help": ("/help.txt", "/help/"),
}


@pytest.mark.parametrize("name", PAGES)
def test_text_twin(client: FlaskClient, golden: Callable[[str, str], None], name: str) -> None:
    text = client.get(PAGES[name][0]).text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 75
    golden(f"{name}.txt", text)


@pytest.mark.parametrize("name", PAGES)
def test_lynx(
    client: FlaskClient, golden: Callable[[str, str], None], lynx: Path, name: str
) -> None:
    html = client.get(PAGES[name][1], headers={"User-Agent": "Lynx/2.9.0"}).data
    command = [str(lynx), "-dump", "-nolist", "-width=80", "-stdin", "-assume_charset=utf-8"]
    command += ["-display_charset=us-ascii"]
    done = subprocess.run(command, input=html, capture_output=True, check=True, timeout=30)
    text = done.stdout.decode("ascii")
    golden(f"{name}.lynx", "\n".join(line.rstrip() for line in text.splitlines()) + "\n")
