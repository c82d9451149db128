"""One session of the pool: its process, who waits for it, how far it has come; and what starts it.

Not here: which sessions there are (`sessions.py`), the process (`session_process.py`).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.session_process import SessionProcess
from app.turns import Turns
from emulator.errors import BootflowError, TraceError
from emulator.revision import check_engine
from emulator.trace import ImageFile, TraceReader

Json = dict[str, Any]


@dataclass
class Live:
    """A session that can be asked."""

    process: SessionProcess
    turns: Turns
    searches: Turns
    bytes: int
    """What it uses, as measured; until then a guess."""
    recording: bool = False
    cancelled: bool = False
    failure: BootflowError | None = None
    busy: int = 0
    began_at: float = field(default_factory=time.monotonic)
    used_at: float = field(default_factory=time.monotonic)
    leaving: bool = False
    """It is to end when it has answered who asks now: another session waits for its place."""
    reached: int | None = None
    """How far a replay has come; None for a recording, which is asked only for what it has sent."""
    moved: threading.Condition = field(default_factory=threading.Condition)

    def move(self, record: Json) -> None:
        """Take note of a replay's progress; its "progress" record is the last."""
        with self.moved:
            tick = record.get("tick")
            if self.reached is not None and type(tick) is int:
                self.reached = max(self.reached, tick)
            if record.get("t") == "progress":
                self.reached = None
            self.moved.notify_all()

    def wait_for(self, tick: object, timeout_seconds: float) -> None:
        """Wait until a replay has come to a tick, or to its end, whatever that is."""
        if type(tick) is int:
            with self.moved:
                self.moved.wait_for(
                    lambda: (
                        self.reached is None
                        or self.reached >= tick
                        or self.failure is not None
                        or not self.process.alive
                    ),
                    timeout_seconds,
                )


def replay_job(path: Path) -> tuple[Json, list[ImageFile], dict[int, str]]:
    """Read from a trace what runs it again: the job, its images, the recorded checkpoints."""
    with TraceReader(path) as trace:
        check_engine(trace.placement.get("engine"))
        checkpoints = trace.checkpoints()
        infos, data = trace.image_infos(), trace.images()
        job = {
            "op": "replay",
            "spec": trace.spec,
            "names": {role: info.name for role, info in infos.items()},
            "slices": [(row.cpu, row.ticks) for row in trace.slices()],
            "checkpoints": checkpoints,
            "last_tick": trace.last_tick,
            "status": trace.status,
        }
    if not data:
        raise TraceError(
            f"{path}: cut off before its images were stored", hint="Record the run again."
        )
    return job, [ImageFile(role, infos[role].name, data[role]) for role in data], dict(checkpoints)
