"""What recording costs: the crash kernel's hand-off, digest checked, four ways, interleaved.

- bare: Unicorn alone, boot CPU only, to smp_release_cpus: no block hook, no watch, no checkpoint.
- recorder: all that a trace needs, in this process, its records thrown away.
- record: the whole pipeline into a trace file: sandboxed session with its checkpoints, writer.
- with start-up: the same, and the session process is started for it (the worker keeps a spare).

Prints the median seconds of each and the ratio to bare. Run: make bench
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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


def record(pool: SessionPool, path: Path, images: list[ImageFile]) -> None:
    """Record into a trace file."""
    path.unlink(missing_ok=True)
    outcome = pool.record("run", path, SPEC, images)
    pool.drop("run")
    assert outcome.status == "finished", outcome


def with_start(path: Path, images: list[ImageFile]) -> None:
    """Record into a trace file with a process that is started for it."""
    with SessionPool(keep_spare=False) as pool:
        record(pool, path, images)


def timed(function: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


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
    with tempfile.TemporaryDirectory() as folder, SessionPool() as pool:
        pool.record("warm", Path(folder) / "warm", {"mode": "load-panic"}, small)
        path = Path(folder) / "run"
        ways: dict[str, Callable[[], None]] = {
            "bare": lambda: bare(prepared),
            "recorder": lambda: recorder(prepared),
            "record": lambda: record(pool, path, images),
            "with start-up": lambda: with_start(path, images),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                seconds[name].append(timed(way))
    base = statistics.median(seconds["bare"])
    print(f"{'way':14} {'median s':>9} {'min s':>7} {'max s':>7} {'ratio':>6}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:14} {middle:9.2f} {min(values):7.2f} {max(values):7.2f} {middle / base:6.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
