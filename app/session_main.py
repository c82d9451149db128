"""The session process: imports the engine, locks itself down, takes one job and serves it.

Started by `sessions.py` as `python -m app.session_main FD [MODULE]`, FD being its end of the
control socket. Every import happens before the lock, every byte of a user after it: the job and the
images come as descriptors of sealed memory in the first message.

Not here: what a session does (`emulator.session.serve`), who starts and ends it (`sessions.py`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.sandbox import Limits, lock_down
from emulator.errors import BootflowError, SessionError

ENGINE = "emulator.session"
PRELOADED = ("numpy.ma", "encodings.idna", "encodings.latin_1", "linecache", "bz2", "lzma")
"""Modules that others import at their first use; after the lock that would be too late."""
MAX_IMAGES = 4

_ENGINE_BYTES = 1200 << 20  # address space that one emulated CPU reserves; measured: 1026 MiB
_BASE_BYTES = 6 << 30  # interpreter, compiled hooks, images and their tables


def main(argv: list[str]) -> int:
    """Run one session; returns the exit status."""
    control = socket.socket(fileno=int(argv[1]))
    try:
        engine = importlib.import_module(argv[2] if len(argv) > 2 else ENGINE)
        for name in PRELOADED:
            importlib.import_module(name)
        warm_up = getattr(engine, "warm_up", None)
        if warm_up is not None:
            warm_up()  # compiles and imports what would otherwise be needed first after the lock
        with suppress(OSError):  # where memory runs out, the kernel ends sessions first
            Path("/proc/self/oom_score_adj").write_text("1000")
        gc.collect()
        gc.freeze()  # forked checkpoints then share these pages for good
        walls = lock_down(Limits())
        _send(
            control, {"t": "ready", "namespaces": walls.namespaces, "landlock": walls.landlock_abi}
        )
        received = _receive_job(control)
        if received is None:
            return 0  # a spare that was never needed
        job, images = received
        _tighten(job)
        engine.serve(job, images, control)
    except BootflowError as exc:
        _send(control, {"t": "error", "slug": exc.slug, "message": exc.message, "hint": exc.hint})
        return 2
    except (BrokenPipeError, ConnectionResetError):
        return 0  # whoever started this session has gone
    except Exception as exc:
        traceback.print_exc()
        message = f"the session failed: {type(exc).__name__}: {exc}"
        _send(control, {"t": "error", "slug": "session", "message": message[:2000], "hint": ""})
        return 3
    return 0


def _send(control: socket.socket, record: dict[str, Any]) -> None:
    control.sendall(json.dumps(record, separators=(",", ":")).encode())


def _read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb", buffering=0) as file:
        file.seek(0)
        return file.readall()


def _receive_job(control: socket.socket) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """Wait for the job; None if the control socket was closed instead."""
    message, fds, _flags, _address = socket.recv_fds(control, 1 << 16, 1 + MAX_IMAGES)
    if not message:
        return None
    roles = json.loads(message)["images"]
    if len(fds) != 1 + len(roles):
        raise SessionError(f"{len(fds)} descriptors came for {len(roles)} images and a job")
    job = json.loads(_read_all(fds[0]))
    return job, {role: _read_all(fd) for role, fd in zip(roles, fds[1:], strict=True)}


def _tighten(job: dict[str, Any]) -> None:
    """Lower the limit of address space to what this job can need."""
    spec = job.get("spec", {})
    cpus = min(max(int(spec.get("cpus", 1)), 1), 16)
    guest = min(max(int(spec.get("mem_bytes", 1 << 30)), 0), 16 << 30)
    wanted = _BASE_BYTES + cpus * _ENGINE_BYTES + 2 * guest
    limit = min(wanted, resource.getrlimit(resource.RLIMIT_AS)[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
