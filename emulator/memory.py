"""Pieces of RAM at tick 0, and the search for holes between them as kexec does it.

What it is: kexec-tools' locate_hole and add_buffer over ranges of usable memory; pure.
What it is not: the RAM of the machine. Source: kexec-tools kexec/kexec.c (behaviour).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emulator.errors import PlacementError, size_words
from emulator.handoff import LOW_COPY_BYTES, PAGE_BYTES


@dataclass(frozen=True)
class Segment:
    """A piece of RAM at tick 0; the rest up to mem_bytes is zero."""

    name: str
    """kernel purgatory device-tree backup elfcorehdr initrd handover stack"""
    addr: int
    data: bytes | memoryview
    mem_bytes: int


def _page_up(value: int) -> int:
    return -(-value // PAGE_BYTES) * PAGE_BYTES


@dataclass
class Ram:
    """The search for holes: memory that kexec may use, and what it has used."""

    ranges: list[tuple[int, int]]
    """Sorted, end exclusive."""
    taken: list[Segment] = field(default_factory=list)

    def holes(self) -> list[tuple[int, int]]:
        """What is free, in order."""
        free = []
        used = sorted((s.addr, s.addr + s.mem_bytes) for s in self.taken)
        for low, high in self.ranges:
            for start, end in used:
                if end <= low or start >= high:
                    continue
                if start > low:
                    free.append((low, start))
                low = max(low, end)
            if low < high:
                free.append((low, high))
        return free

    def locate(self, what: str, size: int, align: int = PAGE_BYTES, top: bool = False) -> int:
        """First hole from the bottom, or the highest place from the top, as locate_hole."""
        align = max(align, PAGE_BYTES)
        best = None
        for low, high in self.holes():
            start = -(-low // align) * align
            if high - start >= size:
                if not top:
                    return start
                best = (high - size) // align * align
        if best is None:
            room = ", ".join(f"{low:#x}-{high:#x}" for low, high in self.ranges)
            raise PlacementError(
                f"no room for the {what}: {size_words(size)} do not fit into {room}",
                hint="Give more memory (--mem) or another place for the kernel (--base).",
            )
        return best

    def add(
        self,
        name: str,
        data: bytes | memoryview,
        mem_bytes: int,
        given: int | None,
        *,
        align: int = PAGE_BYTES,
        top: bool = False,
    ) -> Segment:
        """Place a segment where it is given or where a hole is; its memory is whole pages."""
        mem_bytes = _page_up(mem_bytes)
        addr = self.locate(name, mem_bytes, align, top) if given is None else given
        if addr % PAGE_BYTES:
            raise PlacementError(
                f"the {name} at {addr:#x} is not on a page of {size_words(PAGE_BYTES)}",
                hint="Give an address that is a multiple of 64 KiB.",
            )
        segment = Segment(name, addr, data, mem_bytes)
        self.taken.append(segment)
        return segment


def without(ranges: list[tuple[int, int]], hole: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Ranges with a hole cut out of them."""
    if hole is None:
        return ranges
    pieces = []
    for low, high in ranges:
        pieces += [(low, min(high, hole[0])), (max(low, hole[1]), high)]
    return [(low, high) for low, high in pieces if low < high]


def check_overlaps(segments: list[Segment], mem_bytes: int) -> None:
    """Raise PlacementError if segments overlap, touch 0-0x100, or end behind the memory."""
    end, last = LOW_COPY_BYTES, "first 0x100 bytes of memory"
    for segment in sorted(segments, key=lambda segment: segment.addr):
        if segment.addr < end:
            raise PlacementError(
                f"the {segment.name} at {segment.addr:#x} overlaps the {last}, which ends at"
                f" {end:#x}",
                hint="Give other addresses or another --base.",
            )
        end, last = segment.addr + segment.mem_bytes, segment.name
    if end > mem_bytes:
        raise PlacementError(
            f"the {last} ends at {end:#x}, behind the memory of {size_words(mem_bytes)}",
            hint="Give more memory (--mem).",
        )
