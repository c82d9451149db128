"""Schedules that look for trouble: repeatable, never unfair, and what they find."""

from __future__ import annotations

import pytest

from app.samples import sample_spec
from emulator.adversary import LAG_TICKS, Adversary
from emulator.errors import PlacementError
from emulator.explore import _in_child, explore
from emulator.recorder import Prepared, RunSpec, prepare
from emulator.samples import get_sample
from emulator.schedule import SOLO_TICKS, Schedule

BASE = Schedule(1000, 0)


def drive(text: str, slices: int, cpus: int = 3) -> list[tuple[int, int]]:
    """Let a schedule choose; every slice runs to its end, and every 50th writes low memory."""
    adversary, tick, last, ran = Adversary(text, BASE), 0, 0, []
    adversary.attach(lambda: tick)
    for number in range(slices):
        last = adversary.next_cpu(last, range(cpus))
        ticks = adversary.length(number, cpus)
        tick += ticks
        ran.append((last, ticks))
        if number % 50 == 49:
            adversary.wrote(last)
    return ran


TEXTS = ["random:1", "random:7:20", "slow:1:64", "writer:2:4096", "others:1:3"]


@pytest.mark.parametrize("text", TEXTS)
def test_is_repeatable_and_takes_everyone(text: str) -> None:
    ran = drive(text, 400)
    assert ran == drive(text, 400)
    assert {cpu for cpu, _ in ran} == {0, 1, 2}
    assert all(ticks >= 1 for _, ticks in ran)


@pytest.mark.parametrize("text", TEXTS)
def test_nobody_waits_for_long(text: str) -> None:
    waited = {0: 0, 1: 0, 2: 0}
    for cpu, ticks in drive(text, 2000):
        for other in waited:
            waited[other] = 0 if other == cpu else waited[other] + ticks
            assert waited[other] < LAG_TICKS + 2 * 1500


def test_alone_a_cpu_takes_long_slices() -> None:
    assert Adversary("random:3", BASE).length(0, 1) == SOLO_TICKS


@pytest.mark.parametrize(
    "text", ["", "random", "random:x", "slow:1:0", "writer:1:4097", "others:1", "else:1:1"]
)
def test_what_is_no_schedule_is_named(text: str) -> None:
    with pytest.raises(PlacementError):
        Adversary(text, BASE)


@pytest.mark.parametrize("text", TEXTS)
def test_has_words(text: str) -> None:
    assert text.split(":")[1] in Adversary(text, BASE).in_words()


def prepared(name: str) -> Prepared:
    sample = get_sample(name)
    spec = RunSpec.from_json(sample_spec(sample) | {"checks": False})
    return prepare(
        spec,
        {
            "kernel": (sample.kernel, sample.kernel_bytes()),
            "purgatory": (sample.purgatory, sample.purgatory_bytes()),
        },
    )


def test_race_is_found_and_made_small() -> None:
    pair = prepared("race-be")
    found = explore(lambda text: _in_child(pair, text), pair, 2)
    assert found["failed"] == ["bounds"]
    (race,) = found["races"]
    assert race["rules"] == ["flag-written", "flag-value", "outcome"]
    kind, _, ticks = race["schedule"].split(":")
    assert (kind, ticks) == ("others", "1")


@pytest.mark.parametrize("name", ["waits-be", "restores-le"])
def test_what_a_delay_orders_is_no_race(name: str) -> None:
    pair = prepared(name)
    found = explore(lambda text: _in_child(pair, text), pair, 3)
    assert found["races"] == []
    assert found["tried"] > 20


def test_one_cpu_has_one_schedule() -> None:
    sample = get_sample("runatload-be")
    spec = RunSpec.from_json(sample_spec(sample) | {"cpus": 1})
    pair = prepare(spec, {"kernel": ("k", sample.kernel_bytes()),
                          "purgatory": ("p", sample.purgatory_bytes())})  # fmt: skip
    assert explore(lambda text: _in_child(pair, text), pair, 3) == {
        "tried": 0, "failed": [], "races": [],
    }  # fmt: skip
