"""The real kernel with the hash MMU: its hand-off both ways to the end, and far into its start."""

from __future__ import annotations

from collections import Counter

import pytest

from app.debian import DebianPair
from emulator.check import check
from emulator.evidence import Evidence
from emulator.recorder import Recorder, RunSpec, prepare

pytestmark = pytest.mark.real


def images(pair: DebianPair) -> dict[str, tuple[str, bytes]]:
    return {
        "kernel": (pair.vmlinux.name, pair.vmlinux.read_bytes()),
        "purgatory": (pair.kexec.name, pair.kexec.read_bytes()),
    }


def console(records: list[dict[str, object]]) -> str:
    chunks = (str(row["data"]) for row in records if row["t"] == "console")
    return b"".join(bytes.fromhex(chunk) for chunk in chunks).decode()


@pytest.mark.parametrize(("mode", "outcome"), [("load-panic", "stayed"), ("load", "relocated")])
def test_hand_off_with_the_hash_mmu(debian_pair: DebianPair, mode: str, outcome: str) -> None:
    """Complete, every rule passes, and the same comes out again."""
    spec = RunSpec(mode=mode, cpus=4, checks=False, append="disable_radix")
    prepared = prepare(spec, images(debian_pair))
    runs: list[list[dict[str, object]]] = []
    for _ in range(2):
        records = [prepared.record()]
        end = Recorder(prepared, records.append).record()
        assert (end["reason"], end["ok"]) == ("complete", True)
        runs.append(records)
    assert runs[0] == runs[1]
    report = check(Evidence.of_records(spec.to_json(), runs[0]))
    assert (report.seen.outcome, report.seen.abi) == (outcome, "run_at_load")
    assert report.statuses == dict.fromkeys(report.statuses, "passed") | {"iseries-pointer": "n-a"}
    said = console(runs[0])
    assert "hash-mmu: Initializing hash mmu with SLB" in said
    assert "radix" not in said
    calls = Counter(
        str(row["text"]).split("(")[0]
        for row in runs[0]
        if row["t"] == "event" and row["kind"] == "hypercall"
    )
    assert calls["H_ENTER"] >= 18, "the linear mapping of 288 MiB in pages of 16 MiB"
    assert not any("not implemented" in text for text in calls)


def test_segment_and_page_faults_of_a_running_kernel(debian_pair: DebianPair) -> None:
    """vmemmap and vmalloc: the kernel takes 0x380 and 0x300, enters the pages and goes on."""
    spec = RunSpec(mode="load-panic", checks=False, append="disable_radix", until="time_init")
    records: list[dict[str, object]] = []
    end = Recorder(prepare(spec, images(debian_pair)), records.append).record()
    assert end["reason"] == "until", end
    taken = Counter(
        str(row["text"]).split(" at ")[0]
        for row in records
        if row["t"] == "event" and row["kind"] == "exception"
    )
    assert taken["data segment interrupt"] >= 2
    assert taken["data storage interrupt"] > 0
    assert set(taken) == {"data segment interrupt", "data storage interrupt"}
