"""What a reader sees and when: first paint and layout shift, from Chromium's own trace.

`bootflow serve` on loopback with the Debian pair (the sample where that is not there), its session
warm; a headless Chromium with a fresh, empty profile for every load. Tracing is Chromium's
(`Tracing.start` of its debugging protocol), and every figure is made of its events:

    paint   firstContentfulPaint after navigationStart, ms
    whole   the last largestContentfulPaint::Candidate after navigationStart, ms
    shift   layout shift: the sum of the scores of all LayoutShift events; in a move those count
            too that follow a key at once, which browsers leave out of their figure (CLS)
    move    from the keydown to the first Paint after the new content stands in the page, ms
    jump    px by which a heading that was on the screen stands elsewhere after a move; not from
            the trace: a LayoutShift knows no content put in anew, and a move puts in all of it

Loads and moves of the same page stand below each other: the page before a cursor move, and what the
move does. With --baseline, a checkout of that commit is measured in the same way, in turns with
this one, and stands beside it. Medians; nothing is judged.

    bench_paint.py [--baseline COMMIT] [--rounds N] [--sample]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from app.debian import find_debian_pair
from emulator.samples import SAMPLES

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
CATEGORIES = ["blink.user_timing", "devtools.timeline", "loading"]
WIDTHS = (1440, 390)
HEIGHT = 900
MOVES = (
    ("next instruction", "l"), ("previous event", "H"), ("next touch of the flag", "]"),
    ("follow the flag", "f"), ("zoom in", "+"),
)  # fmt: skip
SETTLED = """() => new Promise((done) => {
  const line = document.querySelector('#line'), main = document.querySelector('#main');
  const told = (why) => { performance.mark('bench-' + why);
    requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))); };
  document.addEventListener('htmx:afterSettle', () => told('swapped'), {once: true});
  new MutationObserver((_, seen) => { seen.disconnect(); told('swapped'); })
    .observe(line, {childList: true});
  window.bench = true;
})"""

TOPS = """() => Object.fromEntries([...document.querySelectorAll('#line, h1, h2')]
  .map((e) => [e.id || e.firstChild.textContent.trim(), e.getBoundingClientRect().top]))"""

Event = Mapping[str, Any]
Figures = dict[str, float]


@dataclass(frozen=True)
class Site:
    """A server of one commit, with an ended run of the pair."""

    name: str
    url: str
    run: str
    flag: int

    @property
    def pages(self) -> dict[str, str]:
        """The pages that are loaded."""
        moment = f"/t/{self.run}/{self.flag}/"
        return {"gallery": "/", "run": f"/t/{self.run}/", "moment": moment}


def get(url: str) -> str:
    """Return a page as text."""
    with urllib.request.urlopen(url, timeout=120) as answer:
        return str(answer.read().decode())


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Unpack a commit of this repository."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", commit], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


@contextmanager
def served(name: str, root: Path, images: tuple[Path, Path]) -> Iterator[Site]:
    """Serve a checkout, with a run of the images in it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data", folder]
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root, env=environment
        ) as server:
            assert server.stdout is not None
            url = server.stdout.readline().decode().strip().rstrip("/")
            try:
                yield recorded(name, url, images)
            finally:
                server.send_signal(signal.SIGINT)
                server.wait(60)


def recorded(name: str, url: str, images: tuple[Path, Path]) -> Site:
    """Upload the images, wait for the run, warm its session."""
    fields = [f"kernel=@{images[0]}", f"purgatory=@{images[1]}", "mode=load-panic", "listed=1"]
    command = ["curl", "-sS", *(word for field in fields for word in ("-F", field)), f"{url}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    run = done.stdout.splitlines()[0].rstrip("/").rsplit("/", 1)[1]
    deadline = time.monotonic() + 300
    while "state:    finished" not in (text := get(f"{url}/t/{run}.txt")):
        if time.monotonic() > deadline:
            raise SystemExit(f"{name}: the run did not end:\n{text}")
        time.sleep(0.3)
    found = re.search(r"written by.* tick (\d+)\n", text)
    if found is None:
        raise SystemExit(f"{name}: nobody wrote the flag:\n{text}")
    site = Site(name, url, run, int(found[1]))
    for path in (*site.pages.values(), f"{site.pages['moment']}?at=0x5c"):
        get(url + path)
    return site


def traced(page: Page, act: Callable[[], None]) -> list[Event]:
    """Do something in a page and return the events of Chromium's trace of it."""
    session: CDPSession = page.context.new_cdp_session(page)
    events: list[Event] = []
    ended: list[bool] = []
    session.on("Tracing.dataCollected", lambda data: events.extend(data["value"]))
    session.on("Tracing.tracingComplete", lambda _: ended.append(True))
    session.send(
        "Tracing.start",
        {"traceConfig": {"includedCategories": CATEGORIES}, "transferMode": "ReportEvents"},
    )
    act()
    session.send("Tracing.end")
    deadline = time.monotonic() + 30
    while not ended and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    session.detach()
    return sorted(events, key=lambda event: event.get("ts", 0))


def named(events: Sequence[Event], name: str) -> list[Event]:
    """Return the events of one name."""
    return [event for event in events if event.get("name") == name]


def shift(events: Sequence[Event]) -> float:
    """Return the sum of all layout shifts, whether they follow an input or not."""
    return sum(float(e["args"]["data"]["score"]) for e in named(events, "LayoutShift"))


def load_figures(events: Sequence[Event], url: str) -> Figures:
    """Return paint, whole and shift of a load.

    Args:
        events: of one trace.
        url: of the page; there are others, such as the empty one before it.
    """
    starts = [
        event
        for event in named(events, "navigationStart")
        if event["args"]["data"].get("documentLoaderURL") == url
    ]
    if not starts:  # the renderer was not traced yet when it set out
        return {"paint": math.nan, "whole": math.nan, "shift": shift(events)}
    frame, start = starts[-1]["args"]["frame"], starts[-1]["ts"]

    def after(name: str) -> list[float]:
        rows = [e for e in named(events, name) if e["args"].get("frame") == frame]
        return [(event["ts"] - start) / 1000 for event in rows if event["ts"] >= start]

    return {
        "paint": (after("firstContentfulPaint") or [math.nan])[0],
        "whole": (after("largestContentfulPaint::Candidate") or [math.nan])[-1],
        "shift": shift(events),
    }


def move_figures(events: Sequence[Event]) -> Figures:
    """Return move and shift of a key."""
    keys = [e for e in named(events, "EventDispatch") if e["args"]["data"]["type"] == "keydown"]
    swaps = named(events, "bench-swapped")
    paints = [e["ts"] for e in named(events, "Paint") if swaps and e["ts"] > swaps[-1]["ts"]]
    moved = (paints[0] - keys[0]["ts"]) / 1000 if keys and paints else math.nan
    return {"move": moved, "shift": shift(events)}


def measure(browser: Browser, site: Site) -> dict[tuple[str, int], Figures]:
    """Load every page and make every move once, at both widths."""
    found: dict[tuple[str, int], Figures] = {}
    for width in WIDTHS:
        for name, path in site.pages.items():
            url = site.url + path
            with fresh(browser, width) as page:
                events = traced(page, lambda page=page, url=url: load(page, url))
                found[name, width] = load_figures(events, url)
        for name, key in MOVES:
            with fresh(browser, width) as page:
                load(page, site.url + site.pages["moment"])
                before = page.evaluate(TOPS)
                figures = move_figures(traced(page, pressed(page, key)))
                after = page.evaluate(TOPS)
                figures["jump"] = jump(before, after)
                found[f"  {name}: {key}", width] = figures
    return found


def jump(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return by how much the heading on the screen moved that moved most."""
    seen = {name: top for name, top in before.items() if 0 < top < HEIGHT and name in after}
    return max((abs(after[name] - top) for name, top in seen.items()), default=math.nan)


@contextmanager
def fresh(browser: Browser, width: int) -> Iterator[Page]:
    """Give a page of a profile that has nothing in its cache."""
    context = browser.new_context(viewport={"width": width, "height": HEIGHT})
    try:
        yield context.new_page()
    finally:
        context.close()


def load(page: Page, url: str) -> None:
    """Open a page and wait until nothing moves any more."""
    page.goto(url, wait_until="load")
    page.wait_for_timeout(400)


def pressed(page: Page, key: str) -> Callable[[], None]:
    """Return what presses a key and waits for what comes of it."""

    def act() -> None:
        page.evaluate(f"() => {{ window.settled = ({SETTLED})(); }}")
        page.wait_for_function("window.bench === true")
        page.keyboard.press(key)
        page.evaluate("() => window.settled")

    return act


def middle(values: Sequence[float]) -> float:
    """Return the median of those that were measured."""
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def text_of(figures: Figures, name: str) -> str:
    """Return one figure as it stands in the table."""
    if math.isnan(figures.get(name, math.nan)):
        return "-"
    return f"{figures[name]:.4f}" if name == "shift" else f"{figures[name]:.0f}"


def table(sites: Sequence[Site], rounds: Mapping[str, list[dict[tuple[str, int], Figures]]]) -> str:
    """Lay the medians out, the baseline beside."""
    names = ("paint", "whole", "move", "shift", "jump")
    head = f"{'':>34}{'':6}" + "".join(f"{site.name:>41} " for site in sites)
    lines = [head.rstrip()]
    columns = "".join(f"{name:>8}" for name in names)
    lines.append(f"{'page or move':<34}{'px':>6}" + f" {columns} " * len(sites))
    for row in rounds[sites[0].name][0]:
        line = f"{row[0]:<34}{row[1]:>6}"
        for site in sites:
            seen = [each[row] for each in rounds[site.name]]
            medians = {name: middle([f[name] for f in seen]) for name in seen[0]}
            line += " " + "".join(f"{text_of(medians, name):>8}" for name in names) + " "
        lines.append(line.rstrip())
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--baseline", metavar="COMMIT", help="measure this commit too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", action="store_true", help="the sample, not the Debian pair")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pair = None if asked.sample else find_debian_pair()
        images = (folder / "vmlinux", folder / "purgatory.ro")
        if pair is not None:
            images = (pair.vmlinux, pair.kexec)
        else:
            images[0].write_bytes(SAMPLES[0].kernel_bytes())
            images[1].write_bytes(SAMPLES[0].purgatory_bytes())
        roots = [("now", ROOT)]
        if asked.baseline:
            roots.insert(0, (asked.baseline[:12], stack.enter_context(checkout(asked.baseline))))
        sites = [stack.enter_context(served(name, root, images)) for name, root in roots]
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=FLAGS
        )
        rounds: dict[str, list[dict[tuple[str, int], Figures]]] = {s.name: [] for s in sites}
        for _ in range(asked.rounds):
            for site in sites:
                rounds[site.name].append(measure(browser, site))
        browser.close()
        what = "the Debian pair" if pair is not None else "the sample pair"
        print(f"{what}, {asked.rounds} rounds, medians; ms, shift as a score")
        print(table(sites, rounds))
    if asked.json:
        rows = {
            name: [{f"{page} {px}": row for (page, px), row in each.items()} for each in found]
            for name, found in rounds.items()
        }
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
