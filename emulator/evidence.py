"""What a run has to say to the rules of the hand-off: its records, put in order once.

What it is: `Evidence`, made from a trace or from the records of a run that was kept in memory; and
what follows from it at once: which flag the kernel asked, who wrote it, where the kernel ended up.
Pure. What it is not: a judgement (`rules`, `check`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from emulator.handoff import (
    FLAG_OFFSET,
    FLAGS,
    KDUMP_FLAG_OFFSET,
    LOW_COPY_BYTES,
    RUN_AT_ZERO_MAGIC,
    Flag,
)
from emulator.records import check_facts, check_fields
from emulator.trace import Event, TraceReader

EA_MASK: Final = (1 << 60) - 1
MAX_EVENTS: Final = 20_000
"""Of each kind; a run with more is a flood, and what needs the rest is not judged."""
_EMPTY: Final[dict[str, list[dict[str, Any]]]] = {
    "entry": [],
    "access": [],
    "changed": [],
    "stray": [],
}
_ABI_NAMES: Final = {FLAG_OFFSET: "run_at_load", KDUMP_FLAG_OFFSET: "kdump_flag"}
_ON_ITS_WAY: Final = ("hypercall", "console")
"""What a kernel does only after it has decided where to run."""


def number(value: Any) -> int:
    """An address or value of a record: an int, or "0x.." text; 0 for none."""
    if isinstance(value, str):
        return int(value, 16) if value else 0
    return int(value or 0)


def ended_as_asked(end: Mapping[str, Any] | None) -> bool:
    """Say whether a run ended where its user wished: at --until, or at --limit."""
    return end is not None and bool(end.get("ok")) and end.get("reason") in ("until", "limit")


@dataclass(frozen=True)
class Entry:
    """A CPU at the first instruction of a region that it came to from another one."""

    tick: int
    cpu: int
    place: str
    """purgatory, kernel, kernel-at-0 or low."""
    nip: int
    msr: int
    gpr: dict[str, int]
    text: str
    """low: the 0x100 bytes there, hex; kernel: what lies where r3 points."""


@dataclass(frozen=True)
class Touch:
    """An access to the first 0x100 bytes of the kernel where it was loaded, or to those at 0."""

    tick: int
    cpu: int
    write: bool
    at: int
    size: int
    value: int
    old: bytes
    stage: str
    symbol: str
    nip: int
    little: bool = False

    @property
    def changes(self) -> bool:
        """The write left other bytes than it found."""
        return self.raw[: len(self.old)] != self.old

    @property
    def raw(self) -> bytes:
        """The bytes in memory order."""
        value = self.value & (1 << 8 * self.size) - 1
        return value.to_bytes(self.size, "little" if self.little else "big")

    def covers(self, at: int, size: int) -> bool:
        """It touches any of those bytes."""
        return self.at < at + size and at < self.at + self.size


class Evidence:
    """The records of one run.

    Args:
        spec: what was asked for. placement: where things were put. facts: `facts.Facts`, None if
        the run was cut short or is of a time before they were recorded. end: how it ended.
        events: all of them, or those of the kinds that the rules ask for.
        cut: kinds of which there are more.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        placement: Mapping[str, Any],
        facts: Mapping[str, Any] | None,
        end: Mapping[str, Any] | None,
        events: Iterable[Event],
        cut: frozenset[str] = frozenset(),
    ) -> None:
        self.cut = cut
        self.spec, self.placement, self.end = spec, placement, end or {}
        self.has_facts = facts is not None
        rows: Mapping[str, Any] = facts or _EMPTY
        self.events: dict[str, list[Event]] = {}
        for event in events:
            self.events.setdefault(event.kind, []).append(event)
        self.entries = tuple(_entry(row) for row in rows["entry"])
        self.accesses = tuple(_touch(row) for row in rows["access"])
        self.changed: tuple[Mapping[str, Any], ...] = tuple(rows["changed"])
        self.strays: tuple[Mapping[str, Any], ...] = tuple(rows["stray"])
        self.boot_cpu = int(spec.get("boot_cpu", 0))
        self.cpus = int(spec.get("cpus", 1))
        self.kernel_addr = number(placement.get("kernel_addr"))
        self.link_addr = number(placement.get("link_addr")) & EA_MASK
        self.kernel_low = bytes.fromhex(str(placement.get("kernel_low", "")))
        self.kernel_big = bool(placement.get("kernel_big_endian"))
        self.purgatory_big = bool(placement.get("purgatory_big_endian"))
        self.cpu_ids = [int(value) for value in placement.get("cpu_ids", [])]

    @classmethod
    def of_trace(cls, reader: TraceReader) -> Evidence:
        """Read a trace."""
        kinds = ("stage", "low-write", "cpu-released", "exception", *_ON_ITS_WAY)
        events: list[Event] = []
        cut = set()
        for kind in kinds:
            found = list(reader.events(kind, limit=MAX_EVENTS + 1))
            cut |= {kind} if len(found) > MAX_EVENTS else set()
            events += found[:MAX_EVENTS]
        return cls(reader.spec, reader.placement, reader.facts, reader.end, events, frozenset(cut))

    @classmethod
    def of_records(cls, spec: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> Evidence:
        """Take the records of a run as its recorder emitted them."""
        documents: dict[str, Mapping[str, Any]] = {}
        events = []
        for record in records:
            if record["t"] == "event":
                events.append(Event(*check_fields("event", record)))
            elif record["t"] in ("placement", "facts", "end"):
                documents[record["t"]] = record
        facts = check_facts(documents["facts"]) if "facts" in documents else None
        return cls(spec, documents.get("placement", {}), facts, documents.get("end"), events)

    # --- what follows -------------------------------------------------------------------------

    @property
    def meant(self) -> str:
        """What was asked for: "stay" (a crash kernel) or "move"."""
        return "stay" if self.spec.get("mode") == "load-panic" else "move"

    @property
    def meant_addr(self) -> int:
        """Where the kernel is meant to run."""
        return self.kernel_addr if self.meant == "stay" else self.link_addr

    @property
    def secondaries(self) -> tuple[int, ...]:
        """All CPUs but the boot CPU."""
        return tuple(cpu for cpu in range(self.cpus) if cpu != self.boot_cpu)

    def entered(self, place: str) -> Entry | None:
        """The first time that the boot CPU came to a place."""
        return next((e for e in self.entries if e.place == place and e.cpu == self.boot_cpu), None)

    @property
    def arrivals(self) -> tuple[Entry, ...]:
        """Secondaries coming to low memory, in order."""
        return tuple(e for e in self.entries if e.place == "low" and e.cpu != self.boot_cpu)

    @property
    def purgatory_ticks(self) -> int:
        """Instructions between purgatory's entry and the kernel's, or the end of the run."""
        first, entry = self.entered("purgatory"), self.entered("kernel")
        last = entry.tick if entry is not None else number(self.end.get("tick"))
        return 0 if first is None else last - first.tick

    @property
    def loaded_bytes(self) -> int:
        """What the loader took its digest of: all segments but purgatory, in memory."""
        own = ("purgatory", "stack", "handover")
        rows = self.placement.get("segments", [])
        return sum(int(row["mem"]) for row in rows if row["name"] not in own)

    @cached_property
    def low_writes(self) -> tuple[Touch, ...]:
        """Writes into real 0x0-0xff, each with the bytes that it found there."""
        low = bytearray(LOW_COPY_BYTES)
        found = []
        for event in self.events.get("low-write", []):
            at, size = number(event.addr), min(int(event.size or 0), 16)
            value = number(event.value)
            if at >= LOW_COPY_BYTES:
                continue
            stage = self.stage_at(event.cpu, event.tick)
            old = bytes(low[at : at + size])
            # the value is in the CPU's order; a secondary of a little-endian kernel and a purgatory
            # of its own order are told apart by where they run
            little = self._was_little(event.cpu, stage)
            touch = Touch(
                event.tick, event.cpu or 0, True, at, size, value, old, stage, event.symbol,
                number(event.nip), little,
            )  # fmt: skip
            low[at : at + size] = touch.raw[: max(0, LOW_COPY_BYTES - at)]
            found.append(touch)
        return tuple(found)

    def _was_little(self, cpu: int | None, stage: str) -> bool:
        if stage in ("hand-over", "purgatory", "digest"):
            return not self.purgatory_big
        return not self.kernel_big

    def stage_at(self, cpu: int | None, tick: int) -> str:
        """The stage of the CPU that retired instruction number `tick`."""
        ticks, stages = self._stages.get(-1 if cpu is None else cpu, ([], []))
        index = bisect_right(ticks, max(tick - 1, 0)) - 1
        return stages[index] if index >= 0 else "hand-over"

    @cached_property
    def _stages(self) -> dict[int, tuple[list[int], list[str]]]:
        found: dict[int, tuple[list[int], list[str]]] = {}
        for event in self.events.get("stage", []):
            ticks, stages = found.setdefault(event.cpu if event.cpu is not None else -1, ([], []))
            ticks.append(event.tick)
            stages.append(event.text)
        return found

    def last_stage(self, cpu: int) -> Event | None:
        """The last stage that a CPU came to."""
        found = [event for event in self.events.get("stage", []) if event.cpu == cpu]
        return found[-1] if found else None

    @cached_property
    def decided_tick(self) -> int | None:
        """When it was settled where the kernel runs: its C code, or what only that does."""
        entry = self.entered("kernel")
        if entry is None:
            return None
        ticks = [
            event.tick
            for event in self.events.get("stage", [])
            if event.cpu == self.boot_cpu and event.text in ("early_setup", "start_kernel")
        ]
        ticks += [
            event.tick
            for kind in _ON_ITS_WAY
            for event in self.events.get(kind, [])
            if event.cpu == self.boot_cpu and event.tick > entry.tick
        ]
        return min(ticks, default=None)

    @cached_property
    def outcome(self) -> str:
        """stayed, relocated or stopped."""
        if self.decided_tick is None:
            return "stopped"
        return "relocated" if self.entered("kernel-at-0") is not None else "stayed"

    @property
    def ended_as_asked(self) -> bool:
        """The run ended at a symbol, tick or limit that the user named."""
        return ended_as_asked(self.end)

    @property
    def at(self) -> int:
        """Where the kernel runs, or where the boot CPU stopped."""
        if self.outcome == "stopped":
            return number(self.end.get("nip"))
        return self.kernel_addr if self.outcome == "stayed" else 0

    # --- the flag -----------------------------------------------------------------------------

    @cached_property
    def flag(self) -> Flag | None:
        """The flag that the kernel asked; if it never came to ask, the one that it shows."""
        entry = self.entered("kernel")
        for touch in self._questions:
            for flag in FLAGS:
                if (touch.at, touch.size) == (flag.at, flag.size):
                    return flag
        if (entry is None or self.decided_tick is None) and self.has_magic:
            return FLAGS[0]
        return None

    @property
    def abi(self) -> str:
        """run_at_load, kdump_flag or none."""
        return _ABI_NAMES[self.flag.at] if self.flag else "none"

    @property
    def has_magic(self) -> bool:
        """The image has "run0" at 0x5c, in the kernel's byte order."""
        word = self.kernel_low[FLAG_OFFSET : FLAG_OFFSET + 4]
        return int.from_bytes(word, "big" if self.kernel_big else "little") == RUN_AT_ZERO_MAGIC

    @cached_property
    def flag_reads(self) -> tuple[Touch, ...]:
        """The kernel's reads of its flag, until it had decided."""
        flag = self.flag
        return tuple(t for t in self._questions if flag and t.covers(flag.at, flag.size))

    @cached_property
    def _questions(self) -> tuple[Touch, ...]:
        """The kernel's reads of its own head that ask for one word, until it had decided.

        An instruction that reads other words of the head too passes over it, to copy it or to sum
        it up, whatever it finds there: it asks nothing.
        """
        decided = self.decided_tick
        reads = [
            touch
            for touch in self.accesses
            if not touch.write and (decided is None or touch.tick <= decided)
        ]
        places: dict[int, set[int]] = {}
        for touch in reads:
            places.setdefault(touch.nip & EA_MASK, set()).add(touch.at)
        return tuple(touch for touch in reads if len(places[touch.nip & EA_MASK]) == 1)

    @cached_property
    def head_writes(self) -> tuple[Touch, ...]:
        """Writes into the kernel's first 0x100 bytes that the kernel itself did not make."""
        entry = self.entered("kernel")
        return tuple(
            touch
            for touch in self.accesses
            if touch.write
            and not (entry is not None and touch.cpu == self.boot_cpu and touch.tick > entry.tick)
            and touch.stage not in ("joins", "early_setup", "start_kernel")
        )

    @property
    def flag_writes(self) -> tuple[Touch, ...]:
        """Those that touch the flag."""
        flag = self.flag
        return tuple(t for t in self.head_writes if flag and t.covers(flag.at, flag.size))

    @property
    def flag_value(self) -> int | None:
        """What the kernel read last; if it read nothing, what was written last; else as loaded."""
        for touches in (self.flag_reads, self.flag_writes):
            if touches:
                return touches[-1].value
        if self.flag is None:
            return None
        raw = self.kernel_low[self.flag.at : self.flag.at + self.flag.size]
        return int.from_bytes(raw, "big" if self.kernel_big else "little")


def _entry(row: Mapping[str, Any]) -> Entry:
    gpr = {name: number(row[name]) for name in ("r3", "r4", "r5", "r6", "r7")}
    return Entry(
        row["tick"], row["cpu"], row["place"], number(row["nip"]), number(row["msr"]), gpr,
        row["text"],
    )  # fmt: skip


def _touch(row: Mapping[str, Any]) -> Touch:
    old = bytes.fromhex(row["old"][2:].rjust(2 * ((len(row["old"]) - 1) // 2), "0"))
    return Touch(
        row["tick"], row["cpu"], row["write"], row["at"], row["size"], number(row["value"]), old,
        row["stage"], row["symbol"], number(row["nip"]), row["le"],
    )  # fmt: skip
