"""What recording costs: the crash kernel's hand-off, digest checked, four ways, interleaved.

- bare: Unicorn alone, boot CPU only, to smp_release_cpus: no block hook, no watch, no checkpoint.
- recorder: all that a trace needs, in this process, its records thrown away.
- record: the whole pipeline into a trace file: sandboxed session, writer, digest.
- worker: the same, but the session forks a checkpoint every 10 ms of work, to be asked at once.
- with start-up: the same, and the session process is started for it (the worker keeps a spare).

Prints the median seconds of each and the ratio to bare: by the clock, and of CPU time, which other
work on the machine disturbs less. CPU time is that of the session and of the process that writes;
what a spare costs to start is in neither but "with start-up". Run: make bench
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.cli import RECORD_CHECKPOINT_SECONDS
from app.debian import find_debian_pair
from app.sessions import SessionPool
from emulator.recorder import Prepared, Recorder, RunSpec, prepare
from emulator.samples import SAMPLES
from emulator.trace import ImageFile

SPEC = {"mode": "load-panic", "cpus": 4, "debug": True}
LINEAR = 0xC000000000000000
LOCAL_ENTRY = 8
"""An ELFv2 function is called by its local entry within the kernel: past two words for the TOC."""


def bare(prepared: Prepared) -> None:
    """Run to the place where the hand-off of a recording is all but complete."""
    placement, kernel = prepared.placement, prepared.kernel
    run = prepared.start(lambda record: None, counting=False)
    offset = kernel.symbols.get("smp_release_cpus") + LOCAL_ENTRY - kernel.link_vaddr
    end = LINEAR | (placement.kernel_addr + offset)
    stop = run.machine.run_bare(placement.boot_cpu, end)
    assert stop.why == "limit", stop


def recorder(prepared: Prepared) -> None:
    """Record without a file and without a session."""
    end = Recorder(prepared, lambda record: None).record()
    assert end["reason"] == "complete", end


def record(pool: SessionPool, path: Path, images: list[ImageFile]) -> float:
    """Record into a trace file; returns the CPU seconds of the session."""
    path.unlink(missing_ok=True)
    spare = pool.start_spare()
    assert spare is not None
    before = cpu_seconds(spare.pid)
    outcome = pool.record("run", path, SPEC, images)
    assert outcome.status == "finished", outcome
    assert pool._pids() == [spare.pid]
    after = cpu_seconds(spare.pid)
    pool.drop("run")
    return after - before


def with_start(path: Path, images: list[ImageFile]) -> float:
    """Record into a trace file with a process that is started for it."""
    with SessionPool(keep_spare=False, checkpoint_seconds=RECORD_CHECKPOINT_SECONDS) as pool:
        spare = pool._spare
        assert spare is not None
        begin = cpu_seconds(spare.pid)
        return record(pool, path, images) + begin


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def timed(function: Callable[[], float | None]) -> tuple[float, float]:
    """Return the seconds that a call takes, and the CPU seconds."""
    begin, cpu = time.perf_counter(), time.process_time()
    others = function() or 0.0
    return time.perf_counter() - begin, time.process_time() - cpu + others


def main(repeats: int) -> None:
    """Measure and print."""
    pair = find_debian_pair()
    if pair is None:
        sys.exit("the Debian pair is not in the cache (bootflow fetch-debian)")
    images = [
        ImageFile("kernel", "vmlinux", pair.vmlinux.read_bytes()),
        ImageFile("purgatory", "kexec", pair.kexec.read_bytes()),
    ]
    named = {image.role: (image.name, image.data) for image in images}
    prepared = prepare(RunSpec.from_json(SPEC), named)
    sample = SAMPLES[0]
    small = [
        ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
        ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
    ]
    apart = RECORD_CHECKPOINT_SECONDS
    with (
        tempfile.TemporaryDirectory() as folder,
        SessionPool(checkpoint_seconds=apart) as pool,
        SessionPool() as workers,
    ):
        pool.record("warm", Path(folder) / "warm", {"mode": "load-panic"}, small)
        pool.drop("warm")
        path = Path(folder) / "run"
        ways: dict[str, Callable[[], float | None]] = {
            "bare": lambda: bare(prepared),
            "recorder": lambda: recorder(prepared),
            "record": lambda: record(pool, path, images),
            "worker": lambda: record(workers, path, images),
            "with start-up": lambda: with_start(path, images),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                for one in (pool, workers):  # each has one ready, long before the next upload
                    spare = one.start_spare()
                    assert spare is not None
                    spare.await_ready(60.0)
                seconds[name].append(timed(way))
    print(f"{'way':14} {'clock s':>8} {'min':>6} {'max':>6} {'ratio':>6} {'CPU s':>7} {'ratio':>6}")
    base = [statistics.median(column) for column in zip(*seconds["bare"], strict=True)]
    for name, rows in seconds.items():
        clock, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        low, high = min(rows)[0], max(rows)[0]
        print(
            f"{name:14} {clock:8.2f} {low:6.2f} {high:6.2f} {clock / base[0]:6.2f}"
            f" {cpu:7.2f} {cpu / base[1]:6.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
