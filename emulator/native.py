"""Hooks that run at native speed: ticks, stops, stage ranges, memory watches, TLB fill.

What it is: numba-compiled callbacks with Unicorn's C signatures, all working on one int64 array
(`State`) that the Python side reads and writes between runs. What it is not: it knows no CPU
model, no symbols and makes no decision; it counts, translates and logs. It calls back into
Unicorn only through addresses that the array carries, so that numba can keep the compiled code on
disk between processes.

How a tick is known (FACTS: "exact ticks from a block hook alone"): the block hook keeps the tick
and the PC at which the current block began. Instructions are four bytes and a block is a straight
line, so at any stop tick = tick at block start + (PC - block start) / 4.

Source: unicorn.h (uc_cb_hookcode_t, uc_cb_hookmem_t, uc_cb_tlbevent_t); Power ISA 3.1 Book III 6.7
(radix translation).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]

from emulator import mmu
from emulator import nativeloops as loops
from emulator.compiled import carray, cfunc, cgutils, intrinsic, njit, types
from emulator.intercepts import needs_hook
from emulator.ppc64 import MSR_DR, MSR_IR, UC_REG_MSR, UC_REG_PC

# Slots of the state array (int64 each). One CPU runs at a time, so one set serves all of them.
TICK, BLOCK_PC, BLOCK_BYTES, LIMIT, STOPPED, CPU = 0, 1, 2, 3, 4, 5
RAM_ADDR, RAM_BYTES, PROCESS_TABLE, PID = 6, 7, 8, 9
EMU_STOP, REG_READ, SCRATCH, STRIDE = 10, 11, 12, 13
LOG_COUNT, RANGE_LO, RANGE_HI, RANGE_COUNT = 14, 15, 16, 17
FAULT_EA, FAULT_ACCESS, FAULT_WHY, FETCH_COUNT, DIRTY_ADDR, FILLS = 18, 19, 20, 21, 22, 23
UC_CTL, TLB_FLUSH, WATCH_COUNT, WATCH_WRITTEN, PROBE, PREPARED_ADDR = 24, 25, 26, 27, 28, 29
SPAN_LO, SPAN_HI = 30, 31  # lowest and highest block start since the slice began
WATCH_PAGES = 32  # physical pages whose data accesses go through `on_page_read` and `on_page_write`
WATCH_PAGE_MAX = 8
WATCHES = WATCH_PAGES + WATCH_PAGE_MAX  # rows of (lo, hi, kinds): what of them is logged
WATCH_MAX = 16
RANGE_CLASS = WATCHES + 3 * WATCH_MAX
HIT_LO, HIT_HI, HIT_MODE, HIT_COUNT = (RANGE_CLASS + n for n in (1, 2, 3, 4))
HIT = RANGE_CLASS + 5  # the last (or first) hit: the fields of a log row, and the bytes before it
REGISTER, REGISTER_CPU, REGISTER_VALUE, REGISTER_KNOWN = (HIT + n for n in (9, 10, 11, 12))
REGISTER_BEFORE, REGISTER_FROM, REGISTER_TO = (HIT + n for n in (13, 14, 15))
TRAIL_ADDR, TRAIL_MAX, TRAIL_COUNT, TRAIL_NEXT, TRAIL_STEP = (HIT + n for n in range(16, 21))
SEEN_ADDR, SEEN_MAX, SEEN_FULL = HIT + 21, HIT + 22, HIT + 23
STARTS_ADDR, STARTS_COUNT, CENSUS_ADDR, CENSUS_MAX = (HIT + n for n in range(24, 28))
CENSUS_COUNT, FUNCTION_LO, FUNCTION_HI, FUNCTION_CPU = (HIT + n for n in range(28, 32))
CENSUS_CPU_SHIFT = 40  # a census row is (tick, cpu << 40 | index of the function)
RANGES = HIT + 32  # rows of (lo, hi, id), disjoint and ascending
RANGE_MAX = 128
FETCHED = RANGES + 3 * RANGE_MAX  # physical pages mapped for fetch since drained
FETCHED_MAX = 4096
OPENED = FETCHED + FETCHED_MAX
OPENED_ADDR, COPIES_ADDR, OPENED_COUNT, STALE_PAGE = (OPENED + n for n in range(4))
BUDGET = OPENED + 4  # calls out of native code that the slice may still make
OPENED_MAX = 1024  # code pages of one CPU that may be written: see `_open_code_page`
SLB_ADDR, SLB_STALE, CONTEXT_ADDR, CONTEXT_SAVE = (OPENED + n for n in (5, 6, 7, 8))
HASH_ADDR, HASH_WORDS = OPENED + 9, OPENED + 10  # the hashed page table, and its size
LOOPS_ADDR = OPENED + 11  # the table of `loops`
LOG = OPENED + 16
LOG_FIELDS = 8  # kind, tick, cpu, pc, addr, size, value, msr
LOG_MAX = 24_576
STATE_SLOTS = LOG + LOG_FIELDS * LOG_MAX

WINDOW = 1 << 40  # physical address at which the watched pages appear as MMIO
PREPARED_REAL, PREPARED_LINEAR, PREPARED_OTHER = 1, 2, 4  # bits: code hooks stand at this alias
WANT_PREPARE = 100  # "why" of a refused fetch: the page holds words that need a hook first

LOG_RANGE, LOG_WRITE, LOG_READ = 1, 2, 4
SEEN_PROBES = 64  # places of the table of blocks that are tried before it counts as full
HIT_LAST, HIT_FIRST, HIT_ALL = 0, 1, 2  # which hits are kept: see `on_hit`
LOG_STOP_AT = 4096  # the block hook asks for a stop when the log is this full: a block of 512
# instructions, each with 32 accesses (dcbz, stmw), still fits behind it

MSR_TRANSLATES = MSR_IR | MSR_DR
EA_MASK = 0x0FFFFFFFFFFFFFFF
PROBE_EA = 0x0B << 56  # with PROBE set, a page of this region is the physical page that PROBE names
RANGE_CLASS_SHIFT = 20  # a change of range is logged if the bits from here on differ
RANGE_STOP = 1 << 16  # bit of a range's id: stop exactly where it is entered
STOPPED_AT_RANGE = 1 << 33  # bit of WATCH_WRITTEN: such a range was entered
CODE_WRITTEN = 1 << 34  # bit of WATCH_WRITTEN: STALE_PAGE has translations that are no longer right
WATCH_MATCHED = 1 << 32  # bit of WATCH_WRITTEN: a logged range was written, not just its page


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """Make a void pointer of an integer address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def _call_stop(typingctx: Any, function: Any, uc: Any) -> Any:
    """Call `uc_err uc_emu_stop(uc_engine *)` at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [cgutils.voidptr_t])
        target = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(target, [args[1]])
        return context.get_constant(types.int64, 0)

    return types.int64(types.int64, types.voidptr), codegen


@intrinsic
def _call_reg_read(typingctx: Any, function: Any, uc: Any, reg: Any, out: Any) -> Any:
    """Call `uc_err uc_reg_read(uc_engine *, int, void *)` at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(
            ir.IntType(32), [cgutils.voidptr_t, ir.IntType(32), cgutils.voidptr_t]
        )
        target = builder.inttoptr(args[0], kind.as_pointer())
        out_ptr = builder.inttoptr(args[3], cgutils.voidptr_t)
        builder.call(target, [args[1], builder.trunc(args[2], ir.IntType(32)), out_ptr])
        return context.get_constant(types.int64, 0)

    return types.int64(types.int64, types.voidptr, types.int64, types.int64), codegen


@intrinsic
def _call_ctl(typingctx: Any, function: Any, uc: Any, control: Any) -> Any:
    """Call `uc_err uc_ctl(uc_engine *, uc_control_type, ...)` without further arguments."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [cgutils.voidptr_t, ir.IntType(32)], var_arg=True)
        target = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(target, [args[1], builder.trunc(args[2], ir.IntType(32))])
        return context.get_constant(types.int64, 0)

    return types.int64(types.int64, types.voidptr, types.int64), codegen


@intrinsic
def _call_save(typingctx: Any, function: Any, uc: Any, context: Any) -> Any:
    """Call `uc_err uc_context_save(uc_engine *, uc_context *)` at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [cgutils.voidptr_t, cgutils.voidptr_t])
        target = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(target, [args[1], builder.inttoptr(args[2], cgutils.voidptr_t)])
        return context.get_constant(types.int64, 0)

    return types.int64(types.int64, types.voidptr, types.int64), codegen


@njit(cache=True)
def _read_reg(s: Any, uc: Any, reg: int) -> int:
    """Read a CPU register (64 bits) from inside a hook."""
    s[SCRATCH] = 0
    _call_reg_read(s[REG_READ], uc, reg, s.ctypes.data + 8 * SCRATCH)
    value: int = s[SCRATCH]
    return value


@njit(cache=True)
def _log(s: Any, kind: int, tick: int, pc: int, addr: int, size: int, value: int, msr: int) -> None:
    """Append a row to the log; what does not fit is counted, and `Machine.take_log` refuses it."""
    n = s[LOG_COUNT]
    s[LOG_COUNT] = n + 1
    if n >= LOG_MAX:
        return
    at = LOG + LOG_FIELDS * n
    s[at] = kind
    s[at + 1] = tick
    s[at + 2] = s[CPU]
    s[at + 3] = pc
    s[at + 4] = addr
    s[at + 5] = size
    s[at + 6] = value
    s[at + 7] = msr


@njit(cache=True)
def _enter_range(s: Any, tick: int, pc: int, ea: int) -> bool:
    """Make the range that holds `ea` the current one, log it; True if the run is to stop."""
    lo = 0
    hi = EA_MASK + 1
    found = -1
    for i in range(s[RANGE_COUNT]):
        at = RANGES + 3 * i
        if ea < s[at]:
            hi = s[at]
            break
        if ea < s[at + 1]:
            lo = s[at]
            hi = s[at + 1]
            found = s[at + 2]
            break
        lo = s[at + 1]
    s[RANGE_LO] = lo
    s[RANGE_HI] = hi
    kind = np.int64(0) if found < 0 else np.int64(found) >> RANGE_CLASS_SHIFT
    if kind != s[RANGE_CLASS]:
        _log(s, LOG_RANGE, tick, pc, ea, 0, found, 0)
    s[RANGE_CLASS] = kind
    return found >= 0 and found & RANGE_STOP != 0


@njit(cache=True)
def _leave_trail(s: Any, tick: int, address: int) -> None:
    """Note (tick, cpu, block start), once in TRAIL_STEP ticks; a full trail keeps what it has."""
    s[TRAIL_NEXT] = tick + s[TRAIL_STEP]
    n = s[TRAIL_COUNT]
    if n >= s[TRAIL_MAX]:
        return
    trail = carray(_pointer(s[TRAIL_ADDR]), (3 * s[TRAIL_MAX],), np.int64)
    trail[3 * n] = tick
    trail[3 * n + 1] = s[CPU]
    trail[3 * n + 2] = address
    s[TRAIL_COUNT] = n + 1


@njit(cache=True)
def _open_code_page(s: Any, physical: int) -> None:
    """A page is mapped for writing: if code was fetched from it, keep a copy of it as it is now.

    Unicorn notices only the first write to a page that holds translated code, and drops what that
    one write overlaps. So every block of such a page is compared with the copy before it runs.
    """
    pages = s[RAM_BYTES] >> 12
    prepared = carray(_pointer(s[PREPARED_ADDR]), (pages,), np.uint8)
    opened = carray(_pointer(s[OPENED_ADDR]), (pages,), np.uint16)
    if not prepared[physical >> 12] or opened[physical >> 12] or s[OPENED_COUNT] > OPENED_MAX:
        return
    slot = s[OPENED_COUNT]
    s[OPENED_COUNT] = slot + 1
    if slot == OPENED_MAX:  # no room: everything is dropped at the next block
        s[STALE_PAGE] = -1
        s[WATCH_WRITTEN] |= np.int64(CODE_WRITTEN)
        s[LIMIT] = 0
        return
    words = carray(_pointer(s[RAM_ADDR] + physical), (512,), np.uint64)
    copy = carray(_pointer(s[COPIES_ADDR] + (slot << 12)), (512,), np.uint64)
    for i in range(512):
        copy[i] = words[i]
    opened[physical >> 12] = slot + 1


@njit(cache=True)
def _is_stale(s: Any, ea: int, size: int) -> bool:
    """Whether a block's code differs from what its page held when it was opened for writing."""
    opened = carray(_pointer(s[OPENED_ADDR]), (s[RAM_BYTES] >> 12,), np.uint16)
    end = min(ea + size, s[RAM_BYTES])
    while ea < end:
        slot = np.int64(opened[ea >> 12])
        piece = min(end, ((ea >> 12) + 1) << 12)
        if slot:
            count = (piece - ea) >> 2
            words = carray(_pointer(s[RAM_ADDR] + ea), (count,), np.uint32)
            at = s[COPIES_ADDR] + ((slot - 1) << 12) + (ea & 0xFFF)
            copy = carray(_pointer(at), (count,), np.uint32)
            for i in range(count):
                if words[i] != copy[i]:
                    s[STALE_PAGE] = (ea >> 12) << 12
                    return True
        ea = piece
    return False


@njit(cache=True, inline="always")
def _follow_loops(s: Any, t: Any, uc: Any, tick: int, address: int) -> bool:
    """Tell `loops` of a block that is not the next of its line; True if its rows must be taken."""
    words = carray(_pointer(s[RAM_ADDR]), (s[RAM_BYTES] >> 2,), np.uint32)
    found = loops.UNKNOWN
    while True:
        found = loops.follow(t, words, s[CPU], tick, address)
        if found != loops.UNKNOWN:
            break
        loops.learn(t, words, tick, _read_reg(s, uc, UC_REG_MSR) & 1 != 0)
    return bool(found == loops.FULL)


@cfunc(types.void(types.voidptr, types.int64, types.uint32, types.voidptr), cache=True)
def on_block(uc: Any, address: int, size: int, user: Any) -> None:
    """UC_HOOK_BLOCK: count the block before, stop before a block that would pass the limit.

    A range is entered when NIP stands at it, run or not: at a tick there is one state.
    """
    s = carray(user, (STATE_SLOTS,), np.int64)
    tick = s[TICK] + (s[BLOCK_BYTES] >> 2)
    s[TICK] = tick
    s[BLOCK_PC] = address
    s[BLOCK_BYTES] = np.int64(size)
    ea = address & EA_MASK
    if (ea < s[RANGE_LO] or ea >= s[RANGE_HI]) and _enter_range(s, tick, address, ea):
        s[WATCH_WRITTEN] |= np.int64(STOPPED_AT_RANGE)
        s[STOPPED] = 1
        _call_stop(s[EMU_STOP], uc)
        return
    if tick + (np.int64(size) >> 2) > s[LIMIT] or s[LOG_COUNT] >= LOG_STOP_AT:
        s[STOPPED] = 1
        _call_stop(s[EMU_STOP], uc)
        return
    if tick >= s[TRAIL_NEXT]:
        _leave_trail(s, tick, address)
    if s[OPENED_COUNT] and _is_stale(s, ea, np.int64(size)):
        s[WATCH_WRITTEN] |= np.int64(CODE_WRITTEN)
        s[STOPPED] = 1
        _call_stop(s[EMU_STOP], uc)
        return
    s[SPAN_LO] = min(s[SPAN_LO], ea)
    s[SPAN_HI] = max(s[SPAN_HI], ea)
    t = carray(_pointer(s[LOOPS_ADDR]), (loops.SLOTS,), np.int64)
    behind = t[loops.PC] + 4 * (tick - t[loops.TICK])
    if t[loops.CPU] == s[CPU]:
        if address == behind and address <= t[loops.EXIT]:
            return
        if address == t[loops.TOP] and behind - 4 == t[loops.EXIT]:
            t[loops.TURNS] += 1
            t[loops.BEGUN] = tick
            t[loops.PC] = address
            t[loops.TICK] = tick
            return
    if _follow_loops(s, t, uc, tick, address):
        s[STOPPED] = 1
        _call_stop(s[EMU_STOP], uc)


@njit(cache=True)
def _watched(s: Any, uc: Any, kind: int, address: int, size: int, value: int) -> bool:
    """Log an access to a watched page if a watch row wants it, with the exact tick after it.

    NIP is exact here because the TLB fill just before restored it (see `on_page_read`). Unicorn
    hands a doubleword over in two halves, big end first: they become one row again.
    """
    wanted = False
    for i in range(s[WATCH_COUNT]):
        at = WATCHES + 3 * i
        if address + size > s[at] and address < s[at + 1] and s[at + 2] & kind:
            wanted = True
            break
    if not wanted:
        return False
    pc = _read_reg(s, uc, UC_REG_PC)
    tick = s[TICK] + ((pc - s[BLOCK_PC]) >> 2) + 1
    n = s[LOG_COUNT]
    if 0 < n <= LOG_MAX:
        at = LOG + LOG_FIELDS * (n - 1)
        if (
            s[at] == kind
            and s[at + 1] == tick
            and s[at + 3] == pc
            and s[at + 4] + s[at + 5] == address
            and s[at + 5] + size <= 8
        ):
            s[at + 5] += size
            s[at + 6] = (s[at + 6] << (8 * size)) | value
            return True
    _log(s, kind, tick, pc, address, size, value, _read_reg(s, uc, UC_REG_MSR))
    return True


@cfunc(types.uint64(types.voidptr, types.int64, types.uint32, types.voidptr), cache=True)
def on_page_read(uc: Any, offset: int, size: int, user: Any) -> Any:
    """MMIO read of a watched page: only its data accesses are served here.

    The TLB is flushed after each access, so that the next one misses again: the miss is what makes
    Unicorn restore the exact NIP. Values are big-endian numbers of the bytes in memory.
    """
    s = carray(user, (STATE_SLOTS,), np.int64)
    ram = carray(_pointer(s[RAM_ADDR]), (s[RAM_BYTES],), np.uint8)
    address = s[WATCH_PAGES + (offset >> 12)] + (offset & 0xFFF)
    value = np.int64(0)
    for i in range(size):
        value = (value << 8) | np.int64(ram[address + i])
    _watched(s, uc, LOG_READ, address, np.int64(size), value)
    _call_ctl(s[UC_CTL], uc, s[TLB_FLUSH])
    return np.uint64(value)


@cfunc(
    types.void(types.voidptr, types.int64, types.uint32, types.uint64, types.voidptr), cache=True
)
def on_page_write(uc: Any, offset: int, size: int, value: int, user: Any) -> None:
    """MMIO write of a watched page; if code was fetched from it, stop at the next block."""
    s = carray(user, (STATE_SLOTS,), np.int64)
    ram = carray(_pointer(s[RAM_ADDR]), (s[RAM_BYTES],), np.uint8)
    index = offset >> 12
    address = s[WATCH_PAGES + index] + (offset & 0xFFF)
    v = np.int64(value)
    for i in range(size):
        ram[address + i] = (v >> (8 * (np.int64(size) - 1 - i))) & 0xFF
    if size < 8:
        v &= (np.int64(1) << (8 * np.int64(size))) - 1
    matched = _watched(s, uc, LOG_WRITE, address, np.int64(size), v)
    prepared = carray(_pointer(s[PREPARED_ADDR]), (s[RAM_BYTES] >> 12,), np.uint8)
    if matched:
        s[WATCH_WRITTEN] |= np.int64(WATCH_MATCHED)
    if matched or prepared[address >> 12]:
        s[WATCH_WRITTEN] |= np.int64(1) << index
        s[LIMIT] = 0
    _call_ctl(s[UC_CTL], uc, s[TLB_FLUSH])


@cfunc(types.void(types.voidptr, types.int64, types.uint32, types.voidptr), cache=True)
def on_block_function(uc: Any, address: int, size: int, user: Any) -> None:
    """UC_HOOK_BLOCK, after `on_block`: note every change of function, for the census."""
    s = carray(user, (STATE_SLOTS,), np.int64)
    ea = address & EA_MASK
    if s[STOPPED] or (ea >= s[FUNCTION_LO] and ea < s[FUNCTION_HI] and s[CPU] == s[FUNCTION_CPU]):
        return
    starts = carray(_pointer(s[STARTS_ADDR]), (s[STARTS_COUNT],), np.int64)
    lo = np.int64(0)
    hi = s[STARTS_COUNT]
    while lo < hi:
        middle = (lo + hi) >> 1
        if starts[middle] <= ea:
            lo = middle + 1
        else:
            hi = middle
    s[FUNCTION_LO] = starts[lo - 1] if lo > 0 else 0
    s[FUNCTION_HI] = starts[lo] if lo < s[STARTS_COUNT] else EA_MASK + 1
    s[FUNCTION_CPU] = s[CPU]
    n = s[CENSUS_COUNT]
    s[CENSUS_COUNT] = n + 1
    if n < s[CENSUS_MAX]:
        rows = carray(_pointer(s[CENSUS_ADDR]), (2 * s[CENSUS_MAX],), np.int64)
        rows[2 * n] = s[TICK]
        rows[2 * n + 1] = (s[CPU] << CENSUS_CPU_SHIFT) | lo


@cfunc(types.void(types.voidptr, types.int64, types.uint32, types.voidptr), cache=True)
def on_block_register(uc: Any, address: int, size: int, user: Any) -> None:
    """UC_HOOK_BLOCK, after `on_block`: between which blocks did a register change last?

    It also notes when each block ran last, in rows (address, tick, bytes) of a hash table, for what
    changes a register and changes it back within one block: as a UC_HOOK_CODE of such a block's
    instructions this function sees that too.
    """
    s = carray(user, (STATE_SLOTS,), np.int64)
    if s[CPU] != s[REGISTER_CPU]:
        return
    tick = s[TICK] + ((address - s[BLOCK_PC]) >> 2)
    value = _read_reg(s, uc, s[REGISTER])
    if s[REGISTER_KNOWN] and value != s[REGISTER_VALUE]:
        s[REGISTER_FROM] = s[REGISTER_BEFORE]
        s[REGISTER_TO] = tick
    s[REGISTER_KNOWN] = 1
    s[REGISTER_VALUE] = value
    s[REGISTER_BEFORE] = tick
    rows = carray(_pointer(s[SEEN_ADDR]), (3 * s[SEEN_MAX],), np.int64)
    mask = s[SEEN_MAX] - 1
    at = (((address >> 2) * 0x9E3779B1) >> 12) & mask
    for _ in range(SEEN_PROBES):
        key = rows[3 * at]
        if key == address or key == 0:
            rows[3 * at] = address
            rows[3 * at + 1] = tick
            rows[3 * at + 2] = size
            return
        at = (at + 1) & mask
    s[SEEN_FULL] = 1


@cfunc(
    types.void(types.voidptr, types.int32, types.int64, types.int32, types.int64, types.voidptr),
    cache=True,
)
def on_hit(uc: Any, access: int, address: int, size: int, value: int, user: Any) -> None:
    """UC_HOOK_MEM_READ and _WRITE near [HIT_LO, HIT_HI), by physical address, NIP restored.

    HIT_LAST keeps the newest hit, HIT_FIRST the first and stops, HIT_ALL puts all into the log.
    """
    s = carray(user, (STATE_SLOTS,), np.int64)
    if address >= s[HIT_HI] or address + size <= s[HIT_LO]:
        return
    if s[HIT_MODE] == HIT_FIRST and s[HIT_COUNT] > 0:
        return
    pc = _read_reg(s, uc, UC_REG_PC)
    msr = _read_reg(s, uc, UC_REG_MSR)
    tick = s[TICK] + ((pc - s[BLOCK_PC]) >> 2) + 1
    kind = LOG_WRITE if access == mmu.ACCESS_WRITE else LOG_READ
    ram = carray(_pointer(s[RAM_ADDR]), (s[RAM_BYTES],), np.uint8)
    old = np.int64(0)
    for i in range(size):
        shift = 8 * i if msr & 1 else 8 * (size - 1 - i)
        old |= np.int64(ram[address + i]) << shift
    moved = old if kind == LOG_READ else np.int64(value)
    s[HIT_COUNT] += 1
    if s[HIT_MODE] == HIT_ALL:
        _log(s, kind, tick, pc, address, size, moved, msr)
        return
    s[HIT] = kind
    s[HIT + 1] = tick
    s[HIT + 2] = s[CPU]
    s[HIT + 3] = pc
    s[HIT + 4] = address
    s[HIT + 5] = size
    s[HIT + 6] = moved
    s[HIT + 7] = msr
    s[HIT + 8] = old
    if s[HIT_MODE] == HIT_FIRST:
        s[LIMIT] = 0


@cfunc(types.void(types.voidptr, types.int64, types.uint32, types.voidptr), cache=True)
def on_segment_change(uc: Any, address: int, size: int, user: Any) -> None:
    """UC_HOOK_CODE at an instruction that is about to change the SLB: nothing known of it holds."""
    s = carray(user, (STATE_SLOTS,), np.int64)
    s[SLB_STALE] = 1
    _call_ctl(s[UC_CTL], uc, s[TLB_FLUSH])


@njit(cache=True)
def _translate(s: Any, uc: Any, page: int, access: int, msr: int) -> tuple[int, int]:
    """`mmu.translate` with what the state array says; the SLB is that of the saved context."""
    if s[SLB_STALE] and s[PROCESS_TABLE] < 0 and msr & MSR_TRANSLATES:
        _call_save(s[CONTEXT_SAVE], uc, s[CONTEXT_ADDR])
        s[SLB_STALE] = 0
    ram = carray(_pointer(s[RAM_ADDR]), (s[RAM_BYTES] >> 3,), np.uint64)
    slb = carray(_pointer(s[SLB_ADDR]), (mmu.SLB_ROW * mmu.SLB_ENTRIES,), np.int64)
    table = carray(_pointer(s[HASH_ADDR]), (s[HASH_WORDS],), np.int64)
    physical, why = mmu.translate(
        ram, s[RAM_BYTES], page, access, msr, s[PROCESS_TABLE], s[PID], slb, table
    )
    return physical, why


@njit(cache=True)
def _fetch_page(s: Any, uc: Any, page: int, physical: int) -> int:
    """Note a page mapped for fetch; refuse it while it needs code hooks that do not stand yet."""
    words = carray(_pointer(s[RAM_ADDR]), (s[RAM_BYTES] >> 2,), np.uint32)
    prepared = carray(_pointer(s[PREPARED_ADDR]), (s[RAM_BYTES] >> 12,), np.uint8)
    alias = PREPARED_OTHER
    if page == physical:
        alias = PREPARED_REAL
    elif (page & EA_MASK) == physical and (page >> 60) & 0xF == 0xC:
        alias = PREPARED_LINEAR
    if not prepared[physical >> 12] & alias:
        if needs_hook(words, physical):
            return WANT_PREPARE
        prepared[physical >> 12] |= alias
        _call_ctl(s[UC_CTL], uc, s[TLB_FLUSH])  # whoever may write the page must ask again
    n = s[FETCH_COUNT]
    if n < FETCHED_MAX:
        s[FETCHED + n] = physical
    s[FETCH_COUNT] = n + 1
    return 0


@cfunc(
    types.boolean(
        types.voidptr, types.int64, types.int32, types.CPointer(types.int64), types.voidptr
    ),
    cache=True,
)
def on_tlb_fill(uc: Any, page: int, access: int, result: Any, user: Any) -> bool:
    """UC_HOOK_TLB_FILL: translate one page; note fetched and dirty pages.

    Grants only what the access needs, so that the first write to a page is always seen, and sends
    data accesses to watched pages through the MMIO window.
    """
    s = carray(user, (STATE_SLOTS,), np.int64)
    s[FILLS] += 1
    out = carray(result, (2,), np.int64)
    if s[PROBE] >= 0 and page >> 56 == 0x0B:  # `Machine` names a physical page
        out[0] = s[PROBE]
        out[1] = 5
        return True
    msr = _read_reg(s, uc, UC_REG_MSR)
    physical, why = _translate(s, uc, page, access, msr)
    if why == 0 and access == mmu.ACCESS_FETCH:
        why = _fetch_page(s, uc, page, physical)
    if why != 0:
        s[FAULT_EA] = page
        s[FAULT_ACCESS] = access
        s[FAULT_WHY] = why
        return False
    out[0] = physical
    if access == mmu.ACCESS_FETCH:
        out[1] = 4
        return True
    out[1] = 5
    if access == mmu.ACCESS_WRITE:
        out[1] = 3
        dirty = carray(_pointer(s[DIRTY_ADDR]), (s[RAM_BYTES] >> 12,), np.uint8)
        dirty[physical >> 12] = 1
    for i in range(WATCH_PAGE_MAX):
        if s[WATCH_PAGES + i] == physical:
            out[0] = WINDOW + (i << 12)
            out[1] = 3
            return True
    if access == mmu.ACCESS_WRITE:
        _open_code_page(s, physical)
    return True
