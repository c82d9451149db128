"""Keeps what traces tell, so that many readers of one run cost one reading of its file.

A story is made once at a time for each run: whoever asks meanwhile waits for it. That of an ended
run is kept until others push it out; that of a live one for a second, however many poll.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from app.index import Run
from app.story import Story, story
from emulator.trace import TraceReader

LIVE_SECONDS = 0.2
KEPT = 8


@dataclass
class _Entry:
    lock: Lock = field(default_factory=Lock)
    told: Story | None = None
    made_at: float = 0.0


class Stories:
    """The stories of the runs that were looked at last; safe to ask from any thread."""

    def __init__(
        self,
        make: Callable[[TraceReader], Story] = story,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._clock = make, clock
        self._lock = Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def told_by(self, run: Run, reader: TraceReader) -> Story:
        """Return what a trace tells."""
        status = reader.status
        live = not run.ended or status == "running"
        key = f"{reader.path} {run.status} {status}"
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            if len(self._entries) > KEPT:
                self._entries.popitem(last=False)
        with entry.lock:
            old = live and self._clock() - entry.made_at >= LIVE_SECONDS
            if entry.told is None or old:
                entry.told = self._make(reader)
                entry.made_at = self._clock()
            return entry.told


told_by = Stories().told_by
