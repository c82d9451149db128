"""Why the flag is what it is, told of recorded runs by their sessions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.samples import sample_spec
from app.sessions import PoolLimits, SessionPool
from emulator.evidence import Evidence
from emulator.explanation import Sentence, explain
from emulator.samples import get_sample
from emulator.trace import ImageFile, TraceReader


@pytest.fixture(scope="module")
def pool() -> Iterator[SessionPool]:
    limits = PoolLimits(record_seconds=60.0, answer_seconds=60.0)
    with SessionPool(limits, keep_spare=False) as sessions:
        yield sessions


def told(pool: SessionPool, folder: Path, name: str) -> tuple[Sentence, ...]:
    sample, path = get_sample(name), folder / f"{name}.bootflow"
    images = [
        ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
        ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
    ]
    pool.record(name, path, sample_spec(sample), images)
    with TraceReader(path) as reader:
        seen = Evidence.of_trace(reader)
    return explain(seen, lambda query: pool.query(name, path, query))


@pytest.mark.parametrize("order", ["be", "le"])
def test_posted_snippet_is_seen_through(pool: SessionPool, tmp_path: Path, order: str) -> None:
    skipped, relocate, copy = told(pool, tmp_path, f"posted-{order}")
    assert re.fullmatch(
        r"master\+0x[0-9a-f]+ `cmpd r18,r1`: r18 = 1 was loaded from run_at_load \(8 bytes\) at"
        r" master\+0x[0-9a-f]+, r1 = 0x[0-9a-f]+ is the stack pointer since master\+0x[0-9a-f]+;"
        r" not equal, so the store `stw r7,92\(r4\)` to kernel\+0x5c was skipped\.",
        skipped.text,
    )
    ticks = [part.tick for part in skipped.parts if part.tick is not None]
    assert len(ticks) == 3
    assert ticks[2] < ticks[1] < ticks[0]
    assert "not equal, so it relocates itself to run at 0x0." in relocate.text
    assert "not equal, so it copies all of itself to 0." in copy.text


def test_meant_snippet_marks_the_flag(pool: SessionPool, tmp_path: Path) -> None:
    stored, relocate, copy = told(pool, tmp_path, "meant-be")
    assert "stores 1 to kernel+0x5c: r7 = 1 is the number that `li r7,1` sets" in stored.text
    assert f"written at tick {stored.tick}" in relocate.text
    assert "equal, so it copies only its vectors to 0 and stays." in copy.text


def test_wrong_width_names_eight_bytes(pool: SessionPool, tmp_path: Path) -> None:
    stored = told(pool, tmp_path, "width-be")[0]
    assert "was loaded from run_at_load (8 bytes)" in stored.text


def test_kdump_flag_is_told_alike(pool: SessionPool, tmp_path: Path) -> None:
    stored = told(pool, tmp_path, "kdumpflag-be")[0]
    assert "`std r7,24(r4)` on CPU 0 stores 1 to kernel+0x18" in stored.text


def test_late_store_is_told_as_late(pool: SessionPool, tmp_path: Path) -> None:
    stored = told(pool, tmp_path, "late-le")[0]
    assert "on CPU 1, too late, stores 1 to kernel+0x5c" in stored.text


def test_kernel_without_a_flag_has_nothing_to_tell(pool: SessionPool, tmp_path: Path) -> None:
    assert told(pool, tmp_path, "noflag-be") == ()
