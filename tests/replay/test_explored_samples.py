"""What is a race on real CPUs is found, within 32 random orders; what is none is not reported.

The samples that stand for each: a flag that a secondary writes while nobody waits; a store into the
hold loop's word before all have arrived; and hand-offs ordered by a delay loop, a poll, or nothing
but what each CPU does alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from app.samples import sample_spec
from emulator.explore import explore, run_once
from emulator.forked import in_child
from emulator.recorder import RunSpec, prepare
from emulator.samples import get_sample

SEEDS = 32


def explored(name: str) -> dict[str, Any]:
    sample = get_sample(name)
    images = {
        "kernel": (sample.kernel, sample.kernel_bytes()),
        "purgatory": (sample.purgatory, sample.purgatory_bytes()),
    }
    spec = sample_spec(sample) | {"checks": False, "limit_ticks": 60_000_000}
    pair = prepare(RunSpec.from_json(spec), images)
    return explore(lambda text, tick: in_child(partial(run_once, pair, text, tick)), pair, SEEDS)


@pytest.mark.parametrize(
    ("name", "rules", "write"),
    [
        ("race-be", ["flag-written", "flag-value", "outcome"], "cpu0:0x38:2"),
        # purgatory stores into 0x38 before it waits: who comes late to 0x60 finds it there
        ("below-be", ["low-copy"], "cpu0:0x0:1"),
    ],
)
def test_races_are_found(name: str, rules: list[str], write: str) -> None:
    found = explored(name)
    (race,) = found["races"]
    assert race["rules"] == rules
    assert race["schedule"].startswith(f"writer:{write}:")


@pytest.mark.parametrize(
    "name",
    [
        "waits-be",
        *(  # half a minute each: with the real pair
            pytest.param(name, marks=pytest.mark.real)
            for name in ("kdump-le", "kexec-be", "restores-be", "late-be")
        ),
    ],
)
def test_what_is_no_race_is_not_reported(name: str) -> None:
    found = explored(name)
    assert found["races"] == found["held"] == []
    assert found["tried"] >= SEEDS + 40
