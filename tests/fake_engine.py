"""A stand-in for `emulator.session` in tests of the plumbing: its guest is a counter.

What it does is told by the job's spec, or by the command line of the kernel where that is a JSON
object: ticks, slow (seconds a slice), ok (of the end), fault, late (record to flood with after the
end), digest_of_replay.
"""

import hashlib
import json
import os
import socket
import time
from typing import Any

from emulator.revision import ENGINE_REVISION


def _send(control: socket.socket, record: dict[str, Any]) -> None:
    control.sendall(json.dumps(record).encode())


def serve(job: dict[str, Any], images: dict[str, bytes], control: socket.socket) -> None:
    spec = job["spec"]
    if spec.get("append", "").startswith("{"):
        spec = spec | json.loads(spec["append"])
    _misbehave(spec.get("fault"), control)
    names = {role: hashlib.sha256(data).hexdigest() for role, data in images.items()}
    debug = ["kernel is 2000000", "dt_offset is 1000"]
    _send(control, {"t": "placement", "engine": ENGINE_REVISION, "images": names, "debug": debug})
    ticks = spec.get("ticks", 1000)
    for tick in range(0, ticks, 100):
        _send(
            control,
            {"t": "slice", "tick": tick, "cpu": 0, "ticks": 100, "nip": tick, "stage": "head"},
        )
        if spec.get("slow") and _cancelled(control, spec["slow"]):
            break
    _events(control)
    if job["op"] == "replay":
        time.sleep(0.2)
    digest = spec.get("digest_of_replay") if job["op"] == "replay" else None
    _send(control, {"t": "checkpoint", "tick": ticks, "digest": digest or "00" * 32})
    _send(control, {"t": "end", "reason": "complete", "tick": ticks, "ok": spec.get("ok", True)})
    if job["op"] == "replay":
        _send(control, {"t": "progress", "tick": ticks})
    if "late" in spec:
        _flood(control, spec["late"])
    _answer(control, ticks, job["op"])


def _events(control: socket.socket) -> None:
    event = {"t": "event", "tick": 7, "cpu": 0, "nip": "0xc000000002000010"}
    write = {"kind": "flag-write", "addr": "0x000000000200005c", "size": 4, "value": "0x1"}
    _send(control, {**event, **write, "symbol": "master+0x10/0x110", "text": "__run_at_load"})
    _send(control, {**event, "kind": "stage", "symbol": "start_kernel+0x0/0x9f4", "text": "head"})
    hello = b"Linux version 6.1\r\n\x1b[31mred\n"
    _send(control, {"t": "console", "tick": 50, "cpu": 0, "data": hello.hex()})


def _state(tick: int) -> dict[str, Any]:
    values = {"nip": 0xC000000002000010, "msr": 0x8000000000001003, "cr": 0x24000220}
    names = ["nip", "msr", "cr", "lr", "ctr", "xer", *(f"r{n}" for n in range(32))]
    registers = {name: f"0x{values.get(name, 0):016x}" for name in names}
    code = {"addr": "0xc000000002000010", "bytes": "4c000048", "text": "b 0x5c", "le": True}
    cpus = [
        {
            "cpu": cpu,
            "id": cpu * 8,
            "ticks": tick,
            "stage": "head",
            "symbol": "start_here_multiplatform+0x1c/0x30",
            "lr_symbol": "",
            "registers": registers,
        }
        for cpu in range(2)
    ]
    return {
        "tick": tick,
        "cpus": cpus,
        "low_memory": bytes(range(256)).hex(),
        "kernel_low": bytes(256).hex(),
        "flags": [
            {"name": "__run_at_load", "addr": "0x000000000200005c", "size": 4, "value": "0x1"}
        ],
        "disassembly": {"0": [code | {"symbol": "f+0x0/0x4"}]},
    }


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
                answer = {"ticks": ticks, "op": op, "pid": os.getpid(), **_state(query["tick"])}
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


def _fork(count: int) -> None:
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(600)


def _flood(control: socket.socket, record: dict[str, Any]) -> None:
    while True:
        control.sendall(b"\n".join([json.dumps(record).encode()] * 100))


GARBAGE = {"garbage": b"\x80\x04not json", "array": b"[1]", "deep": b"[" * 100_000}


def _misbehave(fault: str | None, control: socket.socket) -> None:
    if fault in ("crowd", "fork"):
        _fork(20 if fault == "crowd" else 3)
        time.sleep(600 if fault == "crowd" else 0)
        os._exit(9)
    if fault in GARBAGE:
        control.sendall(GARBAGE[fault])
    elif fault in ("progress", "ready"):
        _flood(control, {"t": fault, "tick": 1})
    elif fault == "crash":
        os._exit(9)
    elif fault == "hang":
        time.sleep(600)
    elif fault == "error":
        _send(control, {"t": "error", "slug": "not-elf", "message": "no ELF", "hint": "give one"})
        time.sleep(600)
    elif fault == "raise":
        raise ValueError("a bug")
    elif fault == "escape":
        os.open("/etc/passwd", os.O_RDONLY)
