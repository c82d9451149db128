"""A hand-off under many schedules: does some rule fail in one of them that holds in the recorded?

What it is: the engine of a session process (`app/session_main.py`) that runs the images again and
again, each time in a forked child, under seeds and under schedules that stop or speed up a CPU at a
write into 0x0-0x100; a schedule that fails is made as small as it gets. What it is not: a proof. It
finds races; that it found none says how many schedules it tried.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from emulator.adversary import LAG_TICKS, Place
from emulator.check import PASSED, check
from emulator.errors import BootflowError
from emulator.evidence import Evidence
from emulator.forked import in_child
from emulator.recorder import Prepared, Recorder, RunSpec, prepare
from emulator.session import warm_up as warm_up

Json = dict[str, Any]
Try = Callable[[str, int | None], Json]
"""Runs a schedule, given the tick of the write that it names: what `run_once` returns."""

MAX_WRITES: Final = 40
MAX_SEEDS: Final = 10_000
MAX_RACES: Final = 8
"""So many sets of rules that fail together are told; after that the search ends."""
RATIOS: Final = (8, 64)
AROUND: Final = (
    ("writer", LAG_TICKS), ("writer", 64), ("others", LAG_TICKS), ("others", 1), ("others", 2),
    ("others", 4), ("others", 8), ("others", 32), ("before", LAG_TICKS), ("before", 8),
)  # fmt: skip
"""What is tried at each write: its writer runs on, or the others run first, for so long."""
RANDOM_SLICES: Final = 1 << 12
"""A random order that fails is made shorter if it does so within so many slices."""


class Plan(NamedTuple):
    """A schedule to try, with the tick of the write that it names."""

    text: str
    tick: int | None = None


def serve(job: Mapping[str, Any], images: Mapping[str, bytes], control: socket.socket) -> None:
    """Explore a job's spec; sends {"t": "progress" | "race" | "held"}, then {"t": "explored"}."""
    names = job.get("names", {})
    named = {role: (str(names.get(role, role)), data) for role, data in images.items()}
    prepared = prepare(RunSpec.from_json(job["spec"]), named)

    def send(record: Json) -> None:
        control.sendall(json.dumps(record, separators=(",", ":")).encode())

    def try_(text: str, tick: int | None) -> Json:
        try:
            return in_child(partial(run_once, prepared, text, tick))
        except BootflowError as error:
            raise BootflowError(f"schedule {text!r}: {error.message}") from error

    result = explore(try_, prepared, int(job["seeds"]), send)
    send({"t": "explored", "tried": result["tried"], "failed": result["failed"]})


def explore(
    try_: Try, prepared: Prepared, seeds: int, send: Callable[[Json], None] = lambda record: None
) -> Json:
    """Try seeds and adversarial schedules; one failing schedule a set of rules, made small.

    Args:
        try_: runs one schedule.
        prepared: what is run; its own schedule is the recorded one.
        seeds: how many random orders.
        send: takes {"t": "progress", "tick", "of"} after each schedule, and {"t": "race" | "held",
            "rules", "schedule", "write_tick"} for each that is found.

    Returns:
        How many were "tried", what "failed" as recorded, the "races", and what "held": rules that
        fail as recorded, with a schedule in which they hold.
    """
    recorded = try_(prepared.spec.schedule, None)
    known = set(recorded["failed"])
    if recorded["reason"] == "limit":  # that others come to it too is no news
        known.add("outcome")
    plain = try_("", None) if prepared.spec.schedule else recorded
    plans = list(_plans(prepared, plain["writes"], min(seeds, MAX_SEEDS)))
    races: dict[tuple[str, ...], Json] = {}
    held: dict[str, Json] = {}
    tried = 0
    for plan in plans:
        came = try_(*plan)
        tried += 1
        new = tuple(rule for rule in came["failed"] if rule not in known)
        if new and new not in races:
            races[new] = _found("race", new, _shrink(try_, plan, new))
            send(races[new])
        cured = [rule for rule in sorted(known) if rule in came["passed"] and rule not in held]
        if cured:
            held |= dict.fromkeys(cured, _found("held", cured, plan))
            send(held[cured[0]])
        send({"t": "progress", "tick": tried, "of": len(plans)})
        if len(races) == MAX_RACES:
            break
    unique = {id(row): row for row in held.values()}
    return {"tried": tried, "failed": sorted(known), "races": [*races.values()],
            "held": [*unique.values()]}  # fmt: skip


def _found(kind: str, rules: tuple[str, ...] | list[str], plan: Plan) -> Json:
    return {"t": kind, "rules": list(rules), "schedule": plan.text, "write_tick": plan.tick}


def _plans(prepared: Prepared, writes: list[list[int]], seeds: int) -> Iterator[Plan]:
    """The schedules to try, the telling ones first."""
    secondaries = [n for n in range(prepared.spec.cpus) if n != prepared.spec.boot_cpu]
    if not secondaries:
        return
    for place, tick in _places(writes):
        for kind, ticks in AROUND:
            yield Plan(f"{kind}:{place.text}:{ticks}", tick)
    for cpu in secondaries:
        for ratio in RATIOS:
            yield Plan(f"slow:{cpu}:{ratio}")
    for seed in range(1, seeds + 1):
        yield Plan(f"random:{seed}")


def _places(writes: list[list[int]]) -> list[tuple[Place, int]]:
    """The first and the last write that each instruction made, with their ticks, in order."""
    count: dict[tuple[int, int], int] = {}
    first: dict[tuple[int, int], tuple[Place, int]] = {}
    last: dict[tuple[int, int], tuple[Place, int]] = {}
    for cpu, nip, at, tick in writes:
        count[cpu, at] = count.get((cpu, at), 0) + 1
        found = Place(cpu, at, count[cpu, at]), tick
        first.setdefault((cpu, nip), found)
        last[cpu, nip] = found
    both = {*first.values(), *last.values()}
    return sorted(both, key=lambda row: row[1])[:MAX_WRITES]


def _shrink(try_: Try, plan: Plan, rules: tuple[str, ...]) -> Plan:
    """The same kind of schedule with the smallest number that still breaks those rules."""
    head, _, number = plan.text.rpartition(":")
    low, high = 0, int(number)
    if head == "random":
        head, high = plan.text, RANDOM_SLICES

    def breaks(number: int) -> bool:
        return set(rules) <= set(try_(f"{head}:{number}", plan.tick)["failed"])

    if head == plan.text and not breaks(high):
        return plan
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return plan._replace(text=f"{head}:{high}")


def run_once(prepared: Prepared, schedule: str, write_tick: int | None = None) -> Json:
    """Run a schedule in this process and judge it.

    Returns:
        The ids of rules that "failed" and that "passed", the "reason" of the end, and the "writes"
        into 0x0-0x100: cpu, nip, address and tick of each.
    """
    spec = replace(prepared.spec, schedule=schedule)
    records: list[Json] = [prepared.record()]
    end = Recorder(replace(prepared, spec=spec), records.append, write_tick=write_tick).record()
    report = check(Evidence.of_records(spec.to_json(), records))
    writes = [
        [record["cpu"], int(record["nip"], 16), int(record["addr"], 16), record["tick"]]
        for record in records
        if record["t"] == "event" and record["kind"] == "low-write"
    ]
    passed = [row.rule.id for row in report.rows if row.found.status == PASSED]
    failed = [row.rule.id for row in report.failed]
    return {"failed": failed, "passed": passed, "reason": end["reason"], "writes": writes}
