"""Instructions watched in one go are those that run one by one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from app.debian import DebianPair
from app.samples import sample_spec
from app.sessions import SessionPool
from emulator.samples import SAMPLES, Sample
from emulator.trace import ImageFile, TraceReader

Json = dict[str, Any]
AROUND = 28


def _ticks(path: Path, count: int) -> list[int]:
    """Ticks round every event of a run, and some between."""
    pick = random.Random(7)
    with TraceReader(path) as reader:
        last = reader.last_tick
        near = {event.tick + n for event in reader.events() for n in (-30, -1, 0, 31)}
    near = set(pick.sample(sorted(near), min(count, len(near))))
    ticks = near | {pick.randrange(last) for _ in range(count)} | {0, last}
    return sorted(tick for tick in ticks if 0 <= tick <= last)


def _windows(pool: SessionPool, path: Path, ticks: list[int]) -> dict[int, Json]:
    question = {"q": "window", "before": AROUND, "after": AROUND, "state": True}
    return {tick: pool.query("run", path, question | {"tick": tick}) for tick in ticks}


def _compare(path: Path, count: int) -> None:
    ticks = _ticks(path, count)
    with SessionPool(keep_spare=False) as pool:
        fast = _windows(pool, path, ticks)
    with SessionPool(keep_spare=False, engine="tests.stepwise_engine") as pool:
        for tick, right in _windows(pool, path, ticks).items():
            assert fast[tick] == right, tick


QUICK = ("kdump-be", "kexec-le")


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(sample, marks=() if sample.name in QUICK else pytest.mark.real)
        for sample in SAMPLES
        if sample.name in QUICK or sample.name.endswith("-be")
    ],
    ids=lambda sample: sample.name,
)
def test_windows_of_the_samples(tmp_path: Path, sample: Sample) -> None:
    images = [
        ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
        ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
    ]
    path = tmp_path / "run.bootflow"
    with SessionPool(keep_spare=False) as pool:
        assert pool.record("run", path, sample_spec(sample), images).status == "finished"
    _compare(path, 12)


@pytest.mark.real
def test_windows_of_the_debian_pair(tmp_path: Path, debian_pair: DebianPair) -> None:
    images = [
        ImageFile("kernel", debian_pair.vmlinux.name, debian_pair.vmlinux.read_bytes()),
        ImageFile("purgatory", debian_pair.kexec.name, debian_pair.kexec.read_bytes()),
    ]
    path = tmp_path / "run.bootflow"
    with SessionPool(keep_spare=False) as pool:
        spec = {"mode": "load-panic", "cpus": 4, "debug": True}
        assert pool.record("run", path, spec, images).status == "finished"
    _compare(path, 50)
