"""A hand-off of images with DWARF: page, text, JSON, command line and searches show file:line."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from app import cli, create_app
from app.index import Index, trace_path
from app.sessions import SessionPool
from emulator.trace import ImageFile, TraceReader
from tests.unit.test_sourcelines import DATA, expected

BASE = 0xC000000000000000
MARGIN = re.compile(r" *(?:\*|=>)? +[0-9a-f]+:  ")


@dataclass
class Recorded:
    """A run of the sample pair with -g, and its page."""

    client: FlaskClient
    index: Index
    pool: SessionPool
    path: Path
    run_id: str
    kernel: dict[int, str]
    """Offset in the kernel -> file:line, as addr2line says it."""
    purgatory: dict[int, str]
    placement: dict[str, Any]
    stages: dict[str, int]

    def ask(self, **question: Any) -> dict[str, Any]:
        return self.pool.query(self.run_id, self.path, question)

    def line_at(self, vaddr: str) -> str:
        """What addr2line says of an effective address of this run."""
        real = int(vaddr, 16) & ~(0xF << 60)
        at = int(self.placement["purgatory_addr"], 16)
        if 0 <= real - at < 0x4000:
            return self.purgatory.get(real - at, "")
        at = int(self.placement["kernel_addr"], 16)
        return self.kernel.get(real - at if real >= at else real, "")


@pytest.fixture(scope="module", params=["le", "be"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    data, order = tmp_path_factory.mktemp("data"), request.param
    index = Index(data)
    spec = {"mode": "load-panic", "cpus": 2, "mem_bytes": 256 << 20, "checks": False}
    run, _ = index.add(spec=spec, files={}, title="with DWARF")
    path = trace_path(data, run.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        ImageFile("kernel", "kernel.elf", (DATA / f"kernel-{order}.elf").read_bytes()),
        ImageFile("purgatory", "purgatory.ro", (DATA / f"purgatory-{order}.ro").read_bytes()),
    ]
    with SessionPool(keep_spare=False) as pool:
        outcome = pool.record(run.id, path, spec, images)
        assert outcome.end is not None
        index.set_status(run.id, "finished", word="STAYS")
        app = create_app(
            {
                "DATA_DIR": data,
                "QUERY": lambda name, asked: pool.query(name, trace_path(data, name), asked),
                "ENQUEUE": lambda run_id: None, "CANCEL": lambda run_id: None,
            }
        )  # fmt: skip
        with TraceReader(path) as reader:
            stages = {e.text: e.tick for e in reversed(list(reader.events("stage")))}
            placement = reader.placement
        kernel = {at - BASE: line for at, line in expected(f"kernel-{order}.elf").items()}
        yield Recorded(
            app.test_client(), index, pool, path, run.id, kernel, expected(f"purgatory-{order}.ro"),
            placement, stages,
        )  # fmt: skip
        app.extensions["bootflow.index"].close()
    index.close()


@pytest.mark.parametrize("stage", ["purgatory", "head", "early_setup"])
def test_every_instruction_of_an_answer_has_its_line(recorded: Recorded, stage: str) -> None:
    tick = recorded.stages[stage] + 20
    answer = recorded.ask(q="window", tick=tick, before=28, after=28, state=True)
    known = 0
    for step in answer["steps"]:
        assert step.get("line", "") == recorded.line_at(step["nip"])
        known += "line" in step
    assert known >= 28
    for cpu in answer["state"]["cpus"]:
        assert cpu.get("line", "") == recorded.line_at(cpu["registers"]["nip"])
        if cpu["lr_symbol"] and "handover" not in cpu["lr_symbol"]:
            assert cpu.get("lr_line", "") == recorded.line_at(cpu["registers"]["lr"])
    for rows in answer["state"]["disassembly"].values():
        for row in rows:
            assert row.get("line", "") == recorded.line_at(row["addr"])
    assert recorded.ask(q="state", tick=tick) == answer["state"]


def test_searches_say_the_line(recorded: Recorded) -> None:
    flag = int(recorded.placement["kernel_addr"], 16) + 0x5C
    tick = recorded.stages["early_setup"]
    asked = {"addr": flag, "size": 4}
    written = recorded.ask(q="last-write", tick=tick, **asked)
    read = recorded.ask(q="next-read", tick=recorded.stages["head"], **asked)
    register = recorded.ask(q="register-write", tick=tick, cpu=0, register="r1")
    low = recorded.ask(q="last-write", tick=tick, addr=0x40, size=8)
    chain = recorded.ask(q="chain", tick=tick, **asked)["links"]
    accesses = recorded.ask(q="accesses", lo=flag, hi=flag + 4)["accesses"]
    found = [written, read, register, low, *accesses, *(row for row in chain if row.get("nip"))]
    assert len(found) >= 7
    for row in found:
        assert row["line"] == recorded.line_at(row["nip"])
    assert written["line"].startswith("src/purgatory.S:")
    assert read["line"].startswith("src/kernel.S:")


def test_page_text_and_json_show_it(recorded: Recorded) -> None:
    tick = recorded.stages["head"] + 30
    base = f"/t/{recorded.run_id}/{tick}"
    document = recorded.client.get(f"{base}.json").get_json()
    cpu = document["cpus"][0]
    assert cpu["line"].startswith("src/kernel.S:")
    assert document["where"][0]["line"] == cpu["line"]
    assert any("line" in step for step in document["steps"])
    text = recorded.client.get(f"{base}.txt?at=0x5c").get_data(as_text=True)
    assert all(len(line) <= 75 for line in text.splitlines())
    assert f"{'':29}{cpu['line']}" in text.splitlines()
    assert f"({cpu['line']})" in text
    page = recorded.client.get(f"{base}/").get_data(as_text=True)
    assert f'<span class="sl">{cpu["line"]}</span>' in page
    for body, start in ((text, "{}"), (page, '<span class="sl">{}</span>')):
        lines = body.splitlines()
        begin = next(n for n, line in enumerate(lines) if line == start.format(cpu["line"]))
        assert MARGIN.match(re.sub("<[^>]*>", "", lines[begin + 1]).replace("&gt;", ">"))


def test_the_followed_value_has_its_lines(recorded: Recorded) -> None:
    flag = int(recorded.placement["kernel_addr"], 16) + 0x5C
    base = f"/t/{recorded.run_id}/{recorded.stages['early_setup']}"
    chain = recorded.client.get(f"{base}.json?at=0x{flag:x}%2B4").get_json()["selected"]["chain"]
    line = chain[0]["line"]
    assert line.startswith("src/purgatory.S:")
    assert "line" not in chain[-1]  # the loader's
    for suffix in ("/", ".txt"):
        assert line in recorded.client.get(f"{base}{suffix}?at=0x{flag:x}%2B4").get_data(
            as_text=True
        )
    for suffix in ("", ".txt", ".json"):
        address = f"/t/{recorded.run_id}/search{suffix}?q=accesses+0x{flag:x}%2B4"
        assert line in recorded.client.get(address).get_data(as_text=True)


def test_the_command_line_shows_it(recorded: Recorded) -> None:
    tick = str(recorded.stages["purgatory"] + 40)
    shown = CliRunner().invoke(cli.main, ["show", str(recorded.path), "--tick", tick, "--cpu", "0"])
    assert shown.exit_code == 0
    assert re.search(r"^src/purgatory\.S:\d+\n(=>|  ) +[0-9a-f]+: ", shown.stdout, re.M)
    assert re.search(r"^NIP \[[0-9a-f]{16}\] \S+\s+\(src/purgatory\.S:\d+\)$", shown.stdout, re.M)
    assert all(len(line) <= 75 for line in shown.stdout.splitlines())
    said = CliRunner().invoke(cli.main, ["show", str(recorded.path), "--tick", tick, "--json"])
    assert json.loads(said.stdout)["cpus"][0]["line"].startswith("src/purgatory.S:")


def test_a_comparison_shows_it(recorded: Recorded, tmp_path: Path) -> None:
    """Two hand-offs that part at the decision: the line of the code where they do."""
    index, run = recorded.index, recorded.index.get(recorded.run_id)
    other, _ = index.add(spec=run.spec | {"mode": "load"}, files={}, title="moves")
    path = trace_path(index.data_dir, other.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TraceReader(recorded.path) as reader:
        names = reader.images()
    images = [ImageFile(role, role, data) for role, data in names.items()]
    recorded.pool.record(other.id, path, run.spec | {"mode": "load"}, images)
    index.set_status(other.id, "finished", word="MOVES")
    base = f"/t/{recorded.run_id}..{other.id}"
    page = recorded.client.get(f"{base}/").get_data(as_text=True)
    text = recorded.client.get(f"{base}.txt").get_data(as_text=True)
    document = recorded.client.get(f"{base}.json").get_json()
    line = document["divergence"]["a"][0]["line"]
    assert re.match(r"src/(kernel|purgatory)\.S:\d+$", line)
    assert f"A {line}\n" in text
    assert f'<span class="sl">{line}</span>' in page
