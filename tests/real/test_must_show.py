"""What bootflow must show on the real Debian pair, through the command line as a user runs it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from app.debian import DebianPair
from app.sessions import PoolLimits, SessionPool
from emulator.ppc64 import GPRS
from emulator.queries import run_slice
from emulator.recorder import RunSpec, prepare
from emulator.trace import TraceReader

pytestmark = pytest.mark.real

CPUS = 4
RUN0, STAY = "0x0000000072756e30", "0x0000000000000001"
LOAD_ADDR = 0x2000000
"""Where a crash kernel lies by default."""
SEEKS = 1000
LINEAR = (1 << 60) - 1


def bootflow(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "app.cli", *map(str, words)]
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@dataclass(frozen=True)
class Recorded:
    """One `bootflow record` and what can be read of its trace."""

    path: Path
    status: int
    out: str

    def read(self, *words: str) -> Any:
        done = bootflow(words[0], self.path, "--json", *words[1:], cwd=self.path.parent)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.read("events")
        return found

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] in kinds]

    def stages(self, cpu: int) -> list[str]:
        return [event["text"] for event in self.of("stage") if event["cpu"] == cpu]

    @property
    def digest(self) -> str:
        (line,) = [line for line in self.out.splitlines() if line.startswith("digest: ")]
        return line.split()[1]


Record = Callable[..., Recorded]


@pytest.fixture(scope="module")
def record(debian_pair: DebianPair, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return a function: options -> the recorded run; each in a folder of its own."""

    def run(*words: str) -> Recorded:
        folder = tmp_path_factory.mktemp("run")
        files = (debian_pair.vmlinux, "--purgatory", debian_pair.kexec, "--cpus", str(CPUS))
        done = bootflow("record", *files, *words, "-o", "run.bootflow", cwd=folder)
        assert done.stderr == ""
        return Recorded(folder / "run.bootflow", done.returncode, done.stdout)

    return run


@pytest.fixture(scope="module")
def kdump(record: Record) -> Recorded:
    return record("--load-panic", "--debug")


@pytest.fixture(scope="module")
def kexec(record: Record) -> Recorded:
    return record("--load", "--debug")


@pytest.mark.parametrize("name", ["kdump", "kexec"])
def test_hand_off_ends_complete_after_the_digest(name: str, request: pytest.FixtureRequest) -> None:
    run: Recorded = request.getfixturevalue(name)
    assert run.status == 0
    (end,) = run.of("end")
    assert end["tick"] > 1_500_000_000
    assert end["text"].startswith("the hand-off is complete")
    assert run.stages(0)[:5] == ["purgatory", "digest", "purgatory", "head", "relocate"]
    assert run.stages(0)[-1] == "start_kernel"


@pytest.mark.parametrize("name", ["kdump", "kexec"])
def test_banner_is_on_the_recorded_console(name: str, request: pytest.FixtureRequest) -> None:
    run: Recorded = request.getfixturevalue(name)
    text = "".join(chunk["text"] for chunk in run.read("console"))
    assert text.startswith("I'm in purgatory")
    assert "Linux version 6.1." in text
    physical_start = LOAD_ADDR if name == "kdump" else 0
    if physical_start:
        assert f"physical_start    = {physical_start:#x}" in text
    else:
        assert "physical_start" not in text


@pytest.mark.parametrize(("name", "value"), [("kdump", STAY), ("kexec", RUN0)])
def test_flag_is_written_once_by_purgatory_and_read_twice_by_the_kernel(
    name: str, value: str, request: pytest.FixtureRequest
) -> None:
    run: Recorded = request.getfixturevalue(name)
    (written,) = run.of("flag-write")
    assert (written["value"], written["size"], written["cpu"]) == (value, 4, 0)
    assert written["symbol"].startswith("master+0x")
    reads = run.of("flag-read")
    assert [read["value"] for read in reads] == [value, value]
    assert [read["symbol"] for read in reads] == [
        "__after_prom_start+0x8/0x70",
        "__after_prom_start+0x30/0x70",
    ]
    assert {event["addr"] for event in (written, *reads)} == {written["addr"]}
    copied = [event["tick"] for event in run.of("stage") if event["text"] == "copy"]
    assert written["tick"] < reads[0]["tick"] < reads[1]["tick"] < copied[0]


def test_kdump_kernel_stays_at_its_load_address(kdump: Recorded) -> None:
    (setup,) = [event for event in kdump.of("stage") if event["text"] == "early_setup"]
    assert int(setup["nip"], 16) & LINEAR >= LOAD_ADDR
    assert kdump.read("verdict")["word"] == "STAYS"
    (state,) = [kdump.read("show")]
    assert state["flags"][0] == {
        "name": "__run_at_load", "addr": "0x000000000200005c", "size": 4, "value": STAY,
    }  # fmt: skip


def test_kexec_kernel_moves_to_0(kexec: Recorded) -> None:
    joins = kexec.of("cpu-released")
    assert {int(event["nip"], 16) & LINEAR < LOAD_ADDR for event in joins} == {True}
    told = kexec.read("verdict")
    assert (told["word"], told["asked"]) == ("MOVES", "move")
    assert '"run0"' in told["sentence"]


@pytest.mark.parametrize("name", ["kdump", "kexec"])
def test_secondaries_wait_at_0x60_and_leave_for_generic_secondary_smp_init(
    name: str, request: pytest.FixtureRequest
) -> None:
    """While the boot CPU hashes, relocates and copies, they stay below 0x100."""
    run: Recorded = request.getfixturevalue(name)
    released = run.of("cpu-released")
    assert sorted(event["cpu"] for event in released) == [1, 2, 3]
    assert {event["symbol"].split("+")[0] for event in released} == {"generic_secondary_smp_init"}
    for cpu in (1, 2, 3):
        assert run.stages(cpu) == ["hold", "joins"]
        entry = next(e for e in run.of("stage") if (e["cpu"], e["text"]) == (cpu, "hold"))
        assert entry["nip"] == "0x0000000000000060"
    (entered,) = [e for e in run.of("stage") if (e["cpu"], e["text"]) == (0, "digest")]
    assert max(e["tick"] for e in run.of("stage") if e["text"] == "hold") < entered["tick"]
    first = min(event["tick"] for event in released)
    with TraceReader(run.path) as reader:
        slices = [row for row in reader.slices(0, first) if row.cpu and row.tick >= entered["tick"]]
    assert all(int(row.nip, 16) < 0x100 for row in slices if row.tick + row.ticks < first)


def test_debug_prints_the_placement_in_the_words_of_kexec(kdump: Recorded) -> None:
    for words in ("kernel is 2000000", "run_at_load flag is 1", "panic_kernel is 1", "nr_segments"):
        assert words in kdump.out


def test_flipped_byte_ends_stuck_in_the_digest_loop_and_says_so(record: Record) -> None:
    run = record("--load-panic", "--debug", "--corrupt", "0x2345678")
    assert run.status == 1
    (end,) = run.of("end")
    assert end["text"].startswith("purgatory: SHA-256 digest mismatch, spinning at purgatory+0x48/")
    assert run.of("flag-write", "flag-read", "cpu-released") == []
    assert "inverted after the digest was taken" in run.out
    text = "".join(chunk["text"] for chunk in run.read("console"))
    assert "sha256 digests do not match" in text


def test_flipped_byte_goes_unseen_where_nothing_is_checked(record: Record) -> None:
    run = record("--load-panic", "--no-checks", "--corrupt", "0x4700000")
    assert run.status == 0
    assert run.of("end")[0]["tick"] < 100_000_000


def test_two_recordings_have_the_same_digest(kdump: Recorded, record: Record) -> None:
    again = record("--load-panic", "--debug")
    assert again.digest == kdump.digest
    assert again.events == kdump.events


def test_bad_input_is_status_2(debian_pair: DebianPair, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_text("no kernel")
    done = bootflow("record", "--load", "vmlinux", "--purgatory", debian_pair.kexec, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "vmlinux" in done.stderr
    done = bootflow(
        "record", "--load", debian_pair.vmlinux, "--purgatory", debian_pair.kexec,
        "--corrupt", "0x3fffffff", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no loaded byte at 0x3fffffff" in done.stderr


def test_json_has_exactly_the_documented_keys(kdump: Recorded) -> None:
    state = kdump.read("show", "--tick", "1570636774")
    assert list(state) == ["tick", "cpus", "low_memory", "flags"]
    assert state["tick"] == 1570636774
    assert [cpu["cpu"] for cpu in state["cpus"]] == [0, 1, 2, 3]
    assert sum(cpu["ticks"] for cpu in state["cpus"]) == state["tick"]
    for cpu in state["cpus"]:
        assert list(cpu) == ["cpu", "ticks", "stage", "symbol", "registers"]
        assert set(cpu["registers"]) == {"nip", "msr", "cr", "lr", "ctr", "xer", *GPRS}
        assert all(len(value) == 18 for value in cpu["registers"].values())
    assert len(bytes.fromhex(state["low_memory"])) == 256
    assert [list(flag) for flag in state["flags"]] == [["name", "addr", "size", "value"]]
    wanted = ["tick", "cpu", "kind", "addr", "size", "value", "nip", "symbol"]
    assert {tuple(event)[:8] for event in kdump.events} == {tuple(wanted)}
    kinds = {"low-write", "flag-read", "flag-write", "stage", "hypercall", "console"}
    assert kinds | {"cpu-released", "end"} == {event["kind"] for event in kdump.events}
    one = kdump.read("show", "--tick", "5", "--cpu", "2")
    assert [cpu["cpu"] for cpu in one["cpus"]] == [2]


def chosen_ticks(reader: TraceReader, rng: random.Random) -> list[int]:
    """A thousand ticks in random order: anywhere, in the busy parts, and at slice boundaries."""
    last = reader.last_tick
    starts = [row.tick for row in reader.slices()]
    ticks = [0, last, *(rng.randint(0, last) for _ in range(498))]
    ticks += [rng.randint(0, 10_000) for _ in range(150)]
    ticks += [rng.randint(last - 23_000_000, last) for _ in range(150)]
    ticks += [max(0, rng.choice(starts) + rng.randint(-1, 1)) for _ in range(SEEKS - len(ticks))]
    rng.shuffle(ticks)
    return ticks


@pytest.mark.parametrize("name", ["kdump", "kexec"])
def test_random_seeks_equal_a_straight_run(name: str, request: pytest.FixtureRequest) -> None:
    """A session started from the trace alone answers in random order; a Run goes straight on."""
    recorded: Recorded = request.getfixturevalue(name)
    with TraceReader(recorded.path) as reader:
        ticks = chosen_ticks(reader, random.Random(name))
        slices = [(row.tick, row.cpu, row.ticks) for row in reader.slices()]
        spec = RunSpec.from_json(reader.spec)
        infos, data = reader.image_infos(), reader.images()
        images = {role: (infos[role].name, data[role]) for role in data}
    answers: dict[int, dict[str, Any]] = {}
    with SessionPool(PoolLimits(answer_seconds=120.0), keep_spare=False) as pool:
        for tick in ticks:
            state = pool.query("run", recorded.path, {"q": "state", "tick": tick})
            assert answers.setdefault(tick, state) == state
    run = prepare(spec, images).start(lambda record: None)
    wanted = sorted(set(ticks))
    for begin, cpu, length in slices:
        while wanted and wanted[0] < begin + length:
            run_slice(run, cpu, wanted[0])
            straight = json.loads(json.dumps(run.state()))
            assert straight == answers[wanted[0]], wanted[0]
            wanted.pop(0)
        run_slice(run, cpu, begin + length)
    assert wanted in ([], [run.machine.tick])
    assert json.loads(json.dumps(run.state())) == answers[run.machine.tick]
