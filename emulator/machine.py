"""The machine: N CPUs over one RAM, run one slice at a time. The only importer of unicorn.

What it is: one Unicorn instance a CPU, all over the same anonymous memory, with exact ticks, watched
memory, exceptions delivered to the guest's vectors and hypercalls answered by `firmware`. What it is not:
it decides nothing about who runs when (`schedule`), keeps no history (`recorder`) and knows no file.

Unicorn's quirks that shape it (each measured or read in Unicorn 2.1.4's source):

- The default CPU model is the only 64-bit one that works; TLB mode "virtual" is needed for any fetch.
- `emu_start` asks for the page of its `until` address, so exits are used instead and are normally empty.
- SMT priority hints end `emu_start` early without an error: `run` just goes on.
- `uc_emu_stop` from a block hook acts before the block runs: that is how a slice ends on an exact tick.
- Memory hooks force every load and store of the guest onto a slow path (3.5 times slower on the digest
  loop). Watched pages are therefore mapped as MMIO, for data only: fetches go to RAM, data accesses of
  those pages reach a native callback, everything else runs at full speed. See `native`.
- A write through MMIO, or by another CPU, does not drop translated blocks: `_drop_stale_code` does.
- A saved context begins with CPUPPCState (gpr, lr, ctr, crf, xer with so/ov/ca split out, msr, nip);
  the offsets are checked when a machine is made. It never leaves the process: it holds host pointers.
- `mftb` reads 0 for ever: a code hook on each such instruction sets rD. The TLB fill refuses a page that
  holds one until its hooks stand.
- `tlbie`, `tlbiel` and `tlbsync` raise a program check: done here, by flushing.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import unicorn
from unicorn.unicorn_py3.unicorn import uclib

from emulator import mmu, native
from emulator.errors import BootflowError, LimitError
from emulator.ppc64 import (
    GPRS,
    INTERRUPTS,
    MSR_DR,
    MSR_EE,
    MSR_IR,
    MSR_LE,
    MSR_ME,
    MSR_PR,
    MSR_SF,
    PROGRAM_ILLEGAL,
    PROGRAM_PRIVILEGED,
    PROGRAM_TRAP,
    SPR_DAR,
    SPR_DSISR,
    SPR_PID,
    SPR_SRR0,
    SPR_SRR1,
)

U64: Final = (1 << 64) - 1
PAGE_BYTES: Final = 4096
TCG_BUFFER_BYTES: Final = 256 << 20
"""Translation buffer a CPU; the kernel's boot needs about 60 MB. Reserved, touched as needed."""

# Offsets into a saved context, from the start of CPUPPCState (Unicorn 2.1.4, target/ppc/cpu.h).
_CONTEXT_HEADER = 40
_GPR, _LR, _CTR, _CRF, _XER, _MSR, _NIP = 0, 512, 520, 528, 568, 640, 680
_XER_SPLIT = ((31, 576), (30, 584), (29, 592), (19, 600), (18, 608))  # SO OV CA OV32 CA32
_SPR_COUNT, _VSR_BYTES = 1024, 64 * 16

_EXTENDED = {306: "tlbie", 274: "tlbiel", 566: "tlbsync", 498: "slbia", 434: "slbie"}


@dataclass(frozen=True)
class Access:
    """One row of the native log: a watched access or a change of range, at an exact tick."""

    kind: int
    """native.LOG_RANGE, LOG_WRITE or LOG_READ."""
    tick: int
    cpu: int
    nip: int
    addr: int
    """Physical address of the access; for LOG_RANGE the NIP without its top four bits."""
    size: int
    value: int
    """The bytes as a big-endian number; for LOG_RANGE the range's id, -1 for none."""
    msr: int


@dataclass(frozen=True)
class Watch:
    """Physical memory [lo, hi) whose accesses are logged; `kinds` is native.LOG_READ | LOG_WRITE."""

    lo: int
    hi: int
    kinds: int


@dataclass(frozen=True)
class Range:
    """Code [lo, hi), without the top four bits of the address, that is worth an entry in the log."""

    lo: int
    hi: int
    ident: int


@dataclass(frozen=True)
class Stop:
    """Why `run` came back. `why`: limit, written, log, stopped, fault."""

    why: str
    text: str = ""


@dataclass(frozen=True)
class Registers:
    """The architected registers of one CPU at one moment (64-bit; cr and xer 32-bit)."""

    nip: int
    msr: int
    cr: int
    lr: int
    ctr: int
    xer: int
    gpr: tuple[int, ...]

    def named(self) -> dict[str, int]:
        """All of them by name, in the order of `ppc64.REGISTERS`."""
        special = {
            "nip": self.nip,
            "msr": self.msr,
            "cr": self.cr,
            "lr": self.lr,
            "ctr": self.ctr,
            "xer": self.xer,
        }
        return special | dict(zip(GPRS, self.gpr, strict=True))


@dataclass(frozen=True)
class Step:
    """One instruction seen by `trace_steps`, before it ran."""

    nip: int
    word: int
    registers: Registers
    special: bool
    """It reads the timebase: its result depends on the tick."""


Hypercall = Callable[["Machine", int, list[int]], list[int] | str]
"""(machine, cpu, r3..r12) -> new values of r3.. ; or a text: the run stops and says it."""
OnException = Callable[[int, str, int, int], None]
"""(cpu, name, vector, nip) called before an exception is delivered to the guest."""


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


class Cpu:
    """One emulated CPU and the little that belongs to it alone."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.number = number
        self.retired = 0
        self.range = (1, 0, -1)
        self.code: dict[int, bytes] = {}
        self._machine = machine
        uc = unicorn.Uc(unicorn.UC_ARCH_PPC, unicorn.UC_MODE_PPC64 | unicorn.UC_MODE_BIG_ENDIAN)
        self.uc = uc
        uc.ctl_set_tcg_buffer_size(TCG_BUFFER_BYTES)
        uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        uc.ctl_exits_enabled(True)
        uc.mem_map_ptr(0, machine.ram_bytes, unicorn.UC_PROT_ALL, machine.ram_addr)
        if machine.counting:
            machine.map_window(uc)
        machine.native_hook(uc, unicorn.UC_HOOK_TLB_FILL, native.on_tlb_fill)
        if machine.counting:
            machine.native_hook(uc, unicorn.UC_HOOK_BLOCK, native.on_block)
        uc.hook_add(unicorn.UC_HOOK_INTR, self._on_interrupt)
        self.interrupt = -1
        self._context = uc.context_save()
        self._size = self._context.size
        self._base = int(self._context.context.value) + _CONTEXT_HEADER
        self._spr = self._find_sprs()

    def _on_interrupt(self, uc: Any, number: int, _: Any) -> None:
        self.interrupt = number
        uc.emu_stop()

    def _find_sprs(self) -> int:
        """Locate the SPR array in a context, and check the other offsets with sentinels."""
        uc = self.uc
        sentinel = 0x5AFE_C0DE_0000_0000
        for n in range(32):
            uc.reg_write(2 + n, sentinel + n)
        uc.reg_write(74, sentinel + 40)
        uc.reg_write(76, sentinel + 41)
        self.refresh()
        head = ctypes.string_at(self._base, 1024)
        wanted = [sentinel + n for n in range(32)] + [sentinel + 40, sentinel + 41]
        found = list(struct.unpack_from("<32Q", head, _GPR))
        found += struct.unpack_from("<2Q", head, _LR)
        if found != wanted:
            raise BootflowError(
                "this build of Unicorn lays out the PowerPC state differently",
                hint="install unicorn 2.1.4, the version that bootflow pins",
            )
        # PVR (SPR 287) is the one SPR with a known value at reset: 0x00800100.
        body = ctypes.string_at(self._base, self._size - _CONTEXT_HEADER)
        pvr = struct.pack("<Q", 0x00800100)
        at = body.find(pvr, 1024)
        while at >= 0 and (at - 287 * 8) % 8:
            at = body.find(pvr, at + 1)
        for n in range(32):
            uc.reg_write(2 + n, 0)
        uc.reg_write(74, 0)
        uc.reg_write(76, 0)
        if at < 0:
            raise BootflowError(
                "the PVR is not in Unicorn's saved state", hint="install unicorn 2.1.4"
            )
        return at - 287 * 8

    def hook_timebase(self, address: int, word: int) -> None:
        """Answer `mftb rD` at an effective address with the tick (a timebase of one a tick)."""
        register, upper = word >> 21 & 31, word >> 16 & 31 == 0x0D
        s = self._machine.state

        def answer(uc: Any, at: int, size: int, _: Any) -> None:
            signed = at - (1 << 64) if at >> 63 else at
            tick = int(s[native.TICK]) + (signed - int(s[native.BLOCK_PC]) >> 2)
            uc.reg_write(2 + register, tick >> 32 if upper else tick)
            s[native.TICK], s[native.BLOCK_BYTES] = tick + 1, 0
            s[native.BLOCK_PC] = signed + 4
            uc.reg_write(1, at + 4)

        self.uc.hook_add(unicorn.UC_HOOK_CODE, answer, begin=address, end=address)

    def refresh(self) -> None:
        """Bring the saved context up to date with the CPU."""
        self.uc.context_update(self._context)

    def registers(self) -> Registers:
        """The registers now."""
        self.refresh()
        head = ctypes.string_at(self._base, _NIP + 8)
        gpr = struct.unpack_from("<32Q", head, _GPR)
        lr, ctr = struct.unpack_from("<2Q", head, _LR)
        cr = 0
        for field in struct.unpack_from("<8I", head, _CRF):
            cr = cr << 4 | field
        (xer,) = struct.unpack_from("<Q", head, _XER)
        for bit, at in _XER_SPLIT:
            xer |= (struct.unpack_from("<Q", head, at)[0] & 1) << bit
        (msr,) = struct.unpack_from("<Q", head, _MSR)
        (nip,) = struct.unpack_from("<Q", head, _NIP)
        return Registers(nip, msr, cr, lr, ctr, xer & 0xFFFFFFFF, gpr)

    def set_registers(self, values: dict[str, int]) -> None:
        """Write registers by name (nip, msr, cr, lr, ctr, xer, r0..r31)."""
        self.refresh()

        def put(at: int, value: int) -> None:
            ctypes.memmove(self._base + at, struct.pack("<Q", value & U64), 8)

        for name, value in values.items():
            if name == "cr":
                fields = [(value >> (28 - 4 * n)) & 0xF for n in range(8)]
                ctypes.memmove(self._base + _CRF, struct.pack("<8I", *fields), 32)
            elif name == "xer":
                split = 0
                for bit, at in _XER_SPLIT:
                    put(at, value >> bit & 1)
                    split |= 1 << bit
                put(_XER, value & ~split)
            elif name in _PLAIN:
                put(_PLAIN[name], value)
            elif name != "msr":
                raise KeyError(name)
        self.uc.context_restore(self._context)
        if "msr" in values:  # through Unicorn: the translator's flags hang on it
            self.uc.reg_write(77, values["msr"] & U64)

    def spr(self, number: int) -> int:
        """Read an SPR from the context saved last (`refresh` first)."""
        raw = ctypes.string_at(self._base + self._spr + 8 * number, 8)
        return int(struct.unpack("<Q", raw)[0])

    def set_sprs(self, values: dict[int, int]) -> None:
        """Write SPRs by number."""
        self.refresh()
        for number, value in values.items():
            ctypes.memmove(self._base + self._spr + 8 * number, struct.pack("<Q", value & U64), 8)
        self.uc.context_restore(self._context)

    def state_bytes(self) -> bytes:
        """All architected state as bytes for a digest: registers, SPRs, vector and FP registers."""
        self.refresh()
        sprs = ctypes.string_at(self._base + self._spr, 8 * _SPR_COUNT)
        head = ctypes.string_at(self._base, _NIP + 8)
        return head + sprs


_PLAIN = {"nip": _NIP, "lr": _LR, "ctr": _CTR} | {name: 8 * n for n, name in enumerate(GPRS)}


class Machine:
    """CPUs over one RAM.

    Args:
        ram_bytes: size of RAM, a multiple of 4 KiB.
        cpus: how many.
        watches: memory whose accesses are logged (at most 16 rows in at most 8 pages).
        ranges: code whose entry is logged, disjoint (at most 128).
        hypercall: answers `sc 1`.
        counting: False leaves out the block hook and the watches: the bare baseline of the benchmark.
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
        counting: bool = True,
    ) -> None:
        self.ram_bytes = ram_bytes
        self.counting = counting
        self.ram = mmap.mmap(-1, ram_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = ctypes.c_char.from_buffer(self.ram)
        self.ram_addr = ctypes.addressof(self._anchor)
        self.dirty = np.zeros(ram_bytes // PAGE_BYTES, np.uint8)
        self._prepared = np.zeros((cpus, ram_bytes // PAGE_BYTES), np.uint8)
        self.words = np.frombuffer(self.ram, np.uint64)
        self._page_digests: dict[int, bytes] = {}
        self._last: Cpu | None = None
        self._delivered_at = -1
        self._delivered_here = 0
        self.cpus: list[Cpu] = []
        self.state = np.zeros(native.STATE_SLOTS, np.int64)
        self.watch_pages: list[int] = []
        self._hypercall = hypercall
        self._on_exception = on_exception
        self.interrupts_little_endian = False
        self.interrupts_relocated = False
        self._wire(ranges)
        self.set_watches(watches if counting else ())
        self.cpus = [Cpu(self, n) for n in range(cpus)]

    # --- set-up -------------------------------------------------------------------------------

    def _wire(self, ranges: Sequence[Range]) -> None:
        s = self.state
        s[native.EMU_STOP] = _address(uclib.uc_emu_stop)
        s[native.REG_READ] = _address(uclib.uc_reg_read)
        s[native.UC_CTL] = _address(uclib.uc_ctl)
        s[native.TLB_FLUSH] = 11 | 1 << 30  # UC_CTL_WRITE(UC_CTL_TLB_FLUSH, 0)
        s[native.RAM_ADDR], s[native.RAM_BYTES] = self.ram_addr, self.ram_bytes
        s[native.DIRTY_ADDR] = self.dirty.ctypes.data
        s[native.PROCESS_TABLE] = s[native.PROBE] = -1
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
        for cpu in self.cpus:
            self._flush_tlb(cpu)

    def set_ranges(self, ranges: Sequence[Range]) -> None:
        """Replace the code ranges whose entry is logged; every CPU reports its own anew."""
        if len(ranges) > native.RANGE_MAX:
            raise LimitError("too many code ranges", hint="name fewer")
        rows = sorted(ranges, key=lambda row: row.lo)
        self.state[native.RANGE_COUNT] = len(rows)
        for n, row in enumerate(rows):
            at = native.RANGES + 3 * n
            self.state[at : at + 3] = (row.lo, row.hi, row.ident)
        for cpu in self.cpus:
            cpu.range = (1, 0, -1)

    def native_hook(self, uc: Any, kind: int, function: Any, begin: int = 1, end: int = 0) -> int:
        """Add a numba callback as a Unicorn hook; its user data is the state array."""
        handle = ctypes.c_size_t()
        status = uclib.uc_hook_add(
            uc._uch,
            ctypes.byref(handle),
            kind,
            ctypes.c_void_p(function.address),
            ctypes.c_void_p(self.state.ctypes.data),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
        )
        if status:
            raise unicorn.UcError(status)
        return handle.value

    def map_window(self, uc: Any) -> None:
        """Map the MMIO window through which data accesses to watched pages go."""
        user = ctypes.c_void_p(self.state.ctypes.data)
        status = uclib.uc_mmio_map(
            uc._uch,
            ctypes.c_uint64(native.WINDOW),
            ctypes.c_size_t(PAGE_BYTES * native.WATCH_PAGE_MAX),
            ctypes.c_void_p(native.on_page_read.address),
            user,
            ctypes.c_void_p(native.on_page_write.address),
            user,
        )
        if status:
            raise unicorn.UcError(status)

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
        """Tell the radix walk where the guest's process table lies (H_REGISTER_PROC_TBL)."""
        self.state[native.PROCESS_TABLE] = addr
        for cpu in self.cpus:
            self._flush_tlb(cpu)

    # --- the clock ----------------------------------------------------------------------------

    @property
    def tick(self) -> int:
        """Instructions retired so far, over all CPUs."""
        return int(self.state[native.TICK])

    def _settle(self, nip: int) -> None:
        """Bring the tick up to `nip`: the end of the block, or the place inside it where it stopped."""
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
            exact: stop at exactly that tick; else at the last block boundary before it (never without
                progress). A watched write also ends an inexact run, at the next block boundary.

        Returns:
            why it stopped; `self.tick` is exact.
        """
        cpu = self.cpus[number]
        s = self.state
        begin = self.tick
        self._enter(cpu)
        stop: Stop | None = None
        while stop is None:
            if self.tick >= until_tick:
                stop = Stop("limit")
                break
            stop = self._go(cpu, until_tick)
            written = int(s[native.WATCH_WRITTEN])
            if written:
                self._forget_written(cpu, written)
            if stop is not None or not s[native.STOPPED]:
                continue
            if s[native.LOG_COUNT] >= native.LOG_STOP_AT:
                stop = Stop("log")
            elif written:
                wanted = native.WATCH_MATCHED | native.STOPPED_AT_RANGE
                if written & wanted and not exact and self._delivered_at != self.tick:
                    stop = Stop("written")
            elif not exact and self._delivered_at == self.tick:
                # an interrupt retires nothing: let its handler begin, so that this tick has one state
                stop = self._finish_block(cpu, self.tick + 1)
            elif exact or self.tick == begin:
                stop = self._finish_block(cpu, until_tick)
            else:
                stop = Stop("limit")
        self._leave(cpu, begin)
        return stop

    def _enter(self, cpu: Cpu) -> None:
        """Make `cpu` the one that the native state speaks of."""
        s = self.state
        cpu.refresh()
        if self._last is not cpu:
            self._drop_stale_code(cpu)
            self._last = cpu
        s[native.CPU] = cpu.number
        s[native.PID] = cpu.spr(SPR_PID) & 0xFFFFFFFF
        s[native.PREPARED_ADDR] = self._prepared[cpu.number].ctypes.data
        s[native.RANGE_LO], s[native.RANGE_HI], s[native.RANGE_CLASS] = cpu.range
        s[native.BLOCK_BYTES] = 0
        s[native.WATCH_WRITTEN] = 0
        s[native.FETCH_COUNT] = 0
        s[native.SPAN_LO], s[native.SPAN_HI] = native.EA_MASK, 0

    def _leave(self, cpu: Cpu, begin: int) -> None:
        """Keep what belongs to the CPU; note the code pages it runs, for `_drop_stale_code`."""
        s = self.state
        cpu.range = tuple(s[[native.RANGE_LO, native.RANGE_HI, native.RANGE_CLASS]].tolist())
        cpu.retired += self.tick - begin
        count = int(s[native.FETCH_COUNT])
        if count > native.FETCHED_MAX:  # more than could be noted: start over with what is known
            cpu.uc.ctl_flush_tb()
            cpu.code.clear()
            self._flush_tlb(cpu)
            count = native.FETCHED_MAX
        pages = s[native.FETCHED : native.FETCHED + count]
        for page in np.unique(pages).tolist():
            cpu.code[page] = self.ram[page : page + PAGE_BYTES]

    def _go(self, cpu: Cpu, limit: int) -> Stop | None:
        """One `emu_start`; afterwards the tick is right and what interrupted it is dealt with."""
        s = self.state
        s[native.LIMIT] = limit
        s[native.STOPPED] = 0
        s[native.WATCH_WRITTEN] = 0
        s[native.FAULT_WHY] = 0
        cpu.interrupt = -1
        failed = False
        try:
            cpu.uc.emu_start(cpu.uc.reg_read(1), 0)
        except unicorn.UcError as error:
            if error.errno != unicorn.UC_ERR_EXCEPTION:
                raise self._engine_error(cpu, error) from error
            failed = True
        self._settle(cpu.uc.reg_read(1))
        if cpu.interrupt >= 0:
            return self._interrupted(cpu)
        return self._refused(cpu) if failed else None

    def _engine_error(self, cpu: Cpu, error: unicorn.UcError) -> BootflowError:
        return BootflowError(
            f"Unicorn failed with '{error}' on CPU {cpu.number} at tick {self.tick}, "
            f"nip 0x{cpu.uc.reg_read(1):016x}",
            hint="this is a bug of bootflow or of Unicorn: please report it with the trace",
        )

    def _finish_block(self, cpu: Cpu, until_tick: int) -> Stop | None:
        """Run the first instructions of the block at NIP, up to exactly `until_tick`."""
        nip = cpu.uc.reg_read(1)
        end = nip + 4 * (until_tick - self.tick)
        cpu.uc.ctl_remove_cache(nip, end + 4)
        cpu.uc.ctl_set_exits([end])
        try:
            return self._go(cpu, 1 << 62)
        finally:
            cpu.uc.ctl_set_exits([])
            cpu.uc.ctl_remove_cache(nip, end + 4)

    # --- code that changed under a CPU ----------------------------------------------------------

    def _drop_stale_code(self, cpu: Cpu) -> None:
        """Drop the translations of pages that others wrote since this CPU ran last."""
        ram = self.ram
        for page, content in cpu.code.items():
            if ram[page : page + PAGE_BYTES] != content:
                self._drop_page(cpu, page)
                cpu.code[page] = ram[page : page + PAGE_BYTES]

    def _forget_written(self, cpu: Cpu, written: int) -> None:
        """Drop the translations of watched pages that this CPU itself wrote."""
        for n, page in enumerate(self.watch_pages):
            if written >> n & 1:
                self._drop_page(cpu, page)

    def _drop_page(self, cpu: Cpu, page: int) -> None:
        """Drop every translation of a physical page, whatever address it ran under."""
        s = self.state
        s[native.PROBE] = page
        ea = native.PROBE_EA | page
        cpu.uc.ctl_remove_cache(ea, ea + PAGE_BYTES)
        s[native.PROBE] = -1
        self._flush_tlb(cpu)
        self._prepared[cpu.number][page // PAGE_BYTES] = 0

    def _flush_tlb(self, cpu: Cpu) -> None:
        uclib.uc_ctl(cpu.uc._uch, ctypes.c_int(int(self.state[native.TLB_FLUSH])))

    # --- what interrupts a CPU ------------------------------------------------------------------

    def _interrupted(self, cpu: Cpu) -> Stop | None:
        """Deal with an exception that Unicorn hands over; NIP is past the instruction."""
        nip = cpu.uc.reg_read(1)
        number = cpu.interrupt
        word = self.fetch_word(cpu, (nip - 4) & U64)
        if number == 8 and word == 0x44000022:
            return self._do_hypercall(cpu)
        if number in (6, 96) and word >> 26 == 31 and (word >> 1 & 0x3FF) in _EXTENDED:
            for other in self.cpus:
                self._flush_tlb(other)
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
        answer = self._hypercall(self, cpu.number, args)
        if isinstance(answer, str):
            return Stop("fault", answer)
        cpu.set_registers({f"r{3 + n}": value for n, value in enumerate(answer)})
        return None

    def _refused(self, cpu: Cpu) -> Stop | None:
        """The TLB fill refused a page: prepare its code, or deliver a storage interrupt."""
        s = self.state
        ea, why = int(s[native.FAULT_EA]) & U64, int(s[native.FAULT_WHY])
        access = int(s[native.FAULT_ACCESS])
        nip = cpu.uc.reg_read(1)
        if why == native.WANT_PREPARE:
            self._prepare_page(cpu, ea)
            return None
        if access == mmu.ACCESS_FETCH:
            srr1 = 0x40000000 if why == mmu.NOT_MAPPED else 0x10000000
            return self._deliver(cpu, 0x400, "instruction storage interrupt", nip, srr1)
        store = 0x02000000 if access == mmu.ACCESS_WRITE else 0
        dsisr = (0x40000000 if why != mmu.NOT_ALLOWED else 0x08000000) | store
        cpu.set_sprs({SPR_DAR: ea, SPR_DSISR: dsisr})
        return self._deliver(cpu, 0x300, f"data storage interrupt at 0x{ea:016x}", nip, 0)

    def _deliver(self, cpu: Cpu, vector: int, name: str, srr0: int, srr1: int) -> Stop | None:
        """Take an interrupt the way a guest of a hypervisor does (Power ISA 3.1 Book III 7.5)."""
        msr = cpu.uc.reg_read(77) & U64
        if self._on_exception:
            self._on_exception(cpu.number, name, vector, srr0)
        again = self._delivered_at == self.tick
        self._delivered_at = self.tick
        self._delivered_here = self._delivered_here + 1 if again else 0
        if self._delivered_here > 2 or self.read(vector, 4) == bytes(4):
            cpu.set_registers({"nip": srr0})
            return Stop("fault", f"{name} (0x{vector:x}) with no handler at its vector")
        new = MSR_SF | (msr & MSR_ME)
        if self.interrupts_little_endian:
            new |= MSR_LE
        target = vector
        if self.interrupts_relocated and msr & MSR_IR and msr & MSR_DR:
            new |= MSR_IR | MSR_DR
            target |= 0xC000000000004000
        cpu.set_sprs({SPR_SRR0: srr0, SPR_SRR1: (msr & ~0x783F0000) | srr1})
        cpu.set_registers({"nip": target, "msr": new & ~(MSR_EE | MSR_PR)})
        return None

    def _prepare_page(self, cpu: Cpu, ea: int) -> None:
        """Hook each instruction of a code page that reads the timebase."""
        page = ea & ~0xFFF
        physical = self.translate(cpu, page, mmu.ACCESS_FETCH)
        if physical is None:
            return
        for n, raw in enumerate(struct.unpack("<1024I", self.read(physical, PAGE_BYTES))):
            swapped = int.from_bytes(raw.to_bytes(4, "little"), "big")
            for word in (raw, swapped):
                if native.is_timebase(word):
                    cpu.hook_timebase(page + 4 * n, word)
                    break
        prepared = native.PREPARED_OTHER
        if page == physical:
            prepared = native.PREPARED_REAL
        elif page & native.EA_MASK == physical and page >> 60 == 0xC:
            prepared = native.PREPARED_LINEAR
        self._prepared[cpu.number][physical // PAGE_BYTES] |= prepared

    # --- looking --------------------------------------------------------------------------------

    def span(self) -> tuple[int, int]:
        """Lowest and highest block start of the last `run`, as effective addresses without the top."""
        return int(self.state[native.SPAN_LO]), int(self.state[native.SPAN_HI])

    def translate(self, cpu: Cpu, ea: int, access: int) -> int | None:
        """Physical address of an effective one as that CPU sees it now; None when not mapped."""
        signed = ea - (1 << 64) if ea >> 63 else ea
        msr = cpu.uc.reg_read(77) & U64
        msr = msr - (1 << 64) if msr >> 63 else msr
        table, pid = int(self.state[native.PROCESS_TABLE]), int(self.state[native.PID])
        page, why = mmu.translate(
            self.words, self.ram_bytes, signed & ~0xFFF, access, msr, table, pid
        )
        return None if why else int(page) | (ea & 0xFFF)

    def fetch_word(self, cpu: Cpu, ea: int) -> int:
        """The instruction word at an effective address, read in that CPU's byte order; 0 if unmapped."""
        physical = self.translate(cpu, ea, mmu.ACCESS_FETCH)
        if physical is None:
            return 0
        order = "little" if cpu.uc.reg_read(77) & MSR_LE else "big"
        return int.from_bytes(self.read(physical, 4), order)  # type: ignore[arg-type]

    def take_log(self) -> list[Access]:
        """Rows of the native log since the last call, oldest first; it is empty afterwards."""
        s = self.state
        count = min(int(s[native.LOG_COUNT]), native.LOG_MAX)
        s[native.LOG_COUNT] = 0
        rows = s[native.LOG : native.LOG + count * native.LOG_FIELDS].reshape(count, native.LOG_FIELDS).tolist()
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

        def see(uc: Any, address: int, size: int, _: Any) -> None:
            word = self.fetch_word(cpu, address)
            registers = cpu.registers()
            steps.append(Step(address, word, registers, bool(native.is_timebase(word))))

        handle = cpu.uc.hook_add(unicorn.UC_HOOK_CODE, see)
        cpu.uc.ctl_flush_tb()
        try:
            end = self.tick + count
            while self.tick < end:
                if self.run(number, end, exact=True).why == "fault":
                    break
        finally:
            cpu.uc.hook_del(handle)
            self._start_nowhere(cpu)
            cpu.uc.ctl_flush_tb()
        return steps

    def _start_nowhere(self, cpu: Cpu) -> None:
        """Let Unicorn forget deleted hooks: it does so only when an `emu_start` ends."""
        nip = cpu.uc.reg_read(1)
        cpu.uc.ctl_set_exits([nip])
        try:
            cpu.uc.emu_start(nip, 0)
        finally:
            cpu.uc.ctl_set_exits([])

    def state_digest(self) -> str:
        """Digest of all CPUs and of every page ever written, 32 hex digits.

        Pages written since the last call are hashed anew, the others keep their digest.
        """
        for page in np.flatnonzero(self.dirty).tolist():
            at = page * PAGE_BYTES
            self._page_digests[page] = hashlib.blake2b(
                self.ram[at : at + PAGE_BYTES], digest_size=16
            ).digest()
        self.dirty[:] = 0
        whole = hashlib.blake2b(digest_size=16)
        for cpu in self.cpus:
            self._flush_tlb(cpu)
            whole.update(cpu.state_bytes())
        for page in sorted(self._page_digests):
            whole.update(page.to_bytes(8, "little") + self._page_digests[page])
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
