"""A user's way to a race: the check's page, a button, progress, the race, its run, the comparison.

On a real server with its worker; the pair is the sample whose flag a secondary writes in time here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from emulator.samples import get_sample
from tests.browser.reader import ARTEFACTS, AXE

pytestmark = pytest.mark.browser


def test_a_race_is_found_from_the_page(url: str, browser: Browser, tmp_path: Path) -> None:
    sample = get_sample("race-be")
    kernel, purgatory = tmp_path / sample.kernel, tmp_path / sample.purgatory
    kernel.write_bytes(sample.kernel_bytes())
    purgatory.write_bytes(sample.purgatory_bytes())
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.goto(f"{url}/")
    page.set_input_files("#fkernel", kernel)
    page.set_input_files("#fpurgatory", purgatory)
    page.check("[name=no-checks]")
    page.fill("[name=cpus]", "2")
    page.click("form.up button")
    page.click("text=why, and all rules", timeout=60_000)

    section = page.locator("#schedules")
    section.locator("[name=schedules]").fill("200")
    section.get_by_role("button", name="schedules").click()
    page.wait_for_url(re.compile(r"/check/#schedules$"))
    status = section.locator("[role=status]")
    expect(status).to_contain_text(re.compile(r"[1-9]\d* of \d+ schedules tried"), timeout=60_000)
    expect(section.locator("progress")).to_be_visible()
    first = status.inner_text()
    expect(status).not_to_have_text(first, timeout=30_000)  # it moves, and nobody reloads
    expect(section.get_by_role("link", name="beside this one")).to_be_visible(timeout=60_000)
    section.locator("#stop-exploring").click()
    expect(status).to_contain_text("1 race found; cancelled.")
    expect(section.locator("#stop-exploring")).to_have_count(0)
    expect(section).to_contain_text("right after CPU 0's 2nd write at 0x38")
    page.evaluate(AXE)
    found = page.evaluate("axe.run().then(r => r.violations.map(v => v.id))")
    assert found == []
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "explored.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1440, "height": 900})

    section.get_by_role("link", name="its run").click()
    expect(page.locator(".verdict")).to_contain_text("!= asked: stay")
    expect(page.locator("#schedules")).to_contain_text("This run was found by exploring")
    page.locator("#schedules").get_by_role("link", name="compare the two").click()
    page.wait_for_url(re.compile(r"/t/[a-z2-7]{26}\.\.[a-z2-7]{26}/$"))
    page.go_back()
    page.locator("#flag-written").wait_for()
    assert complaints == []
