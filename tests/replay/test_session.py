"""Any order of questions to a session gives the answers of a straight run.

Two oracles, neither of which seeks. For states: one machine that runs the recorded slices from tick
0 on and is looked at on its way. For searches: every instruction of some thousand ticks, one by one
with its accesses (`window`), around the flag and around the secondaries' arrival; who wrote, who
reads and what changed a register is then looked up in that list by this test. The sessions answer
with checkpoints, native watches and block hooks: they share no code with the lists.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.debian import DebianPair
from app.samples import sample_spec
from app.sessions import SessionPool
from emulator.operands import GPR_READS, HYPERCALL, PIECES, READS, masks_of, may_change
from emulator.queries import run_slice
from emulator.recorder import RunSpec, prepare
from emulator.samples import get_sample
from emulator.trace import ImageFile, TraceReader

Json = dict[str, Any]
AROUND = 1500
SEARCHED = list(PIECES)


@dataclass(frozen=True)
class Region:
    """Instructions that retired in ticks (begin, end], in order."""

    begin: int
    end: int
    steps: tuple[Json, ...]

    def last(self, tick: int, wanted: Any) -> tuple[Json, Json] | None:
        """The last step at or before a tick with something wanted: the step and what it is."""
        for step in reversed(self.steps):
            if step["tick"] <= tick and (found := wanted(step)) is not None:
                return step, found
        return None

    def first(self, tick: int, wanted: Any) -> tuple[Json, Json] | None:
        """The first step after a tick with something wanted."""
        for step in self.steps:
            if step["tick"] > tick and (found := wanted(step)) is not None:
                return step, found
        return None


@dataclass(frozen=True)
class Recorded:
    """A recorded run, and what a straight run of it shows."""

    name: str
    path: Path
    last: int
    ticks: tuple[int, ...]
    states: dict[int, Json]
    regions: tuple[Region, ...]


def make(
    pool: SessionPool, name: str, path: Path, spec: Json, images: Sequence[ImageFile], many: int
) -> Recorded:
    """Record a run and look at it on a straight run."""
    outcome = pool.record(name, path, spec, images)
    assert outcome.status == "finished"
    with TraceReader(path) as trace:
        last, slices = trace.last_tick, [(row.cpu, row.ticks) for row in trace.slices()]
        flags = [e.tick for kind in ("flag-write", "flag-read") for e in trace.events(kind)]
        holds = [e.tick for e in trace.events("stage") if e.text in ("hold", "joins")]
        faults = [e.tick for e in trace.events("exception")][:4]
        events = [e.tick for e in trace.events() if e.kind != "console"]
    chance = random.Random(name)
    ends = [sum(ticks for _, ticks in slices[:n]) for n in range(0, len(slices), 7)]
    wanted = {0, 1, last, last - 1, *chance.sample(events, 20), *chance.sample(ends, 5)}
    wanted |= {tick + chance.choice((-1, 1)) for tick in flags}
    wanted |= {chance.randint(0, last) for _ in range(many)}
    regions = list(regions_of(pool, name, path, [*flags, *faults, min(holds), holds[-1]], last))
    wanted |= {tick for region in regions for tick in (region.begin, region.end)}
    wanted = {tick for tick in wanted if 0 <= tick <= last}
    named = {image.role: (image.name, image.data) for image in images}
    states = straight(prepare(RunSpec.from_json(spec), named), slices, sorted(wanted))
    return Recorded(name, path, last, tuple(sorted(wanted)), states, tuple(regions))


def regions_of(
    pool: SessionPool, name: str, path: Path, ticks: list[int], last: int
) -> Iterator[Region]:
    """Every instruction around some ticks."""
    end = -1
    for tick in sorted(ticks):
        if tick < end:
            continue
        question = {"q": "window", "tick": tick, "before": AROUND, "after": AROUND}
        steps = tuple(pool.query(name, path, question)["steps"])
        begin, end = max(0, tick - AROUND), min(last, tick + AROUND)
        assert [step["tick"] for step in steps] == list(range(begin + 1, end + 1))
        yield Region(begin, end, steps)


def straight(prepared: Any, slices: list[tuple[int, int]], ticks: list[int]) -> dict[int, Json]:
    """The states at some ticks, on the way of one machine that never goes back."""
    run = prepared.start(lambda record: None)
    states, wanted = {}, list(ticks)
    for cpu, length in slices:
        end = run.machine.tick + length
        while wanted and wanted[0] <= end:
            run_slice(run, cpu, wanted[0])
            states[wanted.pop(0)] = run.state()
        run_slice(run, cpu, end)
    assert not wanted
    return states


# --- questions and what must come out -----------------------------------------------------------


def ask_state(pool: SessionPool, run: Recorded, chance: random.Random) -> None:
    tick = chance.choice(run.ticks)
    assert pool.query(run.name, run.path, {"q": "state", "tick": tick}) == run.states[tick]


def ask_window(pool: SessionPool, run: Recorded, chance: random.Random) -> None:
    region = chance.choice(run.regions)
    tick = chance.randint(region.begin, region.end)
    before, after = chance.randint(0, 12), chance.randint(0, 12)
    question = {"q": "window", "tick": tick, "before": before, "after": after}
    lo, hi = max(tick - before, region.begin), min(tick + after, region.end)
    got = [s for s in pool.query(run.name, run.path, question)["steps"] if lo < s["tick"] <= hi]
    assert got == list(region.steps[lo - region.begin : hi - region.begin])


def touched(region: Region, chance: random.Random, kind: str) -> int:
    """A byte that the region touches."""
    rows = [a for step in region.steps for a in step["memory"] if a["kind"] == kind]
    row = chance.choice(rows)
    return int(row["addr"], 16) + chance.randrange(row["size"])


def access_of(kind: str, addr: int) -> Any:
    """What looks up an access of one byte in a step."""

    def wanted(step: Json) -> Json | None:
        for row in reversed(step["memory"]) if kind == "w" else step["memory"]:
            if row["kind"] == kind and 0 <= addr - int(row["addr"], 16) < row["size"]:
                return dict(row)
        return None

    return wanted


def same_access(answer: Json, step: Json, row: Json) -> None:
    """An answer is this access of this step."""
    assert answer["found"], (step, row)
    kept = ("tick", "cpu", "nip", "symbol", "stage")
    assert {name: answer[name] for name in kept} == {name: step[name] for name in kept}
    kept = ("kind", "addr", "size", "value")
    assert {name: answer[name] for name in kept} == {name: row[name] for name in kept}


def ask_last_write(pool: SessionPool, run: Recorded, chance: random.Random) -> None:
    region = chance.choice(run.regions)
    addr, tick = touched(region, chance, "w"), chance.randint(region.begin, region.end)
    answer = pool.query(
        run.name, run.path, {"q": "last-write", "tick": tick, "addr": addr, "size": 1}
    )
    expected = region.last(tick, access_of("w", addr))
    if expected is None:
        assert not answer["found"] or answer["tick"] <= region.begin
    else:
        same_access(answer, *expected)


def ask_next_read(pool: SessionPool, run: Recorded, chance: random.Random) -> None:
    region = chance.choice(run.regions)
    addr, tick = touched(region, chance, "r"), chance.randint(region.begin, region.end)
    answer = pool.query(
        run.name, run.path, {"q": "next-read", "tick": tick, "addr": addr, "size": 1}
    )
    expected = region.first(tick, access_of("r", addr))
    if expected is None:
        assert not answer["found"] or answer["tick"] > region.end
    else:
        same_access(answer, *expected)


def ask_register(pool: SessionPool, run: Recorded, chance: random.Random) -> None:
    region = chance.choice(run.regions)
    cpu = chance.choice([step["cpu"] for step in region.steps])
    tick = chance.randint(region.begin, region.end)
    changed = [r for s in region.steps if s["cpu"] == cpu for r in s["changed"] if r in SEARCHED]
    register = chance.choice(changed or SEARCHED)
    question = {"q": "register-write", "tick": tick, "cpu": cpu, "register": register}
    answer = pool.query(run.name, run.path, question)

    def wanted(step: Json) -> Json | None:
        return step if step["cpu"] == cpu and register in step["changed"] else None

    expected = region.last(tick, wanted)
    if expected is None:
        assert not answer["found"] or answer["tick"] <= region.begin
    else:
        assert answer == {"found": True, "register": register} | expected[0]


def interrupted(step: Json) -> bool:
    """An exception came first: the step names the instruction that took it, and what its handler's
    first one changed.
    """
    return "msr" in step["changed"] and not may_change(int(step["word"], 16), "msr")


def ask_register_read(pool: SessionPool, run: Recorded, chance: random.Random) -> None:
    """Against a walk over the steps; what their words touch is tested by `test_operands`."""
    region = chance.choice(run.regions)
    cpu = chance.choice([step["cpu"] for step in region.steps])
    tick, register = chance.randint(region.begin, region.end), chance.choice(list(PIECES))
    question = {"q": "register-read", "tick": tick, "cpu": cpu, "register": register}
    answer = pool.query(run.name, run.path, question)
    place, live = PIECES[register]
    for step in region.steps:
        if step["cpu"] != cpu or step["tick"] <= tick:
            continue
        masks = masks_of(int(step["word"], 16))
        if interrupted(step):
            assert answer.get("tick", run.last) >= step["tick"] - 1
            return
        if masks[READS] & HYPERCALL and place == GPR_READS and live & 0x1FF8:
            assert answer.get("tick", run.last) >= step["tick"]  # the call tells, not the word
            return
        read, live = masks[place] & live, live & ~masks[place + 1]
        if read or not live:
            assert answer["outcome"] == ("read" if read else "overwritten"), (step, answer)
            assert answer["found"] == bool(read)
            kept = ("tick", "cpu", "nip", "symbol", "stage", "word", "text", "le")
            assert {name: answer[name] for name in kept} == {name: step[name] for name in kept}
            return
    assert answer["outcome"] == "unread" or answer["tick"] > region.end


ASKED = (ask_state, ask_window, ask_last_write, ask_next_read, ask_register, ask_register_read)


def check_regions(run: Recorded) -> None:
    """The lists themselves: what their steps change leads from one straight state to the other."""
    for region in run.regions:
        rows = {row["cpu"]: dict(row["registers"]) for row in run.states[region.begin]["cpus"]}
        for step in region.steps:
            for name, (old, new) in step["changed"].items():
                assert rows[step["cpu"]][name] == old
                if name in SEARCHED and not interrupted(step):
                    assert may_change(int(step["word"], 16), name), step["text"]
                rows[step["cpu"]][name] = new
        for row in run.states[region.end]["cpus"]:
            mine = rows[row["cpu"]] | {"nip": row["registers"]["nip"]}
            assert mine == row["registers"]


def ask_in_any_order(pool: SessionPool, run: Recorded, count: int) -> None:
    """Many questions of all kinds in an order drawn from the run's name."""
    check_regions(run)
    chance = random.Random(f"order of {run.name}")
    for _ in range(count):
        chance.choice(ASKED)(pool, run, chance)


@pytest.fixture(scope="module")
def pool() -> Iterator[SessionPool]:
    with SessionPool() as made:
        yield made


@pytest.mark.parametrize("name", ["kdump-le", "kexec-be"])
def test_samples_in_any_order(pool: SessionPool, tmp_path: Path, name: str) -> None:
    sample = get_sample(name)
    images = [
        ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
        ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
    ]
    run = make(pool, name, tmp_path / "t", sample_spec(sample), images, 30)
    ask_in_any_order(pool, run, 100)
    pool.drop(name)  # from here on a session that replayed the trace
    ask_in_any_order(pool, run, 50)
    pool.drop(name)


@pytest.mark.real
@pytest.mark.parametrize("mode", ["load-panic", "load"])
def test_debian_pair_in_any_order(
    pool: SessionPool, tmp_path: Path, debian_pair: DebianPair, mode: str
) -> None:
    images = [
        ImageFile("kernel", debian_pair.vmlinux.name, debian_pair.vmlinux.read_bytes()),
        ImageFile("purgatory", debian_pair.kexec.name, debian_pair.kexec.read_bytes()),
    ]
    spec = {"mode": mode, "cpus": 4, "debug": True}
    run = make(pool, mode, tmp_path / "t", spec, images, 200)
    ask_in_any_order(pool, run, 300)  # at full length: tests/bench/bench_any_order.py
    pool.drop(mode)
    ask_in_any_order(pool, run, 300)  # at full length: tests/bench/bench_any_order.py
    pool.drop(mode)


@pytest.mark.real
def test_the_hash_mmu_in_any_order(
    pool: SessionPool, tmp_path: Path, debian_pair: DebianPair
) -> None:
    """As far as the first faults on vmemmap and vmalloc, and the hypercalls that they lead to."""
    images = [
        ImageFile("kernel", debian_pair.vmlinux.name, debian_pair.vmlinux.read_bytes()),
        ImageFile("purgatory", debian_pair.kexec.name, debian_pair.kexec.read_bytes()),
    ]
    spec = {
        "mode": "load-panic", "cpus": 2, "checks": False, "append": "disable_radix",
        "until": "do_hash_fault",
    }  # fmt: skip
    run = make(pool, "hash", tmp_path / "t", spec, images, 100)
    ask_in_any_order(pool, run, 100)
    pool.drop("hash")
    ask_in_any_order(pool, run, 100)
    pool.drop("hash")
