"""Who reads a register next: the instructions of a stretch, judged by what their words touch.

What it is: a block hook at native speed that knows of each block whether any of its words touches
the register (`operands`), looks through the words of one that does after it has run, and stops the
run at the first that reads the value or replaces it. What it is not: a search over many stretches
(`search`), or where a register changed (`queries`, which compares values).

A block is judged once; not while its page is written to in the stretch, and not where an address is
translated otherwise than the kernel's linear mapping: such blocks are looked through each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from emulator import mmu
from emulator.compiled import carray, cfunc, njit, types
from emulator.disassembly import disassemble
from emulator.errors import LimitError
from emulator.firmware import HYPERCALLS
from emulator.native import (
    CPU,
    DIRTY_ADDR,
    EA_MASK,
    EMU_STOP,
    HIT_COUNT,
    HIT_FIRST,
    HIT_MODE,
    RAM_ADDR,
    RAM_BYTES,
    REGISTER,
    REGISTER_CPU,
    SEEN_ADDR,
    SEEN_PROBES,
    STATE_SLOTS,
    STOPPED,
    TICK,
    _call_stop,
    _pointer,
    _read_reg,
    _translate,
)
from emulator.operands import (
    GPR_READS,
    MASKS,
    PARTLY,
    PIECES,
    READS,
    UNKNOWN,
    masks_of,
    operands,
    piece_names,
)
from emulator.ppc64 import MSR_IR, MSR_LE, UC_REG_MSR

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.queries import Path
    from emulator.run import Record

# Slots of the array that SEEN_ADDR points to while a register is followed.
PLACE, LIVE, OUTCOME, AT_TICK, AT_NIP, AT_WORD, AT_PIECES, AT_LITTLE = range(8)
BEGUN_TICK, BEGUN_NIP, BEGUN_PHYSICAL, BEGUN_BYTES, BEGUN_LITTLE = range(8, 13)
WRITERS, WRITER_COUNT = 13, 14  # with WRITERS set, nothing ends the run: who writes is noted
VALUE, VALUE_BEFORE = 15, 23  # of the register, if REGISTER numbers it, after and before a block
MASKS_AT: Final = 16
TABLE_AT: Final = 32  # rows of (block address, bytes << 2 | touched if little | touched if big)
TABLE_ROWS: Final = 1 << 16
WRITERS_AT: Final = TABLE_AT + 2 * TABLE_ROWS
WRITERS_KEPT: Final = 256
SLOTS: Final = WRITERS_AT + WRITERS_KEPT
IF_BIG, IF_LITTLE = 1, 2
NOTHING, READ, OVERWRITTEN, UNTOLD = range(4)
"""Of OUTCOME. UNTOLD: an instruction ran of which `operands` does not know what it touches."""
OUTCOMES: Final = ("unread", "read", "overwritten", "unknown")

Follow = npt.NDArray[np.int64]


@njit(cache=True)
def _word_at(s: Any, physical: int, little: int) -> int:
    """The instruction word at a physical address."""
    words = carray(_pointer(s[RAM_ADDR] + physical), (1,), np.uint32)
    raw = np.int64(words[0])
    if little:
        return int(raw)
    return int((raw & 0xFF) << 24 | (raw & 0xFF00) << 8 | (raw >> 8 & 0xFF00) | raw >> 24)


@njit(cache=True)
def _touches(s: Any, f: Any, physical: int, size: int, little: int) -> bool:
    """Whether a word of a block touches what is followed, or for all we know might."""
    out = f[MASKS_AT : MASKS_AT + MASKS]
    place, live = f[PLACE], f[LIVE]
    for at in range(0, size, 4):
        operands(_word_at(s, physical + at, little), out)
        partly = out[PARTLY] if place == READS else 0
        if (out[place] | out[place + 1] | partly) & live or out[READS] & UNKNOWN:
            return True
    return False


@njit(cache=True)
def _note_writer(f: Any, out: Any, tick: int) -> None:
    """Keep the tick of an instruction that may have changed a part of what is followed."""
    place = f[PLACE]
    partly = out[PARTLY] if place == READS else 0
    if (out[place + 1] | partly) & f[LIVE] or out[READS] & UNKNOWN:
        f[WRITERS_AT + (f[WRITER_COUNT] & (WRITERS_KEPT - 1))] = tick
        f[WRITER_COUNT] += 1


@njit(cache=True)
def settle(s: Any, f: Any, tick: int) -> None:
    """Look through what ran of the block that was begun, up to a tick."""
    count = min(tick - f[BEGUN_TICK], f[BEGUN_BYTES] >> 2)
    f[BEGUN_BYTES] = 0
    noted = f[WRITER_COUNT]
    out = f[MASKS_AT : MASKS_AT + MASKS]
    place = f[PLACE]
    for n in range(count):
        word = _word_at(s, f[BEGUN_PHYSICAL] + 4 * n, f[BEGUN_LITTLE])
        operands(word, out)
        if f[WRITERS]:
            _note_writer(f, out, f[BEGUN_TICK] + n + 1)
            continue
        read = out[place] & f[LIVE]
        if out[READS] & UNKNOWN:
            f[OUTCOME] = UNTOLD
        elif read:
            f[OUTCOME] = READ
            f[AT_PIECES] = read
        else:
            f[LIVE] &= ~out[place + 1]
            if f[LIVE] == 0:
                f[OUTCOME] = OVERWRITTEN
        if f[OUTCOME] != NOTHING:
            f[AT_TICK] = f[BEGUN_TICK] + n + 1
            f[AT_NIP] = f[BEGUN_NIP] + 4 * n
            f[AT_WORD] = word
            f[AT_LITTLE] = f[BEGUN_LITTLE]
            return
    if s[REGISTER] and f[VALUE] == f[VALUE_BEFORE] and f[WRITER_COUNT] == noted + 1:
        f[WRITER_COUNT] = noted  # one writer that changed nothing


@njit(cache=True)
def _judged(s: Any, f: Any, address: int, physical: int, size: int) -> int:
    """In which byte orders a block touches what is followed; looked up, or judged now."""
    mask = TABLE_ROWS - 1
    at = (((address >> 2) * 0x9E3779B1) >> 12) & mask
    for _ in range(SEEN_PROBES):
        row = TABLE_AT + 2 * at
        if f[row] == address and f[row + 1] >> 2 == size:
            return int(f[row + 1] & 3)
        if f[row] == address or (f[row] == 0 and f[row + 1] == 0):
            found = IF_BIG if _touches(s, f, physical, size, 0) else 0
            found |= IF_LITTLE if _touches(s, f, physical, size, 1) else 0
            f[row] = address
            f[row + 1] = size << 2 | found
            return found
        at = (at + 1) & mask
    return IF_BIG | IF_LITTLE


@njit(cache=True)
def _is_linear(s: Any, uc: Any, address: int, length: int) -> tuple[bool, int]:
    """Whether a block lies where its address says, and MSR if it was read to know that, else -1."""
    region = address >> 60 & 0xF
    if (address & EA_MASK) + length > s[RAM_BYTES] or (region != 0xC and region != 0):
        return False, -1
    if region == 0xC:
        return True, -1
    msr = _read_reg(s, uc, UC_REG_MSR)
    return msr & MSR_IR == 0, msr


@njit(cache=True)
def _begin(s: Any, f: Any, uc: Any, address: int, length: int) -> None:
    """Note the block that begins, if it is to be looked through once it has run."""
    linear, msr = _is_linear(s, uc, address, length)
    physical, which = address & EA_MASK, IF_BIG | IF_LITTLE
    if linear:
        dirty = carray(_pointer(s[DIRTY_ADDR]), (s[RAM_BYTES] >> 12,), np.uint8)
        if not dirty[physical >> 12]:
            which = _judged(s, f, address, physical, length)
            if which == 0:
                return
    if msr == -1:
        msr = _read_reg(s, uc, UC_REG_MSR)
    if not linear:
        page, why = _translate(s, uc, (address >> 12) << 12, mmu.ACCESS_FETCH, msr)
        if why != 0:
            return
        physical = page | (address & 0xFFF)
    little = msr & MSR_LE
    if which & (IF_LITTLE if little else IF_BIG):
        f[BEGUN_TICK] = s[TICK]
        f[BEGUN_NIP] = address
        f[BEGUN_PHYSICAL] = physical
        f[BEGUN_BYTES] = length
        f[BEGUN_LITTLE] = little
        if f[WRITERS] and s[REGISTER]:
            f[VALUE_BEFORE] = _read_reg(s, uc, s[REGISTER])


@cfunc(types.void(types.voidptr, types.int64, types.uint32, types.voidptr), cache=True)
def on_block_operands(uc: Any, address: int, size: int, user: Any) -> None:
    """UC_HOOK_BLOCK, after `on_block`: look through the block before, note the one that begins."""
    s = carray(user, (STATE_SLOTS,), np.int64)
    if s[STOPPED] or s[CPU] != s[REGISTER_CPU]:
        return
    f = carray(_pointer(s[SEEN_ADDR]), (SLOTS,), np.int64)
    if f[BEGUN_BYTES]:
        if f[WRITERS] and s[REGISTER]:
            f[VALUE] = _read_reg(s, uc, s[REGISTER])
        settle(s, f, s[TICK])
    if f[OUTCOME] != NOTHING:
        s[HIT_MODE] = HIT_FIRST
        s[HIT_COUNT] = 1
        s[STOPPED] = 1
        _call_stop(s[EMU_STOP], uc)
        return
    _begin(s, f, uc, address, np.int64(size))


def warm_up() -> None:
    """Compile what a session calls from Python, while files may still be opened."""
    state: Follow = np.zeros(STATE_SLOTS, np.int64)
    settle(state, np.zeros(SLOTS, np.int64), 0)
    masks_of(0)


# --- one stretch ----------------------------------------------------------------------------------


class _Reader:
    """Follows a register of a CPU through a stretch."""

    def __init__(self, path: Path, cpu: int, register: str, live: int, *, number: int = 0) -> None:
        self.run, self.cpu, self.register = path.run, cpu, register
        machine = self.run.machine
        self.state = machine.state
        self.follow: Follow = np.zeros(SLOTS, np.int64)
        self.follow[PLACE], self.follow[LIVE] = PIECES[register][0], live
        self.by = ""
        """What read or replaced the value, if no instruction word tells."""
        machine.set_watches(())
        self._answers, machine.hypercall = machine.hypercall, self._called
        self._told, machine.on_exception = machine.on_exception, self._interrupted
        self.state[SEEN_ADDR] = self.follow.ctypes.data
        self.state[REGISTER_CPU], self.state[REGISTER] = cpu, number
        self.state[HIT_MODE], self.state[HIT_COUNT] = HIT_FIRST, 0
        machine.cpus[cpu].follow_blocks(on_block_operands)

    def settle(self) -> bool:
        """Look through what ran until now; True if the value has met its end."""
        if not self.follow[OUTCOME] and self.follow[BEGUN_BYTES]:
            if self.state[REGISTER]:
                now = self.run.machine.cpus[self.cpu].registers_by_number(int(self.state[REGISTER]))
                self.follow[VALUE] = now - (1 << 64) if now >> 63 else now
            settle(self.state, self.follow, self.run.machine.tick)
        return bool(self.follow[OUTCOME])

    def _called(self, machine: Machine, cpu: int, args: list[int]) -> list[int] | str:
        """A hypercall reads r3 and its arguments, and writes what firmware answers."""
        answer = self._answers(machine, cpu, list(args))
        place, pieces = PIECES[self.register]
        if cpu == self.cpu and not self.settle() and place == GPR_READS:
            row = HYPERCALLS.get(args[0])
            reads = (2 << (row.arguments if row else 0)) - 1 << 3
            writes = 0 if isinstance(answer, str) else (1 << len(answer)) - 1 << 3
            if self.follow[WRITERS]:
                self._wrote(machine.tick, writes & pieces)
            elif (reads | writes) & pieces:
                nip = machine.cpus[cpu].nip - 4
                self._end(READ if reads & pieces else OVERWRITTEN, nip, 0x44000022)
                self.by = row.name if row else f"hypercall {args[0]:#x}"
        return answer

    def _interrupted(self, cpu: int, name: str, vector: int, nip: int) -> str:
        """An exception saves MSR in SRR1."""
        if cpu == self.cpu and not self.settle() and self.register == "msr":
            if self.follow[WRITERS]:
                self._wrote(self.run.machine.tick + 1, PIECES["msr"][1])
            else:
                self._end(READ, nip, 0)
                self.by = name
        return self._told(cpu, name, vector, nip) if self._told else ""

    def _wrote(self, tick: int, pieces: int) -> None:
        """Note a writer that is no instruction word; it shows in the window's step of this tick."""
        f = self.follow
        if pieces:
            f[WRITERS_AT + (int(f[WRITER_COUNT]) & (WRITERS_KEPT - 1))] = tick
            f[WRITER_COUNT] += 1

    def _end(self, outcome: int, nip: int, word: int) -> None:
        f = self.follow
        f[OUTCOME], f[AT_TICK], f[AT_WORD] = outcome, self.run.machine.tick, word
        f[AT_NIP] = nip - (1 << 64) if nip >> 63 else nip
        f[AT_PIECES] = PIECES[self.register][1]
        f[AT_LITTLE] = self.run.machine.cpus[self.cpu].msr & MSR_LE

    def answer(self) -> Record:
        """What became of the value, as JSON."""
        f = [int(value) for value in self.follow[:MASKS_AT]]
        if not f[OUTCOME]:
            return {"outcome": OUTCOMES[NOTHING], "live": f[LIVE]}
        nip, little = f[AT_NIP] % (1 << 64), bool(f[AT_LITTLE])
        raw = f[AT_WORD].to_bytes(4, "little" if little else "big")
        text = disassemble(raw, nip, big_endian=not little)[0].text if f[AT_WORD] else ""
        return {
            "outcome": OUTCOMES[f[OUTCOME]],
            "part": piece_names(self.register, f[AT_PIECES]) if f[OUTCOME] == READ else "",
            "tick": f[AT_TICK],
            "cpu": self.cpu,
            "nip": f"0x{nip:016x}",
            "word": f"0x{f[AT_WORD]:08x}",
            "text": text,
            "by": self.by,
            "symbol": self.run.names.name_at(nip),
            "le": little,
        }


def _follow(path: Path, query: Record, reader: _Reader) -> None:
    """Run to the end of a stretch, or to where the value meets its own."""
    machine, number = path.run.machine, reader.cpu
    for cpu, end in path.segments(query["to"]):
        while machine.tick < end and not (cpu == number and reader.settle()):
            begin = machine.tick
            path.run.advance(cpu, end, exact=True)
            if machine.tick == begin:
                break
        if cpu == number and reader.settle():
            return


def first_reader(path: Path, query: Record) -> Record:
    """What becomes in (from, to] of a register's value as it stands at `from`.

    {"outcome": "unread", "live"} where it stands at the end, with the pieces that still hold it;
    else the instruction that read it, that replaced it, or of which nobody knows.
    """
    path.goto(query["from"])
    reader = _Reader(path, int(query["cpu"]), str(query["register"]), int(query["live"]))
    _follow(path, query, reader)
    return reader.answer()


def last_writers(path: Path, query: Record) -> Record:
    """The last ticks of (from, to] at which a register may have been written, newest first.

    {"ticks": at most WRITERS_KEPT, "more": whether there were more}. With Unicorn's number of the
    register, if it has one, those are left out that alone in their block changed nothing.
    """
    path.goto(query["from"])
    register = str(query["register"])
    number, pieces = int(query["number"]), PIECES[register][1]
    reader = _Reader(path, int(query["cpu"]), register, pieces, number=number)
    reader.follow[WRITERS] = 1
    _follow(path, query, reader)
    count = int(reader.follow[WRITER_COUNT])
    kept = reader.follow[WRITERS_AT : WRITERS_AT + min(count, WRITERS_KEPT)]
    return {"ticks": sorted(kept.tolist(), reverse=True), "more": count > WRITERS_KEPT}


def pieces_of(register: object) -> int:
    """All pieces of a register.

    Raises:
        LimitError: it is none that can be followed.
    """
    if register == "nip":
        raise LimitError(
            "register 'nip'", hint="Every instruction reads and writes it: step instead."
        )
    if not isinstance(register, str) or register not in PIECES:
        raise LimitError(f"register {register!r}", hint="Ask for r0..r31, lr, ctr, cr, xer or msr.")
    return PIECES[register][1]


NOTES: Final = {
    "msr": "every instruction runs under the MSR; asked is who takes or replaces its value",
    "xer": "SO is read by every compare and record form",
}
"""What an answer about a register has to say of itself."""
