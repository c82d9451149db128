"""Loops, found while they run: from the blocks that each CPU executes, with their exact counts.

What it is: compiled code that `native.on_block` calls where a block is not the next of a straight
line, over one int64 array. A branch backwards to T from B, within one call of a function, makes
[T, B] a loop; each further branch to T is a turn; it ends when control leaves [T, B] otherwise than
by a call. A loop in a loop is one row of the outer one, however often it is entered. What it is
not: a look at the code of an image: what never branches backwards is no loop, whatever its shape.

All of it follows from the instructions that retired and from nothing else: not from where blocks
are cut, where slices end or when rows are taken. So a record and its replay find the same loops,
and at a tick every fork of a checkpoint knows the same turn.

Source: Tubella and Gonzalez, "Control Speculation in Multithreaded Processors through Dynamic Loop
Detection" (HPCA 1998): the stack of loops; Power ISA 3.1 Book I, opcode maps (branches).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from emulator.compiled import njit
from emulator.loopkinds import in_order, kind_at
from emulator.options import MAX_CPUS

MIN_TICKS: Final = 128
MIN_KERNEL_TICKS: Final = 16_384
"""Instructions that a loop must have retired in all to be told of; at 0xc000... more, for the code
there is the new kernel's own business, and has hundreds of thousands of small loops."""
MIN_TURNS: Final = 3
MAX_DEPTH: Final = 16
"""Loops within one another, through calls too; what is deeper counts as body."""
MAX_NEST: Final = 256
"""Rows of one CPU that are not yet told of."""
FLUSH_AT: Final = 128
MAX_OUT: Final = 4096
STOP_AT: Final = MAX_OUT - 2 * MAX_NEST
"""Rows after which the CPU stops for them to be taken."""

# Slots of the CPU that runs; the same of the others lie in their areas.
PC, TICK, EXIT, TOP, TAIL, TURNS, BEGUN = 0, 1, 2, 3, 4, 5, 6
"""A straight line of instructions: where it begins, and the tick before its first. Of the innermost
loop: the address behind which control has left it (NEVER while it runs a function that it called),
T, B, the turns of this entry, and the tick at which the last of them began."""
_DEPTH, HEIGHT, ROWS, BASE = 7, 8, 9, 10
"""Calls minus returns; loops that are open; rows; the first row of the nest that is open."""
INTERRUPTED: Final = 11  # the next instruction is a handler's
OWN_SLOTS: Final = 12
CPU, OUT_COUNT, _FLUSHES, ALL = 12, 13, 14, 15
"""Who runs (-1: none yet); rows told of, in how many goes; small ones are told of too."""
CPUS: Final = 16

# Slots of a CPU's area, behind its own of the above.
_LEFT, _FOREIGN = 12, 13  # tick at which it last stopped; ticks of others until it ran again
_CALLS: Final = 64
_CALLED: Final = 14  # of the function at each depth, modulo 64: tick of its call
_BACK: Final = _CALLED + _CALLS  # and where it is to come back to
FRAMES: Final = _BACK + _CALLS
T, B, _AT, _ROW, COUNT, SINCE, _OWN, LATEST = 0, 1, 2, 3, 4, 5, 6, 7  # slots of a frame
FRAME: Final = 8
NEST: Final = FRAMES + FRAME * MAX_DEPTH
PARENT, HEAD, LAST, FROM, TO, TICKS, TURN, ENTRY, KIND = 0, 1, 2, 3, 4, 5, 6, 7, 8
_ROW_SLOTS: Final = 9
AREA: Final = NEST + _ROW_SLOTS * MAX_NEST

_LINES: Final = CPUS + AREA * MAX_CPUS  # of lines that have run, by the address of their begin
_LINES_MAX: Final = 4096
_BEGIN, _AGO, _WORDS, _AWAY = 0, 1, 2, 3  # begin and CPU, its tick, length, _FOREIGN at that time
_LINE: Final = 4
_KINDS: Final = _LINES + _LINE * _LINES_MAX  # (address of a branch, word | code << 32), by address
_KINDS_MAX: Final = 1024
OUT: Final = _KINDS + 2 * _KINDS_MAX
OUT_SLOTS: Final = 3 + _ROW_SLOTS  # which flush, cpu, index of the row, then the row
SLOTS: Final = OUT + OUT_SLOTS * MAX_OUT

NEVER: Final = 1 << 62
_LOOK_BACK: Final = 64
"""Words before T at which the line that first ran into it may have begun."""
_EA_MASK: Final = 0x0FFFFFFFFFFFFFFF

QUIET, FULL, UNKNOWN = 0, 1, 2
_OTHER, _JUMP, _CALL, _RETURN, _TO_CTR = 1, 2, 3, 4, 5
_LITTLE_ENDIAN: Final = 8
_LITTLE, _BIG = -1, -2  # a row's kind while it is not known: the byte order that it ran with


@njit(cache=True, inline="always")
def follow(t: Any, words: Any, cpu: int, tick: int, address: int) -> int:
    """Take note of a block that is about to run, if it is not the next of its line.

    Args:
        t: the array, SLOTS of int64.
        words: RAM as uint32.
        cpu: who runs it.
        tick: before its first instruction.
        address: its first instruction, signed.

    Returns:
        QUIET; FULL: rows must be taken before it runs; UNKNOWN: `learn` what the word before is,
        and call again.
    """
    if t[CPU] != cpu:
        _switch(t, cpu, tick)
    at = CPUS + AREA * cpu
    behind = t[PC] + 4 * (tick - t[TICK])
    if address != behind and t[PC] != -1:
        code = _OTHER if t[INTERRUPTED] else _code(t, words, behind - 4)
        if code == 0:
            return UNKNOWN
        _end_line(t, at, cpu, behind)
        _taken(t, words, at, cpu, tick, code, behind - 4, address)
        t[PC], t[TICK] = address, tick
    elif address != behind:
        t[PC], t[TICK] = address, tick
    elif address > t[EXIT]:
        _leave(t, words, at, tick, address)
    t[INTERRUPTED] = 0
    return FULL if t[OUT_COUNT] >= STOP_AT else QUIET


@njit(cache=True, inline="always")
def _end_line(t: Any, at: int, cpu: int, behind: int) -> None:
    """Remember a line that has run, up to `behind`."""
    begin = t[PC]
    line = _LINES + _LINE * (((begin >> 2) + 251 * cpu) & (_LINES_MAX - 1))
    t[line + _BEGIN] = begin ^ (cpu << 56)
    t[line + _AGO] = t[TICK]
    t[line + _WORDS] = (behind - begin) >> 2
    t[line + _AWAY] = t[at + _FOREIGN]


@njit(cache=True)
def _switch(t: Any, cpu: int, tick: int) -> None:
    """Another CPU runs."""
    last = t[CPU]
    if last >= 0:
        behind = t[PC] + 4 * (tick - t[TICK])
        area = CPUS + AREA * last
        _end_line(t, area, last, behind)
        t[PC] = behind
        for n in range(OWN_SLOTS):
            t[area + n] = t[n]
        t[area + _LEFT] = tick
    area = CPUS + AREA * cpu
    for n in range(OWN_SLOTS):
        t[n] = t[area + n]
    t[area + _FOREIGN] += tick - t[area + _LEFT]
    t[TICK] = tick
    t[CPU] = cpu


@njit(cache=True, inline="always")
def _code(t: Any, words: Any, source: int) -> int:
    """What the instruction at an address does, and its byte order; 0 if that is not known yet."""
    real = (source & _EA_MASK) >> 2
    if real >= len(words):
        return _OTHER
    slot = _KINDS + 2 * ((source >> 2) & (_KINDS_MAX - 1))
    if t[slot] == source and t[slot + 1] & 0xFFFFFFFF == words[real]:
        code: int = t[slot + 1] >> 32
        return code
    return 0


@njit(cache=True)
def learn(t: Any, words: Any, tick: int, little: bool) -> None:
    """Find out what the instruction is that a CPU ran last; `follow` returned UNKNOWN."""
    source = t[PC] + 4 * (tick - t[TICK]) - 4
    raw = np.int64(words[(source & _EA_MASK) >> 2])
    word = in_order(raw, little)
    slot = _KINDS + 2 * ((source >> 2) & (_KINDS_MAX - 1))
    t[slot] = source
    t[slot + 1] = raw | (_branch_kind(word) | (_LITTLE_ENDIAN if little else 0)) << 32


@njit(cache=True)
def _branch_kind(word: int) -> int:
    """Power ISA 3.1 Book I 2.4 (branches), Book III 4.3 (rfid and its like)."""
    primary, extended, link = word >> 26, word >> 1 & 0x3FF, word & 1
    if primary == 16 or primary == 18:
        return _CALL if link else _JUMP
    if primary == 19 and (extended == 528 or extended == 560):
        return _CALL if link else _TO_CTR
    if primary == 19 and extended == 16:
        return _CALL if link else _RETURN
    if primary == 19 and (extended == 18 or extended == 274 or extended == 82):
        return _RETURN
    return _OTHER


@njit(cache=True, inline="always")
def _taken(
    t: Any, words: Any, at: int, cpu: int, tick: int, code: int, source: int, target: int
) -> None:
    """Control went from one place to another."""
    kind = code & 7
    depth = t[_DEPTH]
    if kind in (_OTHER, _CALL):  # an interrupt is a call that rfid returns from
        depth += 1
        t[_DEPTH] = depth
        t[at + _CALLED + (depth & (_CALLS - 1))] = tick
        t[at + _BACK + (depth & (_CALLS - 1))] = source + 4
        t[EXIT] = NEVER
        return
    if kind == _RETURN or (kind == _TO_CTR and target == t[at + _BACK + (depth & (_CALLS - 1))]):
        t[_DEPTH] = depth - 1
        _leave(t, words, at, tick, target)
        return
    height = t[HEIGHT]
    for n in range(height - 1, -1, -1):
        frame = at + FRAMES + FRAME * n
        if t[frame + _AT] != depth:
            break
        if t[frame + T] == target:
            while t[HEIGHT] > n + 1:
                _pop(t, words, at, tick)
            t[TURNS] += 1
            t[BEGUN] = tick
            if source > t[TAIL]:
                t[TAIL] = t[EXIT] = source
            return
    _leave(t, words, at, tick, target)
    if target <= source and kind != _RETURN:
        _push(t, words, at, cpu, tick, source, target, code >> 3)


@njit(cache=True, inline="always")
def _leave(t: Any, words: Any, at: int, tick: int, target: int) -> None:
    """End every loop that control has left by going to `target`."""
    while t[HEIGHT]:
        frame = at + FRAMES + FRAME * (t[HEIGHT] - 1)
        depth = t[_DEPTH]
        if t[frame + _AT] < depth:
            t[EXIT] = NEVER
            return
        if t[frame + _AT] == depth and t[frame + T] <= target <= t[TAIL]:
            t[EXIT] = t[TAIL]
            return
        _pop(t, words, at, tick)
    t[EXIT] = NEVER


@njit(cache=True)
def _pop(t: Any, words: Any, at: int, tick: int) -> None:
    """The innermost loop has ended."""
    height = t[HEIGHT] - 1
    frame = at + FRAMES + FRAME * height
    row = at + NEST + _ROW_SLOTS * t[frame + _ROW]
    t[row + LAST] = max(t[row + LAST], t[TAIL])
    t[row + TURN] += t[TURNS]
    t[row + TICKS] += tick - t[at + _FOREIGN] - t[frame + _OWN]
    t[row + TO] = tick
    if t[row + TICKS] >= MIN_TICKS:  # while its code is still there
        _judge(t, words, row)
    t[HEIGHT] = height
    t[TOP] = t[TAIL] = -1
    if height:
        frame -= FRAME
        t[TOP] = t[frame + T]
        t[TAIL] = t[frame + B]
        t[TURNS] = t[frame + COUNT]
        t[BEGUN] = t[frame + LATEST]


@njit(cache=True)
def _judge(t: Any, words: Any, row: int) -> None:
    """Say what a loop does, once."""
    if t[row + KIND] < 0:
        first, count = (t[row + HEAD] & _EA_MASK) >> 2, (t[row + LAST] - t[row + HEAD]) >> 2
        t[row + KIND] = kind_at(words, first, count + 1, t[row + KIND] == _LITTLE)


@njit(cache=True)
def _push(
    t: Any, words: Any, at: int, cpu: int, tick: int, source: int, target: int, little: int
) -> None:
    """A branch backwards that no loop knows: a loop whose second turn begins."""
    height = t[HEIGHT]
    if height == MAX_DEPTH:
        return
    parent = np.int64(-1)
    if height:
        frame = at + FRAMES + FRAME * (height - 1)
        parent = t[frame + _ROW]
        t[frame + B] = t[TAIL]
        t[frame + COUNT] = t[TURNS]
        t[frame + LATEST] = t[BEGUN]
    since, away = t[TICK] + ((target - t[PC]) >> 2), t[at + _FOREIGN]
    if target < t[PC]:  # the first turn was more than the line that ends here
        line = _first_turn(t, at, cpu, target)
        if line < 0:  # it was jumped into, or is no loop: T is known when it comes back once more
            return
        since = t[line + _AGO] + ((target - (t[line + _BEGIN] ^ (cpu << 56))) >> 2)
        away = t[line + _AWAY]
    if not height:
        older = _older(t, at, since)
        if t[ROWS] > FLUSH_AT:
            _flush(t, words, at, cpu, older)
            older = 0
        t[BASE] = older
    index = _row_of(t, at, parent, target, since)
    if index < 0:
        return
    row = at + NEST + _ROW_SLOTS * index
    turns = 2
    if not t[row + ENTRY]:
        t[row + FROM] = since
        t[row + KIND] = _LITTLE if little else _BIG
    elif since < t[row + TO]:  # that was a turn of the entry before: this one begins here
        since, away, turns = tick, t[at + _FOREIGN], 1
    t[row + ENTRY] += 1
    frame = at + FRAMES + FRAME * height
    t[frame + T] = target
    t[frame + _AT] = t[_DEPTH]
    t[frame + _ROW] = index
    t[frame + SINCE] = since
    t[frame + _OWN] = since - away
    t[HEIGHT] = height + 1
    t[TOP], t[TAIL], t[TURNS], t[EXIT] = target, source, turns, source
    t[BEGUN] = tick


@njit(cache=True)
def _first_turn(t: Any, at: int, cpu: int, target: int) -> int:
    """The line in which this call of a function came to T last; -1 if none is remembered."""
    latest = t[at + _CALLED + (t[_DEPTH] & (_CALLS - 1))] - 1
    found = -1
    for back in range(_LOOK_BACK):
        begin = target - 4 * back
        line = _LINES + _LINE * (((begin >> 2) + 251 * cpu) & (_LINES_MAX - 1))
        if t[line + _BEGIN] == begin ^ (cpu << 56) and t[line + _WORDS] > back:
            came = t[line + _AGO] + back
            if came > latest:  # those of an older call are not of this loop
                latest, found = came, line
    return found


@njit(cache=True)
def _older(t: Any, at: int, since: int) -> int:
    """How many rows are of loops that had ended before a tick; the others are the last ones."""
    count = int(t[ROWS])
    while count and t[at + NEST + _ROW_SLOTS * (count - 1) + FROM] >= since:
        count -= 1
    return count


@njit(cache=True)
def _row_of(t: Any, at: int, parent: int, target: int, since: int) -> int:
    """The row of a loop within its parent, made if it is new; -1 if there is no room.

    A new row takes in those that ended since its first turn began: they belong to that turn.
    """
    count: int = t[ROWS]
    if parent >= 0:
        index: int = _find(t, at, count, parent, target)
        if index >= 0:
            _take_in(t, at, parent, index, since)
            return index
    if count == MAX_NEST:
        return -1
    for index in range(_older(t, at, since), count):
        row = at + NEST + _ROW_SLOTS * index
        if t[row + PARENT] == parent:
            t[row + PARENT] = count
    row = at + NEST + _ROW_SLOTS * count
    for n in range(_ROW_SLOTS):
        t[row + n] = 0
    t[row + PARENT] = parent
    t[row + HEAD] = t[row + LAST] = target
    t[ROWS] = count + 1
    return count


@njit(cache=True)
def _find(t: Any, at: int, count: int, parent: int, head: int) -> int:
    """The row among the first `count` of a loop within a parent; -1 if there is none."""
    for index in range(t[BASE], count):
        row = at + NEST + _ROW_SLOTS * index
        if t[row + PARENT] == parent and t[row + HEAD] == head:
            return index
    return -1


@njit(cache=True)
def _take_in(t: Any, at: int, parent: int, index: int, since: int) -> None:
    """Rows made since the first turn of a further entry began belong to that turn: they join it."""
    first = max(_older(t, at, since), index + 1)
    for n in range(first, t[ROWS]):
        row = at + NEST + _ROW_SLOTS * n
        if t[row + PARENT] == parent:
            t[row + PARENT] = index
    n = first
    while n < t[ROWS]:
        row = at + NEST + _ROW_SLOTS * n
        same = _find(t, at, n, t[row + PARENT], t[row + HEAD])
        if same < 0:
            n += 1
            continue
        _join(t, at + NEST + _ROW_SLOTS * same, row)
        _remove(t, at, first, n, same)
        n = first  # its rows have another parent now, and may be another's equals


@njit(cache=True)
def _join(t: Any, row: int, other: int) -> None:
    """Add what a row counts to another of the same loop."""
    t[row + LAST] = max(t[row + LAST], t[other + LAST])
    t[row + FROM] = min(t[row + FROM], t[other + FROM])
    t[row + TO] = max(t[row + TO], t[other + TO])
    t[row + TICKS] += t[other + TICKS]
    t[row + TURN] += t[other + TURN]
    t[row + ENTRY] += t[other + ENTRY]


@njit(cache=True)
def _remove(t: Any, at: int, first: int, gone: int, heir: int) -> None:
    """Take a row out; its children, all from `first` on, become those of `heir`."""
    count = t[ROWS]
    for n in range(first, count):
        row = at + NEST + _ROW_SLOTS * n
        if t[row + PARENT] == gone:
            t[row + PARENT] = heir
        if t[row + PARENT] > gone:
            t[row + PARENT] -= 1
        if n > gone:
            for slot in range(_ROW_SLOTS):
                t[row - _ROW_SLOTS + slot] = t[row + slot]
    t[ROWS] = count - 1


@njit(cache=True)
def _flush(t: Any, words: Any, at: int, cpu: int, count: int) -> None:
    """Tell of the first rows, none of which is open; the others move down."""
    for index in range(count):
        row = at + NEST + _ROW_SLOTS * index
        enough = MIN_TICKS if t[row + HEAD] >= 0 else MIN_KERNEL_TICKS
        if t[ALL]:
            enough = 1
        if t[row + TICKS] < enough or t[row + TURN] < MIN_TURNS:
            continue
        _judge(t, words, row)
        out = OUT + OUT_SLOTS * t[OUT_COUNT]
        t[OUT_COUNT] += 1
        t[out] = t[_FLUSHES]
        t[out + 1] = cpu
        t[out + 2] = index
        for n in range(_ROW_SLOTS):
            t[out + 3 + n] = t[row + n]
    t[_FLUSHES] += 1
    rest = t[ROWS] - count
    for index in range(rest if count else 0):
        row = at + NEST + _ROW_SLOTS * index
        for n in range(_ROW_SLOTS):
            t[row + n] = t[row + _ROW_SLOTS * count + n]
        t[row + PARENT] = max(t[row + PARENT] - count, -1)
    t[ROWS] = rest


@njit(cache=True)
def close(t: Any, words: Any, tick: int, cpu: int) -> None:
    """The run has ended at a tick: every loop of a CPU that is open ends where it last stopped."""
    area = CPUS + AREA * cpu
    _switch(t, cpu, tick)
    ended = t[area + _LEFT]
    while t[HEIGHT]:
        _pop(t, words, area, tick)
    for index in range(t[ROWS]):
        row = area + NEST + _ROW_SLOTS * index
        if t[row + TO] == tick:
            t[row + TO] = ended
    _flush(t, words, area, cpu, t[ROWS])
