"""Every flow of a reader, on a real server with its worker and its sandboxed sessions.

Once on a sample pair (always there), once on Debian's (`-m real`): gallery, run, moment, scrubbing,
zoom and pan, following a byte, search, comparison, twins, the file to keep, the embed view, what an
owner may do. axe-core finds no violation, the console has no error, screenshots are kept.
"""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.reader import ARTEFACTS, MAIL, Site, get, keep, violations

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]
)
def test_no_violation_of_the_access_rules(
    site: Site, new_page: Callable[..., Page], width: int, scheme: Any
) -> None:
    page = new_page(
        status=4, viewport={"width": width, "height": 844}, color_scheme=scheme,
        reduced_motion="reduce",
    )  # fmt: skip
    flag = site.tick("written by")
    moment = f"/t/{site.stays}/{flag}/"
    paths = {
        "gallery": "/", "help": "/help/", "run": f"/t/{site.stays}/", "moment": f"{moment}?at=0x5c",
        "zoomed": f"{moment}?w=256", "search": f"/t/{site.stays}/search?q=flag-read",
        "compare": f"/t/{site.moves}..{site.stays}/", "check": f"/t/{site.stays}/check/",
        "story": f"/t/{site.moves}/story/", "note": f"/t/{site.moves}/story/1/",
        "embed": f"{moment}embed", "wait": f"/t/{site.deleted}/",
        "error": f"/t/{site.stays}/9999999999999/",
    }  # fmt: skip
    problems = {}
    for name, path in paths.items():
        answer = page.goto(site.url + path)
        assert answer is not None
        assert answer.status == {"wait": 410, "error": 404}.get(name, 200), name
        policy = answer.headers["content-security-policy"]
        assert "default-src" in policy
        assert "unsafe" not in policy
        problems[name] = violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        keep(page, site, f"{name}-{width}-{scheme}")
    page.goto(f"{site.url}{moment}")
    page.keyboard.press("?")
    problems["dialog"] = violations(page)
    assert {name: found for name, found in problems.items() if found} == {}


def test_scrubbing_by_keys(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    flag = site.tick("written by")
    page.goto(f"{site.url}/t/{site.stays}/{flag}/")
    bytes_seen: list[int] = []
    page.on(
        "response",
        lambda r: bytes_seen.append(int(r.headers.get("content-length", "0")))
        if "hx-request" in r.request.headers else None,
    )  # fmt: skip
    expect(page.locator("#asm0 .ran")).to_contain_text("flag")
    page.keyboard.press("h")
    expect(page).to_have_url(re.compile(rf"/{flag - 1}/$"))
    expect(page.locator("#say")).to_contain_text(f"tick {flag - 1:,}")
    assert f"{flag - 1:,}" in page.title()
    for _ in range(9):
        page.keyboard.press("l")
    expect(page).to_have_url(re.compile(rf"/{flag + 8}/$"))
    page.keyboard.press("[")
    expect(page).to_have_url(re.compile(rf"/{flag}/$"))
    page.keyboard.press("]")
    expect(page).to_have_url(re.compile(r"/[0-9]+/$"))
    expect(page.locator(".chain .here")).to_contain_text("read by")
    read = page.url
    page.keyboard.press("L")
    expect(page).not_to_have_url(read)
    page.go_back()
    expect(page).to_have_url(read)
    page.go_back()
    expect(page).to_have_url(re.compile(rf"/{flag}/$"))
    expect(page.locator("#tick")).to_have_value(str(flag))
    page.keyboard.press("2")
    expect(page.locator("#cpu1")).to_have_attribute("open", "")
    page.keyboard.press("g")
    page.keyboard.type("0")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/0/$"))
    assert bytes_seen
    assert max(bytes_seen) <= 30_000


def test_keys_can_be_turned_off(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/5/")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.uncheck("#keys-on")
    page.keyboard.press("Escape")
    page.keyboard.press("l")
    page.wait_for_timeout(300)
    assert page.url.endswith("/5/")


def _axis(page: Page) -> tuple[int, int]:
    corners = str(page.locator("svg.wide[data-axis]").get_attribute("data-axis")).split()
    return int(corners[0].split(":")[1]), int(corners[-1].split(":")[1])


def _zoomed(page: Page, was: tuple[int, int]) -> tuple[int, int]:
    page.wait_for_function(
        """(was) => { const c = document.querySelector('svg.wide[data-axis]').dataset.axis.trim()
        .split(' '); return c[0].split(':')[1] + ' ' + c[c.length - 1].split(':')[1] !== was; }""",
        arg=f"{was[0]} {was[1]}",
    )
    return _axis(page)


def test_zoom_and_pan_by_wheel_drag_and_keys(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    flag = site.tick("written by")
    page.goto(f"{site.url}/t/{site.stays}/{flag}/")
    whole = _axis(page)
    box = page.locator("svg.wide .cur").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"], box["y"] + 30)
    seen = whole
    for _ in range(12):
        page.mouse.wheel(0, -120)
        seen = _zoomed(page, seen)
        assert seen[0] <= flag <= seen[1]
        if seen[1] - seen[0] < (whole[1] - whole[0]) // 10_000:
            break  # the flag is written between two folded loops: few steps lead there
    assert seen[1] - seen[0] < (whole[1] - whole[0]) // 1000
    assert f"from={seen[0]}&to={seen[1]}" in page.url
    assert page.locator("svg.wide rect.win").count() == 1  # the minimap says where this is
    assert page.locator("svg.wide *").count() <= 2 * 2000
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 30, steps=4)
    page.mouse.up()
    dragged = _zoomed(page, seen)
    assert dragged[0] < seen[0]
    assert page.url.split("?")[0].endswith(f"/{flag}/")  # a drag is no click
    page.keyboard.press("ArrowRight")
    panned = _zoomed(page, dragged)
    assert panned[0] > dragged[0]
    page.keyboard.press("-")
    wider = _zoomed(page, panned)
    assert wider[1] - wider[0] > panned[1] - panned[0]
    keep(page, site, "wheel")
    page.reload()
    assert _axis(page) == wider  # the address bar is the link of what is seen
    link = page.locator(".chain a").last
    assert "from=" in str(link.get_attribute("href"))
    page.keyboard.press("0")
    assert _zoomed(page, wider) == whole
    assert "from=" not in page.url


def _touch(page: Page) -> Callable[[str, list[tuple[float, float]]], None]:
    """Return what puts fingers on the screen, moves them and lifts them, as Chromium does."""
    session = page.context.new_cdp_session(page)

    def send(kind: str, points: list[tuple[float, float]]) -> None:
        fingers = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    return send


@pytest.mark.parametrize("width", [390, 1440])
def test_two_fingers_zoom_and_one_pans(
    site: Site, new_page: Callable[..., Page], width: int
) -> None:
    page = new_page(viewport={"width": width, "height": 844}, has_touch=True, is_mobile=width < 500)
    flag = site.tick("written by")
    page.goto(f"{site.url}/t/{site.stays}/{flag}/")
    drawing = page.locator(f"svg.{'narrow' if width < 500 else 'wide'}[data-axis]")
    drawing.scroll_into_view_if_needed()
    cursor = drawing.locator(".cur").first.bounding_box()
    box = drawing.bounding_box()
    assert cursor is not None
    assert box is not None
    x, y = cursor["x"], box["y"] + 40
    touch, whole = _touch(page), _axis(page)

    touch("touchStart", [(x - 20, y), (x + 20, y)])
    for spread in range(20, 65, 5):
        touch("touchMove", [(x - spread, y), (x + spread, y)])
        page.wait_for_timeout(40)
    _zoomed(page, whole)  # while the fingers are still down
    touch("touchEnd", [])
    page.wait_for_timeout(600)
    zoomed = _axis(page)
    assert zoomed[1] - zoomed[0] < whole[1] - whole[0]
    assert zoomed[0] <= flag <= zoomed[1]  # what was between the fingers stayed there
    assert f"from={zoomed[0]}&to={zoomed[1]}" in page.url
    assert page.evaluate("visualViewport.scale") == 1  # the drawing zooms, not the page

    touch("touchStart", [(x, y)])
    for far in range(0, 100, 10):
        touch("touchMove", [(x + far, y)])
        page.wait_for_timeout(40)
    touch("touchEnd", [])
    panned = _zoomed(page, zoomed)
    page.wait_for_timeout(600)
    panned = _axis(page)
    assert panned[0] < zoomed[0]
    assert page.url.split("?")[0].endswith(f"/{flag}/")  # a drag is no click

    touch("touchStart", [(x - 60, y), (x + 60, y)])
    for spread in range(60, 15, -5):
        touch("touchMove", [(x - spread, y), (x + spread, y)])
        page.wait_for_timeout(40)
    touch("touchEnd", [])
    page.wait_for_timeout(600)
    wider = _axis(page)
    assert wider[1] - wider[0] > panned[1] - panned[0]
    keep(page, site, f"pinch-{width}")

    before = page.evaluate("scrollY")
    touch("touchStart", [(x, y)])
    for far in range(0, 200, 20):
        touch("touchMove", [(x, y - far)])
        page.wait_for_timeout(20)
    touch("touchEnd", [])
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") > before  # up and down still scroll the page
    assert _axis(page) == wider
    page.goto(f"{site.url}/t/{site.stays}/{flag}/")
    drawing.scroll_into_view_if_needed()
    drawing.locator(".seg.sR").first.tap()
    expect(page).not_to_have_url(re.compile(rf"/{flag}/"))  # a tap is a click


def test_zoom_without_scripts(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page(java_script_enabled=False)
    flag = site.tick("written by")
    page.goto(f"{site.url}/t/{site.stays}/{flag}/")
    for name in ("in", "in", "earlier", "out", "4,096", "whole run"):
        before = page.url
        page.locator(".nav").get_by_text(name, exact=True).click()
        assert page.url != before, name
    assert page.url.endswith(f"/{flag}/")


def test_a_byte_is_followed_to_its_writer(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/{site.tick('so ')}/")
    page.keyboard.press("f")
    expect(page.locator("#selected h2")).to_contain_text("__run_at_load")
    expect(page.locator("#selected .way")).to_contain_text("stored")
    expect(page.locator("#selected .way")).to_contain_text("loader")
    page.keyboard.press("w")
    expect(page).to_have_url(re.compile(rf"/{site.tick('written by')}/\?"))
    page.keyboard.press("r")
    expect(page.locator(".chain .here")).to_contain_text("read by")
    page.keyboard.press(".")
    expect(page.locator(".chain .here .n")).to_have_text("3")
    page.keyboard.press(",")
    expect(page.locator(".chain .here .n")).to_have_text("2")
    page.keyboard.press("Escape")
    expect(page.locator("#selected")).to_have_count(0)
    page.keyboard.press("b")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("#selected h2")).to_contain_text("0x4b")
    page.locator("#cpu0 .regs a").nth(5).click()
    expect(page.locator("#selected h2")).to_contain_text("cpu 0")


def test_search(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/{site.tick('written by')}/")
    page.keyboard.press("/")
    page.keyboard.type("first NIP = relocate")
    page.keyboard.press("Enter")
    expect(page.locator(".ev tbody tr")).to_have_count(1)
    expect(page.locator(".ev tbody")).to_contain_text("relocate")
    for words, found in (
        ("writes to 0x5c", "write"),
        ("flag-read", "flag-read"),
        ("0x60", "stage"),
    ):
        page.fill("#find", words)
        page.keyboard.press("Enter")
        expect(page.locator("#find")).to_have_value(words)
        expect(page.locator(".ev tbody")).to_contain_text(found)
    page.locator(".ev tbody a").first.click()
    expect(page.locator("#tick")).to_be_visible()


def test_compare(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(site.url)
    page.get_by_text("compare the two").click()
    expect(page.locator(".verdict")).to_contain_text("moves to 0")
    expect(page.locator("#fork svg.wide .diff").first).to_be_visible()
    expect(page.get_by_text("!= written")).to_be_visible()
    url = page.url
    page.keyboard.press("n")
    expect(page).to_have_url(re.compile("stage="))
    page.keyboard.press("x")
    expect(page).not_to_have_url(re.compile(re.escape(url)))
    page.keyboard.press("d")
    expect(page.locator("#tick")).to_be_visible()
    page.fill("#other", f"{site.url}/t/{site.moves}/5/")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(rf"\.\.{site.moves}/$"))


def test_the_file_to_keep_opens_without_a_server(
    site: Site, new_page: Callable[..., Page], tmp_path: Path
) -> None:
    page = new_page()
    flag = site.tick("written by")
    page.goto(f"{site.url}/t/{site.stays}/{flag}/")
    with page.expect_download() as download:
        page.locator(".take").get_by_text(".html").click()
    kept = tmp_path / "moment.html"
    download.value.save_as(kept)
    words = page.locator("#cpu0 pre").inner_text()
    offline = new_page(offline=True)
    asked: list[str] = []
    offline.on("request", lambda request: asked.append(request.url))
    offline.goto(kept.as_uri())
    assert offline.locator("#cpu0 pre").inner_text() == words
    assert offline.evaluate("getComputedStyle(document.querySelector('.low')).fontSize") == "13px"
    assert asked == [kept.as_uri()]
    href = str(offline.locator(".chain a").first.get_attribute("href"))
    assert href.startswith(site.url)


class _Blog(http.server.BaseHTTPRequestHandler):
    """A page of another origin that shows a moment in an iframe."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.body if self.path == "/" else b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_embed_in_another_page(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    source = f"{site.url}/t/{site.stays}/{site.tick('written by')}/embed"
    body = f'<iframe width="1000" height="520" src="{source}"></iframe>'.encode()
    handler = type("Blog", (_Blog,), {"body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as blog:
        threading.Thread(target=blog.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{blog.server_port}/")
        frame = page.frame_locator("iframe")
        expect(frame.locator(".verdict .tag")).to_have_text("STAYS")
        expect(frame.locator("svg.wide")).to_be_visible()
        keep(page, site, "embed")
        blog.shutdown()


def test_text_and_link_are_copied(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/{site.tick('written by')}/?w=4096")
    page.keyboard.press("y")
    expect(page.locator("#said")).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    page.keyboard.press("T")
    page.wait_for_function("navigator.clipboard.readText().then((t) => t.startsWith('bootflow:'))")
    text = page.evaluate("navigator.clipboard.readText()")
    assert "verdict:  STAYS" in text
    assert max(map(len, text.splitlines())) <= 80
    page.keyboard.press("t")
    page.wait_for_url(re.compile(r"\.txt$"))


def test_owner_describes_unlists_and_deletes(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.moves}/")
    page.locator(".owner summary").click()
    page.fill("#onote", "a note of its owner")
    page.uncheck(".owner [name=listed]")
    page.fill("#otoken", site.token)
    page.locator(".owner").get_by_text("save").click()
    expect(page.locator(".note").first).to_have_text("a note of its owner")
    assert site.moves not in get(f"{site.url}/runs.txt")
    page.locator(".owner summary").click()
    page.check(".owner [name=listed]")
    page.fill("#otoken", site.token)
    page.locator(".owner").get_by_text("save").click()
    assert site.moves in get(f"{site.url}/runs.txt")
    assert page.locator(f'a[href="https://lore.kernel.org/r/{MAIL}"]').count() == 1


def test_print_is_landscape_paper(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/{site.tick('written by')}/")
    page.emulate_media(media="print")
    assert not page.locator(".nav").first.is_visible()
    ARTEFACTS.mkdir(exist_ok=True)
    paper = page.pdf(prefer_css_page_size=True)
    (ARTEFACTS / f"{site.name}-moment.pdf").write_bytes(paper)
    assert paper.startswith(b"%PDF")


def test_first_view_is_small_and_soon(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    flag = site.tick("written by")
    url = f"{site.url}/t/{site.stays}/{flag}/"
    get(url)
    sizes: list[int] = []
    page.on(
        "response", lambda r: sizes.append(int(r.headers.get("content-length", "0")))
    )  # fmt: skip
    page.goto(url)
    figures = page.evaluate(
        """() => new Promise((done) => {
          let shift = 0;
          const add = (list) => { for (const e of list.getEntries()) shift += e.value; };
          new PerformanceObserver(add).observe({type: 'layout-shift', buffered: true});
          setTimeout(() => done({
            paint: performance.getEntriesByName('first-contentful-paint')[0].startTime, shift,
          }), 500);
        })"""
    )
    ARTEFACTS.mkdir(exist_ok=True)
    words = f"first contentful paint {figures['paint']:.0f} ms, layout shift {figures['shift']:.4f}"
    (ARTEFACTS / f"{site.name}-figures.txt").write_text(f"{words}, {sum(sizes)} bytes\n")
    assert sum(sizes) <= 100_000
    assert figures["shift"] < 0.1
