"""Where does turn N of a loop begin? Found by asking at few ticks which turn it is then.

What it is: interpolation between two ticks whose turns are known, halving where that gains little;
the turns of one entry only grow with the ticks. What it is not: a replay; `search` does that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from emulator.errors import SessionError

LEFT: Final = 1 << 62
"""The turn at a tick at which the entry is over."""
MAX_QUESTIONS: Final = 80

TurnAt = Callable[[int], int]
"""Tick -> turn of the entry then, 0 before it, LEFT after it."""


def begin_of_turn(turn_at: TurnAt, since: int, here: int, last: int, wanted: int) -> int | None:
    """Return the tick before the first instruction of a turn; None if the entry has fewer.

    Args:
        turn_at: asks; grows with the tick.
        since: tick before the first turn.
        here: a tick of the entry.
        last: of the run.
        wanted: the turn, from 1.

    Raises:
        SessionError: more questions than such a search takes.
    """
    if wanted <= 1:
        return since
    low, low_turn = since, 1
    high, high_turn = here, turn_at(here)
    asked = 0
    while high_turn < wanted:  # the turn lies ahead: step by so many turns as are missing
        if high >= last:
            return None
        each = max((high - since) // max(high_turn - 1, 1), 1)
        low, low_turn = high, high_turn
        high = min(last, high + each * (wanted - high_turn) + 1)
        high_turn = turn_at(high)
        asked += 1
        if asked > MAX_QUESTIONS:
            raise SessionError("a turn that is not to be found", hint="Try one nearer by.")
    return _between(turn_at, (low, low_turn), (high, high_turn), wanted)


def _between(
    turn_at: TurnAt, low: tuple[int, int], high: tuple[int, int], wanted: int
) -> int | None:
    """The first tick of a turn is known at is behind low, and not behind high."""
    for question in range(MAX_QUESTIONS):
        (before, fewer), (after, more) = low, high
        if after - before <= 1:
            return before if more == wanted else None
        middle = (before + after) // 2
        if question % 3 != 2 and more != LEFT and more > fewer:
            each = (after - before) / (more - fewer)
            middle = before + round((wanted - fewer) * each) - (question % 3)
        middle = min(max(middle, before + 1), after - 1)
        turn = turn_at(middle)
        low, high = ((middle, turn), high) if turn < wanted else (low, (middle, turn))
    raise SessionError("a turn that is not to be found", hint="Try one nearer by.")
