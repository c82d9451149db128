"""The loops of a run, told for people: names, counts, which to fold, as a table and as bars.

Pure: rows of a trace in, frozen dataclasses out. What is a loop is `emulator/loops.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.axis import Span, cut
from emulator.lanes import Lanes
from emulator.trace import LoopRow

Json = dict[str, Any]

MAX_ROWS = 2_000
"""Loops of a run that pages look at."""
FOLD_TICKS = 16_384
"""A loop of more ticks than that may be folded."""
MAX_FOLDS = 16
TABLE_ROWS = 24
"""Rows of the table on a page; the .json twin and the command line have all."""
MOST_OF = 0.9
"""An inner loop with so much of an outer one's instructions is what that one is called by."""

DOES = {
    "delay": "counts down",
    "spin": "reads the same again",
    "scan": "reads on",
    "fill": "writes on",
    "copy": "copies",
    "update": "reads and writes",
    "compute": "computes",
    "call": "calls functions",
}
"""What a loop of a kind (`emulator/loopkinds.py`) does, in words."""


@dataclass(frozen=True)
class LoopLine:
    """One loop, as a row of a table or a bar of the timeline."""

    cpu: int
    level: int
    letter: str
    """Of the stage in which it began."""
    begin: int
    end: int
    ticks: int
    turns: int
    entries: int
    head: str
    tail: str
    kind: str
    name: str
    """Function and offset of its head, or the address."""

    @property
    def does(self) -> str:
        """What it does, in words."""
        return DOES.get(self.kind, self.kind)

    @property
    def count(self) -> str:
        """`x 65,536`, or `x 333,312 in 4 entries`."""
        return f"x {self.turns:,}" + (f" in {self.entries:,} entries" * (self.entries > 1))

    @property
    def words(self) -> str:
        """Its name and count."""
        return f"{self.name} x {self.turns:,}"


def loop_lines(rows: Iterable[LoopRow], lanes: Lanes) -> tuple[LoopLine, ...]:
    """Name the loops of a trace and the stages that they are in."""
    return tuple(
        LoopLine(
            row.cpu, row.level, lanes.letter_of(row.cpu, row.begin + 1), row.begin, row.end,
            row.ticks, row.turns, row.entries, row.head, row.tail, row.kind,
            row.symbol.partition("/")[0] or f"0x{int(row.head, 16):x}",
        )
        for row in rows
    )  # fmt: skip


def nests(lines: Sequence[LoopLine]) -> Iterator[tuple[LoopLine, ...]]:
    """Yield each outermost loop with those in it."""
    begin = 0
    for at in range(1, len(lines) + 1):
        if at == len(lines) or lines[at].level == 0:
            yield tuple(lines[begin:at])
            begin = at


def known_as(nest: Sequence[LoopLine]) -> LoopLine:
    """Return the loop of a nest that does most of its work, as far in as one does."""
    named = nest[0]
    for line in nest[1:]:
        if line.level == named.level + 1 and line.ticks >= MOST_OF * named.ticks:
            named = line
    return named


def folds(lines: Sequence[LoopLine], boot_cpu: int) -> list[tuple[int, int, str]]:
    """Return (begin, end, words) of the longest loops during which no other CPU retired anything.

    Args:
        lines: of one run.
        boot_cpu: the CPU whose stages cut the axis.
    """
    found = []
    for nest in nests(lines):
        line = nest[0]
        alone = line.ticks == line.end - line.begin
        if line.cpu == boot_cpu and alone and line.ticks > FOLD_TICKS:
            found.append((line.begin, line.end, known_as(nest).words))
    found.sort(key=lambda fold: fold[0] - fold[1])
    return sorted(found[:MAX_FOLDS])


def folded(spans: Sequence[Span], loops: Sequence[tuple[int, int, str]]) -> list[Span]:
    """Cut the boot CPU's spans at the edges of its long loops and mark what lies in them."""
    edges = sorted({tick for begin, end, _ in loops for tick in (begin, end)})
    out = []
    for span in cut(spans, edges):
        inside = [words for begin, end, words in loops if begin <= span.lo and span.hi <= end]
        out.append(replace(span, fold=True, loop=inside[0]) if inside else span)
    return out


def table(lines: Sequence[LoopLine], most: int = TABLE_ROWS) -> tuple[LoopLine, ...]:
    """Return the loops with most instructions, in the order that they ran, within their nests."""
    if len(lines) <= most:
        return tuple(lines)
    least = sorted((line.ticks for line in lines), reverse=True)[most - 1]
    return tuple(line for line in lines if line.ticks >= least)[:most]


def document(lines: Iterable[LoopLine]) -> list[Json]:
    """Return loops as the documented JSON."""
    return [
        {
            "cpu": line.cpu, "level": line.level, "stage": line.letter, "begin": line.begin,
            "end": line.end, "ticks": line.ticks, "turns": line.turns, "entries": line.entries,
            "head": line.head, "tail": line.tail, "kind": line.kind, "name": line.name,
        }
        for line in lines
    ]  # fmt: skip


TEXT_HEAD = f"{'tick':>13} {'cpu':>3}   {'instructions':>13} {'turns':>11}  loop"


def text_lines(lines: Iterable[LoopLine]) -> Iterator[str]:
    """Yield two lines a loop, of at most 75 columns: counts and place, then what it does."""
    for line in lines:
        start = f"{line.begin:>13} {line.cpu:>3} {line.letter} {line.ticks:>13} {line.turns:>11}"
        indent = "  " * min(line.level, 6)
        yield f"{start}  {indent}{line.name}"[:75]
        last = int(line.tail, 16) & 0xFFFF
        entries = f"in {line.entries} entries, " if line.entries > 1 else ""
        words = (int(line.tail, 16) - int(line.head, 16)) // 4 + 1
        body = f"{entries}{words} words to 0x..{last:04x}, {line.does}"
        yield f"{'':46}{indent}{body}"[:75]
