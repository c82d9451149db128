from pathlib import Path
from typing import Any

import pytest

from emulator.trace import TraceReader, TraceWriter
from emulator.verdict import Verdict, verdict
from tests import fabricated


def _judge(
    path: Path, records: list[dict[str, Any]], spec: dict[str, Any] | None = None
) -> Verdict:
    writer = TraceWriter(path)
    writer.start(spec or fabricated.SPEC, [])
    for record in records:
        writer.apply(record)
    if records[-1]["t"] == "end":
        writer.finish()
    else:
        writer.flush()
    with TraceReader(path) as reader:
        return verdict(reader)


def test_stays_as_asked(tmp_path: Path) -> None:
    found = _judge(tmp_path / "t", [*fabricated.records(), fabricated.end()])
    assert (found.word, found.asked, found.as_asked) == ("STAYS", "stay", True)
    assert "Flag set to 1 by purgatory" in found.sentence
    assert "read it twice" in found.sentence
    assert "0x2000000" in found.sentence
    assert [step.number for step in found.custody] == [0, 1, 2, 3, -1]
    assert [step.tick for step in found.custody][1] == fabricated.FLAG_TICK


def test_moves_as_asked(tmp_path: Path) -> None:
    spec = fabricated.SPEC | {"mode": "load"}
    found = _judge(tmp_path / "t", [*fabricated.records(moves=True), fabricated.end()], spec)
    assert (found.word, found.as_asked) == ("MOVES", True)
    assert '"run0"' in found.sentence


def test_moves_although_asked_to_stay(tmp_path: Path) -> None:
    found = _judge(tmp_path / "t", [*fabricated.records(moves=True), fabricated.end()])
    assert (found.word, found.as_asked) == ("MOVES", False)
    assert "but --load-panic asks it to stay" in found.sentence


def test_running_until_it_is_decided(tmp_path: Path) -> None:
    start = [r for r in fabricated.records() if r.get("tick", 0) < 1000]
    found = _judge(tmp_path / "t", start)
    assert (found.word, found.as_asked) == ("RUNNING", None)


@pytest.mark.parametrize(("reason", "word"), [("stuck", "SPINS"), ("fault", "STOPS")])
def test_a_run_that_never_reached_the_kernel(tmp_path: Path, reason: str, word: str) -> None:
    start = [r for r in fabricated.records() if r.get("tick", 0) < 1_500_000_000]
    text = "purgatory: digest mismatch, spinning at purgatory+0x48"
    end = fabricated.end(text, ok=False, reason=reason, tick=1_508_264_461)
    found = _judge(tmp_path / "t", [*start, end])
    assert (found.word, found.as_asked) == (word, False)
    assert "digest mismatch" in found.sentence


def test_lines_are_fit_for_a_mail(tmp_path: Path) -> None:
    found = _judge(tmp_path / "t", [*fabricated.records(), fabricated.end()])
    assert found.lines[0].startswith("verdict:  STAYS")
    assert all(line.isascii() for line in found.lines)


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"until": "relocate"}, "until", "Ended at --until relocate, as asked; by then the boot"),
        ({"limit_ticks": 1_508_300_000}, "limit", "Ended at --limit 1508300000, as asked; by then"),
    ],
)
def test_ended_where_the_user_asked(
    tmp_path: Path, spec: dict[str, Any], reason: str, words: str
) -> None:
    start = [r for r in fabricated.records() if r.get("tick", 0) < 1_508_300_000]
    end = fabricated.end(f"--{reason} reached", reason=reason, tick=1_508_300_000)
    found = _judge(tmp_path / "t", [*start, end], fabricated.SPEC | spec)
    assert (found.word, found.as_asked) == ("ENDED", None)
    assert found.sentence.startswith(words)
    assert found.sentence.endswith("CPU was in purgatory, and the kernel had not decided.")


def test_decided_before_it_was_ended(tmp_path: Path) -> None:
    end = fabricated.end("--until start_kernel reached", reason="until")
    spec = fabricated.SPEC | {"until": "start_kernel"}
    found = _judge(tmp_path / "t", [*fabricated.records(), end], spec)
    assert (found.word, found.as_asked) == ("STAYS", True)
    assert found.sentence.endswith("as --load-panic asks. Ended at --until start_kernel, as asked.")


def test_limit_that_nobody_asked_for_stops_the_run(tmp_path: Path) -> None:
    start = [r for r in fabricated.records() if r.get("tick", 0) < 1_508_300_000]
    end = fabricated.end("limit of 8000000000 ticks", ok=False, reason="limit", tick=8_000_000_000)
    assert _judge(tmp_path / "t", [*start, end]).word == "STOPS"
