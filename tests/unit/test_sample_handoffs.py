"""The sample pairs on the machine: each hand-off from its first tick to its end."""

from typing import Any

import pytest

from app.samples import sample_spec
from emulator.errors import PlacementError
from emulator.recorder import Recorder, RunSpec, prepare
from emulator.samples import SAMPLES, Sample, get_sample

PAIRS = SAMPLES[:4]
"""The plain pairs; what the others are for is in test_check.py."""

Records = list[dict[str, Any]]


def record(sample: Sample) -> Records:
    images = {
        "kernel": (sample.kernel, sample.kernel_bytes()),
        "purgatory": (sample.purgatory, sample.purgatory_bytes()),
    }
    records: Records = []
    Recorder(prepare(RunSpec.from_json(sample_spec(sample)), images), records.append).record()
    return records


@pytest.fixture(scope="module")
def recorded() -> dict[str, Records]:
    """Return the records of every sample, each recorded once."""
    return {sample.name: record(sample) for sample in PAIRS}


def events(records: Records, kind: str) -> Records:
    return [row for row in records if row["t"] == "event" and row["kind"] == kind]


def console(records: Records) -> str:
    return b"".join(bytes.fromhex(r["data"]) for r in records if r["t"] == "console").decode()


@pytest.fixture(params=PAIRS, ids=lambda sample: sample.name)
def run(request: pytest.FixtureRequest, recorded: dict[str, Records]) -> tuple[Sample, Records]:
    """Give each sample with its records."""
    return request.param, recorded[request.param.name]


def test_hand_off_is_complete(run: tuple[Sample, Records]) -> None:
    sample, records = run
    end = records[-1]
    assert (end["t"], end["reason"], end["ok"]) == ("end", "complete", True)
    released = {row["cpu"] for row in events(records, "cpu-released")}
    assert released == set(range(sample.cpus)) - {sample.boot_cpu}
    assert not events(records, "exception")


def test_flag_is_written_once_and_asked_twice(run: tuple[Sample, Records]) -> None:
    sample, records = run
    value = 1 if sample.mode == "load-panic" else 0x72756E30
    writes = events(records, "flag-write")
    assert [int(row["value"], 16) for row in writes] == [value]
    assert writes[0]["nip"]
    assert "master+" in writes[0]["symbol"] or "__run_at_load" in writes[0]["symbol"]
    reads = [row for row in events(records, "flag-read") if row["tick"] > writes[0]["tick"]]
    assert [int(row["value"], 16) for row in reads] == [value, value]


def test_kernel_says_where_it_runs(run: tuple[Sample, Records]) -> None:
    sample, records = run
    text = console(records)
    place = 0x2000000 if sample.mode == "load-panic" else 0
    assert text.startswith("I'm in purgatory\n")
    assert f"physical_start = {place:#018x}\n" in text
    assert "Linux version 0.1-bootflow-sample" in text


def test_boot_cpu_goes_through_the_stages(run: tuple[Sample, Records]) -> None:
    sample, records = run
    seen = [r["text"] for r in events(records, "stage") if r["cpu"] == sample.boot_cpu]
    milestones = ["purgatory", "digest", "head", "relocate", "copy", "early_setup", "start_kernel"]
    assert [stage for stage in dict.fromkeys(seen) if stage in milestones] == milestones


def test_secondaries_wait_and_then_join(run: tuple[Sample, Records]) -> None:
    sample, records = run
    for cpu in set(range(sample.cpus)) - {sample.boot_cpu}:
        seen = [row["text"] for row in events(records, "stage") if row["cpu"] == cpu]
        assert seen[-2:] == ["hold", "joins"]


def test_same_input_gives_the_same_records(recorded: dict[str, Records]) -> None:
    assert record(get_sample("kexec-be")) == recorded["kexec-be"]


def test_corrupt_byte_is_inverted_after_the_loader_is_done() -> None:
    sample = SAMPLES[0]
    images = {
        "kernel": (sample.kernel, sample.kernel_bytes()),
        "purgatory": (sample.purgatory, sample.purgatory_bytes()),
    }
    document = sample_spec(sample)
    whole = prepare(RunSpec.from_json(document), images).placement
    addr = whole.kernel_addr + 0x40
    corrupt = prepare(RunSpec.from_json(document | {"corrupt": addr}), images).placement
    assert corrupt.digest == whole.digest
    changed = [
        (ours.addr + at, ours.data[at] ^ theirs.data[at])
        for ours, theirs in zip(corrupt.segments, whole.segments, strict=True)
        for at in range(len(theirs.data))
        if ours.data[at] != theirs.data[at]
    ]
    assert changed == [(addr, 0xFF)]
    with pytest.raises(PlacementError, match="no loaded byte"):
        prepare(RunSpec.from_json(document | {"corrupt": whole.mem_bytes - 1}), images)
    with pytest.raises(PlacementError, match="option corrupt is"):
        RunSpec.from_json(document | {"corrupt": "0x40"})
