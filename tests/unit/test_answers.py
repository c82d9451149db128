"""What a session answers, or says of its placement, is checked before any page believes it."""

from pathlib import Path
from typing import Any

import pytest

from app import create_app
from app.index import Index, trace_path
from app.sessions import SessionPool
from emulator.errors import SessionError, TraceCorruptError
from emulator.records import ANSWERS, check_answer, check_placement
from emulator.samples import get_sample
from emulator.search import SEARCHES
from emulator.session import ASKED
from emulator.trace import ImageFile, TraceReader, TraceWriter
from tests import fabricated

STATE = fabricated.state(7)
CPU = STATE["cpus"][0]
STEP = {
    "tick": 7, "cpu": 0, "nip": "0x0000000000000100", "word": "0x7c0802a6", "bytes": "a602087c",
    "text": "mflr r0", "symbol": "f+0x0/0x4", "stage": "head", "le": True,
    "changed": {"r0": ["0x0000000000000000", "0x0000000000000001"]},
    "memory": [{"kind": "w", "addr": "0x0000000000000040", "size": 128,
                "value": "0x" + "1" * 256, "old": "0x00"}],
}  # fmt: skip


def test_good_answers_pass_unchanged() -> None:
    assert check_answer("state", STATE) == STATE
    window = {"tick": 7, "steps": [STEP]}
    assert check_answer("window", window) == window
    for answer in ({"found": False}, {"found": True, "tick": 3, "cpu": 0, "old": None}):
        assert check_answer("last-write", answer) == answer
    assert check_answer("a question of tomorrow", {"x": [1, {"y": None}]})["x"] == [1, {"y": None}]


def test_answers_of_a_real_session_pass_unchanged(tmp_path: Path) -> None:
    sample, path = get_sample("kexec-be"), tmp_path / "t"
    images = [
        ImageFile("kernel", "k", sample.kernel_bytes()),
        ImageFile("purgatory", "p", sample.purgatory_bytes()),
    ]
    spec = {"mode": sample.mode, "cpus": 2, "mem_bytes": 256 << 20}
    with SessionPool(keep_spare=False) as pool:
        outcome = pool.record("t", path, spec, images)
        assert outcome.end is not None
        tick = outcome.end["tick"]
        place = {"addr": 0x40, "size": 8}
        for question in (
            {"q": "state", "tick": tick // 2},
            {"q": "window", "tick": tick // 2, "before": 2000, "after": 2000},
            {"q": "last-write", "tick": tick, **place},
            {"q": "next-read", "tick": 0, **place},
            {"q": "next-write", "tick": 0, **place},
            {"q": "register-write", "tick": tick, "cpu": 1, "register": "r3"},
            {"q": "register-read", "tick": tick // 2, "cpu": 0, "register": "r3"},
            {"q": "register-read", "tick": tick, "cpu": 0, "register": "msr"},
            {"q": "accesses", "lo": 0, "hi": 256, "from": 0, "to": tick},
            {"q": "chain", "tick": tick, **place},
            {"q": "functions", "from": 0, "to": tick, "width": 500},
        ):
            answer = pool.query("t", path, question)
            assert check_answer(question["q"], answer) == answer
            assert len(answer) > 0
    assert set(ANSWERS) == {*ASKED, *SEARCHES}


def test_text_of_an_answer_is_cleaned() -> None:
    answer = check_answer("state", STATE | {"cpus": [CPU | {"symbol": "f\x1b[2J\n<b>"}]})
    assert answer["cpus"][0]["symbol"] == "f?[2J?<b>"
    assert check_answer("else", {"x": ["\x1b\u202e"]}) == {"x": ["??"]}


def _deep(levels: int) -> Any:
    return [_deep(levels - 1)] if levels else []


BAD: dict[str, list[Any]] = {
    "state": [
        {}, [1], 7, None,
        STATE | {"cpus": 7},
        STATE | {"cpus": [CPU] * 17},
        STATE | {"cpus": [{"cpu": "x"}]},
        STATE | {"cpus": [CPU | {"cpu": 1 << 100}]},
        STATE | {"cpus": [CPU | {"registers": {"nip": "0x1"}}]},
        STATE | {"cpus": [CPU | {"registers": CPU["registers"] | {"r3": "0x1" + "0" * 16}}]},
        STATE | {"cpus": [CPU | {"stage": "<script>"}]},
        STATE | {"low_memory": "zz"},
        STATE | {"low_memory": "00" * 5000},
        STATE | {"kernel_low": 5},
        STATE | {"flags": [1]},
        STATE | {"flags": [STATE["flags"][0] | {"size": 1 << 40}]},
        STATE | {"disassembly": {"x": []}},
        STATE | {"disassembly": {"0": [{"addr": "0x1"}]}},
        STATE | {"more": 10**400},
        STATE | {"more": _deep(20)},
    ],
    "window": [{}, {"steps": 1}, {"steps": [STEP | {"cpu": 16}]}, {"steps": [STEP | {"memory": 1}]},
               {"steps": [STEP | {"changed": {"<b>": []}}]}],
    "last-write": [{"tick": "7"}, {"cpu": -1}, {"addr": "0x"}],
    "register-read": [{}, {"outcome": "read", "register": 3}, {"outcome": "read", "tick": -1}],
    "accesses": [{}, {"accesses": [{"tick": None}]}, {"accesses": [3]}],
    "chain": [{}, {"links": [{"what": 1}]}, {"links": [{"what": "stored", "tick": "x"}]}],
    "functions": [{"spans": [{"cpu": 0, "from": 1}]}, {"spans": {}}],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "answer"), [(k, row) for k, rows in BAD.items() for row in rows])
def test_bad_answers_are_none(kind: str, answer: Any) -> None:
    with pytest.raises(SessionError, match="answer is none"):
        check_answer(kind, answer)


def test_the_page_of_a_moment_survives_every_answer(tmp_path: Path) -> None:
    answers: list[Any] = []
    app = create_app({"DATA_DIR": tmp_path, "QUERY": lambda run_id, question: answers[-1]})
    index: Index = app.extensions["bootflow.index"]
    run, _ = index.add(spec=fabricated.SPEC, files={})
    fabricated.write_trace(trace_path(tmp_path, run.id))
    index.set_status(run.id, "finished", word="STAYS")
    client = app.test_client()
    for number, answer in enumerate(BAD["state"]):
        answers.append(answer)
        got = client.get(f"/t/{run.id}/{number}/")
        assert (got.status_code, "answer is none" in got.text) == (503, True)
    answers.append(STATE)
    assert client.get(f"/t/{run.id}/7/").status_code == 200
    index.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"debug": {"a": 1}}, {"debug": 7}, {"debug": [1]}, {"low_fields": 7},
        {"low_fields": [{"name": 1}]}, {"low_fields": [{"name": "x", "at": "0", "size": 8}]},
        {"purgatory_found": [1]}, {"kernel_addr": "here"}, {"kernel_big_endian": "no"},
        {"flags": [[]]}, {"segments": 1}, {"cpu_ids": [-1]}, {"x": _deep(20)},
    ],
)  # fmt: skip
def test_a_placement_that_is_none_is_not_recorded(tmp_path: Path, wrong: dict[str, Any]) -> None:
    writer = TraceWriter(tmp_path / "t")
    writer.start({"mode": "load"}, [])
    with pytest.raises(TraceCorruptError, match="placement record"):
        writer.apply(fabricated.PLACEMENT | wrong)
    writer.abort("failed", "bad placement")


def test_a_placement_in_the_trace_of_a_stranger_is_checked(
    tmp_path: Path, monkeypatch: Any
) -> None:
    writer = TraceWriter(tmp_path / "t")
    writer.start({"mode": "load"}, [])
    with monkeypatch.context() as context:
        context.setattr("emulator.trace.check_placement", lambda document: None)
        writer.apply({"t": "placement", "debug": 7})
    writer.abort("failed", "cut off")
    with TraceReader(tmp_path / "t") as reader, pytest.raises(TraceCorruptError, match="debug"):
        assert reader.placement
    check_placement({})
