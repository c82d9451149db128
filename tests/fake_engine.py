"""A stand-in for `emulator.session` in tests of the plumbing: its guest is a counter.

What it does is told by the job's spec: {"ticks": n, "fault": None | "crash" | "hang" | "garbage" |
"flood" | "error" | "fork" | "escape", "digest": hex of its one checkpoint}.
"""

import hashlib
import json
import os
import socket
import time
from typing import Any


def _send(control: socket.socket, record: dict[str, Any]) -> None:
    control.sendall(json.dumps(record).encode())


def serve(job: dict[str, Any], images: dict[str, bytes], control: socket.socket) -> None:
    spec = job["spec"]
    _misbehave(spec.get("fault"), control)
    names = {role: hashlib.sha256(data).hexdigest() for role, data in images.items()}
    _send(control, {"t": "placement", "images": names})
    ticks = spec.get("ticks", 1000)
    for tick in range(0, ticks, 100):
        _send(
            control,
            {"t": "slice", "tick": tick, "cpu": 0, "ticks": 100, "nip": tick, "stage": "head"},
        )
        if spec.get("slow"):
            if _cancelled(control, spec["slow"]):
                break
    digest = spec.get("digest_of_replay") if job["op"] == "replay" else None
    _send(control, {"t": "checkpoint", "tick": ticks, "digest": digest or "00" * 32})
    _send(control, {"t": "end", "reason": "complete", "tick": ticks, "ok": True})
    _answer(control, ticks, job["op"])


def _cancelled(control: socket.socket, seconds: float) -> bool:
    control.settimeout(seconds)
    try:
        message, fds, _, _ = socket.recv_fds(control, 4096, 1)
    except TimeoutError:
        return False
    finally:
        control.settimeout(None)
    query = json.loads(message)
    for fd in fds:
        with socket.socket(fileno=fd) as reply:
            reply.sendall(json.dumps({"tick": query["tick"], "live": True}).encode())
    return query["q"] == "cancel"


def _answer(control: socket.socket, ticks: int, op: str) -> None:
    while True:
        message, fds, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            return
        query = json.loads(message)
        with socket.socket(fileno=fds[0]) as reply:
            if query["q"] == "state":
                answer = {"tick": query["tick"], "ticks": ticks, "op": op, "pid": os.getpid()}
                reply.sendall(json.dumps(answer).encode())
            elif query["q"] == "refuse":
                error = {"slug": "limit", "message": "no such tick", "hint": "less"}
                reply.sendall(json.dumps({"error": error}).encode())
            elif query["q"] == "die":
                os._exit(1)
            elif query["q"] == "sleep":
                time.sleep(60)
            elif query["q"] == "garbage":
                reply.sendall(b"[1, 2")


def _misbehave(fault: str | None, control: socket.socket) -> None:
    if fault == "crash":
        os._exit(9)
    elif fault == "hang":
        time.sleep(600)
    elif fault == "garbage":
        control.sendall(b"\x80\x04not json")
    elif fault == "array":
        control.sendall(b"[1]")
    elif fault == "deep":
        control.sendall(b"[" * 100_000)
    elif fault == "error":
        _send(control, {"t": "error", "slug": "not-elf", "message": "no ELF", "hint": "give one"})
        time.sleep(600)
    elif fault == "raise":
        raise ValueError("a bug")
    elif fault == "fork":
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(600)
        os._exit(9)
    elif fault == "escape":
        open("/etc/passwd").close()  # noqa: SIM115
