"""Runs something in a forked child, which takes its machine with it when it ends.

What it is: how a session does one run after the other without their memory adding up. What it is
not: a checkpoint (`checkpoint`).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from emulator.errors import BootflowError

Json = dict[str, Any]


def in_child(work: Callable[[], Json]) -> Json:
    """Return what `work` returns in a child; its BootflowError is raised here.

    Raises:
        BootflowError: the child failed, or ended without an answer.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:  # nothing of the child may come back into what its parent does
            theirs.sendall(json.dumps(_answered(work)).encode())
        finally:
            os._exit(0)
    theirs.close()
    data = bytearray()
    with ours:
        while piece := ours.recv(1 << 16):
            data += piece
    with suppress(ChildProcessError):  # a session that keeps checkpoints has no use for SIGCHLD
        os.waitpid(pid, 0)
    if not data:
        raise BootflowError("the machine crashed")
    document: Json = json.loads(data)
    if "error" in document:
        raise BootflowError(str(document["error"]))
    return document


def _answered(work: Callable[[], Json]) -> Json:
    try:
        return work()
    except BootflowError as error:
        return {"error": error.message}
