"""The loops of a run, told for people: names, counts, which to fold, as a table and as bars.

Pure: rows of a trace in, frozen dataclasses out. What is a loop is `emulator/nativeloops.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.axis import Span, cut
from emulator.handoff import LINEAR_BASE
from emulator.lanes import Lanes
from emulator.trace import LoopRow

Json = dict[str, Any]
Fold = tuple[int, int, tuple[str, ...], int]

MAX_ROWS = 2_000
"""Loops of a run that pages look at."""
FOLD_TICKS = 16_384
"""A loop of more ticks than that may be folded."""
MAX_FOLDS = 12
OTHERS_PART = 1000
"""Other CPUs may retire one of so many of a folded loop's ticks: those that are being parked do."""
KERNEL_SHARE = 0.01
"""Of the run, that a loop in the new kernel's C code must have to be folded: what comes before is
what a hand-off is about."""
TABLE_ROWS = 20
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

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, ever shorter: for `memcpy+0xc` also `memcpy`, `copy`; a delay's is `delay`."""
        function = self.name.partition("+")[0].partition(".")[0]
        if self.kind in ("delay", "spin"):
            return (self.name, self.kind)
        names = (self.name, function, *([self.kind] if self.kind != "call" else []))
        return tuple(dict.fromkeys(names))

    @property
    def labels(self) -> tuple[str, ...]:
        """Name and count, ever shorter: `master+0x58 x 65,536`, .. `x 65,536`, `65k`."""
        full = [f"{name} x {self.turns:,}".strip() for name in (*self.names, "")]
        return (*full, f"{self.turns // 1000}k") if self.turns >= 10_000 else tuple(full)

    @property
    def is_kernel(self) -> bool:
        """It is of the new kernel's C code, no longer of the hand-off."""
        return int(self.head, 16) >= LINEAR_BASE


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


def folds(lines: Sequence[LoopLine], boot_cpu: int) -> list[Fold]:
    """Return (begin, end, names, turns) of long loops in which other CPUs did next to nothing.

    Args:
        lines: of one run.
        boot_cpu: the CPU whose stages cut the axis.
    """
    found = []
    last = max((line.end for line in lines), default=0)
    for nest in nests(lines):
        line = nest[0]
        alone = (line.end - line.begin - line.ticks) * OTHERS_PART <= line.ticks
        least = max(FOLD_TICKS, KERNEL_SHARE * last if line.is_kernel else 0)
        if line.cpu == boot_cpu and alone and line.ticks > least:
            named = known_as(nest)
            found.append((line.begin, line.end, named.names, named.turns))
    found.sort(key=lambda fold: fold[0] - fold[1])
    return sorted(found[:MAX_FOLDS])


def folded(spans: Sequence[Span], loops: Sequence[Fold]) -> list[Span]:
    """Cut the boot CPU's spans at the edges of its long loops and mark what lies in them."""
    edges = sorted({tick for fold in loops for tick in fold[:2]})
    out = []
    for span in cut(spans, edges):
        inside = [fold for fold in loops if fold[0] <= span.lo and span.hi <= fold[1]]
        for _, _, names, turns in inside[:1]:
            span = replace(span, fold=True, loop=names, turns=turns)
        out.append(span)
    return out


def table(lines: Sequence[LoopLine], most: int = TABLE_ROWS) -> tuple[LoopLine, ...]:
    """Return the longest loops, those of the hand-off first, in the order that they ran."""
    ranks = sorted(range(len(lines)), key=lambda at: (lines[at].is_kernel, -lines[at].ticks))
    return tuple(lines[at] for at in sorted(ranks[:most]))


def loop_documents(lines: Iterable[LoopLine]) -> list[Json]:
    """Return loops as the documented JSON."""
    return [
        {
            "cpu": line.cpu, "level": line.level, "stage": line.letter, "begin": line.begin,
            "end": line.end, "ticks": line.ticks, "turns": line.turns, "entries": line.entries,
            "head": line.head, "tail": line.tail, "kind": line.kind, "name": line.name,
        }
        for line in lines
    ]  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """A loop that a CPU is in at a tick, or CPUs from one to another."""

    cpu: int
    last_cpu: int
    level: int
    letter: str
    head: str
    name: str
    kind: str
    turn: int
    """Which turn of this entry, from 1: the one that its next instruction is of."""
    turns: int | None
    """How many this entry has, if that is known: the loop is entered once, and has ended."""
    whole: str
    """Of a loop that is entered more than once: turns and entries in all."""
    since: int
    """Tick before this entry's first turn."""
    end: int | None
    """Tick after it, if that is known."""

    @property
    def words(self) -> str:
        """`turn 3,412 of 65,536 of master+0x58 (counts down)`."""
        of = f" of {self.turns:,}" if self.turns is not None else ""
        more = ", ".join(part for part in (self.does, self.whole) if part)
        return f"turn {self.turn:,}{of} of {self.name}" + (f" ({more})" if more else "")

    @property
    def does(self) -> str:
        """What the loop does, if that is known."""
        return DOES.get(self.kind, "")

    @property
    def cpus(self) -> str:
        """`0`, or `1-3`."""
        return f"{self.cpu}" if self.cpu == self.last_cpu else f"{self.cpu}-{self.last_cpu}"


def standing(lines: Sequence[LoopLine], state: Json, tick: int) -> tuple[Standing, ...]:
    """Say which loops each CPU is in, and at which turn, the outermost first.

    Args:
        lines: of the run.
        state: the session's answer; its CPUs know their loops from the second turn on. A CPU whose
            NIP is the head is in the turn to come.
        tick: of the state.
    """
    around = [line for line in lines if line.begin <= tick < line.end]
    found = []
    for cpu in state.get("cpus", []):
        number, row = int(cpu["cpu"]), cpu.get("loops", [])
        own = [line for line in around if line.cpu == number]
        heads = {str(item.get("head")) for item in row}
        nip = cpu.get("registers", {}).get("nip")
        for line in own:  # in their first turn: nothing has come back yet
            if line.entries == 1 and line.head not in heads:
                turn = 2 if line.head == nip and tick > line.begin else 1
                found.append(_standing(line, {"turn": turn, "since": line.begin}, line.level))
        for level, item in enumerate(row):
            head = item.get("head")
            known = next((line for line in own if line.head == head), None)
            left = any((x.cpu, x.head, x.end) == (number, head, tick) for x in lines)
            if known is not None or not left:  # who has just left is seen to at its next block
                found.append(_standing(known or _unknown(number, item), item, level))
    return _alike(sorted(found, key=lambda one: (one.cpu, one.level, one.since)))


def _alike(found: Sequence[Standing]) -> tuple[Standing, ...]:
    """Make one of CPUs that follow each other and are at one turn of one loop: parked ones are."""
    out: list[Standing] = []
    for one in found:
        before = out[-1] if out else one
        same = (before.level, before.head, before.turn) == (one.level, one.head, one.turn)
        if out and same and before.last_cpu + 1 == one.cpu:
            out[-1] = replace(before, last_cpu=one.cpu)
        else:
            out.append(one)
    return tuple(out)


def _unknown(cpu: int, item: Json) -> LoopLine:
    """A loop that is too short to be told of."""
    head = str(item["head"])
    name = str(item.get("symbol", "")).partition("/")[0] or f"0x{int(head, 16):x}"
    return LoopLine(cpu, 0, "", int(item["since"]), 0, 0, 0, 2, head, "", "", name)


def _standing(line: LoopLine, item: Json, level: int) -> Standing:
    once, turn = line.entries == 1, int(item["turn"])
    if once:  # whoever waits at the head until the run ends is in no further turn
        turn = min(turn, line.turns)
    whole = "" if once or not line.turns else f"{line.turns:,} in {line.entries:,} entries"
    return Standing(
        line.cpu, line.cpu, level, line.letter, line.head, line.name, line.kind, turn,
        line.turns if once else None, whole, int(item["since"]), line.end if once else None,
    )  # fmt: skip


TEXT_HEAD = f"{'tick':>13} {'cpu':>3}   {'turns':>10} {'instructions':>13}  loop"


def text_lines(lines: Iterable[LoopLine]) -> Iterator[str]:
    """Yield two lines a loop, of at most 75 columns: its counts and name, then what it does."""
    for line in lines:
        start = f"{line.begin:>13} {line.cpu:>3} {line.letter} {line.turns:>10} {line.ticks:>13}"
        yield f"{start}  {'  ' * min(line.level, 6)}{line.name}"[:75]
        head, words = int(line.head, 16), (int(line.tail, 16) - int(line.head, 16)) // 4 + 1
        entries = f", entered {line.entries} times" if line.entries > 1 else ""
        body = f"{head:x}, {words} word{'s' * (words > 1)}; {line.does}{entries}"
        yield f"{'':18}{body}"[:75]
