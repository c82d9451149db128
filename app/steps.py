"""Instructions as they ran: the answer of a session's "window" query as rows of a page.

Each row is one retired instruction, decoded under the byte order that it ran with, with what it
changed. Pure: documents in, frozen dataclasses out. What a session's answer holds is checked here,
so that a page can trust it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.panels import printable
from emulator.lanes import stage_id, stage_letter
from emulator.ppc64 import REGISTERS
from emulator.verdict import flag_text, number

TEXT_COLUMNS = 75
BACK, ON = 28, 28
"""Instructions that are asked for before and after the cursor."""
RECENT = 12
"""A register that one of the last so many instructions changed is dotted."""


@dataclass(frozen=True)
class Touch:
    """One access of an instruction to memory."""

    write: bool
    addr: int
    size: int
    value: int | None
    old: int | None

    @property
    def words(self) -> str:
        """`5c <- 1`, `5c: "run0" -> 1` where the old value is known, or `5c is 1` for a read."""
        value = "?" if self.value is None else flag_or_hex(self.value, self.size)
        if not self.write:
            return f"{self.addr:x} is {value}"
        if self.old is None or self.old == self.value:
            return f"{self.addr:x} <- {value}"
        return f"{self.addr:x}: {flag_or_hex(self.old, self.size)} -> {value}"


@dataclass(frozen=True)
class Step:
    """One instruction: number `tick` made the state at that tick."""

    tick: int
    cpu: int
    nip: int
    data: str
    text: str
    symbol: str
    line: str
    order: str
    letter: str
    changed: tuple[tuple[str, int, int], ...]
    memory: tuple[Touch, ...]
    flag: bool
    """It touched the flag."""

    @property
    def mnemonic(self) -> str:
        """The first word of the text."""
        return self.text.split(" ", 1)[0]

    @property
    def comment(self) -> str:
        """What it did, in a few words."""
        parts = ["flag " * self.flag + touch.words for touch in self.memory]
        parts += [f"{name} = {new:x}" for name, _, new in self.changed if name != "nip"]
        return ", ".join(parts)


def flag_or_hex(value: int, size: int) -> str:
    """Return a value in hex; "run0" by its name, as the field writes it."""
    words = flag_text(value) if size == 4 else ""
    return words if words.startswith('"') else f"{value:x}"


def steps(answer: Mapping[str, Any], flags: Iterable[tuple[int, int]]) -> tuple[Step, ...]:
    """Read the answer of a window query.

    Args:
        answer: {"steps": [...]}; what is no step is left out.
        flags: (address, size) of the flags in memory.
    """
    places = tuple(flags)
    rows = answer.get("steps", [])
    return tuple(_step(row, places) for row in rows if isinstance(row, dict) and "tick" in row)


def _step(row: Mapping[str, Any], flags: Sequence[tuple[int, int]]) -> Step:
    touches = tuple(_touch(item) for item in row.get("memory", []))
    changed = []
    for name, pair in row.get("changed", {}).items():
        if name in REGISTERS and name != "nip" and len(pair) == 2:
            changed.append((name, number(pair[0]) or 0, number(pair[1]) or 0))
    return Step(
        int(row["tick"]), int(row["cpu"]), number(row.get("nip")) or 0,
        " ".join(re.findall("..", str(row.get("bytes", "")))), printable(str(row.get("text", ""))),
        printable(str(row.get("symbol", ""))), printable(str(row.get("line", ""))),
        "LE" if row.get("le") else "BE",
        stage_letter(stage_id(str(row.get("stage", "")))), tuple(changed), touches,
        any(_overlaps(touch, flags) for touch in touches),
    )  # fmt: skip


def _touch(item: Mapping[str, Any]) -> Touch:
    return Touch(
        item.get("kind") == "w", number(item.get("addr")) or 0, int(item.get("size") or 1),
        number(item.get("value")), number(item.get("old")),
    )  # fmt: skip


def _overlaps(touch: Touch, flags: Sequence[tuple[int, int]]) -> bool:
    addr = touch.addr & ~(0xF << 60)
    return any(addr < at + size and at < addr + touch.size for at, size in flags)


@dataclass(frozen=True)
class RanLine:
    """One line of the listing: an instruction, or before it a function or a source line."""

    tick: int
    addr: str
    data: str
    text: str
    comment: str
    symbol: str
    order: str
    mark: str
    """`*` just ran, `=>` is next, else empty."""
    flag: bool = False
    head: bool = False
    source: str = ""
    """`file:line` of the instructions below."""

    @property
    def margin(self) -> str:
        """The mark, and a blank behind it if the address would touch it."""
        return f"{self.mark:<2}" + " " * (len(self.addr) >= 10)

    @property
    def text_lines(self) -> tuple[str, ...]:
        """As text of at most 75 columns; a comment that does not fit stands below."""
        if self.source:
            return (self.source,)
        if self.head:
            return (f"{self.addr} <{self.symbol}>: {self.order}",)
        start = f"{self.margin}{self.addr:>10}:  {self.data}  "
        line = f"{start}{self.text}"
        if not self.comment:
            return (line,)
        beside = f"{start}{self.text:<19} # {self.comment}"
        if len(beside) <= TEXT_COLUMNS:
            return (beside,)
        return (line, f"{'':{len(start)}}# {self.comment}")


def listing(
    rows: Sequence[Step], cpu: int, tick: int, *, back: int = 13, on: int = 12
) -> tuple[RanLine, ...]:
    """Lay out what one CPU ran and will run round a tick, in objdump's form.

    A line with the function's name comes first, and again wherever function or byte order change;
    then the source line, where it is known, and again wherever that changes.
    """
    own = [row for row in rows if row.cpu == cpu]
    past, later = [r for r in own if r.tick <= tick], [r for r in own if r.tick > tick]
    shown = past[-back:] + later[:on]
    out: list[RanLine] = []
    place, line = None, ""
    for row in shown:
        name = row.symbol.split("+")[0]
        if (name, row.order) != place:
            place, line = (name, row.order), ""
            title = row.symbol.split("/")[0].removesuffix("+0x0") or f"0x{row.nip:x}"
            out.append(
                RanLine(row.tick, f"{row.nip:016x}", "", "", "", title, row.order, "", head=True)
            )
        if row.line and row.line != line:
            line = row.line
            out.append(RanLine(row.tick, "", "", "", "", "", "", "", source=line))
        mark = "*" if past and row is past[-1] and row.tick == tick else ""
        mark = "=>" if later and row is later[0] else mark
        out.append(
            RanLine(
                row.tick, f"{row.nip:x}", row.data, row.text, _comment(row, own), "", row.order,
                mark, row.flag,
            )
        )  # fmt: skip
    return tuple(out)


def _comment(row: Step, own: Sequence[Step]) -> str:
    """Return what a step did; of a branch, whether it was taken."""
    words = row.comment
    after = next((other for other in own if other.tick > row.tick), None)
    if after is not None and after.nip not in (row.nip, (row.nip + 4) & ((1 << 64) - 1)):
        target = f"to {after.nip:x}"
        words = f"{words}, {target}" if words else target
    return words


def recent_registers(rows: Sequence[Step], cpu: int, tick: int) -> frozenset[str]:
    """Return the registers that the last instructions of a CPU changed."""
    past = [row for row in rows if row.cpu == cpu and row.tick <= tick][-RECENT:]
    return frozenset(name for row in past for name, _, _ in row.changed)


def at_tick(rows: Sequence[Step], tick: int) -> Step | None:
    """Return the instruction that made the state at a tick."""
    return next((row for row in rows if row.tick == tick), None)
