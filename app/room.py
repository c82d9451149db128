"""Which sessions stay: their memory against a budget. Pure; the pool ends them (`sessions.py`).

A session of a small sample uses some 0.1 GB, that of the Debian pair 0.5 GB (proportional set size
of all its processes), so they are bounded by what they use, and by their number only as a
back-stop. Not here: how memory is measured (`warden.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SESSION_BYTES = 512 << 20
"""What a session counts for until it was measured: as much as that of the Debian pair."""
BUDGET_VARIABLE = "BOOTFLOW_SESSION_MIB"
_SHARE = 4
_UNKNOWN_MACHINE_BYTES = 4 << 30


@dataclass(frozen=True)
class Seat:
    """One session, as far as its memory goes."""

    key: str
    bytes: int
    used_at: float
    """When it was asked last, in seconds of a monotonic clock."""
    idle: bool
    """Nobody waits for it, and it does not record: it may be ended."""
    recording: bool = False
    """It stays, whatever comes: what others may use is less by that."""


def memory_total(meminfo: str) -> int:
    """Return the machine's memory in bytes, from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal" and rest.split()[:1] and rest.split()[0].isdecimal():
            return int(rest.split()[0]) << 10
    return _UNKNOWN_MACHINE_BYTES


def budget_bytes() -> int:
    """Return what all sessions may use together: BOOTFLOW_SESSION_MIB, or a quarter of the RAM."""
    wish = os.environ.get(BUDGET_VARIABLE, "")
    if wish.isdecimal() and int(wish):
        return int(wish) << 20
    return memory_total(Path("/proc/meminfo").read_text()) // _SHARE


def surplus(
    seats: Sequence[Seat], budget: int, most: int, now: float, coming_bytes: int | None = None
) -> tuple[list[str], bool]:
    """Choose the idle sessions that end, and say whether the others then keep within the bounds.

    Too many end by age, the one that was asked longest ago first. Where memory is short, those end
    first that give most back for the time that nobody missed them: bytes times seconds.

    Args:
        seats: all sessions.
        budget: bytes that they may use together.
        most: how many there may be.
        now: of the clock of `Seat.used_at`.
        coming_bytes: what one more session will use that is to be started, if any. It may always
            be if no other but recordings are left.
    """
    coming = 0 if coming_bytes is None else 1
    left = {seat.key: seat for seat in seats}
    ended: list[str] = []

    def end(seat: Seat) -> None:
        del left[seat.key]
        ended.append(seat.key)

    by_age = sorted((s for s in seats if s.idle), key=lambda s: s.used_at)
    while by_age and len(left) + coming > most:
        end(by_age.pop(0))
    by_gain = sorted(by_age, key=lambda s: s.bytes * (now - s.used_at), reverse=True)
    while by_gain and _used(left) + (coming_bytes or 0) > budget:
        end(by_gain.pop(0))
    fits = len(left) + coming <= most and _used(left) + (coming_bytes or 0) <= budget
    return ended, fits or all(seat.recording for seat in left.values())


def _used(seats: dict[str, Seat]) -> int:
    return sum(seat.bytes for seat in seats.values())
