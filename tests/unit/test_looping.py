"""Loops told for people: names, folds, tables; and finding where a turn begins."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from app.axis import Axis, Span
from app.canvas import Canvas
from app.cli import main
from app.looping import (
    LoopLine,
    folded,
    folds,
    known_as,
    loop_lines,
    standing,
    table,
    text_lines,
)
from app.looplane import MAX_BARS, loop_lane
from app.samples import sample_spec
from app.sessions import SessionPool
from emulator.errors import LimitError, SessionError
from emulator.lanes import Lanes
from emulator.samples import get_sample
from emulator.trace import ImageFile, LoopRow, TraceReader
from emulator.turnsearch import LEFT, begin_of_turn

HEAD, TAIL = "0x00000000048a0858", "0x00000000048a0864"
KERNEL, KERNEL_TAIL = "0xc00000000209c8f0", "0xc00000000209ca00"


def row(level: int, begin: int, end: int, turns: int, **more: object) -> LoopRow:
    fields: dict[str, object] = {
        "cpu": 0, "ticks": end - begin, "entries": 1, "head": HEAD, "tail": TAIL, "kind": "copy",
        "symbol": "memcpy+0xc/0x30",
    }  # fmt: skip
    return LoopRow(level=level, begin=begin, end=end, turns=turns, **fields | more)  # type: ignore[arg-type]


def lines(*rows: LoopRow) -> tuple[LoopLine, ...]:
    return loop_lines(rows, Lanes({}, 10_000_000))


def test_a_label_gets_shorter() -> None:
    (line,) = lines(row(0, 0, 400, 100, symbol="memcpy.part.0+0xc/0x30"))
    assert line.labels == ("memcpy.part.0+0xc x 100", "memcpy x 100", "copy x 100", "x 100")
    assert line.names == ("memcpy.part.0+0xc", "memcpy", "copy")
    (line,) = lines(row(0, 0, 400, 100, symbol="", kind="call"))
    assert line.labels == ("0x48a0858 x 100", "x 100")


def test_a_nest_is_known_as_the_loop_that_does_its_work() -> None:
    outer, busy = row(0, 0, 100_000, 16), row(1, 10, 99_990, 5000)
    small, inner = row(1, 10, 5000, 7), row(2, 20, 99_000, 9)
    assert known_as(lines(outer, busy, small)).turns == 5000
    assert known_as(lines(outer, small)).turns == 16
    assert known_as(lines(outer, busy, inner)).turns == 9


def test_folds_are_long_and_alone() -> None:
    rows = lines(
        row(0, 100, 60_100, 1000),
        row(0, 70_000, 70_900, 10),
        row(0, 80_000, 180_000, 44, ticks=90_000),  # others ran meanwhile
        row(0, 200_000, 300_000, 55, cpu=1),
        row(0, 310_000, 390_000, 88, ticks=79_936),  # one was parked meanwhile
        row(0, 400_000, 450_000, 66, head=KERNEL, tail=KERNEL),
        row(0, 500_000, 9_000_000, 77, head=KERNEL, tail=KERNEL),
    )
    found = folds(rows, 0)
    assert [fold[3] for fold in found] == [1000, 88, 77]
    assert [fold[:2] for fold in found[::2]] == [(100, 60_100), (500_000, 9_000_000)]
    spans = folded([Span(0, 50_000, "P", "purgatory"), Span(50_000, 70_000, "K", "head")], found)
    assert [(s.lo, s.hi, s.letter, s.fold) for s in spans] == [
        (0, 100, "P", False), (100, 50_000, "P", True), (50_000, 60_100, "K", True),
        (60_100, 70_000, "K", False),
    ]  # fmt: skip
    assert {(s.loop[1], s.turns) for s in spans if s.fold} == {("memcpy", 1000)}


def test_the_table_keeps_the_loops_of_the_hand_off() -> None:
    kernel = [row(0, 1000 * n, 1000 * n + 900, 9, head=KERNEL, tail=KERNEL) for n in range(9, 40)]
    rows = lines(row(0, 0, 130, 10), *kernel, row(0, 90_000, 90_100, 5))
    assert [line.begin for line in table(rows, 3)] == [0, 9000, 90_000]
    assert table(rows[:2], 3) == rows[:2]


def test_text_fits_a_mail() -> None:
    long = "a_function_with_a_name_that_nobody_wants_to_type_twice_in_one_day+0x123456/0x9999999"
    rows = lines(
        row(
            0, 1_570_237_710, 1_999_999_999_999, 123_456_789, symbol=long, head=KERNEL, tail=KERNEL
        ),
        *(row(n, 1, 2000, 3, entries=7) for n in range(1, 9)),
    )
    assert max(len(line) for line in text_lines(rows)) <= 75


def test_bars_are_bounded_and_do_not_overlap() -> None:
    pick = random.Random(5)
    rows = []
    for n in range(500):
        begin = pick.randrange(9_000_000)
        rows.append(row(n % 3, begin, begin + pick.randrange(1, 500_000), 9))
    canvas = Canvas(100.0, 1400.0, narrow=False)
    ax = Axis((Span(0, 10_000_000, "", ""),), (100.0, 1400.0))
    bottom = loop_lane(canvas, lines(*rows), ax, (0, 10_000_000), 50.0, "/t/x/")
    bars = [shape for shape in canvas.shapes if shape.kind == "rect"]
    assert 0 < len(bars) <= MAX_BARS
    assert bottom <= 50 + 3 * 15 + 4
    for bar in bars:
        assert bar.x >= 100
        assert bar.x + bar.w <= 1400.1
        beside = [o for o in bars if o is not bar and o.y == bar.y]
        assert all(o.x >= bar.x + bar.w - 1 or o.x + o.w <= bar.x + 1 for o in beside)


def test_no_loops_no_lane() -> None:
    canvas = Canvas(100.0, 1400.0, narrow=False)
    ax = Axis((Span(0, 100, "", ""),), (100.0, 1400.0))
    assert loop_lane(canvas, (), ax, (0, 100), 50.0, "") == 50.0
    assert not canvas.shapes


def test_standing_joins_the_state_and_the_table() -> None:
    rows = lines(row(0, 100, 900, 8), row(1, 110, 890, 80, entries=8, head=TAIL))
    state = {
        "cpus": [
            {"cpu": 0, "loops": [
                {"head": HEAD, "tail": TAIL, "turn": 3, "since": 100, "symbol": ""},
                {"head": TAIL, "tail": TAIL, "turn": 4, "since": 300, "symbol": ""},
            ]},
        ]
    }  # fmt: skip
    outer, inner = standing(rows, state, 310)
    assert (outer.turn, outer.turns, outer.end) == (3, 8, 900)
    assert (inner.turn, inner.turns, inner.end, inner.since) == (4, None, None, 300)
    assert outer.words == "turn 3 of 8 of memcpy+0xc (copies)"
    first = standing(rows, {"cpus": [{"cpu": 0, "loops": []}]}, 105)
    assert [(one.turn, one.turns) for one in first] == [(1, 8)]
    assert standing(rows, {"cpus": [{"cpu": 0, "loops": []}]}, 900) == ()


def test_a_cpu_at_the_head_is_in_the_turn_to_come() -> None:
    """Going to turn 5 leads to the tick before its first instruction: that is in turn 5."""
    rows = lines(row(0, 100, 900, 8))

    def turn(tick: int, nip: str, *done: int) -> int:
        loops = [{"head": HEAD, "tail": TAIL, "turn": n, "since": 100, "symbol": ""} for n in done]
        state = {"cpus": [{"cpu": 0, "registers": {"nip": nip}, "loops": loops}]}
        return standing(rows, state, tick)[0].turn

    assert [turn(100, HEAD), turn(101, TAIL), turn(200, HEAD)] == [1, 1, 2]
    assert [turn(201, TAIL, 2), turn(500, HEAD, 5), turn(501, TAIL, 5)] == [2, 5, 5]
    assert turn(600, HEAD, 8) == 8


def test_parked_cpus_are_one_row_and_who_has_left_is_none() -> None:
    rows = lines(row(0, 100, 900, 8))
    spin = {"head": TAIL, "tail": TAIL, "turn": 15, "since": 300, "symbol": ""}
    done = {"head": HEAD, "tail": TAIL, "turn": 8, "since": 100, "symbol": ""}
    state = {"cpus": [{"cpu": 0, "loops": [done]}]}
    state["cpus"] += [{"cpu": cpu, "loops": [spin]} for cpu in (1, 2, 3)]
    inside = standing(rows, state, 899)
    assert [(one.cpus, one.turn, one.turns) for one in inside] == [("0", 8, 8), ("1-3", 15, None)]
    assert [one.cpus for one in standing(rows, state, 900)] == ["1-3"]


@given(
    st.lists(st.integers(1, 5000), min_size=2, max_size=300),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_a_turn_is_found_by_few_questions(
    lengths: list[int], since: int, pick: random.Random
) -> None:
    """Turns of any lengths; a turn is known from the tick after its first instruction."""
    begins = [since]
    for length in lengths:
        begins.append(begins[-1] + length)
    end, turns = begins.pop(), len(lengths)
    asked = []

    def turn_at(tick: int) -> tuple[int, int]:
        asked.append(tick)
        if tick > end:
            return LEFT, tick
        turn = max(sum(begin < tick for begin in begins), 1)
        return turn, begins[turn - 1]

    here = pick.randrange(begins[1] + 1, end + 1)
    wanted = pick.randrange(1, turns + 3)
    found = begin_of_turn(turn_at, since, here, end + 500, wanted)
    assert found == (begins[wanted - 1] if wanted <= turns else None)
    assert len(asked) <= 100


def test_turns_of_a_regular_loop_take_a_handful_of_questions() -> None:
    asked = []

    def turn_at(tick: int) -> tuple[int, int]:
        asked.append(tick)
        turn = max((tick - 1000 + 3) // 4, 1)
        return turn, 1000 + 4 * (turn - 1)

    assert begin_of_turn(turn_at, 1000, 1100, 10**9, 200_000_001) == 1000 + 4 * 200_000_000
    assert len(asked) <= 4


# --- on a real run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sample = get_sample("kdump-le")
    path = tmp_path_factory.mktemp("loops") / "t.bootflow"
    images = [
        ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
        ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
    ]
    with SessionPool(keep_spare=False) as pool:
        assert pool.record("run", path, sample_spec(sample), images).status == "finished"
    return path


def test_turns_are_where_the_head_is_visited(trace: Path) -> None:
    with TraceReader(trace) as reader:
        long = [loop for loop in reader.loops() if loop.level == 0 and loop.entries == 1]
    loop = max((x for x in long if x.turns > 20), key=lambda x: x.turns)
    each = loop.ticks // loop.turns
    with SessionPool(keep_spare=False) as pool:
        base = {"q": "turn", "cpu": loop.cpu, "head": loop.head, "tick": loop.begin + 3 * each}
        for turn in (1, 2, 3, 17, loop.turns // 2, loop.turns):
            found = pool.query("run", trace, base | {"turn": turn})
            state = pool.query("run", trace, {"q": "state", "tick": found["tick"]})
            assert state["cpus"][loop.cpu]["registers"]["nip"] == loop.head
            if turn > 2:
                assert state["cpus"][loop.cpu]["loops"][0]["turn"] == turn
        assert not pool.query("run", trace, base | {"turn": loop.turns + 1})["found"]
        with pytest.raises(SessionError, match="in no loop"):
            pool.query("run", trace, base | {"tick": 0, "turn": 2})
        with pytest.raises(LimitError, match="turn 0"):
            pool.query("run", trace, base | {"turn": 0})
        for more in ({"turn": 10**400}, {"turn": 2, "head": "x"}, {"turn": 2, "head": None}):
            with pytest.raises(LimitError, match="head "):
                pool.query("run", trace, base | more)


def test_the_command_line_lists_them(trace: Path) -> None:
    with TraceReader(trace) as reader:
        count = sum(1 for _ in reader.loops())
    text = CliRunner().invoke(main, ["loops", str(trace)])
    assert text.exit_code == 0
    assert len(text.output.splitlines()) == 2 * count + 1
    long = CliRunner().invoke(main, ["loops", str(trace), "--least", "1000000000"])
    assert long.output == "no loops\n"
    assert (
        CliRunner().invoke(main, ["loops", str(trace), "--json"]).output.count('"turns"') == count
    )


def test_every_loop_of_a_window_is_told_of(trace: Path) -> None:
    with TraceReader(trace) as reader:
        last, rows = reader.last_tick, list(reader.loops())
    begin = next(row.begin for row in rows if row.level == 0)
    with SessionPool(keep_spare=False) as pool:
        for lo, hi in ((0, 4000), (begin - 10, begin + 5000), (last - 4000, last)):
            found = pool.query("run", trace, {"q": "loops", "from": max(lo, 0), "to": hi})["loops"]
            assert all(lo <= row["begin"] < row["end"] < hi for row in found)
            for row in found:
                where = {"cpu": row["cpu"], "q": "window", "tick": row["begin"]}
                steps = pool.query("run", trace, where | {"before": 0, "after": 1})["steps"]
                assert steps[0]["nip"] == row["head"]
            known = [x for x in rows if lo <= x.begin and x.end < hi and x.level == 0]
            told = {(row["cpu"], row["head"], row["begin"], row["turns"]) for row in found}
            assert {(x.cpu, x.head, x.begin, x.turns) for x in known} <= told
        with pytest.raises(LimitError, match="loops of ticks"):
            pool.query("run", trace, {"q": "loops", "from": 0, "to": 1 << 21})
