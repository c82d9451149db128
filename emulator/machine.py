"""The machine: N CPUs over one RAM, run one slice at a time.

What it is: CPUs (`cpu`) over one anonymous memory, with exact ticks, watched memory, exceptions
delivered to the guest's vectors and hypercalls answered by a function. What it is not: it decides
nothing about who runs when (`schedule`), keeps no history (`recorder`) and knows no file.

What shapes it, beside Unicorn's own quirks (`cpu`):

- `uc_emu_stop` from the block hook acts before the block runs: a slice ends on an exact tick that
  way.
- Memory hooks force every load and store of the guest onto a slow path (3.5 times slower on the
  digest loop). Watched pages are therefore mapped as MMIO, for data only: fetches go to RAM, data
  accesses of those pages reach a native callback, everything else runs at full speed. See
  `native`.
- Not every write to code drops its translation: `codepages` does.
- A page with `mftb` or `slbmte` in it is refused at its first fetch, until a hook stands on each
  of them.
- `tlbie`, `tlbiel` and `tlbsync` raise a program check: done here, by flushing.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from emulator import mmu, native
from emulator.codepages import CodePages
from emulator.cpu import PAGE_BYTES, U64, Cpu, fill_engine_slots
from emulator.errors import LimitError
from emulator.hashtable import HashTable
from emulator.intercepts import changes_segments, is_timebase
from emulator.loops import Loop, Loops
from emulator.ppc64 import (
    INTERRUPTS,
    MSR_DR,
    MSR_IR,
    MSR_LE,
    MSR_ME,
    MSR_SF,
    PROGRAM_ILLEGAL,
    PROGRAM_PRIVILEGED,
    PROGRAM_TRAP,
    SPR_DAR,
    SPR_DSISR,
    SPR_PID,
    SPR_SRR0,
    SPR_SRR1,
    effective_address,
)
from emulator.sightings import Access, Range, Step, Stop, Watch

__all__ = ["Access", "Machine", "Range", "Step", "Stop", "Watch"]

CALLS_PER_SLICE: Final = 1000
"""Hypercalls, exceptions and reads of the timebase after which an inexact run ends: each costs some
50 us, and between slices others want to be heard."""
TRAIL_STEP_TICKS: Final = 16_384
TRAIL_ROWS: Final = 65_536
_HYPERCALL_WORD: Final = 0x44000022
_TLB_INSTRUCTIONS: Final = (306, 274, 566)
"""Extended opcodes under 31 of tlbie, tlbiel, tlbsync."""
_FETCH_REFUSED: Final = {mmu.NOT_MAPPED: 0x40000000, mmu.NOT_ALLOWED: 0x08000000}
"""SRR1 33:36 of a refused fetch: 33 no entry, 36 protection, else 35, no execution or guarded
(Power ISA 2.07 Book III-S 6.5.5)."""
_SRR1_CLEARED: Final = 0x783F0000
"""SRR1 33:36 and 42:47 say why, not what MSR was (Power ISA 3.1 Book III 7.2.1)."""


Hypercall = Callable[["Machine", int, list[int]], list[int] | str]
"""(machine, cpu, r3..r12) -> new values of r3.. ; or a text: the run stops and says it."""
OnException = Callable[[int, str, int, int], str]
"""(cpu, name, vector, nip) called before an exception is delivered; a text ends the run."""


_PAGE_DIGEST: Final = np.dtype([("page", "<u8"), ("digest", "V16")])


class Machine:
    """CPUs over one RAM.

    Args:
        ram_bytes: size of RAM, a multiple of 4 KiB. cpus: how many. watches: memory whose
        accesses are logged (at most 16 rows in at most 8 pages). ranges: code whose entry is
        logged, disjoint (at most 128). hypercall: answers `sc 1`. on_range: called with the CPU
        that stands where a range with RANGE_STOP begins. counting: False is the bench's baseline.
        hash_table_bytes: size of the hashed page table, a power of two; 0 for none.
    """

    def __init__(
        self,
        ram_bytes: int,
        cpus: int,
        *,
        watches: Sequence[Watch] = (),
        ranges: Sequence[Range] = (),
        hypercall: Hypercall,
        on_exception: OnException | None = None,
        on_range: Callable[[int], None] | None = None,
        counting: bool = True,
        hash_table_bytes: int = 0,
    ) -> None:
        self.ram_bytes = ram_bytes
        self.counting = counting
        self.ram = mmap.mmap(-1, ram_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = ctypes.c_char.from_buffer(self.ram)
        self.ram_addr = ctypes.addressof(self._anchor)
        self.dirty = np.zeros(ram_bytes // PAGE_BYTES, np.uint8)
        self._unhashed = np.zeros(ram_bytes // PAGE_BYTES, np.uint8)
        self.words = np.frombuffer(self.ram, np.uint64)
        self._page_digests = np.zeros(ram_bytes // PAGE_BYTES, _PAGE_DIGEST)
        self._hashed = np.zeros(ram_bytes // PAGE_BYTES, np.bool_)
        self._last: Cpu | None = None
        self._delivered_at = -1
        self._delivered_here = 0
        self.cpus: list[Cpu] = []
        self.state = np.zeros(native.STATE_SLOTS, np.int64)
        self.watch_pages: list[int] = []
        self.hypercall, self.on_exception = hypercall, on_exception
        self._on_range = on_range
        self.interrupts_little_endian = False
        self.interrupts_relocated = False
        self.hash_table = HashTable(hash_table_bytes, ram_bytes)
        self.loops = Loops()
        self._wire(ranges)
        self.set_trail(TRAIL_STEP_TICKS, TRAIL_ROWS)
        self.set_watches(watches if counting else ())
        ram = (self.ram_addr, ram_bytes)
        self.cpus = [Cpu(n, ram, self.state, counting=counting) for n in range(cpus)]
        self._code = [CodePages(cpu, self.ram, self.state) for cpu in self.cpus]

    # --- set-up -------------------------------------------------------------------------------

    def _wire(self, ranges: Sequence[Range]) -> None:
        s = self.state
        fill_engine_slots(s)
        s[native.RAM_ADDR], s[native.RAM_BYTES] = self.ram_addr, self.ram_bytes
        s[native.DIRTY_ADDR] = self.dirty.ctypes.data
        s[native.PROCESS_TABLE] = s[native.PROBE] = -1
        s[native.HASH_ADDR] = self.hash_table.words.ctypes.data
        s[native.HASH_WORDS] = len(self.hash_table.words)
        s[native.LOOPS_ADDR] = self.loops.table.ctypes.data
        self.set_ranges(ranges)

    def set_watches(self, watches: Sequence[Watch]) -> None:
        """Replace the memory whose accesses are logged.

        Raises:
            LimitError: more than 16 rows, or more than 8 pages.
        """
        pages = sorted({watch.lo & ~0xFFF for watch in watches})
        if len(pages) > native.WATCH_PAGE_MAX or len(watches) > native.WATCH_MAX:
            raise LimitError("too many watched memory ranges", hint="watch fewer")
        s = self.state
        s[native.WATCH_PAGES : native.WATCH_PAGES + native.WATCH_PAGE_MAX] = -1
        for n, page in enumerate(pages):
            s[native.WATCH_PAGES + n] = page
        s[native.WATCH_COUNT] = len(watches)
        for n, watch in enumerate(watches):
            at = native.WATCHES + 3 * n
            s[at : at + 3] = (watch.lo, watch.hi, watch.kinds)
        self.watch_pages = pages
        self.flush_tlbs()

    def set_ranges(self, ranges: Sequence[Range], *, anew: bool = True) -> None:
        """Replace the code ranges whose entry is logged; every CPU reports its own, if `anew`."""
        if len(ranges) > native.RANGE_MAX:
            raise LimitError("too many code ranges", hint="name fewer")
        rows = sorted(ranges, key=lambda row: row.lo)
        self.state[native.RANGE_COUNT] = len(rows)
        for n, row in enumerate(rows):
            at = native.RANGES + 3 * n
            self.state[at : at + 3] = (row.lo, row.hi, row.ident)
        for cpu in self.cpus if anew else ():
            cpu.range = (1, 0, -1)

    def read(self, addr: int, size: int) -> bytes:
        """Read physical memory; `addr + size` must lie in RAM."""
        if addr < 0 or addr + size > self.ram_bytes:
            raise LimitError(f"physical address 0x{addr:x} is outside RAM", hint="give more --mem")
        return self.ram[addr : addr + size]

    def write(self, addr: int, data: bytes) -> None:
        """Write physical memory from outside the guest (the loader, firmware answers)."""
        if addr < 0 or addr + len(data) > self.ram_bytes:
            raise LimitError(f"physical address 0x{addr:x} is outside RAM", hint="give more --mem")
        self.ram[addr : addr + len(data)] = data
        first, last = addr // PAGE_BYTES, (addr + max(len(data), 1) - 1) // PAGE_BYTES
        self.dirty[first : last + 1] = 1

    def set_process_table(self, addr: int) -> None:
        """Tell the radix walk where the guest's process table lies; -1: back to the hash MMU."""
        self.state[native.PROCESS_TABLE] = addr
        self.flush_tlbs()

    def flush_tlbs(self) -> None:
        """Drop every cached address translation of every CPU."""
        for cpu in self.cpus:
            cpu.flush_tlb()

    # --- the clock ----------------------------------------------------------------------------

    @property
    def tick(self) -> int:
        """Instructions retired so far, over all CPUs."""
        return int(self.state[native.TICK])

    def _settle(self, nip: int) -> None:
        """Bring the tick up to `nip`: the end of the block, or the place where it stopped."""
        s = self.state
        start, size = int(s[native.BLOCK_PC]) & U64, int(s[native.BLOCK_BYTES])
        inside = nip - start
        retired = inside if 0 <= inside <= size else size
        s[native.TICK] += retired >> 2
        s[native.BLOCK_PC] = nip - (1 << 64) if nip >> 63 else nip
        s[native.BLOCK_BYTES] = 0

    # --- running ------------------------------------------------------------------------------

    def run(self, number: int, until_tick: int, *, exact: bool) -> Stop:
        """Run one CPU until a tick, or until something wants attention.

        Args:
            number: the CPU.
            until_tick: absolute tick not to pass.
            exact: stop at exactly that tick; else at the last block boundary before it (never
                without progress), or at the next one after a watched write.

        Returns:
            why it stopped; `self.tick` is exact.
        """
        cpu = self.cpus[number]
        s = self.state
        begin = self.tick
        self._enter(cpu)
        s[native.BUDGET] = 1 << 62 if exact else CALLS_PER_SLICE
        stop: Stop | None = None
        while stop is None:
            spent = s[native.BUDGET] <= 0 and self._delivered_at != self.tick > begin
            if self.tick >= until_tick or spent:
                stop = Stop("limit")
                break
            stop = self._go(cpu, until_tick)
            written = int(s[native.WATCH_WRITTEN])
            if stop is not None or not s[native.STOPPED]:
                continue
            if s[native.HIT_MODE] == native.HIT_FIRST and s[native.HIT_COUNT]:
                stop = Stop("hit")
            elif s[native.LOG_COUNT] >= native.LOG_STOP_AT or self.loops.full:
                stop = Stop("log")
            elif written:
                wanted = native.WATCH_MATCHED | native.STOPPED_AT_RANGE
                if written & wanted and not exact and self._delivered_at != self.tick:
                    stop = Stop("written")
            elif not exact and self._delivered_at == self.tick:
                # an interrupt retires nothing: its handler begins, so that a tick has one state
                stop = self._finish_block(cpu, self.tick + 1)
            elif exact or self.tick == begin:
                stop = self._finish_block(cpu, until_tick)
            else:
                stop = Stop("limit")
        self._leave(cpu, begin)
        return stop

    def run_bare(self, number: int, end: int) -> Stop:
        """Run one CPU with neither ticks nor watches until NIP is `end`: the bench's baseline."""
        cpu = self.cpus[number]
        self._enter(cpu)
        while cpu.nip != end:
            refused = cpu.go(end)
            stop = self._interrupted(cpu) if cpu.interrupt >= 0 else None
            if refused:
                stop = self._refused(cpu)
            if stop is not None:
                return stop
        return Stop("limit")

    def _enter(self, cpu: Cpu) -> None:
        """Make `cpu` the one that the native state speaks of."""
        s = self.state
        cpu.fill_slots()
        self._code[cpu.number].enter(self._last is not cpu)
        self._last = cpu
        s[native.CPU] = cpu.number
        s[native.PID] = cpu.spr(SPR_PID) & 0xFFFFFFFF
        s[native.RANGE_LO], s[native.RANGE_HI], s[native.RANGE_CLASS] = cpu.range
        s[native.BLOCK_BYTES] = 0
        s[native.WATCH_WRITTEN] = 0
        s[native.SPAN_LO], s[native.SPAN_HI] = native.EA_MASK, 0

    def _leave(self, cpu: Cpu, begin: int) -> None:
        """Keep what belongs to the CPU."""
        s = self.state
        cpu.range = tuple(s[[native.RANGE_LO, native.RANGE_HI, native.RANGE_CLASS]].tolist())
        cpu.retired += self.tick - begin
        self._code[cpu.number].leave()

    def _go(self, cpu: Cpu, limit: int, end: int | None = None) -> Stop | None:
        """One `emu_start`; afterwards the tick is right and what interrupted it is dealt with."""
        s = self.state
        s[native.LIMIT] = limit
        s[native.STOPPED] = 0
        s[native.WATCH_WRITTEN] = 0
        s[native.FAULT_WHY] = 0
        refused = cpu.go(end)
        self._settle(cpu.nip)
        self._code[cpu.number].forget_written(self.watch_pages)
        if s[native.WATCH_WRITTEN] & native.STOPPED_AT_RANGE and self._on_range:
            self._on_range(cpu.number)
        if cpu.interrupt >= 0 or refused:
            s[native.BUDGET] -= 1
        if cpu.interrupt >= 0:
            return self._interrupted(cpu)
        return self._delivered(cpu) if refused else None

    def _finish_block(self, cpu: Cpu, until_tick: int) -> Stop | None:
        """Run the first instructions of the block at NIP, up to exactly `until_tick`."""
        nip = cpu.nip
        if until_tick <= self.tick:  # asked to stop where it starts, Unicorn fetches before it
            return None
        end = nip + 4 * (until_tick - self.tick)
        cpu.drop_code(nip, end + 4)
        try:
            return self._go(cpu, 1 << 62, end)
        finally:
            cpu.drop_code(nip, end + 4)

    # --- what interrupts a CPU ------------------------------------------------------------------

    def _interrupted(self, cpu: Cpu) -> Stop | None:
        """Deal with an exception that Unicorn hands over; NIP is past the instruction."""
        nip = cpu.nip
        number = cpu.interrupt
        word = self.fetch_word(cpu, (nip - 4) & U64)
        if number == 8 and word == _HYPERCALL_WORD:
            return self._do_hypercall(cpu)
        if number in (6, 96) and word >> 26 == 31 and (word >> 1 & 0x3FF) in _TLB_INSTRUCTIONS:
            self.flush_tlbs()
            return None
        row = INTERRUPTS.get(number)
        if row is None:
            return Stop("fault", f"exception {number} of Unicorn, which this machine does not know")
        if not row.faulting:
            return self._deliver(cpu, row.vector, row.name, nip, 0)
        self.state[native.TICK] -= 1
        at = (nip - 4) & U64
        if number in (6, 96):
            return self._deliver(cpu, 0x700, "program check", at, _program_reason(word))
        return self._deliver(cpu, row.vector, row.name, at, 0)

    def _do_hypercall(self, cpu: Cpu) -> Stop | None:
        args = list(cpu.registers().gpr[3:13])
        answer = self.hypercall(self, cpu.number, args)
        if isinstance(answer, str):
            return Stop("fault", answer)
        cpu.set_registers({f"r{3 + n}": value for n, value in enumerate(answer)})
        return None

    def _delivered(self, cpu: Cpu) -> Stop | None:
        """Deal with a refused access; one that ends the run leaves no trace in the CPU.

        A replay stops before it, at the same tick.
        """
        cpu.refresh()
        before = {spr: cpu.spr(spr) for spr in (SPR_DAR, SPR_DSISR)}
        stop = self._refused(cpu)
        if stop is not None:
            cpu.set_sprs(before)
        return stop

    def _refused(self, cpu: Cpu) -> Stop | None:
        """The TLB fill refused a page: prepare its code, or deliver a storage interrupt."""
        s = self.state
        ea, why = int(s[native.FAULT_EA]) & U64, int(s[native.FAULT_WHY])
        access = int(s[native.FAULT_ACCESS])
        nip = cpu.nip
        if why == native.WANT_PREPARE:
            self._prepare_page(cpu, ea)
            return None
        if why == mmu.NO_SEGMENT:
            return self._deliver_no_segment(cpu, ea, access)
        if access == mmu.ACCESS_FETCH:
            srr1 = _FETCH_REFUSED.get(why, 0x10000000)
            return self._deliver(cpu, 0x400, "instruction storage interrupt", nip, srr1)
        ea = self._exact_address(cpu, ea)
        store = 0x02000000 if access == mmu.ACCESS_WRITE else 0
        dsisr = (0x40000000 if why != mmu.NOT_ALLOWED else 0x08000000) | store
        cpu.set_sprs({SPR_DAR: ea, SPR_DSISR: dsisr})
        return self._deliver(cpu, 0x300, f"data storage interrupt at 0x{ea:016x}", nip, 0)

    def _deliver_no_segment(self, cpu: Cpu, ea: int, access: int) -> Stop | None:
        """Power ISA 2.07 Book III-S 6.5.4 and 6.5.6: DAR for data, SRR0 alone for a fetch."""
        if access == mmu.ACCESS_FETCH:
            return self._deliver(cpu, 0x480, "instruction segment interrupt", cpu.nip, 0)
        ea = self._exact_address(cpu, ea)
        cpu.set_sprs({SPR_DAR: ea})
        return self._deliver(cpu, 0x380, f"data segment interrupt at 0x{ea:016x}", cpu.nip, 0)

    def _exact_address(self, cpu: Cpu, page: int) -> int:
        """The byte of a page that the instruction at NIP may not touch; Unicorn tells the page."""
        word = self.fetch_word(cpu, cpu.nip)
        ea = effective_address(word, cpu.registers().gpr)
        return ea if ea is not None and ea & ~0xFFF == page else page

    def _deliver(self, cpu: Cpu, vector: int, name: str, srr0: int, srr1: int) -> Stop | None:
        """Take an interrupt the way a guest of a hypervisor does (Power ISA 3.1 Book III 7.5)."""
        msr = cpu.msr
        storm = self.on_exception(cpu.number, name, vector, srr0) if self.on_exception else ""
        again = self._delivered_at == self.tick
        self._delivered_at = self.tick
        self._delivered_here = self._delivered_here + 1 if again else 0
        if storm or self._delivered_here > 2 or self.read(vector, 4) == bytes(4):
            cpu.set_registers({"nip": srr0})
            text = storm or f"{name} (0x{vector:x}) with no handler at its vector"
            return Stop("fault", text)
        new = MSR_SF | (msr & MSR_ME)
        if self.interrupts_little_endian:
            new |= MSR_LE
        target = vector
        if self.interrupts_relocated and msr & MSR_IR and msr & MSR_DR:
            new |= MSR_IR | MSR_DR
            target |= 0xC000000000004000
        cpu.set_sprs({SPR_SRR0: srr0, SPR_SRR1: (msr & ~_SRR1_CLEARED) | srr1})
        cpu.set_registers({"nip": target, "msr": new})
        self.loops.interrupted(cpu.number)
        return None

    def _prepare_page(self, cpu: Cpu, ea: int) -> None:
        """Hook each instruction of a code page that reads the timebase or changes the SLB."""
        page = ea & ~0xFFF
        physical = self.translate(cpu, page, mmu.ACCESS_FETCH)
        if physical is None:
            return
        for n, raw in enumerate(struct.unpack("<1024I", self.read(physical, PAGE_BYTES))):
            swapped = int.from_bytes(raw.to_bytes(4, "little"), "big")
            if is_timebase(raw) or is_timebase(swapped):
                cpu.hook_timebase(page + 4 * n, physical + 4 * n)
            if changes_segments(raw) or changes_segments(swapped):
                cpu.hook_segments(page + 4 * n)
        prepared = native.PREPARED_OTHER
        if page == physical:
            prepared = native.PREPARED_REAL
        elif page & native.EA_MASK == physical and page >> 60 == 0xC:
            prepared = native.PREPARED_LINEAR
        self._code[cpu.number].note_prepared(physical, prepared)

    def close_loops(self) -> list[Loop]:
        """End every loop that is open, for the run ends here; first what was not taken yet."""
        return self.loops.close(self.words.view(np.uint32), self.tick)

    # --- looking --------------------------------------------------------------------------------

    def span(self) -> tuple[int, int]:
        """Lowest and highest block start of the last `run`, without the top four bits."""
        return int(self.state[native.SPAN_LO]), int(self.state[native.SPAN_HI])

    def translate(self, cpu: Cpu, ea: int, access: int) -> int | None:
        """Physical address of an effective one as that CPU sees it now; None when not mapped."""
        signed = ea - (1 << 64) if ea >> 63 else ea
        msr = cpu.msr
        msr = msr - (1 << 64) if msr >> 63 else msr
        table, pid = int(self.state[native.PROCESS_TABLE]), int(self.state[native.PID])
        if table < 0 and msr & native.MSR_TRANSLATES:
            cpu.refresh()  # for its SLB
        page, why = mmu.translate(
            self.words, self.ram_bytes, signed & ~0xFFF, access, msr, table, pid,
            cpu.slb, self.hash_table.words,
        )  # fmt: skip
        return None if why else int(page) | (ea & 0xFFF)

    def fetch_word(self, cpu: Cpu, ea: int) -> int:
        """The instruction word at an effective address, in that CPU's byte order; 0 if unmapped."""
        physical = self.translate(cpu, ea, mmu.ACCESS_FETCH)
        if physical is None:
            return 0
        raw = self.read(physical, 4)
        return int.from_bytes(raw, "little" if cpu.msr & MSR_LE else "big")

    def set_trail(self, step_ticks: int, rows: int) -> None:
        """Note where a CPU is once in so many ticks (0: at every block), at most `rows` times."""
        self._trail = np.zeros(3 * rows, np.int64)
        s = self.state
        s[native.TRAIL_ADDR], s[native.TRAIL_MAX] = self._trail.ctypes.data, rows
        s[native.TRAIL_STEP], s[native.TRAIL_NEXT], s[native.TRAIL_COUNT] = step_ticks, 0, 0

    def take_trail(self) -> npt.NDArray[np.int64]:
        """Rows (tick, cpu, block start as a signed number) since the last call."""
        count = int(self.state[native.TRAIL_COUNT])
        self.state[native.TRAIL_COUNT] = 0
        return self._trail[: 3 * count].reshape(-1, 3).copy()

    def take_log(self) -> list[Access]:
        """Rows of the native log since the last call, oldest first; it is empty afterwards."""
        s = self.state
        count = int(s[native.LOG_COUNT])
        if count > native.LOG_MAX:
            raise LimitError(
                f"{count} watched accesses before one block ended, at tick {self.tick}",
                hint="Nothing that hands over does so; please report an image that has to.",
            )
        s[native.LOG_COUNT] = 0
        rows = (
            s[native.LOG : native.LOG + count * native.LOG_FIELDS]
            .reshape(count, native.LOG_FIELDS)
            .tolist()
        )
        return [
            Access(k, tick, cpu, nip & U64, addr, size, _value(k, value, size), msr & U64)
            for k, tick, cpu, nip, addr, size, value, msr in rows
        ]

    def trace_steps(self, number: int, count: int) -> list[Step]:
        """Run `count` instructions of one CPU one by one and say what each found.

        They retire like any others. Costs about 30 us each and drops this CPU's translations.
        """
        cpu = self.cpus[number]
        steps: list[Step] = []

        def see(nip: int) -> None:
            word = self.fetch_word(cpu, nip)
            steps.append(Step(nip, word, cpu.registers(), bool(is_timebase(word))))

        end_watching = cpu.watch_instructions(see)
        try:
            end = self.tick + count
            while self.tick < end:
                if self.run(number, end, exact=True).why == "fault":
                    break
        finally:
            end_watching()
        return steps

    def pages_written(self) -> list[int]:
        """Numbers of all pages that were ever written, by the guest or the loader."""
        return np.flatnonzero(self.dirty | self._unhashed | self._hashed).tolist()

    def take_dirty(self) -> npt.NDArray[np.int64]:
        """Pages written since the last call; the next write to each is seen again."""
        pages = np.flatnonzero(self.dirty)
        self._unhashed |= self.dirty
        self.dirty[:] = 0
        self.flush_tlbs()
        return pages

    def state_digest(self) -> str:
        """Digest of all CPUs and of every page ever written, 32 hex digits.

        Pages written since the last digest are hashed anew, the others keep theirs. A page's hash
        need not withstand forgery: both sides of a comparison are runs of this program.
        """
        unhashed = np.flatnonzero(self._unhashed | self.dirty)
        self._unhashed[:] = 0
        self._unhashed |= self.dirty
        if len(unhashed):
            starts = (unhashed * PAGE_BYTES).tolist()
            digests = [xxhash.xxh3_128_digest(self.ram[at : at + PAGE_BYTES]) for at in starts]
            self._page_digests["page"][unhashed] = unhashed
            self._page_digests["digest"][unhashed] = np.frombuffer(b"".join(digests), "V16")
            self._hashed[unhashed] = True
        whole = hashlib.blake2b(digest_size=16)
        for cpu in self.cpus:
            whole.update(cpu.state_bytes())
        whole.update(self._page_digests[self._hashed].tobytes())
        whole.update(self.hash_table.contents())
        return whole.hexdigest()


def _value(kind: int, value: int, size: int) -> int:
    return value if kind == native.LOG_RANGE else value & ((1 << 8 * size) - 1)


def _program_reason(word: int) -> int:
    """The SRR1 bit of a program check, told from the instruction that raised it."""
    primary, extended = word >> 26, word >> 1 & 0x3FF
    if primary in (2, 3) or (primary == 31 and extended in (4, 68)):
        return PROGRAM_TRAP
    if primary == 31 and extended in (339, 467):
        return PROGRAM_PRIVILEGED
    return PROGRAM_ILLEGAL
