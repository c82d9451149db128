"""Turns: so many at once, and whoever came first goes first.

`threading.Semaphore` lets a newcomer take what was given back before the thread that was woken for
it, and that one then waits at the end of the queue: under load some wait for ever. Here a turn that
is given back is handed to the head of the queue.
"""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A bounded number of turns; every method may be called from any thread.

    Args:
        at_once: how many may be taken at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return len(self._queue)

    def take(self, timeout_seconds: float) -> bool:
        """Take a turn, behind all that wait for one; returns whether it came in time."""
        with self._lock:
            if self._free:  # nobody waits while one is free
                self._free -= 1
                return True
            mine = threading.Event()
            self._queue.append(mine)
        if mine.wait(timeout_seconds):
            return True
        with self._lock:
            if mine.is_set():  # it came at the last moment
                return True
            self._queue.remove(mine)
            return False

    def give(self) -> None:
        """Give a turn back: to whoever waits longest, if anybody does."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._free += 1
