"""Things that were made once and do not change: a bounded number of them, kept for the next reader.

Only what follows from its key alone may be kept here. Not here: answers of sessions (`asking.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import TypeVar

T = TypeVar("T")


class Kept:
    """At most so many things; that goes first that nobody wanted for the longest time.

    Args:
        most: how many; every method may be called from any thread.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._things: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made for a key, or make it; two threads may both make the first."""
        with self._lock:
            if key in self._things:
                self._things.move_to_end(key)
                found: T = self._things[key]  # type: ignore[assignment]
                return found
        made = make()
        with self._lock:
            self._things[key] = made
            self._things.move_to_end(key)
            while len(self._things) > self._most:
                self._things.popitem(last=False)
        return made

    def made_of(self, thing: object, more: Hashable, make: Callable[[], T]) -> T:
        """Return what was made of this very object, which need not be hashable; see `get`."""
        _, made = self.get((id(thing), more), lambda: (thing, make()))  # kept: its id is its own
        return made
