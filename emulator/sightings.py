"""What a machine tells about a run: accesses, stops, steps; and what it is asked to look for.

What it is: plain rows that `machine` makes or takes. What it is not: the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.cpu import Registers


@dataclass(frozen=True)
class Access:
    """One row of the native log: a watched access or a change of range, at an exact tick."""

    kind: int
    """native.LOG_RANGE, LOG_WRITE or LOG_READ."""
    tick: int
    cpu: int
    nip: int
    addr: int
    """Physical address of the access; for LOG_RANGE the NIP without its top four bits."""
    size: int
    value: int
    """The bytes as a big-endian number; for LOG_RANGE the range's id, -1 for none."""
    msr: int


@dataclass(frozen=True)
class Watch:
    """Physical memory [lo, hi) whose accesses are logged: kinds LOG_READ | LOG_WRITE."""

    lo: int
    hi: int
    kinds: int


@dataclass(frozen=True)
class Range:
    """Code [lo, hi), without the top four bits of its address, whose entry is logged."""

    lo: int
    hi: int
    ident: int


@dataclass(frozen=True)
class Stop:
    """Why `run` came back. `why`: limit, written, log, hit, stopped, fault."""

    why: str
    text: str = ""


@dataclass(frozen=True)
class Step:
    """One instruction seen by `trace_steps`, before it ran."""

    nip: int
    word: int
    registers: Registers
    special: bool
    """It reads the timebase: its result depends on the tick."""
