"""A reader's way through the pages in a real Chromium, with a run that grows while she looks."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from waitress.server import create_server

from app import create_app
from app.index import Index, trace_path
from emulator.trace import ImageFile, TraceWriter
from tests import fabricated

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ARTEFACTS = Path(__file__).parents[1] / "artefacts"


@dataclass
class Server:
    url: str
    index: Index
    go_on: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def record(self, run_id: str) -> None:
        """Stand in for the worker: write half of the trace, wait to be told, write the rest."""
        thread = threading.Thread(target=self._record, args=(run_id,))
        self.threads.append(thread)
        thread.start()

    def _record(self, run_id: str) -> None:
        self.index.set_status(run_id, "running")
        path = trace_path(self.index.data_dir, run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = TraceWriter(path)
        writer.start(fabricated.SPEC, [ImageFile("kernel", "vmlinux", b"k")])
        late = []
        for record in fabricated.records():
            if record.get("tick", 0) + record.get("ticks", 0) < 1416:
                writer.apply(record)
            else:
                late.append(record)
        writer.apply({"t": "progress", "tick": 400_000_000})
        writer.flush()
        self.go_on.wait(30)
        for record in [*late, fabricated.end()]:
            writer.apply(record)
        writer.finish()
        self.index.set_status(run_id, "finished", word="STAYS", ticks=fabricated.LAST_TICK)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server("", Index(tmp_path))

    def query(_run_id: str, question: dict[str, Any]) -> dict[str, Any]:
        return fabricated.answer(question)

    app = create_app({"DATA_DIR": tmp_path, "ENQUEUE": made.record, "QUERY": query})
    http = create_server(app, host="127.0.0.1", port=0)
    thread = threading.Thread(target=http.run)
    thread.start()
    made.url = f"http://127.0.0.1:{http.effective_port}"
    yield made
    made.go_on.set()
    for each in made.threads:
        each.join(30)
    http.close()
    thread.join(10)
    app.extensions["bootflow.index"].close()
    made.index.close()


@pytest.fixture(scope="module")
def browser(chromium_path: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(chromium_path), args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def new_context(server: Server, browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Make contexts that are gone before the server is."""
    made: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        made.append(browser.new_context(**options))
        return made[-1]

    yield make
    for context in made:
        context.close()


def _open(context: BrowserContext, complaints: list[str]) -> Page:
    page = context.new_page()
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


def _upload(page: Page, url: str, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELFkernel")
    (tmp_path / "kexec").write_bytes(b"\x7fELFkexec")
    page.goto(url)
    page.set_input_files("#fkernel", tmp_path / "vmlinux")
    page.set_input_files("#fpurgatory", tmp_path / "kexec")
    page.click("form.up button")


def test_from_upload_to_a_link_that_opens_fresh(
    server: Server, new_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    complaints: list[str] = []
    context = new_context(
        viewport={"width": 1440, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = _open(context, complaints)
    _upload(page, server.url, tmp_path)
    expect(page).to_have_url(re.compile(r"/t/[a-z2-7]{26}/$"))
    expect(page.locator(".verdict .tag")).to_have_text("RUNNING", timeout=10_000)
    expect(page).to_have_title(re.compile("^RUNNING: "))
    expect(page.locator("#ticks")).to_have_text("400,000,000")
    before = page.locator("svg.wide rect.seg").count()
    assert before > 0
    server.go_on.set()
    expect(page.locator(".verdict .tag")).to_have_text("STAYS", timeout=10_000)
    expect(page).to_have_title(re.compile("^STAYS: "))
    expect(page.locator(".keys")).to_contain_text("most telling moment")
    assert page.locator("svg.wide rect.seg").count() > before
    page.wait_for_timeout(1200)
    polls: list[str] = []
    page.on("request", lambda request: polls.append(request.url))
    page.wait_for_timeout(1200)
    assert polls == []  # 286 has ended it

    page.locator(".chain a", has_text="1,508,330,035").click()
    expect(page.locator(".chain .here")).to_contain_text("= the cursor")
    expect(page.locator("#cpu0 pre")).to_contain_text("GPR00:")
    page.keyboard.press("l")
    expect(page).to_have_url(re.compile(r"/1508330036/$"))
    page.keyboard.press("[")
    expect(page).to_have_url(re.compile(r"/1508330035/$"))
    page.click("[data-copy]")
    expect(page.locator("#said")).to_have_text("copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "moment-1440.png", full_page=True)

    fresh = new_context()
    other = _open(fresh, complaints)
    other.goto(link)
    expect(other.locator(".verdict .tag")).to_have_text("STAYS")
    expect(other.locator("#tick")).to_have_value("1508330035")
    assert complaints == []


def test_works_without_javascript(
    server: Server, new_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    server.go_on.set()
    context = new_context(java_script_enabled=False)
    page = context.new_page()
    _upload(page, server.url, tmp_path)
    deadline = time.monotonic() + 15
    while page.locator(".verdict .tag").inner_text() != "STAYS":
        assert time.monotonic() < deadline
        page.wait_for_timeout(300)
        page.reload()
    page.fill("[name=tick]", "1,508,330,035")
    page.locator("form[action$='/go'] button").first.click()
    expect(page).to_have_url(re.compile(r"/1508330035/$"))
    page.click('[aria-label="next event"]')
    expect(page).to_have_url(re.compile(r"/1508330044/$"))
    page.locator("svg.wide a[href]").first.click()
    expect(page).to_have_url(re.compile(r"/t/[a-z2-7]{26}/0/$"))


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    server: Server,
    new_context: Callable[..., BrowserContext],
    tmp_path: Path,
    width: int,
    scheme: Any,
) -> None:
    server.go_on.set()
    context = new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce"
    )
    complaints: list[str] = []
    page = _open(context, complaints)
    _upload(page, server.url, tmp_path)
    expect(page.locator(".verdict .tag")).to_have_text("STAYS", timeout=10_000)
    run = page.url
    for url in (server.url, run, f"{run}1508330035/", f"{run}1508330035/?w=256"):
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, url
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert body == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(16, 19, 23)")
        ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"moment-{width}-{scheme}.png", full_page=True)
    assert complaints == []


def test_a_click_on_the_timeline_goes_to_its_tick(
    server: Server, new_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    server.go_on.set()
    page = new_context(viewport={"width": 1440, "height": 900}).new_page()
    _upload(page, server.url, tmp_path)
    expect(page.locator(".verdict .tag")).to_have_text("STAYS", timeout=10_000)
    block = page.locator("svg.wide rect.seg.sR").first.bounding_box()
    assert block is not None
    page.mouse.click(block["x"] + block["width"] / 2, block["y"] + block["height"] / 2)
    page.wait_for_url(re.compile(r"/t/[a-z2-7]{26}/[0-9]+/$"))
    tick = int(page.url.rstrip("/").rsplit("/", 1)[1])
    assert 1_508_330_104 < tick < 1_509_693_305
    assert abs(tick - (1_508_330_104 + 1_509_693_305) // 2) < 60_000
