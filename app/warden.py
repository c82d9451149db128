"""Watches what all processes of a session use together: their number, and the machine's memory.

Each process of a session has limits of its own (`sandbox.py`); these two belong to the whole. A
session that forks too much is ended; where the machine runs short of memory, the session that was
used longest ago is ended, before the kernel has to choose.

Source: proc(5): /proc/PID/stat field 6 is the session, which a locked process cannot leave.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

MAX_PROCESSES = 220
INTERVAL_SECONDS = 1.0
_FLOOR_BYTES = 512 << 20


def processes_by_session() -> dict[int, int]:
    """Return how many processes each session (in the sense of setsid) has."""
    counts: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            session = int(fields[3])
            counts[session] = counts.get(session, 0) + 1
    return counts


def memory_is_short(meminfo: str) -> bool:
    """Say whether less than 512 MiB, or 5 % of a small machine, are available."""
    rows = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    try:
        total, available = (int(rows[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return False
    return available < min(_FLOOR_BYTES, total // 20)


class Warden:
    """A thread that looks every second and tells the pool.

    Args:
        sessions: returns the process ids of the sessions that live.
        on_crowd: called with the process id of a session that has too many processes.
        on_shortage: called while memory is short.
    """

    def __init__(
        self,
        sessions: Callable[[], list[int]],
        on_crowd: Callable[[int], None],
        on_shortage: Callable[[], None],
    ) -> None:
        self._sessions, self._on_crowd, self._on_shortage = sessions, on_crowd, on_shortage
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="warden")
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            pids = self._sessions()
            if not pids:
                continue
            counts = processes_by_session()
            for pid in pids:
                if counts.get(pid, 0) > MAX_PROCESSES:
                    self._on_crowd(pid)
            if memory_is_short(Path("/proc/meminfo").read_text()):
                self._on_shortage()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(5.0)
