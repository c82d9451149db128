"""Watches what all processes of a session use together: their number, their memory, the machine's.

Each process of a session has limits of its own (`sandbox.py`); these belong to the whole. A session
that forks too much is ended; what each uses is told to the pool, one session a look, since the
kernel walks every page for it (measured: 1.7 ms a process, 0.11 s for the Debian pair's 66). Where
the machine runs short of memory, the largest idle session is ended, before the kernel has to
choose.

Source: proc(5): /proc/PID/stat field 6 is the session, which a locked process cannot leave;
/proc/PID/smaps_rollup, which root may read of a locked process; /proc/PID/statm, which anybody may.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_PROCESSES = 220
INTERVAL_SECONDS = 1.0
_FLOOR_BYTES = 512 << 20
_SHARE_OF_TIME = 50
"""Measuring may take one part in so many of one CPU."""
_FORK_BYTES = 4 << 20
"""What a checkpoint adds to its session, where that cannot be measured."""


def session_processes() -> dict[int, list[int]]:
    """Return the processes of each session (in the sense of setsid)."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            found.setdefault(int(fields[3]), []).append(int(entry.name))
    return found


def processes_by_session() -> dict[int, int]:
    """Return how many processes each session (in the sense of setsid) has."""
    return {session: len(pids) for session, pids in session_processes().items()}


def memory_is_short(meminfo: str) -> bool:
    """Say whether less than 512 MiB, or 5 % of a small machine, are available."""
    rows = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    try:
        total, available = (int(rows[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return False
    return available < min(_FLOOR_BYTES, total // 20)


def proportional_bytes(rollup: str) -> int:
    """Return the proportional set size, from the text of /proc/PID/smaps_rollup."""
    found = re.search(r"^Pss: +(\d+) kB", rollup, re.M)
    return int(found[1]) << 10 if found else 0


def used_bytes(root: int, pids: Sequence[int]) -> int:
    """Return what the processes of a session use together.

    Who may not read that takes the root's own resident memory and 4 MiB for each of the others,
    which share nearly all of theirs with it.
    """
    total = 0
    for pid in pids:
        try:
            total += proportional_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except PermissionError:
            return _estimated_bytes(root, len(pids))
        except OSError:  # it has ended meanwhile
            continue
    return total


def _estimated_bytes(root: int, count: int) -> int:
    try:
        pages = int(Path(f"/proc/{root}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + (count - 1) * _FORK_BYTES


class Warden:
    """A thread that looks every second and tells the pool.

    Args:
        sessions: returns the process ids of the sessions that live.
        on_crowd: called with the process id of a session that has too many processes.
        on_shortage: called while memory is short.
        on_measured: called with the process id of a session and the bytes that it uses.
    """

    def __init__(
        self,
        sessions: Callable[[], list[int]],
        on_crowd: Callable[[int], None],
        on_shortage: Callable[[], None],
        on_measured: Callable[[int, int], None],
    ) -> None:
        self._sessions, self._on_crowd, self._on_shortage = sessions, on_crowd, on_shortage
        self._on_measured = on_measured
        self._measured_at: dict[int, float] = {}
        self._rest_until = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="warden")
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            pids = self._sessions()
            if not pids:
                continue
            processes = session_processes()
            for pid in pids:
                if len(processes.get(pid, ())) > MAX_PROCESSES:
                    self._on_crowd(pid)
            self._measure({pid: processes[pid] for pid in pids if pid in processes})
            if memory_is_short(Path("/proc/meminfo").read_text()):
                self._on_shortage()

    def _measure(self, processes: dict[int, list[int]]) -> None:
        """Measure sessions, the one first that was measured longest ago, as time allows."""
        self._measured_at = {pid: at for pid, at in self._measured_at.items() if pid in processes}
        for pid in sorted(processes, key=lambda pid: self._measured_at.get(pid, 0.0)):
            begin = time.monotonic()
            if begin < self._rest_until:
                return
            self._on_measured(pid, used_bytes(pid, processes[pid]))
            self._measured_at[pid] = end = time.monotonic()
            self._rest_until = end + (end - begin) * _SHARE_OF_TIME

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(5.0)
