"""The parts of a moment page that are pure: compression, view, steps, spans, asking, comparison."""

import gzip
import io
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app import view
from app.asking import Answers
from app.axis import Span
from app.compress import Gzip, accepts_gzip
from app.drawing import MAX_SHAPES, Scene, busiest, timeline
from app.steps import at_tick, listing, recent_registers, steps
from emulator import compare
from emulator.errors import SessionError
from emulator.lanes import Lanes, Stay
from tests import fabricated


@pytest.mark.parametrize(
    ("header", "takes"),
    [("gzip, br", True), ("br;q=1.0, gzip;q=0.5", True), ("*", True), ("", False),
     ("identity", False), ("gzip;q=0", False), ("GZIP", True)],
)  # fmt: skip
def test_who_takes_gzip(header: str, takes: bool) -> None:
    assert accepts_gzip(header) is takes


def _ask(app: Any, **environ: str) -> tuple[dict[str, str], bytes]:
    seen: dict[str, str] = {}

    def start(_status: str, headers: list[tuple[str, str]], _exc: Any = None) -> None:
        seen.update({name.lower(): value for name, value in headers})

    return seen, b"".join(app({"REQUEST_METHOD": "GET", **environ}, start))


def test_gzip_gives_the_same_bytes_and_weakens_the_tag() -> None:
    text = b"the flag " * 500

    def inner(_environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/html"), ("ETag", '"x"'), ("Vary", "Cookie"),
                         ("Content-Length", str(len(text)))])  # fmt: skip
        return [text]

    headers, body = _ask(Gzip(inner), HTTP_ACCEPT_ENCODING="gzip")
    assert gzip.decompress(body) == text
    assert headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) == len(body) < len(text)
    assert (headers["etag"], headers["vary"]) == ('W/"x"', "Cookie, Accept-Encoding")
    assert _ask(Gzip(inner))[1] == text


@pytest.mark.parametrize("kind", ["image/png", "application/vnd.sqlite3"])
def test_gzip_leaves_pictures_and_traces_alone(kind: str) -> None:
    def inner(_environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", kind)])
        return [b"x" * 5000]

    assert _ask(Gzip(inner), HTTP_ACCEPT_ENCODING="gzip")[1] == b"x" * 5000


@given(
    st.integers(0, 10**10), st.integers(1, 10**10), st.integers(0, 10**10), st.integers(0, 10**10)
)
def test_a_window_lies_inside_of_the_run(lo: int, wide: int, tick: int, last: int) -> None:
    for looked in (view.View(window=(lo, lo + wide)), view.View(width=wide)):
        span = looked.span(min(tick, last), last)
        if span is not None:
            assert 0 <= span[0] < span[1] <= max(last, 1)


@pytest.mark.parametrize(
    "args",
    [{"w": "4096"}, {"from": "5", "to": "500", "cpu": "2"}, {"at": "0x200005c+4"}, {},
     {"kind": "flag-read", "at": "r7", "cpu": "1"}],
)  # fmt: skip
def test_a_view_is_written_as_it_was_read(args: dict[str, str]) -> None:
    looked = view.parse(args)
    text = looked.query().removeprefix("?").replace("%2B", "+")
    assert dict(part.split("=") for part in text.split("&") if part) == args


@pytest.mark.parametrize(
    "args", [{"w": "x"}, {"from": "5"}, {"from": "9", "to": "9"}, {"at": "5c"}, {"kind": "no"},
             {"cpu": "-1"}],
)  # fmt: skip
def test_a_view_of_nonsense_is_refused(args: dict[str, str]) -> None:
    with pytest.raises(view.BadView):
        view.parse(args)


def test_steps_say_what_ran_and_what_it_did() -> None:
    tick = fabricated.FLAG_TICK
    rows = steps(fabricated.window(tick, 28, 28), [(fabricated.KERNEL_ADDR + 0x5C, 4)])
    assert [row.tick for row in rows] == list(range(tick - 27, tick + 29))
    now = at_tick(rows, tick)
    assert now is not None
    assert (now.flag, now.mnemonic, now.comment) == (True, "stw", 'flag 200005c: "run0" -> 1')
    lines = listing(rows, 0, tick)
    marked = [(line.mark, line.tick) for line in lines if line.mark]
    assert marked == [("*", tick), ("=>", tick + 1)]
    assert [line.order for line in lines if line.head] == ["LE", "BE"]
    assert listing(rows, 1, tick) == ()
    assert recent_registers(rows, 0, tick) == {"r3", "r5", "r7"}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000), st.integers(1, 400)), max_size=60),
    st.integers(0, 900),
    st.integers(16, 500),
)
def test_who_ran_when_has_no_gap_and_no_overlap(
    rows: list[tuple[int, int, int]], lo: int, wide: int
) -> None:
    spans: dict[int, list[Span]] = {}
    for cpu, at, ticks in rows:
        spans.setdefault(cpu, []).append(Span(at, at + ticks, "P", f"f{at}"))
    line = busiest(spans, lo, lo + wide)
    if line:
        assert (line[0].lo, line[-1].hi) == (lo, lo + wide)
        assert all(a.hi == b.lo for a, b in pairwise(line))
        assert all(span.ticks > 0 for span in line)


def test_an_exact_window_stays_within_its_shapes() -> None:
    many = {cpu: [Span(t, t + 1, "K", f"f{t}") for t in range(cpu, 8000, 4)] for cpu in range(4)}
    stays = tuple((cpu, (Span(0, 9000, "K", "kernel head"),)) for cpu in range(4))
    scene = Scene(stays, 0, (), (), "", (), 9000)
    drawing = timeline(scene, width=1400, cursor=10, window=(0, 8000), spans=many)
    assert 100 < len(drawing.shapes) <= MAX_SHAPES


def test_readers_of_one_moment_share_one_question() -> None:
    asked, go_on = [], threading.Event()

    def query(_run: str, question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        go_on.wait(5)
        return {"tick": question["tick"]}

    answers = Answers(query)
    found: list[Any] = []
    ask = lambda: found.append(answers.ask("r", {"q": "state", "tick": 5}, keep=True))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert found == [{"tick": 5}] * 8
    assert len(asked) == 1
    answers.ask("r", {"q": "state", "tick": 5}, keep=False)
    assert len(asked) == 2
    answers.close()


def test_kept_answers_are_bounded_and_failures_are_not_kept() -> None:
    calls: list[int] = []

    def query(_run: str, question: dict[str, Any]) -> dict[str, Any]:
        calls.append(question["tick"])
        if question["tick"] == 666:
            raise SessionError("gone", hint="Again.")
        return {"text": "x" * 1000}

    answers = Answers(query, kept_bytes=5000)
    for tick in range(10):
        answers.ask("r", {"tick": tick}, keep=True)
    answers.ask("r", {"tick": 9}, keep=True)
    answers.ask("r", {"tick": 0}, keep=True)
    assert calls == [*range(10), 0]
    assert answers.ask_all("r", [{"tick": 666}, {"tick": 9}], keep=True)[0] == ({}, "gone. Again.")
    assert answers.ask_all("r", [{"tick": 666}], keep=True)[0][1]
    assert calls.count(666) == 2
    answers.close()


@given(st.integers(1, 10**10), st.integers(0, 10**10))
def test_the_first_different_offset_is_found(count: int, at: int) -> None:
    found = compare.first_different(count, lambda k: k < at)
    assert found == (at if at < count else None)


def _lanes(*stages: tuple[str, int]) -> Lanes:
    stays, tick = [], 0
    for stage, ticks in stages:
        stays.append(Stay(0, tick, tick + ticks, stage, "0x0", "f"))
        tick += ticks
    return Lanes({0: tuple(stays)}, tick)


def test_stages_are_aligned_by_occurrence() -> None:
    a = _lanes(("purgatory", 10), ("head", 5), ("copy", 7), ("head", 3), ("early_setup", 9))
    b = _lanes(("purgatory", 12), ("digest", 4), ("purgatory", 2), ("head", 5), ("early_setup", 9))
    rows = [
        (c.stage, c.occurrence, c.a is not None, c.b is not None) for c in compare.align(a, b, 0, 0)
    ]
    assert rows == [
        ("purgatory", 1, True, True), ("digest", 1, False, True), ("purgatory", 2, False, True),
        ("head", 1, True, True), ("copy", 1, True, False), ("head", 2, True, False),
        ("early_setup", 1, True, True),
    ]  # fmt: skip
    meeting = compare.meeting(compare.align(a, b, 0, 0))
    assert meeting is not None
    assert meeting.stage == "early_setup"


def _flow(words: list[int]) -> tuple[Any, Any]:
    """Return (state, window) of a run whose instruction number n is the word at n - 1."""

    def state(tick: int) -> dict[str, Any]:
        symbol = f"f+0x{words[tick] if tick < len(words) else 0:x}"
        return {"cpus": [{"cpu": 0, "symbol": symbol, "registers": {"nip": "0x0"}}]}

    def window(tick: int) -> list[dict[str, Any]]:
        ticks = range(max(tick - 20, 1), min(tick + 20, len(words)) + 1)
        return [
            {"tick": t, "cpu": 0, "word": hex(words[t - 1]), "symbol": f"f+0x{words[t - 1]:x}"}
            for t in ticks
        ]

    return state, window


@given(st.integers(1, 400), st.integers(2, 300))
def test_the_fork_of_two_flows_is_found(at: int, tail: int) -> None:
    common = list(range(at))
    a, b = common + [1000 + i for i in range(tail)], common + [5000 + i for i in range(tail + 1)]
    (state_a, window_a), (state_b, window_b) = _flow(a), _flow(b)
    columns = compare.align(_lanes(("head", len(a))), _lanes(("head", len(b))), 0, 0)
    fork = compare.first_fork(columns, (state_a, state_b), (window_a, window_b), (0, 0))
    assert fork is not None
    assert (fork.tick_a, fork.tick_b, fork.equal) == (at, at, at)
    assert fork.steps_a[0]["word"] == hex(1000)
    assert fork.steps_b[0]["word"] == hex(5000)


def test_equal_flows_have_no_fork() -> None:
    state, window = _flow(list(range(50)))
    columns = compare.align(_lanes(("head", 50)), _lanes(("head", 50)), 0, 0)
    assert compare.first_fork(columns, (state, state), (window, window), (0, 0)) is None


def test_card_is_a_picture_of_the_promised_size() -> None:
    from app import card
    from app.canvas import Drawing
    from app.pages import Head
    from emulator.verdict import Verdict

    class Page:
        head = Head("x", "a title", "finished", "", ("4 CPUs",), True, True, "stay")
        verdict = Verdict("MOVES", "stay", "Flag never written; moves to 0.", (), ())
        moment = None
        drawings = (Drawing(960, 200, "", "", "", ()),)

    first, second = card.png(Page()), card.png(Page())
    assert first == second
    assert Image.open(io.BytesIO(first)).size == (1200, 630)
    assert len(first) < 100_000
