"""The real pair passes every rule, loaded both ways, with its symbols and without."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from app.debian import DebianPair
from emulator.check import check
from emulator.evidence import Evidence
from emulator.recorder import Recorder, RunSpec, prepare

pytestmark = pytest.mark.real


@pytest.mark.parametrize("stripped", [False, True])
@pytest.mark.parametrize(("mode", "outcome"), [("load-panic", "stayed"), ("load", "relocated")])
def test_debian_pair_passes_every_rule(
    debian_pair: DebianPair,
    cross_tool: Callable[[str, bool], Path],
    tmp_path: Path,
    mode: str,
    outcome: str,
    stripped: bool,
) -> None:
    kernel = debian_pair.vmlinux
    if stripped:
        kernel = tmp_path / "vmlinux"
        strip = cross_tool("strip", False)
        subprocess.run([strip, "-o", kernel, debian_pair.vmlinux], check=True)
    spec = RunSpec(mode=mode, cpus=4, checks=not stripped, debug=True)
    images = {
        "kernel": (kernel.name, kernel.read_bytes()),
        "purgatory": (debian_pair.kexec.name, debian_pair.kexec.read_bytes()),
    }
    prepared = prepare(spec, images)
    records = [prepared.record()]
    end = Recorder(prepared, records.append).record()
    report = check(Evidence.of_records(spec.to_json(), records))
    assert end["reason"] == "complete"
    assert (report.seen.outcome, report.seen.abi) == (outcome, "run_at_load")
    assert report.statuses == dict.fromkeys(report.statuses, "passed") | {"iseries-pointer": "n-a"}
