"""The real pair has no race, loaded both ways: its delay loop orders what needs an order."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from app.debian import DebianPair
from emulator import explore as exploring
from emulator.adversary import LAG_TICKS
from emulator.explore import explore, run_once
from emulator.forked import in_child
from emulator.recorder import RunSpec, prepare

pytestmark = pytest.mark.real

SEEDS = 4


@pytest.mark.parametrize("mode", ["load-panic", "load"])
def test_debian_pair_has_no_race(
    debian_pair: DebianPair, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    kinds = ("writer", "others", "before")  # the longest stalls; shorter ones are between
    monkeypatch.setattr(exploring, "AROUND", [(kind, LAG_TICKS) for kind in kinds])
    spec = RunSpec(mode=mode, cpus=2, checks=False, limit_ticks=200_000_000)
    images = {
        "kernel": (debian_pair.vmlinux.name, debian_pair.vmlinux.read_bytes()),
        "purgatory": (debian_pair.kexec.name, debian_pair.kexec.read_bytes()),
    }
    pair = prepare(spec, images)

    def try_(text: str, tick: int | None) -> dict[str, Any]:
        return in_child(partial(run_once, pair, text, tick))

    found = explore(try_, pair, SEEDS)
    assert found["failed"] == found["races"] == found["held"] == []
    assert found["tried"] >= SEEDS + 20
