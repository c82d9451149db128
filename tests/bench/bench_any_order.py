"""10,000 questions in any order against a straight run, on the Debian pair, 4 CPUs, both ways.

What it is: the test of `tests/replay/test_session.py` at its full length: states, windows and
searches at random ticks, asked of a warm session and of one built from the trace alone, each answer
compared with one machine that never goes back and with lists of single instructions. It stops at
the first difference. What it is not: a measurement; the seconds are printed for the patient.

    bench_any_order.py [QUESTIONS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from app.debian import find_debian_pair
from app.sessions import SessionPool
from emulator.trace import ImageFile
from tests.replay.test_session import ask_in_any_order, make

STATES = 1000
"""Ticks of the straight run at which the whole state is kept to compare with."""


def main(questions: int) -> int:
    """Ask half of the questions of each session: the recording one and a rebuilt one."""
    pair = find_debian_pair()
    if pair is None:
        print("the Debian pair is not in the cache: bootflow fetch-debian")
        return 0
    images = [
        ImageFile("kernel", pair.vmlinux.name, pair.vmlinux.read_bytes()),
        ImageFile("purgatory", pair.kexec.name, pair.kexec.read_bytes()),
    ]
    with tempfile.TemporaryDirectory(prefix="bootflow-") as folder, SessionPool() as pool:
        for mode in ("load-panic", "load"):
            spec = {"mode": mode, "cpus": 4, "debug": True}
            run = make(pool, mode, Path(folder) / mode, spec, images, STATES)
            begin = time.perf_counter()
            for session in ("recorded", "rebuilt"):
                ask_in_any_order(pool, run, questions // 2)
                pool.drop(mode)
                seconds = time.perf_counter() - begin
                print(
                    f"--{mode:11} {session:9} session: {questions // 2} questions,"
                    f" {len(run.states)} states, no difference, {seconds:.0f} s",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
