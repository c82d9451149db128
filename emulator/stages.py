"""Where every CPU is in the hand-off, told from the code ranges that it enters.

What it is: `code_rows` cuts the address space into rows with a stage letter, from the placement
and the symbols that the images have; `StageTracker` turns the native log into stage events. What
it is not: a guess from function names alone. Regions (hand-over, purgatory, low memory, kernel)
are known by address; functions refine them where the image names them (`handoff.STAGES`).

Two kinds of row: a *place* (hand-over, hold loop, relocate, copy) lasts while the CPU is in it; a
*milestone* (digest check, early_setup, start_kernel, a secondary joining) begins where it is
entered and lasts, whatever it calls, until the next.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from emulator.handoff import LOW_COPY_BYTES, STAGE_BY_ID, STAGES
from emulator.images import KernelImage
from emulator.machine import Range
from emulator.native import EA_MASK, RANGE_CLASS_SHIFT, RANGE_STOP
from emulator.placement import Placement

MILESTONES: Final = ("early_setup", "start_kernel", "joins")
_PLACES_IN_KERNEL: Final = ("relocate", "copy")
UNTIL: Final = "until"


@dataclass(frozen=True)
class CodeRow:
    """Real addresses [lo, hi) that belong to one stage."""

    lo: int
    hi: int
    stage: str
    """Id of `handoff.STAGES`, or `until`: the place where the user wants the run to end."""
    region: str
    """handover, low, purgatory, kernel, vectors, kernel-at-0 (which is where it was linked)."""
    milestone: bool = False
    stop: bool = False
    """The run stops exactly where this row is entered."""


def code_rows(
    placement: Placement,
    kernel: KernelImage,
    *,
    moved: bool,
    until: str | None = None,
    entered: Collection[str] = (),
) -> list[CodeRow]:
    """All rows of a run, disjoint and ascending.

    Args:
        placement: where everything lies.
        kernel: for its symbols.
        moved: the kernel runs at 0 now, so addresses that both copies claim belong to that one.
        until: a symbol at which the run is to stop.
        entered: regions that have been entered; at the first entry into purgatory and kernel, and
            at each into low memory, the CPU stops for a moment.
    """
    kernel_addr, kernel_bytes = placement.kernel_addr, kernel.mem_bytes
    rows: list[CodeRow] = []
    for segment in placement.segments:
        if segment.name in ("handover", "purgatory"):
            stage = "hand-over" if segment.name == "handover" else "purgatory"
            end = segment.addr + segment.mem_bytes
            rows = _lay(rows, CodeRow(segment.addr, end, stage, segment.name))
    for row in _purgatory_functions(placement):
        rows = _lay(rows, row, only_in="purgatory")
    here = CodeRow(kernel_addr, kernel_addr + kernel_bytes, "head", "kernel")
    there = _where_linked(kernel, kernel_addr, moved)
    for row in (*there, here) if moved else (here, *there):
        rows = _lay(rows, row, under=True)
    for base, region in ((kernel_addr, "kernel"), (kernel.run_addr, "kernel-at-0")):
        for row in _kernel_functions(kernel, base, region, until):
            rows = _lay(rows, row, only_in=region)
    rows = _lay(rows, CodeRow(0, LOW_COPY_BYTES, "hold", "low", stop=True))
    stops = {"purgatory", "kernel"} - set(entered)
    return [replace(row, stop=True) if row.region in stops else row for row in rows]


def _where_linked(kernel: KernelImage, kernel_addr: int, moved: bool) -> list[CodeRow]:
    """The kernel's copy where it was linked to run: at 0, for all but crash kernels of 2.6.27."""
    to, end = kernel.run_addr, kernel.run_addr + kernel.mem_bytes
    if to == kernel_addr:
        return []
    if to:
        return [CodeRow(to, end, "head", "kernel-at-0", stop=not moved)]
    first = min(end, _interrupts_end(kernel))
    rows = [
        CodeRow(LOW_COPY_BYTES, first, "head", "vectors"),
        CodeRow(max(first, LOW_COPY_BYTES), end, "head", "kernel-at-0", stop=not moved),
    ]
    return [row for row in rows if row.lo < row.hi]


def _interrupts_end(kernel: KernelImage) -> int:
    """Offset behind the exception vectors, which are copied to 0 even when the kernel stays.

    Of a kernel that does not name their end nothing is known; there an entry that no interrupt
    makes is taken as the kernel's own (`StageTracker.enter`).
    """
    end = kernel.symbols.find("__end_interrupts")
    return LOW_COPY_BYTES if end is None else max(0, end - kernel.link_vaddr)


def _purgatory_functions(placement: Placement) -> list[CodeRow]:
    """The digest check lasts, with all it calls, until a function of purgatory itself runs."""
    rows = []
    for stage in ("digest", "purgatory"):
        for name in STAGE_BY_ID[stage].symbols:
            at, size = placement.purgatory_symbols.get(name, (0, 0))
            if size:
                rows.append(CodeRow(at, at + size, stage, "purgatory", milestone=True))
    return rows


def _kernel_functions(
    kernel: KernelImage, base: int, region: str, until: str | None
) -> list[CodeRow]:
    """Rows of the named functions of the kernel, when it runs at `base`."""
    rows = []
    for stage in STAGES:
        if stage.image != "kernel" or stage.id not in (*MILESTONES, *_PLACES_IN_KERNEL):
            continue
        for name in stage.symbols:
            link = kernel.symbols.find(name)
            if link is None:
                continue
            at = base + link - kernel.link_vaddr
            if stage.id in MILESTONES:
                end = at + 4 + kernel.symbols.local_entry_offset(name)
                rows.append(CodeRow(at, end, stage.id, region, milestone=True))
                continue
            found = kernel.symbols.lookup(link)
            size = found[2] if found else 0
            rows.append(CodeRow(at, at + (size or 4), stage.id, region))
    if until is not None:
        link = kernel.symbols.find(until)
        if link is not None:
            at = base + link - kernel.link_vaddr
            end = at + 4 + kernel.symbols.local_entry_offset(until)
            rows.append(CodeRow(at, end, UNTIL, region, stop=True))
    return rows


def _lay(
    rows: list[CodeRow], new: CodeRow, *, under: bool = False, only_in: str | None = None
) -> list[CodeRow]:
    """Lay a row over (or under) the others, which keeps them disjoint and sorted."""
    if under:
        pieces = [new]
        for row in rows:
            pieces = [part for piece in pieces for part in _minus(piece, row)]
        return sorted([*rows, *pieces], key=lambda row: row.lo)
    if only_in is not None:
        inside = any(r.region == only_in and r.lo <= new.lo and new.hi <= r.hi for r in rows)
        if not inside:
            return rows
    kept = [part for row in rows for part in _minus(row, new)]
    return sorted([*kept, new], key=lambda row: row.lo)


def _minus(row: CodeRow, hole: CodeRow) -> list[CodeRow]:
    parts = []
    if row.lo < min(row.hi, hole.lo):
        parts.append(_cut(row, row.lo, min(row.hi, hole.lo)))
    if max(row.lo, hole.hi) < row.hi:
        parts.append(_cut(row, max(row.lo, hole.hi), row.hi))
    return parts


def _cut(row: CodeRow, lo: int, hi: int) -> CodeRow:
    return CodeRow(lo, hi, row.stage, row.region, row.milestone, row.stop)


def native_ranges(rows: list[CodeRow]) -> list[Range]:
    """The rows as the native hooks take them: id = index, class = what must change to be logged."""
    classes: dict[tuple[str, str, bool], int] = {}
    ranges = []
    for n, row in enumerate(rows):
        kind = classes.setdefault((row.stage, row.region, row.milestone), len(classes) + 1)
        ident = n | kind << RANGE_CLASS_SHIFT | (RANGE_STOP if row.stop else 0)
        ranges.append(Range(row.lo, row.hi, ident))
    return ranges


@dataclass
class CpuStage:
    """What the tracker knows of one CPU."""

    stage: str = "hand-over"
    base: str = "hand-over"
    """What the generic kernel code counts as: the last milestone."""
    since: int = 0
    released: bool = False
    region: str = ""
    """Region of the row that it entered last."""


@dataclass(frozen=True)
class Change:
    """A CPU entered another stage at a tick; `released`: it left the hold loop for the kernel."""

    tick: int
    cpu: int
    nip: int
    stage: str
    released: bool


class StageTracker:
    """Follows every CPU through the rows of `code_rows`."""

    def __init__(self, rows: list[CodeRow], cpus: int, boot_cpu: int) -> None:
        self.rows = rows
        self.cpus = [CpuStage() for _ in range(cpus)]
        self.boot_cpu = boot_cpu
        self.moved = False
        self.decided = False
        """The boot CPU runs the kernel's C code: where the kernel runs is settled."""
        self.spoke = False
        """The boot CPU has called the hypervisor from the new kernel."""
        self.digest_checked = False
        """The boot CPU has been in the digest check."""
        self.until_reached: tuple[int, int] | None = None
        """(tick, cpu) at which the row `until` was entered."""

    def enter(
        self, tick: int, cpu: int, nip: int, ident: int, *, interrupted: bool = False
    ) -> Change | None:
        """Take in one row of the native log; the stage change it means, if any.

        `interrupted`: an interrupt took the CPU there, so that it may be a vector.
        """
        row = None if ident < 0 else self.rows[ident & (RANGE_STOP - 1)]
        at = self.cpus[cpu]
        if row is not None and row.stage == UNTIL:
            self.until_reached = self.until_reached or (tick, cpu)
            return None
        if row is not None and row.region == "kernel-at-0" and cpu == self.boot_cpu:
            self.moved = self.moved or (self.in_kernel and not interrupted)
        at.region = row.region if row is not None else ""
        stage = self._stage_of(row, cpu, at)
        if cpu == self.boot_cpu and at.base in ("early_setup", "start_kernel"):
            self.decided = True
        if stage == at.stage:
            return None
        released = at.stage == "hold" and stage in (*_KERNEL_BASES, "relocate", "copy")
        released = released and not at.released
        at.released = at.released or released
        at.stage, at.since = stage, tick
        self.digest_checked = self.digest_checked or stage == "digest"
        return Change(tick, cpu, nip, stage, released)

    def _stage_of(self, row: CodeRow | None, cpu: int, at: CpuStage) -> str:
        if row is None:
            return at.base
        if row.milestone:
            at.base = row.stage
        elif row.region == "low":
            if cpu == self.boot_cpu:
                return at.base if at.base in _KERNEL_BASES else "head"
            at.base = "hold"
        elif row.region in ("kernel", "kernel-at-0", "vectors"):
            if at.base not in _KERNEL_BASES:
                at.base = "head" if cpu == self.boot_cpu else "joins"
            return row.stage if row.stage != "head" else at.base
        elif row.region != "purgatory" or at.base != "digest":
            at.base = row.stage
        return at.base

    def peek(self, cpu: int, nip: int) -> str:
        """The stage that a CPU is in once it goes on at `nip`."""
        ea = nip & EA_MASK
        row = next((row for row in self.rows if row.lo <= ea < row.hi), None)
        if row is not None and row.stage == UNTIL:
            return self.cpus[cpu].stage
        return self._stage_of(row, cpu, replace(self.cpus[cpu]))

    def called(self, cpu: int) -> None:
        """A CPU has called the hypervisor, which a kernel does once it knows where it runs."""
        if cpu == self.boot_cpu and self.in_kernel:
            self.decided = self.spoke = True

    @property
    def in_kernel(self) -> bool:
        """The boot CPU has come to the new kernel."""
        return self.cpus[self.boot_cpu].base in _KERNEL_BASES

    @property
    def complete(self) -> bool:
        """The boot CPU is in start_kernel and every secondary has left the hold loop.

        Of a kernel that does not name start_kernel: it has called the hypervisor.
        """
        others = [c for n, c in enumerate(self.cpus) if n != self.boot_cpu]
        named = any(row.stage == "start_kernel" for row in self.rows)
        started = self.cpus[self.boot_cpu].base == "start_kernel" if named else self.spoke
        return started and all(c.released for c in others)


_KERNEL_BASES: Final = ("head", "early_setup", "start_kernel", "joins")
