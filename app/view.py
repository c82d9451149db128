"""What of a run is being looked at, beside the tick: the query string of every page and link.

One dataclass, parsed once and written back the same way, so that every link keeps what the reader
chose: the part of the timeline, the CPU, the kind of events, the selected byte or register. URLs
live for ever: `w`, `from`, `to`, `kind`, `cpu` and `at` stay valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from emulator.errors import BootflowError
from emulator.ppc64 import REGISTERS
from emulator.trace import EVENT_KINDS

MIN_WINDOW = 16
_PLACE = re.compile(r"0x([0-9a-f]{1,16})(?:\+([1248]))?\Z")
_NUMBER = re.compile(r"[0-9]{1,16}\Z")


class BadView(BootflowError):
    """A part of the query string is not what it should be."""

    slug = "bad-option"


@dataclass(frozen=True)
class View:
    """The reader's choices; the defaults are the whole run and nothing selected."""

    width: int = 0
    """Ticks round the cursor; 0 the whole run, -1 the whole run with its folds open."""
    window: tuple[int, int] | None = None
    """Exact ticks [from, to), which win over the width."""
    kind: str = ""
    cpu: int | None = None
    at: str = ""
    """Selected byte, `0x5c` or `0x200005c+4` (physical), or register of the CPU, `r7`."""

    def query(self, **changes: Any) -> str:
        """Return this view, with changes, as a query string with its question mark; may be ""."""
        new = replace(self, **changes)
        parts = []
        if new.window is not None:
            parts += [f"from={new.window[0]}", f"to={new.window[1]}"]
        elif new.width:
            parts.append(f"w={new.width}")
        parts += [f"kind={new.kind}"] if new.kind else []
        parts += [f"cpu={new.cpu}"] if new.cpu is not None else []
        parts += [f"at={new.at.replace('+', '%2B')}"] if new.at else []
        return "?" + "&".join(parts) if parts else ""

    def span(self, tick: int, last: int) -> tuple[int, int] | None:
        """Return the ticks [lo, hi) that the timeline shows, None for the whole run."""
        end = max(last, 1)
        if self.window is not None:
            lo = min(self.window[0], max(end - MIN_WINDOW, 0))
            hi = min(max(self.window[1], lo + MIN_WINDOW), end)
            return None if (lo, hi) == (0, end) else (lo, hi)
        if self.width <= 0 or self.width >= end:
            return None
        lo = min(max(tick - self.width // 2, 0), max(last - self.width, 0))
        return lo, min(lo + self.width, end)

    @property
    def place(self) -> tuple[int, int] | None:
        """Return (address, size) of the selected byte or word."""
        match = _PLACE.match(self.at)
        return (int(match[1], 16), int(match[2] or 1)) if match else None

    @property
    def register(self) -> str:
        """Return the selected register, "" if it is a byte or nothing."""
        return self.at if self.at in REGISTERS else ""


def parse(args: Mapping[str, str]) -> View:
    """Read a view from the arguments of a request.

    Raises:
        BadView: one of them is nonsense; the message says which.
    """
    text = args.get("w", "0")
    if not re.fullmatch(r"-1|[0-9]{1,16}", text):
        raise BadView(f"w={text[:20]!r}: not a number of ticks", hint="For example w=4096.")
    width = int(text)
    at = args.get("at", "").lower().replace(" ", "+")
    view = View(
        max(width, MIN_WINDOW) if width > 0 else width, _window(args), args.get("kind", ""),
        _number(args, "cpu"), at,
    )  # fmt: skip
    if view.kind and view.kind not in EVENT_KINDS:
        kinds = ", ".join(EVENT_KINDS)
        raise BadView(f"no events of kind {view.kind[:20]!r}", hint=f"One of {kinds}")
    if at and view.place is None and not view.register:
        raise BadView(
            f"at={at[:24]!r}: neither a place nor a register",
            hint="For example at=0x5c, at=0x200005c+4 or at=r7.",
        )
    return view


def _number(args: Mapping[str, str], name: str) -> int | None:
    text = args.get(name, "")
    if not text:
        return None
    if not _NUMBER.match(text):
        raise BadView(f"{name}={text[:20]!r} is not a number", hint=f"For example {name}=1.")
    return int(text)


def _window(args: Mapping[str, str]) -> tuple[int, int] | None:
    lo, hi = _number(args, "from"), _number(args, "to")
    if lo is None and hi is None:
        return None
    if lo is None or hi is None or hi <= lo:
        raise BadView("from and to belong together, from before to", hint="?from=100&to=4196")
    return lo, hi
