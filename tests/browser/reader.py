"""What the browser tests share: a server with two ended runs, uploads, screenshots, axe-core."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
ARTEFACTS = ROOT / "tests" / "artefacts"
AXE = (ROOT / "tests" / "vendor" / "axe-4.14.1.min.js").read_text()
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
MAIL = "20081013130455.GA1@example.com"


@dataclass
class Site:
    """A server with two ended runs of one pair: as a panic kernel, and not."""

    name: str
    url: str
    stays: str
    moves: str
    token: str
    """Delete token of the run that moves."""
    images: tuple[Path, Path]
    deleted: str = ""
    """A run that its owner has deleted."""

    def tick(self, title: str) -> int:
        """Return the tick of a step in the flag's history of the run that stays."""
        with urllib.request.urlopen(f"{self.url}/t/{self.stays}.txt") as answer:
            text = answer.read().decode()
        found = re.search(rf"{title}.* tick (\d+)\n", text)
        assert found is not None
        return int(found[1])


@contextmanager
def serving(data: Path) -> Iterator[str]:
    """Serve a data directory, worker and sessions included; gives the address, ends it after."""
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data", str(data)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().decode().strip().rstrip("/")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def upload(url: str, kernel: Path, purgatory: Path, mode: str) -> tuple[str, str]:
    fields = ["-F", f"kernel=@{kernel}", "-F", f"purgatory=@{purgatory}", "-F", f"mode={mode}"]
    fields += ["-F", "listed=1", "-F", f"message_id={MAIL}", "-F", f"title=pair, {mode}"]
    done = subprocess.run(
        ["curl", "-sS", *fields, f"{url}/"], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    run_id = lines[0].rstrip("/").rsplit("/", 1)[1]
    deadline = time.monotonic() + 120
    while "state:    finished" not in get(f"{url}/t/{run_id}.txt"):
        assert time.monotonic() < deadline, get(f"{url}/t/{run_id}.txt")
        time.sleep(0.3)
    return run_id, lines[3].split()[-1]


def get(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


def post(url: str, **fields: str) -> None:
    words = [word for name, value in fields.items() for word in ("-F", f"{name}={value}")]
    subprocess.run(["curl", "-sSf", *words, url], capture_output=True, check=True, timeout=60)


def keep(page: Page, site: Site, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{site.name}-{name}.png", full_page=True)


def violations(page: Page) -> list[str]:
    """Run axe-core in the page, as the browser's own script and not the page's."""
    page.evaluate(AXE)
    found = page.evaluate(
        """async () => (await axe.run(document, {runOnly: {type: 'tag', values:
        ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}})).violations"""
    )
    return [
        f"{v['id']}: {v['nodes'][0]['target']} {v['nodes'][0]['failureSummary']}" for v in found
    ]
