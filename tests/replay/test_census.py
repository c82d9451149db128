"""The census of functions against single steps of the same run."""

from __future__ import annotations

import random

import pytest

from emulator.census import Census
from emulator.queries import run_slice
from emulator.recorder import Prepared, Recorder, RunSpec, prepare
from emulator.samples import get_sample

TICKS = 4000


@pytest.fixture(scope="module")
def ready() -> Prepared:
    sample = get_sample("kdump-le")
    images = {
        "kernel": ("kernel", sample.kernel_bytes()),
        "purgatory": ("purgatory", sample.purgatory_bytes()),
    }
    spec = RunSpec(mode="load-panic", cpus=3, mem_bytes=256 << 20, until=str(TICKS))
    return prepare(spec, images)


@pytest.fixture(scope="module")
def slices(ready: Prepared) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def emit(record: dict[str, object]) -> None:
        if record["t"] == "slice":
            found.append((int(str(record["cpu"])), int(str(record["ticks"]))))

    Recorder(ready, emit).record()
    return found


def names_by_steps(ready: Prepared, slices: list[tuple[int, int]]) -> list[tuple[int, str]]:
    """(cpu, function) of every instruction, one by one."""
    run = ready.start(lambda record: None)
    found: list[tuple[int, str]] = []
    for cpu, ticks in slices:
        for step in run.trace_steps(cpu, ticks):
            found.append((cpu, run.names.name_at(step.nip).partition("+")[0]))
    return found


def test_every_tick_of_any_stretch(ready: Prepared, slices: list[tuple[int, int]]) -> None:
    run = ready.start(lambda record: None)
    census = Census(run.names.function_starts())
    census.note(run)
    for cpu, ticks in slices:
        run_slice(run, cpu, run.machine.tick + ticks)
    assert census.close(run)
    steps = names_by_steps(ready, slices)
    assert len(steps) == TICKS
    rng = random.Random(3)
    for _ in range(50):
        begin, end = sorted(rng.sample(range(TICKS), 2))
        told: dict[int, tuple[int, str]] = {}
        for span in census.spans(run.names, begin, end, 2000):
            for tick in range(span["from"], span["to"]):
                told[tick] = (span["cpu"], span["symbol"])
        assert [told.get(tick) for tick in range(begin, end)] == steps[begin:end]


def test_columns_name_what_took_most(ready: Prepared, slices: list[tuple[int, int]]) -> None:
    run = ready.start(lambda record: None)
    census = Census(run.names.function_starts())
    census.note(run)
    for cpu, ticks in slices:
        run_slice(run, cpu, run.machine.tick + ticks)
    census.close(run)
    steps = names_by_steps(ready, slices)
    column = TICKS // 16
    mixed = [span for span in census.spans(run.names, 0, TICKS, 16) if span["others"]]
    assert mixed
    for span in mixed:
        first = span["from"] // column
        inside = [
            name for cpu, name in steps[first * column : (first + 1) * column] if cpu == span["cpu"]
        ]
        assert inside.count(span["symbol"]) == max(inside.count(name) for name in set(inside))
