"""Readers: one alone on a warm session, 200 who page through one run, 50 through ten runs.

Measured on loopback against `bootflow serve`; times are from the request to the last byte, bytes
those of the compressed body. The reader alone opens moments that nobody has seen yet, and after
each steps to its neighbour, as htmx asks for it; the bars are those of the page: a first view in
150 ms and 100 kB, a move of the cursor in 100 ms and 30 kB.

Of the many, every one keeps a connection, opens a random moment (HTML, gzip, no browser cache),
reads it for 0.5 to 1.5 seconds, and turns the page; every fifth page is a step to the neighbour, as
a fragment. What is printed: pages, pages a second, median and 99th percentile, errors (any status
but 200), the largest memory of server, worker and sessions together (proportional set size, looked
at every ten seconds: it costs 2 ms a process), and the load that the machine had before.

    bench_readers.py [SECONDS] [sample | debian]
"""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from app.debian import find_debian_pair
from emulator.samples import SAMPLES

ROOT = Path(__file__).parents[2]
FRAGMENT = {"HX-Request": "true", "HX-Boosted": "true"}
ALONE_PAGES = 200
MEMORY_SECONDS = 10.0


@dataclass
class Tally:
    """What the readers saw."""

    times: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float, status: int, size: int) -> None:
        with self.lock:
            self.times.append(seconds)
            self.bytes += size
            if status != 200:
                self.errors[str(status)] = self.errors.get(str(status), 0) + 1

    def fail(self, error: Exception) -> None:
        with self.lock:
            name = type(error).__name__
            self.errors[name] = self.errors.get(name, 0) + 1


def reader(port: int, runs: list[tuple[str, int]], until: float, seed: int, tally: Tally) -> None:
    """Read pages until the minute is over."""
    pick = random.Random(seed)
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    run_id, last = pick.choice(runs)
    tick = pick.randrange(last)
    time.sleep(pick.uniform(0, 1.5))
    while time.monotonic() < until:
        headers = {"Accept-Encoding": "gzip"}
        if pick.random() < 0.2:
            tick = min(tick + 1, last)
            headers |= FRAGMENT
        else:
            run_id, last = pick.choice(runs)
            tick = pick.randrange(last)
        begin = time.monotonic()
        try:
            link.request("GET", f"/t/{run_id}/{tick}/", headers=headers)
            answer = link.getresponse()
            size = len(answer.read())
        except OSError as error:
            tally.fail(error)
            link.close()
            continue
        tally.add(time.monotonic() - begin, answer.status, size)
        time.sleep(pick.uniform(0.5, 1.5))
    link.close()


def memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process and all below it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        todo += parents.get(one, [])
        try:
            found = re.search(
                r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.M
            )
            total += int(found[1]) << 10 if found else 0
        except OSError:
            continue
    return total


def upload(url: str, kernel: Path, purgatory: Path, mode: str, seed: int) -> tuple[str, int]:
    """Record a run; return its id and last tick."""
    form = ["-F", f"kernel=@{kernel}", "-F", f"purgatory=@{purgatory}", "-F", f"mode={mode}"]
    command = ["curl", "-sS", *form, "-F", f"seed={seed}", f"{url}/"]
    link = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    run_id = link.rstrip("/").rsplit("/", 1)[1]
    while True:
        with urllib.request.urlopen(f"{url}/t/{run_id}.txt") as answer:
            text = answer.read().decode()
        found = re.search(r"^ticks: +(\d+)$", text, re.M)
        if found and "state:    finished" in text:
            return run_id, int(found[1])
        time.sleep(0.3)


def at(values: list[float], share: float) -> float:
    """Return the value below which a share of them lies."""
    ranked = sorted(values)
    return ranked[min(int(len(ranked) * share), len(ranked) - 1)]


def measure_alone(name: str, url: str, run: tuple[str, int], pages: int) -> None:
    """Let one reader open moments of a warm session, and step from each to the next."""
    run_id, last = run
    pick = random.Random(0)
    link = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1]), timeout=120)
    kinds: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(pages):
        tick = pick.randrange(last)
        for kind, more, shown in (
            ("first view (bar 150 ms, 100 kB)", {}, tick),
            ("cursor move (bar 100 ms, 30 kB)", FRAGMENT, tick + 1),
        ):
            begin = time.monotonic()
            link.request("GET", f"/t/{run_id}/{shown}/", headers={"Accept-Encoding": "gzip"} | more)
            answer = link.getresponse()
            size = len(answer.read())
            assert answer.status == 200, answer.status
            times, sizes = kinds.setdefault(kind, ([], []))
            times.append((time.monotonic() - begin) * 1000)
            sizes.append(size / 1000)
    link.close()
    for kind, (times, sizes) in kinds.items():
        print(
            f"{name}, {kind}: median {at(times, 0.5):.0f} ms  p99 {at(times, 0.99):.0f} ms"
            f"  largest {max(times):.0f} ms  {at(sizes, 0.5):.1f} kB, at most {max(sizes):.1f} kB"
        )


def measure(
    name: str, url: str, runs: list[tuple[str, int]], readers: int, seconds: float, pid: int
) -> None:
    """Let the readers loose and print what they saw."""
    for run_id, last in runs:  # the first question to a run replays it
        urllib.request.urlopen(f"{url}/t/{run_id}/{last // 2}/").read()
    port, tally = int(url.rsplit(":", 1)[1]), Tally()
    begin = time.monotonic()
    until = begin + seconds
    threads = [
        threading.Thread(target=reader, args=(port, runs, until, seed, tally))
        for seed in range(readers)
    ]
    for thread in threads:
        thread.start()
    most, look_at = 0, 0.0
    while any(thread.is_alive() for thread in threads):
        if time.monotonic() >= look_at:
            most = max(most, memory_bytes(pid))
            look_at = time.monotonic() + MEMORY_SECONDS
        time.sleep(0.2)
    lasted, times = time.monotonic() - begin, tally.times
    print(
        f"{name:28} {len(times):6} pages {len(times) / lasted:6.1f}/s"
        f"  median {at(times, 0.5) * 1000:6.0f} ms"
        f"  p99 {at(times, 0.99) * 1000:6.0f} ms  largest {max(times) * 1000:6.0f} ms"
        f"  {tally.bytes / max(len(times), 1) / 1000:5.1f} kB a page"
        f"  errors {tally.errors or 'none'}"
        f"  memory {most / 2**20:,.0f} MiB"
    )  # fmt: skip


def main() -> None:
    """Start a server, record ten runs, let readers read."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    wish = sys.argv[2] if len(sys.argv) > 2 else "debian"
    pair = find_debian_pair() if wish == "debian" else None
    with tempfile.TemporaryDirectory() as folder:
        kernel, purgatory = Path(folder) / "vmlinux", Path(folder) / "purgatory.ro"
        kernel.write_bytes(SAMPLES[0].kernel_bytes())
        purgatory.write_bytes(SAMPLES[0].purgatory_bytes())
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
        command += ["--data", f"{folder}/data"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT
        ) as server:
            assert server.stdout is not None
            url = server.stdout.readline().decode().strip().rstrip("/")
            try:
                files = (pair.vmlinux, pair.kexec) if pair else (kernel, purgatory)
                one = upload(url, *files, "load-panic", 0)
                which = "the Debian pair" if pair else "a sample pair"
                urllib.request.urlopen(f"{url}/t/{one[0]}/{one[1]}/").read()
                time.sleep(5)  # the census of a session that has just ended its recording
                print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
                measure_alone(f"one reader, {which}", url, one, ALONE_PAGES)
                measure(f"200 readers, {which}", url, [one], 200, seconds, server.pid)
                modes = [("load-panic", "load")[i % 2] for i in range(10)]
                ten = [upload(url, kernel, purgatory, m, i + 1) for i, m in enumerate(modes)]
                measure("50 readers, ten sample runs", url, ten, 50, seconds, server.pid)
            finally:
                server.send_signal(signal.SIGINT)
                server.wait(60)


if __name__ == "__main__":
    main()
