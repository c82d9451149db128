"""Specs, stage rows and the ends of runs, on the sample pair."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from emulator.errors import BootflowError, LimitError, PlacementError
from emulator.recorder import Prepared, Recorder, RunSpec, prepare
from emulator.samples import get_sample
from emulator.stages import code_rows, native_ranges

SAMPLE = get_sample("kdump-le")
FAST = {"mode": "load-panic", "cpus": 4, "mem_bytes": 256 << 20, "checks": False}


def prepared(**options: Any) -> Prepared:
    images = {
        "kernel": ("kernel-le.elf", SAMPLE.kernel_bytes()),
        "purgatory": ("purgatory-le.ro", SAMPLE.purgatory_bytes()),
    }
    return prepare(RunSpec.from_json(FAST | options), images)


def record(**options: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    Recorder(prepared(**options), records.append).record()
    return records


def test_spec_round_trip() -> None:
    spec = RunSpec(mode="load-panic", cpus=3, until="start_kernel", addresses={"kernel": 1 << 25})
    assert RunSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("document", "kind", "says"),
    [
        ({"cpu": 4}, PlacementError, "unknown option 'cpu'"),
        ({"cpus": "4"}, PlacementError, "option cpus is '4'"),
        ({"checks": 1}, PlacementError, "option checks is 1"),
        ({"mode": "jump"}, PlacementError, "neither load nor load-panic"),
        ({"limit_ticks": 0}, LimitError, "limit of 0 ticks"),
        ({"quantum": 0}, LimitError, "quantum 0"),
        ({"seed": -1}, LimitError, "seed -1"),
        ({"addresses": {"moon": 1}}, PlacementError, "address 'moon'"),
    ],
)
def test_bad_spec(document: dict[str, Any], kind: type[BootflowError], says: str) -> None:
    with pytest.raises(kind, match=says):
        RunSpec.from_json(document)


def test_rows_are_disjoint_and_fit_the_native_table() -> None:
    ready = prepared()
    for moved in (False, True):
        rows = code_rows(ready.placement, ready.kernel, moved=moved, until="start_kernel")
        assert all(row.lo < row.hi for row in rows)
        assert all(a.hi <= b.lo for a, b in itertools.pairwise(rows))
        assert len(native_ranges(rows)) <= 128
        stages = {row.stage for row in rows}
        assert {"hand-over", "hold", "purgatory", "head", "relocate", "copy"} <= stages


def test_complete_run_and_its_stages() -> None:
    records = record()
    end = records[-1]
    assert (end["t"], end["reason"], end["ok"]) == ("end", "complete", True)
    boot = [r["text"] for r in records if r.get("kind") == "stage" and r["cpu"] == 0]
    wanted = ["purgatory", "head", "relocate", "copy", "early_setup", "start_kernel"]
    assert boot[0] == "purgatory"
    assert set(wanted) <= set(boot)
    released = [r["cpu"] for r in records if r.get("kind") == "cpu-released"]
    assert sorted(released) == [1, 2, 3]


def test_slices_cover_every_tick_once() -> None:
    records = record()
    tick = 0
    for row in (r for r in records if r["t"] == "slice"):
        assert row["tick"] == tick
        assert row["ticks"] > 0
        tick += row["ticks"]
    assert tick == records[-1]["tick"]


def test_same_inputs_same_records() -> None:
    assert record() == record()


def test_another_seed_is_another_interleaving_with_the_same_outcome() -> None:
    one, other = record(quantum=40, seed=1), record(quantum=40, seed=2)
    assert one != other
    assert one[-1]["reason"] == other[-1]["reason"] == "complete"


def test_until_a_symbol_stops_exactly_there() -> None:
    end = record(until="early_setup")[-1]
    assert (end["reason"], end["ok"]) == ("until", True)
    assert end["symbol"].startswith("early_setup+0x")


def test_until_a_tick_stops_exactly_there() -> None:
    end = record(until="1234")[-1]
    assert (end["reason"], end["tick"]) == ("until", 1234)


def test_until_a_tick_is_a_prefix_of_the_whole_run() -> None:
    whole = [r for r in record(debug=True) if r["t"] in ("slice", "event")]
    for until in (3000, 5000, 40_000):
        part = [r for r in record(debug=True, until=str(until)) if r["t"] in ("slice", "event")]
        same = [r for r in part if r["tick"] + r.get("ticks", 0) < until and r.get("kind") != "end"]
        assert len(same) > 10
        assert same == whole[: len(same)]


def test_until_an_unknown_symbol_is_bad_input() -> None:
    with pytest.raises(PlacementError, match="no such symbol"):
        record(until="no_such_function")


def test_limit_is_a_named_end() -> None:
    end = record(limit_ticks=5000)[-1]
    assert (end["reason"], end["ok"], end["tick"]) == ("limit", True, 5000)


def test_cancel_between_slices() -> None:
    records: list[dict[str, Any]] = []
    polls = iter([None, None, "enough"])
    recorder = Recorder(prepared(), records.append, poll=lambda run: next(polls))
    recorder.record()
    assert (records[-1]["reason"], records[-1]["text"]) == ("cancelled", "enough")
