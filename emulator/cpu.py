"""One emulated CPU: the only importer of unicorn.

What it is: a Unicorn instance over memory that it does not own, with its registers, its hooks and
its translations. What it is not: aware of ticks, of other CPUs or of the guest (`machine`).

Unicorn's quirks that shape it (each measured or read in the source of Unicorn 2.1.4):

- The default CPU model is the only 64-bit one that works; TLB mode "virtual" is needed for any
  fetch.
- `emu_start` asks for the page of its `until` address, so exits are used instead and are normally
  empty.
- SMT priority hints end `emu_start` early without an error.
- A saved context begins with CPUPPCState (gpr, lr, ctr, crf, xer with so/ov/ca split out, msr,
  nip); the offsets are checked when a CPU is made. It never leaves the process: it holds host
  pointers.
- `mftb` reads 0 for ever: a code hook on each such instruction sets rD and steps over it.
- slbmte and its like act on the SLB of the saved context and drop no translation: a code hook on
  each of them says so.
- A deleted hook is forgotten only when an `emu_start` ends; until then new translations still
  call it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import unicorn
from unicorn.unicorn_py3.unicorn import uclib

from emulator import mmu, native
from emulator.errors import BootflowError, LimitError
from emulator.intercepts import is_timebase
from emulator.ppc64 import GPRS, MSR_LE, UC_REG_CTR, UC_REG_GPR0, UC_REG_LR, UC_REG_MSR, UC_REG_PC

State = npt.NDArray[np.int64]

U64: Final = (1 << 64) - 1
PAGE_BYTES: Final = 4096
TCG_BUFFER_BYTES: Final = 256 << 20
"""Translation buffer of a CPU: reserved, touched as needed; a kernel's boot needs about 60 MB."""

MAX_CODE_HOOKS: Final = 2000
"""Hooks on instructions that read the timebase or change the SLB, a CPU; Debian's hand-off needs
36, its boot to rest_init 65."""

# Offsets into a saved context, from the start of CPUPPCState (Unicorn 2.1.4, target/ppc/cpu.h).
_CONTEXT_HEADER = 40
_GPR, _LR, _CTR, _CRF, _XER, _MSR, _NIP = 0, 512, 520, 528, 568, 640, 680
_XER_SPLIT = ((31, 576), (30, 584), (29, 592), (19, 600), (18, 608))  # SO OV CA OV32 CA32
_PLAIN = {"nip": _NIP, "lr": _LR, "ctr": _CTR} | {name: 8 * n for n, name in enumerate(GPRS)}
_SLB = 704  # rows of ESID, VSID and a host pointer
_SPR_COUNT, _SPR_PVR, _PVR = 1024, 287, 0x00800100
_TLB_FLUSH = 11 | 1 << 30  # UC_CTL_WRITE(UC_CTL_TLB_FLUSH, 0)
_HOOK_INTR, _HOOK_CODE = unicorn.UC_HOOK_INTR, unicorn.UC_HOOK_CODE


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


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def fill_engine_slots(state: State) -> None:
    """Tell the native hooks where Unicorn's functions are."""
    state[native.EMU_STOP] = _address(uclib.uc_emu_stop)
    state[native.REG_READ] = _address(uclib.uc_reg_read)
    state[native.UC_CTL] = _address(uclib.uc_ctl)
    state[native.CONTEXT_SAVE] = _address(uclib.uc_context_save)
    state[native.TLB_FLUSH] = _TLB_FLUSH


class Cpu:
    """One emulated CPU and the little that belongs to it alone.

    Args:
        number: its index.
        ram: (host address, bytes) of the memory that all CPUs share.
        state: the array that the native hooks work on; outlives the CPU.
        counting: False leaves out the block hook and the window of watched pages.
    """

    def __init__(self, number: int, ram: tuple[int, int], state: State, *, counting: bool) -> None:
        self.number = number
        self.retired = 0
        """Instructions that this CPU has retired."""
        self.range = (1, 0, -1)
        """Its current code range: lo, hi, class (see `native`)."""
        self.interrupt = -1
        """Number of the exception that stopped it, -1 for none."""
        self._state = state
        self._ram = ram
        self._code_hooks: set[tuple[int, str]] = set()
        self._see: Callable[[int], None] | None = None
        uc: Any = unicorn.Uc(
            unicorn.UC_ARCH_PPC, unicorn.UC_MODE_PPC64 | unicorn.UC_MODE_BIG_ENDIAN
        )
        self._uc = uc
        uc.ctl_set_tcg_buffer_size(TCG_BUFFER_BYTES)
        uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        uc.ctl_exits_enabled(True)
        uc.mem_map_ptr(0, ram[1], unicorn.UC_PROT_ALL, ram[0])
        if counting:
            self._map_window()
            self._hook(unicorn.UC_HOOK_BLOCK, native.on_block)
        self._hook(unicorn.UC_HOOK_TLB_FILL, native.on_tlb_fill)
        uc.hook_add(_HOOK_INTR, self._on_interrupt)
        self._context = uc.context_save()
        self._size = self._context.size
        self._base = int(self._context.context.value) + _CONTEXT_HEADER
        self._spr = self._find_sprs()
        slb = (ctypes.c_int64 * (mmu.SLB_ROW * mmu.SLB_ENTRIES)).from_address(self._base + _SLB)
        self.slb: State = np.frombuffer(memoryview(slb), np.int64)
        """The segment lookaside buffer as of the last `refresh`: see `mmu.translate`."""

    def _hook(self, kind: int, function: Any, begin: int = 1, end: int = 0) -> None:
        """Add a numba callback as a Unicorn hook; its user data is the state array."""
        handle = ctypes.c_size_t()
        status = uclib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            kind,
            ctypes.c_void_p(function.address),
            ctypes.c_void_p(self._state.ctypes.data),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
        )
        if status:
            raise unicorn.UcError(status)

    def _map_window(self) -> None:
        """Map the MMIO window through which data accesses to watched pages go."""
        user = ctypes.c_void_p(self._state.ctypes.data)
        status = uclib.uc_mmio_map(
            self._uc._uch,
            ctypes.c_uint64(native.WINDOW),
            ctypes.c_size_t(PAGE_BYTES * native.WATCH_PAGE_MAX),
            ctypes.c_void_p(native.on_page_read.address),
            user,
            ctypes.c_void_p(native.on_page_write.address),
            user,
        )
        if status:
            raise unicorn.UcError(status)

    def _on_interrupt(self, uc: Any, number: int, _: Any) -> None:
        self.interrupt = number
        uc.emu_stop()

    # --- running --------------------------------------------------------------------------------

    def go(self, end: int | None = None) -> bool:
        """One `emu_start` at NIP; True when it ended at a refused translation.

        Args:
            end: effective address at which to stop, if it is reached in a straight line.
        """
        self.interrupt = -1
        if end is not None:
            self._uc.ctl_set_exits([end])
        try:
            self._uc.emu_start(self.nip, 0)
        except unicorn.UcError as error:
            if error.errno != unicorn.UC_ERR_EXCEPTION:
                raise BootflowError(
                    f"Unicorn failed with '{error}' on CPU {self.number} at 0x{self.nip:016x}",
                    hint="This is a bug of bootflow or of Unicorn: please report the trace.",
                ) from error
            return True
        finally:
            if end is not None:
                self._uc.ctl_set_exits([])
        return False

    def drop_code(self, begin: int, end: int) -> None:
        """Drop the translations of effective addresses [begin, end) within one page."""
        self._uc.ctl_remove_cache(begin, end)

    def drop_all_code(self) -> None:
        """Drop every translation."""
        self._uc.ctl_flush_tb()

    def flush_tlb(self) -> None:
        """Drop every cached address translation."""
        uclib.uc_ctl(self._uc._uch, ctypes.c_int(_TLB_FLUSH))

    def _is_new_hook(self, address: int, kind: str) -> bool:
        if (address, kind) in self._code_hooks:
            return False
        if len(self._code_hooks) >= MAX_CODE_HOOKS:
            raise LimitError(
                f"CPU {self.number} has run pages with more than {MAX_CODE_HOOKS} instructions"
                " that read the timebase or change the SLB",
                hint="No kernel has so many: is this image one?",
            )
        self._code_hooks.add((address, kind))
        return True

    def hook_segments(self, address: int) -> None:
        """Notice the instruction at an effective address, which changes the SLB.

        Raises:
            LimitError: more such instructions than an honest kernel has.
        """
        if self._is_new_hook(address, "segments"):
            self._hook(_HOOK_CODE, native.on_segment_change, address, address)

    def hook_timebase(self, address: int, physical: int) -> None:
        """Answer `mftb rD` at an effective address with the tick (a timebase of one a tick).

        Args:
            address: of the instruction.
            physical: where its word lies; it is looked at each time, because code changes.

        Raises:
            LimitError: more such instructions than an honest kernel has.
        """
        if not self._is_new_hook(address, "timebase"):
            return
        s, host = self._state, self._ram[0] + physical

        def answer(uc: Any, at: int, size: int, _: Any) -> None:
            if self._see is not None:
                self._see(at)
            order = "<I" if self.msr & MSR_LE else ">I"
            (word,) = struct.unpack(order, ctypes.string_at(host, 4))
            if not is_timebase(word):
                return
            signed = at - (1 << 64) if at >> 63 else at
            tick = int(s[native.TICK]) + (signed - int(s[native.BLOCK_PC]) >> 2)
            upper = word >> 16 & 31 == 0x0D
            uc.reg_write(UC_REG_GPR0 + (word >> 21 & 31), tick >> 32 if upper else tick)
            s[native.TICK], s[native.BLOCK_BYTES] = tick + 1, 0
            s[native.BLOCK_PC] = signed + 4
            s[native.BUDGET] -= 1
            if s[native.BUDGET] <= 0:
                s[native.LIMIT] = 0
            uc.reg_write(UC_REG_PC, at + 4)

        self._uc.hook_add(_HOOK_CODE, answer, begin=address, end=address)

    def watch_instructions(self, see: Callable[[int], None]) -> Callable[[], None]:
        """Call `see(nip)` before every instruction; the returned function ends it.

        Both steps drop every translation, because hooks are part of them.
        """
        handle = self._uc.hook_add(_HOOK_CODE, lambda uc, address, size, _: see(address))
        self._uc.ctl_flush_tb()

        def end() -> None:
            self._uc.hook_del(handle)
            self.go(self.nip)  # runs nothing; Unicorn forgets deleted hooks when it ends
            self._uc.ctl_flush_tb()

        return end

    def see_instructions(self, see: Callable[[int], None]) -> None:
        """Call see(nip) before every instruction, from now on; before an mftb twice."""
        self._see = see
        self._uc.hook_add(_HOOK_CODE, lambda uc, address, size, _: see(address))
        self._uc.ctl_flush_tb()

    def look_for(self, lo: int, hi: int, kind: int) -> None:
        """Have `native.on_hit` called for accesses of physical [lo, hi), from now on.

        The guest runs about 3.5 times slower then: for forks that end with their answer.
        """
        kinds = unicorn.UC_HOOK_MEM_WRITE if kind & native.LOG_WRITE else 0
        kinds |= unicorn.UC_HOOK_MEM_READ if kind & native.LOG_READ else 0
        self._hook(kinds, native.on_hit, max(0, lo - 16), hi - 1)
        self._uc.ctl_flush_tb()

    def follow_blocks(self, function: Any) -> None:
        """Have a native callback called for every block, after the one that counts ticks."""
        self._hook(unicorn.UC_HOOK_BLOCK, function)
        self._uc.ctl_flush_tb()

    def follow_code(self, function: Any, lo: int, hi: int) -> None:
        """Have a native callback called for every instruction at effective [lo, hi)."""
        self._hook(unicorn.UC_HOOK_CODE, function, lo, hi - 1)
        self._uc.ctl_flush_tb()

    def see_memory(self, see: Callable[[int, int, int], None]) -> None:
        """Call see(access, physical address, bytes) before every load and store, from now on."""

        def note(uc: Any, access: int, address: int, size: int, value: int, _: Any) -> None:
            see(access, address, size)

        kinds = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
        self._uc.hook_add(kinds, note)
        self._uc.ctl_flush_tb()

    # --- registers ------------------------------------------------------------------------------

    @property
    def nip(self) -> int:
        """The next instruction's effective address."""
        return int(self._uc.reg_read(UC_REG_PC)) & U64

    @property
    def msr(self) -> int:
        """The machine state register."""
        return int(self._uc.reg_read(UC_REG_MSR)) & U64

    def _find_sprs(self) -> int:
        """Locate the SPR array in a context, and check the other offsets with sentinels."""
        uc = self._uc
        sentinel = 0x5AFE_C0DE_0000_0000
        for n in range(32):
            uc.reg_write(UC_REG_GPR0 + n, sentinel + n)
        uc.reg_write(UC_REG_LR, sentinel + 40)
        uc.reg_write(UC_REG_CTR, sentinel + 41)
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
        pvr = struct.pack("<Q", _PVR)
        at = body.find(pvr, 1024)
        while at >= 0 and (at - _SPR_PVR * 8) % 8:
            at = body.find(pvr, at + 1)
        for n in range(32):
            uc.reg_write(UC_REG_GPR0 + n, 0)
        uc.reg_write(UC_REG_LR, 0)
        uc.reg_write(UC_REG_CTR, 0)
        if at < 0:
            raise BootflowError(
                "the PVR is not in Unicorn's saved state", hint="install unicorn 2.1.4"
            )
        return at - _SPR_PVR * 8

    def refresh(self) -> None:
        """Bring the saved context up to date with the CPU."""
        self._uc.context_update(self._context)

    def fill_slots(self) -> None:
        """Make its SLB, as of now, the one that the native hooks see."""
        self.refresh()
        s = self._state
        s[native.CONTEXT_ADDR] = int(self._context.context.value)
        s[native.SLB_ADDR] = self.slb.ctypes.data
        s[native.SLB_STALE] = 0

    def registers_by_number(self, number: int) -> int:
        """One register by Unicorn's number."""
        return int(self._uc.reg_read(number)) & U64

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
        self._uc.context_restore(self._context)
        if "msr" in values:  # through Unicorn: the translator's flags hang on it
            self._uc.reg_write(UC_REG_MSR, values["msr"] & U64)

    def spr(self, number: int) -> int:
        """Read an SPR from the context saved last (`refresh` first)."""
        raw = ctypes.string_at(self._base + self._spr + 8 * number, 8)
        return int(struct.unpack("<Q", raw)[0])

    def set_sprs(self, values: dict[int, int]) -> None:
        """Write SPRs by number."""
        self.refresh()
        for number, value in values.items():
            ctypes.memmove(self._base + self._spr + 8 * number, struct.pack("<Q", value & U64), 8)
        self._uc.context_restore(self._context)

    def state_bytes(self) -> bytes:
        """General, branch and special purpose registers, MSR, NIP and SLB, for a digest."""
        self.refresh()
        sprs = ctypes.string_at(self._base + self._spr, 8 * _SPR_COUNT)
        head = ctypes.string_at(self._base, _NIP + 8)
        segments = self.slb.reshape(-1, mmu.SLB_ROW)[:, :2]
        return head + sprs + (segments.tobytes() if segments.any() else b"")
