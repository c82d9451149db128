"""Two runs side by side: aligned by stage and occurrence, their first divergence, what differs.

What it is: pure functions over lanes, custody steps and the documents that sessions answer. What it
is not: a proof that two runs are equal (that is the trace digest). Flow is compared at the ends of
each stage that both have; where they differ, the fork is found by bisection over the ticks of that
stage. Two flows that part and meet again within one stage, with as many instructions, look equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final

from emulator.lanes import Lanes, Stay
from emulator.ppc64 import REGISTERS
from emulator.verdict import Step, number

Json = Mapping[str, Any]
SHOWN_BACK: Final = 3
SHOWN_ON: Final = 9


@dataclass(frozen=True)
class Column:
    """One stage of the boot CPU, in one run or in both."""

    stage: str
    occurrence: int
    a: Stay | None
    b: Stay | None

    @property
    def stay(self) -> Stay:
        """The stay of either run, for its name."""
        found = self.a or self.b
        if found is None:
            raise ValueError("a column of no run")
        return found

    @property
    def ticks(self) -> tuple[int, int]:
        """How long it takes in each run."""
        return tuple(s.hi - s.lo if s else 0 for s in (self.a, self.b))  # type: ignore[return-value]


def align(a: Lanes, b: Lanes, boot_a: int, boot_b: int) -> tuple[Column, ...]:
    """Align the boot CPUs' stages by (stage, occurrence), in the order of both."""
    left, right = _numbered(a.stays.get(boot_a, ())), _numbered(b.stays.get(boot_b, ()))
    columns: list[Column] = []
    matcher = SequenceMatcher(None, list(left), list(right), autojunk=False)
    for _, a0, a1, b0, b1 in matcher.get_opcodes():
        keys_a, keys_b = list(left)[a0:a1], list(right)[b0:b1]
        if keys_a == keys_b:
            columns += [Column(*key, left[key], right[key]) for key in keys_a]
        else:
            columns += [Column(*key, left[key], None) for key in keys_a]
            columns += [Column(*key, None, right[key]) for key in keys_b]
    return tuple(columns)


def _numbered(stays: Sequence[Stay]) -> dict[tuple[str, int], Stay]:
    seen: Counter[str] = Counter()
    out = {}
    for stay in stays:
        if stay.hi > stay.lo:
            seen[stay.stage] += 1
            out[stay.stage, seen[stay.stage]] = stay
    return out


def meeting(columns: Sequence[Column], stage: str = "early_setup") -> Column | None:
    """Return the column at whose beginning states are compared: that stage, or the last common."""
    common = [column for column in columns if column.a and column.b]
    return next((c for c in common if c.stage == stage), common[-1] if common else None)


def first_different(count: int, same: Callable[[int], bool]) -> int | None:
    """Return the first offset of 0..count-1 that is not the same, by bisection; None if all are.

    Args:
        count: how many offsets there are.
        same: holds up to some offset and not from there on.
    """
    if count <= 0 or same(count - 1):
        return None
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if same(middle):
            low = middle + 1
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Fork:
    """Where two flows part: the ticks after the last instruction that is the same in both."""

    tick_a: int
    tick_b: int
    equal: int
    """So many ticks of the stage came before it in both."""
    column: Column
    steps_a: tuple[Json, ...]
    steps_b: tuple[Json, ...]
    trunk: tuple[Json, ...]


State = Callable[[int], Json]
Window = Callable[[int], Sequence[Json]]


def first_fork(
    columns: Sequence[Column], states: tuple[State, State], windows: tuple[Window, Window],
    boots: tuple[int, int],
) -> Fork | None:  # fmt: skip
    """Find the first place where the boot CPUs' flows part; None if no stage shows one.

    Args:
        columns: from `align`.
        states: tick -> the session's answer, of each run.
        windows: tick -> the instructions round it.
        boots: the boot CPUs.
    """

    def place(side: int, tick: int) -> str:
        row = next(c for c in states[side](tick)["cpus"] if c["cpu"] == boots[side])
        return str(row.get("symbol") or row["registers"]["nip"])

    before: Column | None = None
    for column in columns:
        if column.a is None or column.b is None:
            return None if before is None else _fork_at_end(before, windows, boots)
        start_a, start_b = column.a.lo, column.b.lo
        count = min(column.ticks)
        at = first_different(
            count, lambda k, a=start_a, b=start_b: place(0, a + k) == place(1, b + k)  # type: ignore[misc]
        )  # fmt: skip
        if at is not None:
            return _fork(column, start_a + at, start_b + at, windows, boots)
        if column.ticks[0] != column.ticks[1]:
            return _fork(column, start_a + count, start_b + count, windows, boots)
        before = column
    return None


def _fork_at_end(
    column: Column, windows: tuple[Window, Window], boots: tuple[int, int]
) -> Fork | None:
    if column.a is None or column.b is None:
        return None
    return _fork(column, column.a.hi, column.b.hi, windows, boots)


def _fork(
    column: Column, tick_a: int, tick_b: int, windows: tuple[Window, Window], boots: tuple[int, int]
) -> Fork:
    """Look at the instructions themselves: the fork may be a different word a little earlier."""
    rows_a = [row for row in windows[0](tick_a) if row["cpu"] == boots[0]]
    rows_b = [row for row in windows[1](tick_b) if row["cpu"] == boots[1]]
    before_a = [row for row in rows_a if row["tick"] <= tick_a]
    before_b = [row for row in rows_b if row["tick"] <= tick_b]
    size = min(len(before_a), len(before_b))
    at_a, at_b = len(before_a) - size, len(before_b) - size
    while at_a < len(rows_a) and at_b < len(rows_b) and _same(rows_a[at_a], rows_b[at_b]):
        at_a, at_b = at_a + 1, at_b + 1
    start_a, start_b = column.stay.lo, column.stay.lo
    if column.a is not None and column.b is not None:
        start_a, start_b = column.a.lo, column.b.lo
    last_a = int(rows_a[at_a - 1]["tick"]) if at_a else max(tick_a - 1, start_a)
    last_b = int(rows_b[at_b - 1]["tick"]) if at_b else max(tick_b - 1, start_b)
    return Fork(
        last_a, last_b, max(last_a - start_a, 0), column,
        tuple(rows_a[at_a : at_a + SHOWN_ON]), tuple(rows_b[at_b : at_b + SHOWN_ON]),
        tuple(rows_a[max(at_a - SHOWN_BACK, 0) : at_a]),
    )  # fmt: skip


def _same(a: Json, b: Json) -> bool:
    return (a["word"], a.get("symbol")) == (b["word"], b.get("symbol"))


@dataclass(frozen=True)
class Difference:
    """Something that is, or is not, the same in both runs."""

    name: str
    a: str
    b: str
    same: bool
    note: str = ""
    tick_a: int | None = None
    tick_b: int | None = None


def registers(a: Json, b: Json, boots: tuple[int, int]) -> tuple[Difference, ...]:
    """Compare the boot CPUs' registers of two states, in the order of the table."""
    rows = []
    for side, state in ((0, a), (1, b)):
        rows.append(next(c for c in state["cpus"] if c["cpu"] == boots[side]))
    out = []
    for name in REGISTERS:
        left, right = (number(row["registers"][name]) or 0 for row in rows)
        note = str(rows[0].get("symbol", "")).split("+")[0] if name == "nip" else ""
        out.append(Difference(name, f"{left:016x}", f"{right:016x}", left == right, note))
    return tuple(out)


def memory(a: str, b: str, base: str) -> tuple[Difference, ...]:
    """Compare two stretches of memory, given in hex, by lines of sixteen bytes."""
    left, right = bytes.fromhex(a), bytes.fromhex(b)
    out = []
    for at in range(0, min(len(left), len(right)), 16):
        x, y = left[at : at + 16], right[at : at + 16]
        out.append(Difference(f"{base}+0x{at:02x}", x.hex(" "), y.hex(" "), x == y))
    return tuple(out)


def custody(a: Sequence[Step], b: Sequence[Step]) -> tuple[Difference, ...]:
    """Compare the flag's chains of custody: asked, nth write, nth read, outcome."""
    left, right = _steps(a), _steps(b)
    out = []
    for name in sorted({*left, *right}, key=lambda n: (_RANK.index(n.split()[0]), n)):
        x, y = left.get(name), right.get(name)
        values = [step.value if step else "never" for step in (x, y)]
        out.append(
            Difference(
                name, values[0], values[1], values[0] == values[1], "",
                x.tick if x else None, y.tick if y else None,
            )
        )  # fmt: skip
    return tuple(out)


_RANK: Final = ("loader", "written", "read", "kernel")


def _steps(steps: Sequence[Step]) -> dict[str, Step]:
    count: Counter[str] = Counter()
    out = {}
    for step in steps:
        kind = "loader" if step.number == 0 else "kernel" if step.number < 0 else ""
        kind = kind or ("written" if step.write else "read")
        count[kind] += 1
        many = kind == "read" or count[kind] > 1
        out[f"{kind} {count[kind]}" if many else kind] = step
    return out
