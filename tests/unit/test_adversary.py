"""Schedules that look for trouble: repeatable, never unfair, and what they find."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from app.samples import sample_spec
from emulator.adversary import LAG_TICKS, Adversary, Place, words_of
from emulator.errors import PlacementError
from emulator.explore import explore, run_once
from emulator.forked import in_child
from emulator.recorder import Prepared, Recorder, RunSpec, prepare, tick_of_write
from emulator.samples import get_sample
from emulator.schedule import SOLO_TICKS, Schedule

BASE = Schedule(1000, 0)


def drive(text: str, slices: int, cpus: int = 3, write_tick: int = 30_000) -> list[tuple[int, int]]:
    """Let a schedule choose; every slice runs to its end."""
    adversary, tick, last, ran = Adversary(text, BASE), 0, 0, []
    adversary.attach(lambda: tick)
    adversary.resolve(write_tick)
    for number in range(slices):
        last = adversary.next_cpu(last, range(cpus))
        ticks = adversary.length(number, cpus)
        tick += ticks
        ran.append((last, ticks))
    return ran


TEXTS = ["random:1", "random:7:20", "slow:1:64", "writer:cpu2:0x38:2:4096", "others:cpu1:0x5c:1:3",
         "before:cpu0:0xf8:11:4096"]  # fmt: skip


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
            assert waited[other] < 2 * (LAG_TICKS + 1500)


@pytest.mark.parametrize(
    ("text", "first", "acts"),
    [
        ("writer:cpu2:0x38:2:4096", 30_000, [(2, 4096)]),
        ("others:cpu1:0x38:1:3", 30_000, [(0, 3), (2, 3)]),
        ("before:cpu0:0x38:1:7", 29_999, [(1, 7), (2, 7)]),
    ],
)
def test_steps_in_at_exactly_its_write(text: str, first: int, acts: list[tuple[int, int]]) -> None:
    ran = drive(text, 400)
    ends = [sum(ticks for _, ticks in ran[: n + 1]) for n in range(len(ran))]
    at = ends.index(first) + 1
    assert ran[at : at + len(acts)] == acts
    if not text.startswith("writer"):  # the writer goes on when the others have run
        assert ran[at + len(acts)][0] == int(text.split(":")[1].removeprefix("cpu"))


def test_alone_a_cpu_takes_long_slices() -> None:
    assert Adversary("random:3", BASE).length(0, 1) == SOLO_TICKS


@pytest.mark.parametrize(
    "text",
    ["", "random", "random:x", "slow:1:0", "writer:1:40", "writer:cpu0:0x38:1:4097",
     "others:cpu0:0x100:1:1", "others:cpu0:0x38:1", "others:33:1", "else:1:1"],
)  # fmt: skip
def test_what_is_no_schedule_is_named(text: str) -> None:
    with pytest.raises(PlacementError):
        Adversary(text, BASE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("random:7:20", "in the order of seed 7, for 20 slices"),
        ("slow:1:64", "CPU 1 runs 1 instruction where the others run 64"),
        ("writer:cpu0:0x38:2:50", "right after CPU 0's 2nd write at 0x38 (tick 9) it runs 50"),
        ("others:cpu1:0x5c:11:1", "right after CPU 1's 11th write at 0x5c (tick 9) each other CPU"
                                  " runs 1 instruction first"),
        ("before:cpu0:0x0:1:4096", "right before CPU 0's 1st write at 0x0 (tick 9) each other CPU"),
    ],
)  # fmt: skip
def test_has_words(text: str, words: str) -> None:
    assert words in words_of(text, 9)


def prepared(name: str, **options: object) -> Prepared:
    sample = get_sample(name)
    spec = RunSpec.from_json(sample_spec(sample) | {"checks": False} | options)
    return prepare(
        spec,
        {
            "kernel": (sample.kernel, sample.kernel_bytes()),
            "purgatory": (sample.purgatory, sample.purgatory_bytes()),
        },
    )


def explored(name: str, seeds: int, **options: object) -> dict[str, Any]:
    pair = prepared(name, **options)
    return explore(lambda text, tick: in_child(partial(run_once, pair, text, tick)), pair, seeds)


def test_race_is_found_and_made_small() -> None:
    found = explored("race-be", 2)
    assert found["failed"] == ["bounds"]
    (race,) = found["races"]
    assert race["rules"] == ["flag-written", "flag-value", "outcome"]
    assert race["schedule"] == "writer:cpu0:0x38:2:50"
    pair, head = prepared("race-be"), "writer:cpu0:0x38:2"
    assert run_once(pair, f"{head}:50", race["write_tick"])["failed"][:2] == race["rules"][:2]
    assert run_once(pair, f"{head}:49", race["write_tick"])["failed"] == ["bounds"]


def test_failure_that_is_a_matter_of_the_schedule_is_told() -> None:
    found = explored("race-lost-be", 0)
    assert found["races"] == []
    (held,) = found["held"]
    assert held["rules"] == ["flag-value", "flag-written", "outcome"]


@pytest.mark.parametrize("name", ["waits-be", "restores-le"])
def test_what_a_delay_orders_is_no_race(name: str) -> None:
    found = explored(name, 3)
    assert found["races"] == found["held"] == []
    assert found["tried"] > 20


def test_one_cpu_has_one_schedule() -> None:
    found = explored("runatload-be", 3, cpus=1)
    assert found == {"tried": 0, "failed": [], "races": [], "held": []}


def test_name_of_a_write_means_the_same_under_any_quantum_and_seed() -> None:
    place = Place(0, 0x38, 2)
    ticks = set()
    for quantum, seed in ((1000, 0), (37, 5), (100_000, 9)):
        pair = prepared("race-be", quantum=quantum, seed=seed)
        tick = tick_of_write(pair, place)
        assert tick is not None
        ticks.add(tick)
        text = f"writer:{place.text}:50"
        records: list[dict[str, Any]] = []
        Recorder(replace(pair, spec=replace(pair.spec, schedule=text)), records.append).record()
        slices = [row for row in records if row["t"] == "slice"]
        mine = [row for row in slices if row["tick"] <= tick < row["tick"] + row["ticks"]]
        assert [row["cpu"] for row in mine] == [0]
        alone = [
            r["cpu"] for r in slices if r["tick"] < tick + 50 and r["tick"] + r["ticks"] > tick
        ]
        assert set(alone) == {0}
        writes = [row for row in records if row["t"] == "event" and row["kind"] == "low-write"]
        at = [row for row in writes if row["cpu"] == 0 and int(row["addr"], 16) == 0x38]
        assert at[1]["tick"] == tick
    assert len(ticks) == 3  # the tick is another one each time


def test_write_that_is_not_there_is_said() -> None:
    with pytest.raises(PlacementError, match=r"no such write .CPU 1's 9th write at 0x38"):
        run_once(prepared("waits-be"), "writer:cpu1:0x38:9:1")
