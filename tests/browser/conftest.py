"""A real server with its worker and its sandboxed sessions, and pages whose console stays empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from emulator.samples import SAMPLES
from tests.browser.reader import FLAGS, Site, post, serving, upload

expect.set_options(timeout=20_000)
"""A busy machine answers late; what never comes fails all the same."""


@pytest.fixture(scope="module", params=["sample", pytest.param("debian", marks=pytest.mark.real)])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    data = tmp_path_factory.mktemp(str(request.param))
    if request.param == "debian":
        pair = request.getfixturevalue("debian_pair")
        kernel, purgatory = pair.vmlinux, pair.kexec
    else:
        kernel, purgatory = data / "vmlinux", data / "purgatory.ro"
        kernel.write_bytes(SAMPLES[0].kernel_bytes())
        purgatory.write_bytes(SAMPLES[0].purgatory_bytes())
    with serving(data / "d") as url:
        stays, _ = upload(url, kernel, purgatory, "load-panic")
        moves, token = upload(url, kernel, purgatory, "load")
        gone, its_token = upload(url, kernel, purgatory, "load")
        post(f"{url}/t/{gone}/delete", token=its_token)
        post(f"{url}/t/{moves}/story/", token=token, tick="1", text="the first instruction")
        yield Site(str(request.param), url, stays, moves, token, (kernel, purgatory), gone)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without any run."""
    with serving(tmp_path_factory.mktemp("data")) as address:
        yield address


@pytest.fixture(scope="module")
def browser(chromium_path: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(chromium_path), args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Make pages whose console must stay empty of errors; bypasses no policy.

    With `status=404` it may say that a page of this status could not be loaded, and nothing else.
    """
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def make(status: int = 0, **options: Any) -> Page:
        def hear(text: str) -> None:
            if not status or f"responded with a status of {status}" not in text:
                complaints.append(text)

        options = {"viewport": {"width": 1440, "height": 900}, **options}
        contexts.append(
            browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda m: hear(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []
