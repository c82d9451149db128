"""How long a question to a session takes, on the Debian pair with its digest checked, 4 CPUs.

    seek            1,000 random ticks of a warm session: median <= 20 ms, 99th percentile <= 60 ms
    cold            a session from the trace alone to its first answer: <= 1.5 times the recording
    last writer     of random bytes that the run wrote: 99th percentile <= 250 ms
    next reader     of a random register, within 2 M ticks: 99th percentile <= 250 ms
    low memory      last writer of a byte of 0x0-0x100: <= 20 ms
    timeline        functions of all CPUs in a random window at a random zoom: p99 <= 150 ms
    trace           beside its images: <= 2 MB
    memory          of the session with all its checkpoints (PSS): <= 1.5 GB

Times are those of the asking process, one question after the other; nothing else should run. Then
the same seeks with QEMU's record/replay and its debugger, if qemu-system-ppc64 is there.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.debian import DebianPair, find_debian_pair
from app.moments import FUNCTIONS_WIDTH
from app.sessions import SessionPool
from emulator.operands import PIECES
from emulator.recorder import Recorder, RunSpec, prepare
from emulator.trace import ImageFile, TraceReader
from tests.bench import qemu_replay

SEEKS = 1000
BYTES = 300
NEAR_TICKS = 2_000_000
WINDOWS = 300
SPEC: dict[str, Any] = {"mode": "load-panic", "cpus": 4, "debug": True}


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value that `part` of all do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))]


def row(what: str, figure: str, bar: str, *, met: bool) -> None:
    """Print one line of the table."""
    print(f"{what:44} {figure:>34}   bar {bar:>16}   {'met' if met else 'MISSED'}", flush=True)


def milliseconds(ask: Callable[[Any], object], wanted: Sequence[Any]) -> list[float]:
    """Return how long each question took."""
    taken = []
    for one in wanted:
        start = time.perf_counter()
        ask(one)
        taken.append((time.perf_counter() - start) * 1000)
    return taken


def shown(values: Sequence[float]) -> str:
    """Return median, 99th percentile and maximum."""
    return (
        f"{statistics.median(values):.1f} / {percentile(values, 0.99):.1f} / {max(values):.1f} ms"
    )


def session_pss(pid: int) -> tuple[int, int]:
    """Return the PSS of a session and of everything that it forked, and how many they are."""
    total = count = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            group = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[2])
            if group == pid:
                rollup = (entry / "smaps_rollup").read_text()
                total += int(rollup.split("Pss:")[1].split()[0]) << 10
                count += 1
        except (OSError, IndexError):
            continue
    return total, count


def changed_bytes(images: Sequence[ImageFile]) -> np.ndarray:
    """Return the physical addresses of all bytes that the run changed, by running it here."""
    named = {image.role: (image.name, image.data) for image in images}
    prepared = prepare(RunSpec.from_json(SPEC), named)
    recorder = Recorder(prepared, lambda record: None)
    ram = recorder.run.machine.ram
    before = np.frombuffer(ram, np.uint8).copy()
    recorder.record()
    return np.flatnonzero(before != np.frombuffer(ram, np.uint8))


def measure(pair: DebianPair, folder: Path) -> None:
    """Print the table."""
    images = [
        ImageFile("kernel", pair.vmlinux.name, pair.vmlinux.read_bytes()),
        ImageFile("purgatory", pair.kexec.name, pair.kexec.read_bytes()),
    ]
    chance = random.Random(1)
    trace = folder / "t.bootflow"
    with SessionPool() as pool:
        time.sleep(2.0)  # the spare process has done its imports
        start = time.perf_counter()
        outcome = pool.record("t", trace, SPEC, images)
        recording = time.perf_counter() - start
        print(f"recorded: {outcome.status}, {recording:.2f} s, digest {outcome.digest}")
        with TraceReader(trace) as reader:
            last = reader.last_tick
            packed = sum(len(row[0]) for row in reader._rows("SELECT data FROM image"))
        beside = trace.stat().st_size - packed
        row("trace beside its images", f"{beside / 1e6:.2f} MB", "2 MB", met=beside <= 2e6)

        def seek(tick: int) -> None:
            pool.query("t", trace, {"q": "state", "tick": tick})

        ticks = [chance.randint(0, last) for _ in range(SEEKS)]
        seeks = milliseconds(seek, ticks)
        met = statistics.median(seeks) <= 20 and percentile(seeks, 0.99) <= 60
        row(f"seek, {SEEKS} random ticks (median/p99/max)", shown(seeks), "20 / 60 ms", met=met)
        _writers(pool, trace, images, last, chance)
        _readers(pool, trace, last, chance)
        _timelines(pool, trace, last, chance)
        pss, count = session_pss(pool._live["t"].process.pid)
        row(
            f"memory of the session, {count} processes",
            f"{pss / 1e6:.0f} MB PSS",
            "1500 MB",
            met=pss <= 1.5e9,
        )
        pool.drop("t")
        time.sleep(2.0)
        start = time.perf_counter()
        seek(last // 2)
        first = time.perf_counter() - start
        start = time.perf_counter()
        seek(last)
        whole = first + time.perf_counter() - start
        for what, taken in (("its middle", first), ("its end", whole)):
            row(
                f"cold session to an answer about {what}",
                f"{taken:.2f} s = {taken / recording:.2f} x recording",
                "1.5 x",
                met=taken <= 1.5 * recording,
            )


def compare_with_qemu(pair: DebianPair, folder: Path) -> None:
    """The same kind of seek with QEMU's record/replay, whose recording is eight times shorter."""
    taken = qemu_replay.seeks(pair.vmlinux, folder, random.Random(2))
    if isinstance(taken, str):
        print(f"QEMU record/replay: not measured, {taken}")
        return
    print(
        f"QEMU record/replay, {len(taken)} seeks within its first 200 M instructions, each from"
        f" the start:\n    median {statistics.median(taken) * 1000:.0f} ms,"
        f" max {max(taken) * 1000:.0f} ms, without the start of its process"
    )


def _writers(
    pool: SessionPool, trace: Path, images: Sequence[ImageFile], last: int, chance: random.Random
) -> None:
    """The two rows about last writers."""
    found = 0

    def last_writer(place: tuple[int, int]) -> None:
        nonlocal found
        question = {"q": "last-write", "tick": place[1], "addr": place[0], "size": 1}
        found += pool.query("t", trace, question)["found"]

    changed = changed_bytes(images)
    wanted = [(int(addr), last) for addr in chance.choices(changed, k=BYTES)]
    taken = milliseconds(last_writer, wanted)
    what = f"last writer, {BYTES} of {len(changed) / 1e6:.1f} M bytes changed"
    row(what, shown(taken), "p99 250 ms", met=percentile(taken, 0.99) <= 250)
    print(f"{'':4}found {found} of {BYTES}")
    wanted = [(int(addr), chance.randint(0, last)) for addr in chance.choices(changed, k=BYTES)]
    taken = milliseconds(last_writer, wanted)
    row("... asked at random ticks", shown(taken), "p99 250 ms", met=percentile(taken, 0.99) <= 250)
    wanted = [(addr, chance.randint(0, last)) for addr in range(0x100)]
    taken = milliseconds(last_writer, wanted)
    row("last writer of each byte of 0x0-0x100", shown(taken), "20 ms", met=max(taken) <= 20)


def _readers(pool: SessionPool, trace: Path, last: int, chance: random.Random) -> None:
    """The row about next readers of registers, by how far away they are."""
    far: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(BYTES):
        tick, register = chance.randint(0, last), chance.choice(sorted(PIECES))
        question = {"q": "register-read", "tick": tick, "cpu": 0, "register": register}
        begin = time.perf_counter()
        answer = pool.query("t", trace, question)
        taken = (time.perf_counter() - begin) * 1000
        far[answer.get("tick") is None or answer["tick"] - tick > NEAR_TICKS].append(taken)
    met = percentile(far[False], 0.99) <= 250
    what = f"next reader of a register, {len(far[False])} near"
    row(what, shown(far[False]), "p99 250 ms", met=met)
    print(
        f"{'':4}farther than {NEAR_TICKS / 1e6:.0f} M ticks, {len(far[True])}: {shown(far[True])}"
    )


def _timelines(pool: SessionPool, trace: Path, last: int, chance: random.Random) -> None:
    """The row about timelines: from a hundred ticks to the whole run, each decade as often."""

    def functions(window: tuple[int, int]) -> None:
        question = {"q": "functions", "from": window[0], "to": window[1], "width": FUNCTIONS_WIDTH}
        assert pool.query("t", trace, question)["exact"]

    wanted = []
    for _ in range(WINDOWS):
        width = int(math.exp(chance.uniform(math.log(100), math.log(last))))
        begin = chance.randint(0, last - width)
        wanted.append((begin, begin + width))
    taken = milliseconds(functions, wanted)
    met = percentile(taken, 0.99) <= 150
    row(f"timeline, {WINDOWS} windows (median/p99/max)", shown(taken), "p99 150 ms", met=met)
    taken = milliseconds(functions, [(0, last)] * 20)
    row("... of the whole run", shown(taken), "150 ms", met=max(taken) <= 150)


def main() -> int:
    """Measure, if the pair is there."""
    pair = find_debian_pair()
    if pair is None:
        print("the Debian pair is not in the cache: bootflow fetch-debian")
        return 0
    with tempfile.TemporaryDirectory(prefix="bootflow-") as folder:
        measure(pair, Path(folder))
        compare_with_qemu(pair, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
