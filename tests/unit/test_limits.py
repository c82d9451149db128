"""Limits that no session, and nothing in it, gets past."""

import json
import resource
import socket
import time
from typing import Any

import pytest

from app.sandbox import Limits
from app.worker import raise_descriptor_limit
from emulator import checkpoint


def _answer(work: Any) -> bytes:
    """What a fork that does `work` says, to the end of its descriptor."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        checkpoint.answer_in_a_fork(theirs.fileno(), work)
        theirs.close()
        data = b""
        while piece := ours.recv(4096):
            data += piece
        return data


def test_a_fork_that_never_ends_its_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> dict[str, Any]:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            pass
        return {"it": "went on"}

    monkeypatch.setattr(checkpoint, "ANSWER_CPU_SECONDS", 0.1)
    assert _answer(endless) == b""
    assert json.loads(_answer(lambda: {"a": 1})) == {"a": 1}


def test_a_session_has_descriptors_for_its_checkpoints_and_few_more() -> None:
    assert checkpoint.MAX_CHECKPOINTS + 32 <= Limits().descriptors <= 256


def test_the_worker_takes_all_descriptors_it_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] // 2, before[1]))
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
