"""The lens: single instructions round the cursor, each on the lane of the CPU that retired it.

Linear, 28 cells (12 back, 16 on; 4 and 4 on telephones), joined to the cursor of the timeline above
by a fan. Instruction n fills (n-1, n], so the cursor stands on the right edge of its cell and a
written value begins exactly there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.canvas import SMALL_CHAR_PX, Canvas

BACK, ON = 12, 16
MEDIUM_PX = 1000


@dataclass(frozen=True)
class Cell:
    """One retired instruction."""

    tick: int
    cpu: int
    letter: str
    mnemonic: str = ""
    order: str = ""
    flag: str = ""
    """`w` wrote the flag, `r` read it."""
    words: str = ""
    entered: str = ""
    """Name of the stage that it is the first instruction of."""


@dataclass(frozen=True)
class FlagValue:
    """The flag's value from a tick on."""

    tick: int
    text: str
    is_set: bool


@dataclass(frozen=True)
class Waiting:
    """CPUs that retire nothing in the lens, and the stage that they are in meanwhile."""

    cpus: tuple[int, ...]
    letter: str
    name: str


def lens(
    canvas: Canvas,
    cells: Sequence[Cell],
    cursor: int,
    cursor_x: float,
    y: float,
    flag: Sequence[FlagValue],
    href: str,
    keep: str,
    waiting: Sequence[Waiting] = (),
) -> float:
    """Draw the lens below y; return where it ends."""
    back, on = (4, 4) if canvas.narrow else (7, 7) if canvas.x1 < MEDIUM_PX else (BACK, ON)
    cells = [c for c in cells if cursor - back < c.tick <= cursor + on]
    if not cells:
        return y
    first, last = cells[0].tick, cells[-1].tick
    step = (canvas.x1 - canvas.x0) / max(last - first + 1, 1)
    edge = canvas.x0 + (cursor - first + 1) * step
    left, right = canvas.x0, canvas.x1
    canvas.path(f"M{cursor_x:.1f} {y:.1f}L{left:.1f} {y + 14:.1f}H{right:.1f}Z", "fan")
    y += 14
    canvas.rect(left, y, right - left, 15, "fan")
    if not canvas.narrow:
        canvas.name(y + 11, "instructions", "e m")
    if edge - left > 60:
        canvas.text(edge - 6, y + 11, "e s", "<- retired")
    if right - edge > 60:
        canvas.text(edge + 6, y + 11, "s", "to come")
    for cell in cells:
        far = cell.tick - cursor
        if far and far % 4 == 0 and abs(far) > 4:
            x = left + (cell.tick - first + 0.5) * step
            canvas.text(x, y + 11, "c m s", f"{far:+}")
    y += 17
    top = y
    y = _rows(canvas, cells, cursor, first, step, y, href, keep)
    y = _orders(canvas, cells, first, step, y)
    y = _waiting(canvas, waiting, {cell.cpu for cell in cells}, y)
    if flag:
        y = _flag(canvas, cells, flag, first, last, step, y)
    canvas.line(edge, top - 17, edge, y - 2, "cur")
    return y


def _rows(
    canvas: Canvas,
    cells: Sequence[Cell],
    cursor: int,
    first: int,
    step: float,
    y: float,
    href: str,
    keep: str,
) -> float:
    """Draw a lane for each CPU that retired any of the cells."""
    tall = 26.0 if any(cell.mnemonic for cell in cells) else 22.0
    room = int((step - 3) / SMALL_CHAR_PX)
    for cpu in sorted({cell.cpu for cell in cells}):
        canvas.name(y + tall / 2 + 4, f"{cpu}" if canvas.narrow else f"cpu {cpu}", "e b")
        canvas.line(canvas.x0, y + tall / 2, canvas.x1, y + tall / 2, "hl")
        before = ""
        for cell in (c for c in cells if c.cpu == cpu):
            x = canvas.x0 + (cell.tick - first) * step
            now = cell.tick == cursor
            css = f"seg cell s{cell.letter}" + " now" * now + " fl" * bool(cell.flag)
            link = f"{href}{cell.tick}/{keep}" if href else ""
            canvas.rect(x, y, step, tall, css, cell.words, link)
            if cell.mnemonic and room > 2:
                if cell.letter != before or cell.flag:
                    words = "flag" if cell.flag else cell.letter
                    canvas.text(x + step / 2, y + 10, "c s b" + " f" * bool(cell.flag), words)
                css = "c s b" if now else "c s"
                canvas.text(x + step / 2, y + 21.5, css, cell.mnemonic[:room])
            else:
                canvas.text(x + step / 2, y + tall / 2 + 4, "c s", cell.letter)
            before = cell.letter
        y += tall + 3
    return y


def _orders(canvas: Canvas, cells: Sequence[Cell], first: int, step: float, y: float) -> float:
    """Draw MSR[LE] of whoever ran: little-endian is a line, big-endian a solid band."""
    if not any(cell.order for cell in cells) or canvas.narrow:
        return y
    canvas.name(y + 9, "MSR[LE]", "e m")
    start = 0
    for at in range(1, len(cells) + 1):
        if at < len(cells) and cells[at].order == cells[start].order:
            continue
        left = canvas.x0 + (cells[start].tick - first) * step
        right = canvas.x0 + (cells[at - 1].tick - first + 1) * step
        big = cells[start].order == "BE"
        if big:
            canvas.rect(left, y, right - left, 12, "ink", "big-endian")
        else:
            canvas.line(left, y + 11.5, right, y + 11.5, "hl")
        canvas.text(left + 4, y + 9.3, "s b inv" if big else "s b", cells[start].order)
        start = at
    return y + 15


def _waiting(canvas: Canvas, waiting: Sequence[Waiting], ran: set[int], y: float) -> float:
    """Draw a low row for each stage in which CPUs stay that did not run."""
    for row in waiting:
        cpus = [cpu for cpu in row.cpus if cpu not in ran]
        if not cpus:
            continue
        names = f"{cpus[0]}-{cpus[-1]}" if len(cpus) > 1 else f"{cpus[0]}"
        if len(cpus) != cpus[-1] - cpus[0] + 1:
            names = ",".join(map(str, cpus[:4])) + ".." * (len(cpus) > 4)
        canvas.name(y + 9.5, names if canvas.narrow else f"cpu {names}", "e m")
        canvas.rect(canvas.x0, y, canvas.x1 - canvas.x0, 12, f"s{row.letter}", row.name)
        words = f"{row.letter} {row.name}"
        words += "" if canvas.narrow else ", retires nothing here"
        canvas.text(canvas.x0 + 6, y + 9.5, "s ha" if row.letter == "H" else "s", words)
        y += 15
    return y


def _flag(
    canvas: Canvas,
    cells: Sequence[Cell],
    flag: Sequence[FlagValue],
    first: int,
    last: int,
    step: float,
    y: float,
) -> float:
    """Draw the flag's value; a read is a ring on the cell that reads, a write a disc before it."""
    canvas.name(y + 9.5, "flag", "e f b")
    lo, hi = first - 1, last
    before = [row for row in flag if row.tick <= lo][-1:] or list(flag[:1])
    spans = [*before, *(row for row in flag if lo < row.tick <= hi and row not in before)]
    for at, row in enumerate(spans[:12]):
        end = spans[at + 1].tick if at + 1 < len(spans) else hi
        left = canvas.x0 + (max(row.tick, lo) - lo) * step
        right = canvas.x0 + (end - lo) * step
        if right <= left:
            continue
        if row.is_set:
            canvas.rect(left, y, right - left, 13, "fb", f"value {row.text}")
        else:
            canvas.rect(left + 0.8, y + 0.8, right - left - 1.6, 11.4, "fo", f"value {row.text}")
        if len(row.text) * SMALL_CHAR_PX + 12 < right - left:
            canvas.text(left + 6, y + 10.2, "of" if row.is_set else "f", row.text)
    for cell in cells:
        if cell.flag:
            x = canvas.x0 + (cell.tick - first + 0.5) * step
            canvas.disc(x, y + 6.5, 4.5, "dot" if cell.flag == "w" else "ring", cell.words)
    return y + 18
