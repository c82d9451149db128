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
MAX_QUESTIONS: Final = 100

TurnAt = Callable[[int], tuple[int, int]]
"""Tick -> (turn of the entry then, tick at which that turn began); (LEFT, tick) after the entry. A
turn is known from the tick after its first instruction on."""


def begin_of_turn(turn_at: TurnAt, since: int, here: int, last: int, wanted: int) -> int | None:
    """Return the tick before the first instruction of a turn; None if the entry has fewer.

    Args:
        turn_at: asks.
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
    high, high_turn = last, LEFT
    tick = here
    for question in range(MAX_QUESTIONS):
        turn, begun = turn_at(tick)
        if turn == wanted:
            return begun
        if turn < wanted:
            low, low_turn = tick, turn
        else:
            high, high_turn = (begun if turn != LEFT else tick - 1), turn
        if low >= high:
            return None
        tick = _guess((low, low_turn), (high, high_turn), since, wanted, question)
    raise SessionError("a turn that is not to be found", hint="Try one nearer by.")


def _guess(
    low: tuple[int, int], high: tuple[int, int], since: int, wanted: int, question: int
) -> int:
    """A tick between two, where the middle of the turn may be."""
    (before, fewer), (after, more) = low, high
    if more != LEFT:
        each = (after - before) / (more - fewer)
    else:
        each = (before - since) / max(fewer - 1, 1)
    tick = before + round((wanted - fewer) * each)
    beyond = more == LEFT and tick > after
    if beyond or (question % 4 == 3 and (more != LEFT or question > 8)):
        tick = (before + after) // 2
    return min(max(tick, before + 1), after)
