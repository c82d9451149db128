"""The model of a comparison: two runs aligned by stage, and what differs between them.

Asks the sessions for the states that `emulator.compare` looks at. No Flask, no markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app import pages
from app.canvas import Drawing
from app.compare_drawing import aligned, forked
from app.index import Run
from app.moments import AskAll, Json
from app.steps import Step, steps
from app.story import Story
from emulator import compare
from emulator.errors import SessionError
from emulator.trace import TraceReader
from emulator.verdict import Verdict

STEPS_BACK, STEPS_ON = 40, 20


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    letter: str
    head: pages.Head
    verdict: Verdict
    last_tick: int
    digest: str


@dataclass(frozen=True)
class Divergence:
    """Where the flows part, ready to be shown."""

    tick_a: int
    tick_b: int
    equal: int
    stage: str
    trunk: tuple[Step, ...]
    a: tuple[Step, ...]
    b: tuple[Step, ...]


@dataclass(frozen=True)
class Found:
    """What was compared."""

    same_digest: bool
    divergence: Divergence | None
    stages: tuple[compare.Difference, ...]
    flag: tuple[compare.Difference, ...]
    at: str
    """Name of the stage at whose beginning registers and memory are compared."""
    at_a: int
    at_b: int
    registers: tuple[compare.Difference, ...]
    low: tuple[compare.Difference, ...]
    kernel: tuple[compare.Difference, ...]


@dataclass(frozen=True)
class ComparePage:
    """Two runs."""

    a: Side
    b: Side
    difference: Found
    places: tuple[tuple[str, str, bool], ...]
    """(name, key, chosen) of the stages at which registers and memory may be compared."""
    drawings: tuple[Drawing, ...]
    forks: tuple[Drawing, ...]
    sentence: str
    problem: str = ""

    @property
    def head(self) -> pages.Head:
        """The first run, for what every page says."""
        return self.a.head


Opened = tuple[Run, TraceReader, Story, AskAll]


def compare_page(first: Opened, second: Opened, stage: str = "") -> ComparePage:
    """Compare two runs.

    Args:
        first: run A: its row, its trace, its story, and how to ask its session.
        second: run B.
        stage: key of the stage at which to compare, `early_setup.1`; "" chooses.
    """
    sides = tuple(
        _side(letter, opened) for letter, opened in zip("AB", (first, second), strict=True)
    )
    told = (first[2], second[2])
    boots = (told[0].boot_cpu, told[1].boot_cpu)
    columns = compare.align(told[0].lanes, told[1].lanes, *boots)
    place = _place(columns, stage)
    problem, divergence = "", None
    tables: dict[str, tuple[compare.Difference, ...]] = {"registers": (), "low": (), "kernel": ()}
    try:
        divergence = _divergence(columns, (first, second), boots)
        if place is not None and place.a is not None and place.b is not None:
            tables = _tables(_ask(first, place.a.lo), _ask(second, place.b.lo), boots)
    except SessionError as error:
        problem = f"{error.message} {error.hint}".strip()
    found = Found(
        bool(sides[0].digest) and sides[0].digest == sides[1].digest,
        divergence,
        tuple(_stage_row(column) for column in columns),
        compare.custody(sides[0].verdict.custody, sides[1].verdict.custody),
        place.stay.name if place else "",
        place.a.lo if place and place.a else 0,
        place.b.lo if place and place.b else 0,
        **tables,
    )
    names = tuple(
        (f"{c.stay.name}{f' {c.occurrence}' if c.occurrence > 1 else ''}", _key(c), c is place)
        for c in columns
        if c.a and c.b
    )
    ids = (first[0].id, second[0].id)
    fork = (divergence.tick_a, divergence.tick_b) if divergence else None
    return ComparePage(
        sides[0], sides[1], found, names,
        tuple(aligned(columns, told, ids, fork, width) for width in (pages.WIDE, pages.NARROW)),
        _forks(divergence, ids), _sentence(sides, found), problem,
    )  # fmt: skip


def _side(letter: str, opened: Opened) -> Side:
    run, reader, told, _ = opened
    return Side(letter, pages.head(run), told.verdict, told.lanes.last_tick, reader.digest or "")


def _key(column: compare.Column) -> str:
    return f"{column.stage}.{column.occurrence}"


def _place(columns: Sequence[compare.Column], stage: str) -> compare.Column | None:
    chosen = next((c for c in columns if c.a and c.b and _key(c) == stage), None)
    return chosen or compare.meeting(columns)


def _ask(opened: Opened, tick: int) -> Json:
    answer, problem = opened[3]([{"q": "state", "tick": tick}])[0]
    if problem:
        raise SessionError(problem)
    return answer


def _window(opened: Opened, tick: int) -> list[Json]:
    tick = min(tick, opened[2].lanes.last_tick)
    question = {"q": "window", "tick": tick, "before": STEPS_BACK, "after": STEPS_ON}
    answer, problem = opened[3]([question])[0]
    if problem:
        raise SessionError(problem)
    rows: list[Json] = answer.get("steps", [])
    return rows


def _divergence(
    columns: Sequence[compare.Column], both: tuple[Opened, Opened], boots: tuple[int, int]
) -> Divergence | None:
    found = compare.first_fork(
        columns,
        (lambda tick: _ask(both[0], tick), lambda tick: _ask(both[1], tick)),
        (lambda tick: _window(both[0], tick), lambda tick: _window(both[1], tick)),
        boots,
    )
    if found is None:
        return None
    trunk, a, b = (
        steps({"steps": list(rows)}, _flag_places(opened))
        for rows, opened in (
            (found.trunk, both[0]), (found.steps_a, both[0]), (found.steps_b, both[1]),
        )
    )  # fmt: skip
    stage = found.column.stay.name
    return Divergence(found.tick_a, found.tick_b, found.equal, stage, trunk, a, b)


def _flag_places(opened: Opened) -> list[tuple[int, int]]:
    kernel = opened[2].kernel_addr
    return [] if kernel is None else [(kernel + 0x5C, 4), (kernel + 0x18, 8)]


def _tables(a: Json, b: Json, boots: tuple[int, int]) -> dict[str, Any]:
    return {
        "registers": compare.registers(a, b, boots),
        "low": compare.memory(a["low_memory"], b["low_memory"], "real 0x0"),
        "kernel": compare.memory(a["kernel_low"], b["kernel_low"], "kernel"),
    }


def _stage_row(column: compare.Column) -> compare.Difference:
    a, b = column.a, column.b
    name = column.stay.name + (f" {column.occurrence}" if column.occurrence > 1 else "")
    counts = [f"{s.hi - s.lo:,}" if s else "-" for s in (a, b)]
    return compare.Difference(
        name, counts[0], counts[1], counts[0] == counts[1], column.stay.letter,
        a.lo if a else None, b.lo if b else None,
    )  # fmt: skip


def _forks(divergence: Divergence | None, ids: tuple[str, str]) -> tuple[Drawing, ...]:
    if divergence is None:
        return ()
    return tuple(
        forked(divergence.trunk, divergence.a, divergence.b, ids, width)
        for width in (pages.WIDE, pages.NARROW)
    )


def _flag_words(written: str) -> str:
    """Return what a run did to its flag: `set to 1`, `left at "run0"`, `never written`."""
    if written == "never":
        return "never written"
    before, _, after = written.rpartition(" -> ")
    return f"left at {after}" if before == after else f"set to {after}"


def _sentence(sides: tuple[Side, ...], found: Found) -> str:
    """Say the difference in one sentence."""
    if found.same_digest:
        return "The same run twice: the trace digests are equal."
    named = {row.name: row for row in found.flag}
    kernel, written = named.get("kernel"), named.get("written")
    flags = ("", "")
    if written is not None and not written.same:
        flags = (f": flag {_flag_words(written.a)}", f": flag {_flag_words(written.b)}")
    if kernel is not None and not kernel.same:
        ends = [
            value if value != "never" else side.verdict.word.lower()
            for side, value in zip(sides, (kernel.a, kernel.b), strict=True)
        ]
        words = f"A {ends[0]}{flags[0]}; B {ends[1]}{flags[1]}"
    else:
        words = f"Both: {sides[0].verdict.sentence.rstrip('.')}" if kernel else "Two runs"
        words += f"; in A{flags[0][1:]}, in B{flags[1][1:]}" if flags[0] else ""
    if found.divergence is None:
        return words + "; the flow of the boot CPU shows no divergence."
    ticks = f"tick {found.divergence.tick_a:,}"
    if found.divergence.tick_a != found.divergence.tick_b:
        ticks += f" of A, {found.divergence.tick_b:,} of B"
    return f"{words}. They part in {found.divergence.stage}, at {ticks}."
