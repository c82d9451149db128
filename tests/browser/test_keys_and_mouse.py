"""Every key does what the table of keys says, and the mouse does the same; without scripts, links.

On a real server, once with a sample pair, once with Debian's (`-m real`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.guide import KEYS
from tests.browser.reader import Site, get, keep, post, upload

pytestmark = pytest.mark.browser

LINKS = (
    "h",
    "l",
    "H",
    "L",
    "{",
    "}",
    "j",
    "k",
    "J",
    "K",
    "(",
    ")",
    "[",
    "]",
    "Home",
    "End",
    "u",
    "t",
)
FOLLOWING = ("w", "r", ",", ".", "Escape")
"""Keys of a moment that press a link; the second lot wants something that is followed."""


def moment(site: Site, step: str = "so ", query: str = "") -> str:
    return f"{site.url}/t/{site.stays}/{site.tick(step)}/{query}"


def shown(page: Page) -> tuple[int, int]:
    corners = str(page.locator("svg.wide[data-axis]").get_attribute("data-axis")).split()
    return int(corners[0].split(":")[1]), int(corners[-1].split(":")[1])


def by_key_and_by_click(page: Page, start: str, key: str) -> tuple[str, str]:
    """Return where a key leads to from a page, and where its link leads to."""
    ends = []
    for act in (
        lambda: page.keyboard.press(key),
        lambda: page.locator(f'[data-key="{key}"]').first.click(),
    ):
        page.goto(start)
        act()
        page.wait_for_function("(start) => location.href !== start", arg=start)
        ends.append(page.url)
    return ends[0], ends[1]


@pytest.mark.parametrize("key", [*LINKS, *FOLLOWING])
def test_a_key_and_its_link_lead_to_the_same_place(
    site: Site, new_page: Callable[..., Page], key: str
) -> None:
    query = "?at=0x200005c%2B4" if key in FOLLOWING else "?w=65536"
    start = moment(site, "written by" if key in "()" else "read by", query)
    by_key, by_click = by_key_and_by_click(new_page(), start, key)
    assert by_key == by_click
    assert by_key != start


def test_the_next_reader_of_a_register(site: Site, new_page: Callable[..., Page]) -> None:
    """r goes to it; if somebody overwrites the value first, a page says so and leads on."""
    page, start = new_page(), moment(site, "written by", "?cpu=0&at=")
    page.goto(start + "lr")
    page.keyboard.press("r")
    expect(page.locator("section h2").first).to_contain_text("cpu 0 lr")
    expect(page.locator("#main")).to_contain_text("overwritten unread at tick")
    page.locator('[data-key="l"]').click()
    expect(page.locator("#selected h2")).to_contain_text("cpu 0 lr")
    page.goto(start + "cr")
    page.keyboard.press("w")
    page.wait_for_function("(start) => location.href !== start", arg=start + "cr")
    assert "seek" not in page.url


@pytest.mark.parametrize("width", [1440, 1024])
def test_following_the_flag_moves_no_memory(
    site: Site, new_page: Callable[..., Page], width: int
) -> None:
    page = new_page(viewport={"width": width, "height": 900})
    page.goto(moment(site, "written by"))
    before = page.locator("#low").bounding_box()
    page.keyboard.press("f")
    expect(page.locator("#selected h2")).to_contain_text("__run_at_load")
    assert page.locator("#low").bounding_box() == before


@pytest.mark.parametrize("key", ["m", "u", "t"])
def test_the_keys_of_a_run(site: Site, new_page: Callable[..., Page], key: str) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/")
    page.keyboard.press(key)
    ends = {"m": rf"/{site.tick('written by')}/$", "u": r"/$", "t": r"\.txt$"}
    expect(page).to_have_url(re.compile(ends[key]))


@pytest.mark.parametrize("key", ["a", "B", "d", "x", "n", "p", "t"])
def test_the_keys_of_a_comparison(site: Site, new_page: Callable[..., Page], key: str) -> None:
    start = f"{site.url}/t/{site.moves}..{site.stays}/"
    by_key, by_click = by_key_and_by_click(new_page(), start, key)
    assert by_key == by_click


def test_first_and_last_tick_and_up(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(moment(site))
    page.keyboard.press("End")
    last = str(page.locator("#tick").get_attribute("data-last"))
    expect(page).to_have_url(re.compile(rf"/{last}/$"))
    page.keyboard.press("Home")
    expect(page).to_have_url(re.compile(r"/0/$"))
    page.keyboard.press("u")
    expect(page).to_have_url(f"{site.url}/t/{site.stays}/")


def test_fields_that_keys_lead_into(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(moment(site))
    for key, field in (("g", "#tick"), ("/", "#find"), ("c", "#other")):
        page.keyboard.press(key)
        expect(page.locator(field)).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator(field)).not_to_be_focused()
    page.keyboard.press("b")
    expect(page.locator('#low a[tabindex="0"]')).to_be_focused()


def test_registers_of_each_cpu_open_by_number_and_by_mouse(
    site: Site, new_page: Callable[..., Page]
) -> None:
    page = new_page()
    page.goto(moment(site))
    for cpu in range(page.locator("details[id^=cpu]").count()):
        block = page.locator(f"#cpu{cpu}")
        was = block.get_attribute("open")
        page.keyboard.press(str(cpu + 1))
        assert (block.get_attribute("open") is None) != (was is None)
        block.locator("summary").click()
        assert (block.get_attribute("open") is None) == (was is None)


def test_the_fold_opens_and_closes(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(moment(site))

    def width() -> float:
        """Of the digest check, whose loop is folded, in blocks of start_kernel, which is none."""

        def widest(stage: str) -> float:
            blocks = page.locator(f"svg.wide .seg.s{stage}").all()
            return max(box["width"] for block in blocks if (box := block.bounding_box()))

        return widest("D") / widest("S")

    folded = width()
    page.keyboard.press("o")
    expect(page).to_have_url(re.compile(r"w=-1"))
    assert width() > 1.5 * folded
    page.keyboard.press("o")
    expect(page).not_to_have_url(re.compile(r"w=-1"))
    assert width() == pytest.approx(folded)
    page.locator(".nav").get_by_text("unfold", exact=True).click()
    expect(page).to_have_url(re.compile(r"w=-1"))
    assert width() > 1.5 * folded


def test_arrows_pan_there_and_back(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(moment(site, "written by", "?w=4096"))
    start = shown(page)
    for key, way in (("ArrowLeft", -1), ("ArrowRight", 1)):
        before = shown(page)
        page.keyboard.press(key)
        page.wait_for_function(
            """(was) => !document.querySelector('svg.wide[data-axis]').dataset.axis
            .includes(':' + was + ' ')""",
            arg=before[0],
        )
        assert (shown(page)[0] - before[0]) * way > 0
    assert shown(page) == start
    page.keyboard.press("+")
    page.wait_for_function("() => location.search.includes('from=')")
    page.wait_for_timeout(500)
    assert shown(page)[1] - shown(page)[0] < start[1] - start[0]


def test_a_click_on_the_map_shows_that_part(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(moment(site, "written by", "?w=4096"))
    here = page.url.split("?")[0]
    before = shown(page)
    box = page.locator("svg.wide[data-axis]").bounding_box()
    assert box is not None
    whole = str(page.locator("svg.wide[data-axis]").get_attribute("data-whole")).split()
    corners = [(float(x), int(tick)) for x, _, tick in (c.partition(":") for c in whole)]
    left = next(x for x, tick in corners if tick > before[1])  # a stage that is not shown yet
    scale = box["width"] / 1400
    page.mouse.click(box["x"] + (left + 12) * scale, box["y"] + 8)
    expect(page).to_have_url(re.compile("from="))
    page.wait_for_timeout(600)
    after = shown(page)
    clicked = next(tick for x, tick in corners if x > left + 12)
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert after[0] <= clicked  # the part that was clicked, or its end, is in view
    assert page.url.startswith(here)  # the cursor stays; what is shown moves
    assert page.locator("svg.wide rect.win").count() == 1


def test_the_bar_in_true_scale_leads_to_its_tick(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(moment(site))
    last = int(str(page.locator("#tick").get_attribute("data-last")))
    bar = page.locator("svg.wide[data-axis]").bounding_box()
    corners = str(page.locator("svg.wide").first.get_attribute("data-axis")).split()
    assert bar is not None
    scale = bar["width"] / 1400
    left, right = (float(corners[n].split(":")[0]) * scale for n in (0, -1))
    page.mouse.click(bar["x"] + (left + right) / 2, bar["y"] + 7 * scale)
    page.wait_for_function("(start) => location.href !== start", arg=moment(site))
    tick = int(page.url.split("?")[0].rstrip("/").rsplit("/", 1)[1])
    assert abs(tick - last / 2) < last / 100


def test_the_step_is_announced_with_what_it_changed(
    site: Site, new_page: Callable[..., Page]
) -> None:
    page = new_page()
    flag = site.tick("written by")
    page.goto(f"{site.url}/t/{site.stays}/{flag - 1}/")
    page.keyboard.press("l")
    said = page.locator("#say")
    expect(said).to_contain_text(f"tick {flag:,}: cpu 0 stw")
    expect(said).to_contain_text("-> 1")
    assert said.get_attribute("aria-live") == "polite"
    page.keyboard.press("h")
    expect(said).to_contain_text(re.compile(r"r\d+ = [0-9a-f]+"))  # the register that it changed


def test_buttons_copy_link_text_and_command(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/")
    read = "navigator.clipboard.readText()"
    page.get_by_role("button", name="copy link").click()
    page.wait_for_function(f"{read}.then((t) => t === location.href)")
    page.get_by_role("button", name="copy as text").click()
    page.wait_for_function(f"{read}.then((t) => t.includes('verdict:'))")
    page.get_by_role("button", name="copy the command").click()
    page.wait_for_function(f"{read}.then((t) => t.startsWith('bootflow record --load-panic'))")
    assert page.evaluate(read) == "\n".join(
        get(f"{site.url}/t/{site.stays}.txt").partition("The same run again\n")[2].splitlines()
    )


def test_the_table_of_keys_names_no_key_that_is_dead(
    site: Site, new_page: Callable[..., Page]
) -> None:
    """Each key of the table is a link of some page, or in the script's own table."""
    page = new_page()
    script = (Path(__file__).parents[2] / "static" / "bootflow.js").read_text()
    links: set[str] = set()
    for path in (
        moment(site, "read by", "?at=0x200005c%2B4").removeprefix(site.url), f"/t/{site.stays}/",
        f"/t/{site.stays}/0/",
        f"/t/{site.moves}..{site.stays}/?stage=head.1", f"/t/{site.stays}/search?q=flag-read",
    ):  # fmt: skip
        page.goto(site.url + path)
        links |= set(
            page.evaluate("[...document.querySelectorAll('[data-key]')].map((e) => e.dataset.key)")
        )
    own = set(re.findall(r'^    "?([^\s":]+)"?: (?:\(\) =>|whole)', script, re.MULTILINE))
    for row in KEYS:
        for key in row.keys:
            assert key in links | own | {"?", "1", "2", "3", "4"}, key


def test_an_owner_deletes_with_the_token_only(site: Site, new_page: Callable[..., Page]) -> None:
    run, token = upload(site.url, *site.images, "load")
    page = new_page(status=4)
    page.goto(f"{site.url}/t/{run}/")
    hashes = page.locator("table", has_text="SHA-256").inner_text()
    for given, word in (("nonsense", "403"), (token, "DELETED")):
        page.goto(f"{site.url}/t/{run}/")
        page.locator(".owner summary").click()
        page.fill("#otoken", given)
        page.locator(".owner").get_by_text("delete the run").click()
        expect(page.locator(".verdict .tag")).to_have_text(word)
    expect(page.locator("h1")).to_have_text("pair, load")
    expect(page.locator(".verdict")).to_contain_text("moves to 0")
    assert page.locator("table", has_text="SHA-256").inner_text() == hashes
    assert run not in get(f"{site.url}/runs.txt")


def test_the_trace_is_taken_away(site: Site, new_page: Callable[..., Page], tmp_path: Path) -> None:
    page = new_page()
    page.goto(f"{site.url}/t/{site.stays}/")
    with page.expect_download() as download:
        page.get_by_text("trace file").click()
    kept = tmp_path / "t.bootflow"
    download.value.save_as(kept)
    assert kept.read_bytes().startswith(b"SQLite format 3\0")


def test_the_gallery_is_filtered(site: Site, new_page: Callable[..., Page]) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(site.url)
    assert page.locator(".runrow").count() == 2
    page.select_option("[name=outcome]", "stays")
    page.get_by_role("button", name="filter").click()
    expect(page.locator(".runrow")).to_have_count(1)
    expect(page.locator(".runrow h3")).to_have_text("pair, load-panic")
    page.get_by_text("all runs").click()
    page.fill("#find", "no such words")
    page.get_by_role("button", name="filter").click()
    expect(page.get_by_text("No run fits.")).to_be_visible()
    page.goto(f"{site.url}/?flag=__run_at_load&kernel=vmlinux")
    assert page.locator(".runrow").count() == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [("1,000", "tick"), ("early_setup", "early_setup"), ("Linux version", "Linux"),
     ("reads of 0x38", "read")],
)  # fmt: skip
def test_search_forms_without_scripts(
    site: Site, new_page: Callable[..., Page], words: str, found: str
) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"{site.url}/t/{site.stays}/")
    page.fill("#find", words)
    page.get_by_role("button", name="find").click()
    expect(page.locator(".ev tbody")).to_contain_text(found)
    page.locator(".ev tbody a").first.click()
    expect(page.locator("#tick")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_without_a_hint_on_a_telephone(
    site: Site, new_page: Callable[..., Page], scheme: str
) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(moment(site, "written by"))
    cut = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter((e) =>
        e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === 'auto'
        && !getComputedStyle(e).backgroundImage.includes('gradient')).map((e) => e.outerHTML)"""
    )
    assert cut == []
    for name in (".regs", ".asm"):
        fits = "(e) => e.scrollWidth <= e.clientWidth"
        assert page.locator(f"details[open] {name}").first.evaluate(fits), name
    tops = page.locator(".top a").evaluate_all(
        "(links) => links.map((e) => Math.round(e.getBoundingClientRect().bottom))"
    )
    assert max(tops) - min(tops) <= 4
    keep(page, site, f"telephone-{scheme}")


def test_a_note_can_be_pinned_and_is_played(site: Site, new_page: Callable[..., Page]) -> None:
    post(f"{site.url}/t/{site.moves}/story/", token=site.token, tick="2", text="the second")
    page = new_page()
    page.goto(f"{site.url}/t/{site.moves}/story/1/")
    expect(page.locator("#note")).to_contain_text("the first instruction")
    page.keyboard.press("l")
    expect(page.locator("#note")).to_contain_text("the second")
    page.keyboard.press("h")
    expect(page.locator("#note")).to_contain_text("the first instruction")
    page.keyboard.press("u")
    expect(page).to_have_url(re.compile("/story/$"))
