"""A user's way through a real server: `bootflow serve`, its worker, its sandboxed sessions.

Once with a sample pair (always there), once with Debian's (`-m real`, about 1.6 thousand million
instructions, so that there is time to see the lanes move).
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from app.debian import DebianPair
from emulator.samples import SAMPLES
from tests.browser.reader import ARTEFACTS

pytestmark = pytest.mark.browser


def _upload(page: Page, url: str, kernel: Path, purgatory: Path, mode: str) -> None:
    page.goto(f"{url}/")
    page.set_input_files("#fkernel", kernel)
    page.set_input_files("#fpurgatory", purgatory)
    page.check(f"[name=mode][value={mode}]")
    page.click("form.up button")
    page.wait_for_url(re.compile(r"/t/[a-z2-7]{26}/$"))


def _walk(browser: Browser, page: Page, complaints: list[str], name: str) -> None:
    """From the finished run to its flag's write, along the keys, to the copied link."""
    page.locator(".chain li", has_text="written by").locator("a").click()
    expect(page.locator(".chain .here")).to_contain_text("= the cursor")
    expect(page.locator("#cpu0 pre")).to_contain_text("GPR00:")
    expect(page.locator(".low .fl").first).to_be_visible()
    tick = int(page.url.rstrip("/").rsplit("/", 1)[1])
    expect(page.locator(".asm .ran").first).to_contain_text("stw")  # it has just run
    page.keyboard.press("h")
    page.wait_for_url(re.compile(rf"/{tick - 1}/$"))
    expect(page.locator(".asm .ran").first).not_to_contain_text("stw")
    page.keyboard.press("l")
    page.wait_for_url(re.compile(rf"/{tick}/$"))
    page.click("[data-copy]")
    expect(page.locator("#said")).to_have_text("copied")
    link = page.evaluate("navigator.clipboard.readText()")
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)

    fresh = browser.new_context()
    other = fresh.new_page()
    other.goto(link)
    assert other.locator("#tick").input_value() == str(tick)
    assert other.locator(".verdict").inner_text() == page.locator(".verdict").inner_text()
    assert other.locator("#cpu0 pre").inner_text() == page.locator("#cpu0 pre").inner_text()
    fresh.close()
    assert complaints == []


def _watch(page: Page) -> list[tuple[str, int]]:
    """(verdict, segments of the timeline) of a live page, again and again to its end."""
    look = """() => [document.querySelector(".verdict .tag")?.innerText ?? "",
        document.querySelectorAll("svg.wide rect.seg").length]"""
    seen: list[tuple[str, int]] = []
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        tag, segments = page.evaluate(look)
        seen.append((str(tag), int(segments)))
        if tag not in ("", "RUNNING", "WAITS", "QUEUED"):
            page.wait_for_timeout(1500)  # the last picture follows the verdict
            seen.append(tuple(page.evaluate(look)))
            break
        page.wait_for_timeout(40)
    return seen


def _page(browser: Browser, complaints: list[str]) -> Page:
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


@pytest.mark.parametrize(("mode", "word"), [("load-panic", "STAYS"), ("load", "MOVES")])
def test_sample_pair(url: str, browser: Browser, tmp_path: Path, mode: str, word: str) -> None:
    complaints: list[str] = []
    page = _page(browser, complaints)
    (tmp_path / "vmlinux").write_bytes(SAMPLES[0].kernel_bytes())
    (tmp_path / "purgatory.ro").write_bytes(SAMPLES[0].purgatory_bytes())
    _upload(page, url, tmp_path / "vmlinux", tmp_path / "purgatory.ro", mode)
    expect(page.locator(".verdict .tag")).to_have_text(word, timeout=60_000)
    expect(page.locator("pre.con")).to_contain_text("Linux version")
    _walk(browser, page, complaints, f"sample-{mode}")
    page.context.close()


def test_what_is_no_kernel_is_refused_with_a_reason(
    url: str, browser: Browser, tmp_path: Path
) -> None:
    page = _page(browser, [])
    (tmp_path / "vmlinux").write_bytes(b"this is no kernel")
    (tmp_path / "purgatory.ro").write_bytes(b"nor is this a purgatory")
    _upload(page, url, tmp_path / "vmlinux", tmp_path / "purgatory.ro", "load")
    expect(page.locator(".verdict .tag")).to_have_text("FAILED", timeout=60_000)
    expect(page.locator(".verdict")).to_contain_text("vmlinux")
    page.context.close()


@pytest.mark.real
def test_debian_pair(url: str, browser: Browser, debian_pair: DebianPair) -> None:
    complaints: list[str] = []
    page = _page(browser, complaints)
    for _ in range(3):  # the page asks twice a second, and the whole run takes two
        _upload(page, url, debian_pair.vmlinux, debian_pair.kexec, "load-panic")
        seen = _watch(page)
        running = [segments for tag, segments in seen if tag == "RUNNING" and segments]
        if running:
            break
    assert running, sorted(set(seen))  # the lanes are there before the run has ended
    assert seen[-1][0] == "STAYS"
    assert seen[-1][1] > running[0]  # and have grown without a reload
    expect(page.locator("svg.wide rect.seg.sJ")).to_have_count(3)
    _walk(browser, page, complaints, "debian-load-panic")
    page.context.close()
