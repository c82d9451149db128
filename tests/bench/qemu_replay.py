"""The same kind of seek with QEMU's record/replay: the yardstick of `bench_seek`.

It boots the same kernel directly on an emulated pseries machine (its firmware first, no purgatory),
records that, and asks for random instruction counts. A snapshot in the recording (`rrsnapshot=`),
from which QEMU's monitor and its debugger's reverse steps would start, cannot be replayed on this
machine type with QEMU 7.2 ("Missing random event in the replay log"); so every seek, also one
backwards, is a replay from the start, in a new process, up to a breakpoint of `replay_break`.
"""

from __future__ import annotations

import random
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

RECORD_SECONDS = 15
SEEKS = 5
_MACHINE = ("-M", "pseries", "-cpu", "power9", "-smp", "1", "-m", "1G", "-display", "none")
_PLAIN = ("-net", "none", "-nodefaults", "-serial", "null")


def seeks(kernel: Path, folder: Path, chance: random.Random) -> list[float] | str:
    """Return the seconds of each seek, or why there are none."""
    qemu = shutil.which("qemu-system-ppc64")
    if qemu is None:
        return "qemu-system-ppc64 is not installed (Debian package qemu-system-ppc)"
    log = folder / "replay.bin"
    command = [qemu, *_MACHINE, *_PLAIN, "-kernel", str(kernel), "-icount"]
    record = [*command, f"shift=1,rr=record,rrfile={log}", "-action", "panic=exit-failure"]
    try:  # it ends where the kernel finds no root file system
        subprocess.run(record, timeout=RECORD_SECONDS, capture_output=True)
    except subprocess.TimeoutExpired:
        return f"the recording was not over in {RECORD_SECONDS} s"
    taken = []
    for _ in range(SEEKS):
        replay = [*command, f"shift=1,rr=replay,rrfile={log}", "-S"]
        seconds = _seek(replay, folder / "monitor", chance.randint(1_000_000, 200_000_000))
        if seconds is None:
            return "the replay did not come to its breakpoint"
        taken.append(seconds)
    return taken


def _seek(command: list[str], at: Path, count: int) -> float | None:
    """Replay to an instruction count and read the registers; the time without QEMU's start."""
    at.unlink(missing_ok=True)
    with subprocess.Popen(
        [*command, "-monitor", f"unix:{at},server,nowait"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            return _monitored(at, count)
        except (OSError, TimeoutError):
            return None
        finally:
            process.kill()


def _monitored(at: Path, count: int) -> float | None:
    deadline = time.monotonic() + 30
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(30)
        while True:
            try:
                monitor.connect(str(at))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        _answer(monitor)
        start = time.perf_counter()
        _command(monitor, f"replay_break {count}")
        _command(monitor, "cont")
        while time.monotonic() < deadline:
            found = re.search(r"instruction count = (\d+)", _command(monitor, "info replay"))
            if found is not None and int(found[1]) == count:
                _command(monitor, "info registers")
                return time.perf_counter() - start
            time.sleep(0.002)
    return None


def _command(monitor: socket.socket, text: str) -> str:
    monitor.sendall(text.encode() + b"\n")
    return _answer(monitor)


def _answer(monitor: socket.socket) -> str:
    """Read up to the next prompt."""
    data = bytearray()
    while not data.endswith(b"(qemu) "):
        piece = monitor.recv(1 << 16)
        if not piece:
            raise OSError("the monitor has closed")
        data += piece
    return data.decode("latin-1")
