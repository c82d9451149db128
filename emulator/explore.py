"""A hand-off under many schedules: does some rule fail in one of them that holds in the recorded?

What it is: the engine of a session process (`app/session_main.py`) that runs the images again and
again, each time in a forked child, under seeds and under schedules that stop or speed up a CPU at a
write into 0x0-0x100; a schedule that fails is made as small as it gets. What it is not: a proof. It
finds races; that it found none says how many schedules it tried.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from emulator.adversary import LAG_TICKS
from emulator.check import check
from emulator.errors import BootflowError
from emulator.evidence import Evidence
from emulator.recorder import Prepared, Recorder, RunSpec, prepare
from emulator.session import warm_up as warm_up

Json = dict[str, Any]
Try = Callable[[str], Json]
"""Runs one schedule: {"failed": [rule ids], "writes": [[cpu, nip], ...], "tick": n}."""

MAX_WRITES: Final = 40
MAX_SEEDS: Final = 10_000
RATIOS: Final = (8, 64)
AROUND: Final = (
    ("writer", LAG_TICKS), ("writer", 64), ("others", 1), ("others", 2), ("others", 4),
    ("others", 8), ("others", 32),
)  # fmt: skip
"""What is tried at each write: its writer runs on, or the others run first, for so long."""


def serve(job: Mapping[str, Any], images: Mapping[str, bytes], control: socket.socket) -> None:
    """Explore a job's spec; sends progress, then {"t": "explored", ...}."""
    names = job.get("names", {})
    named = {role: (str(names.get(role, role)), data) for role, data in images.items()}
    prepared = prepare(RunSpec.from_json(job["spec"]), named)

    def tell(done: int, of: int) -> None:
        _send(control, {"t": "progress", "tick": done, "of": of})

    result = explore(lambda text: _in_child(prepared, text), prepared, int(job["seeds"]), tell)
    _send(control, {"t": "explored", **result})


def _send(control: socket.socket, record: Json) -> None:
    control.sendall(json.dumps(record, separators=(",", ":")).encode())


def explore(
    try_: Try, prepared: Prepared, seeds: int, tell: Callable[[int, int], None] = lambda a, b: None
) -> Json:
    """Try seeds and adversarial schedules; one failing schedule a set of rules, made small.

    Args:
        try_: runs one schedule.
        prepared: what is run.
        seeds: how many random orders.
        tell: called with (schedules tried, schedules in all).
    """
    base = try_("")
    known = set(base["failed"])
    plans = list(_plans(prepared, base["writes"], min(seeds, MAX_SEEDS)))
    found: dict[tuple[str, ...], str] = {}
    for count, text in enumerate(plans):
        new = tuple(rule for rule in try_(text)["failed"] if rule not in known)
        if new and new not in found:
            found[new] = text
        tell(count + 1, len(plans))
    races = [
        {"rules": list(rules), "schedule": _shrink(try_, text, rules), "found_by": text}
        for rules, text in found.items()
    ]
    return {"tried": len(plans), "failed": sorted(known), "races": races}


def _plans(prepared: Prepared, writes: list[list[int]], seeds: int) -> Iterator[str]:
    """The schedules to try, the telling ones first."""
    secondaries = [n for n in range(prepared.spec.cpus) if n != prepared.spec.boot_cpu]
    if not secondaries:
        return
    for number in _places(writes):
        for kind, ticks in AROUND:
            yield f"{kind}:{number}:{ticks}"
    for cpu in secondaries:
        for ratio in RATIOS:
            yield f"slow:{cpu}:{ratio}"
    for seed in range(1, seeds + 1):
        yield f"random:{seed}"


def _places(writes: list[list[int]]) -> list[int]:
    """Numbers (from 1) of the first and the last write that each instruction made."""
    first: dict[tuple[int, ...], int] = {}
    last: dict[tuple[int, ...], int] = {}
    for number, write in enumerate(writes, 1):
        first.setdefault(tuple(write), number)
        last[tuple(write)] = number
    return sorted({*first.values(), *last.values()})[:MAX_WRITES]


def _shrink(try_: Try, text: str, rules: tuple[str, ...]) -> str:
    """The same kind of schedule with the smallest number that still breaks those rules."""
    kind, *numbers = text.split(":")
    if kind == "slow":
        return text
    high = int(numbers[1]) if kind != "random" else 1 << 12

    def breaks(number: int) -> bool:
        return set(rules) <= set(try_(f"{kind}:{numbers[0]}:{number}")["failed"])

    if kind == "random" and not breaks(high):
        return text
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return f"{kind}:{numbers[0]}:{high}"


def run_once(prepared: Prepared, schedule: str) -> Json:
    """Run a schedule in this process and judge it."""
    spec = replace(prepared.spec, schedule=schedule)
    records: list[Json] = [prepared.record()]
    end = Recorder(replace(prepared, spec=spec), records.append).record()
    report = check(Evidence.of_records(spec.to_json(), records))
    writes = [
        [record["cpu"], int(record["nip"], 16)]
        for record in records
        if record["t"] == "event" and record["kind"] == "low-write"
    ]
    failed = [row.rule.id for row in report.failed]
    return {"failed": failed, "writes": writes, "tick": end["tick"]}


def _in_child(prepared: Prepared, schedule: str) -> Json:
    """`run_once` in a forked process, which takes its machine with it when it ends."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            answer = run_once(prepared, schedule)
        except BootflowError as error:
            answer = {"error": error.message}
        with suppress(OSError):
            theirs.sendall(json.dumps(answer).encode())
        os._exit(0)
    theirs.close()
    data = bytearray()
    with ours:
        while piece := ours.recv(1 << 16):
            data += piece
    os.waitpid(pid, 0)
    if not data:
        raise BootflowError(f"schedule {schedule!r}: the machine crashed")
    document: Json = json.loads(data)
    if "error" in document:
        raise BootflowError(str(document["error"]))
    return document
