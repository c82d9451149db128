"""Questions that look through the run: who wrote this byte last, who reads it next, where from.

What it is: run in a process of its own, forked from the session's root, so that it can ask one
checkpoint after another and the root stays free. Which stretches can hold a write is known from the
pages written between checkpoints, so only those are replayed. What it is not: state of its own.
"""

from __future__ import annotations

import json
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from emulator.checkpoint import Checkpoints, error_document
from emulator.errors import BootflowError, LimitError, SessionError
from emulator.handoff import LOW_COPY_BYTES
from emulator.native import LOG_READ, LOG_WRITE
from emulator.ppc64 import GPRS, UC_REG_CR, UC_REG_CTR, UC_REG_GPR0, UC_REG_LR, UC_REG_MSR
from emulator.registers import NOTES, pieces_of
from emulator.run import Record, hex64
from emulator.spans import squeeze
from emulator.turnsearch import LEFT, begin_of_turn

MAX_LINKS: Final = 24
MAX_SPANS: Final = 2000
MAX_INSIDE: Final = 200
"""Pieces of code that are looked into one by one; of more, all between the first and the last."""
MAX_WRITERS: Final = 16
WRITERS_WINDOW: Final = 512
"""Windows, and instructions in each, that are looked through for a writer with an effect."""
MAX_TURN: Final = 1 << 60
JUST_BEFORE: Final = 1024
"""Instructions that are looked through before anything else."""
AT_ONCE: Final = 2
"""Stretches that one search has replayed at the same time."""
EXACT_TICKS: Final = 400_000
"""Until the census is complete, a stretch up to this long is replayed block by block, and a longer
one is told from the trail that was left once in 16,384 ticks while it ran."""
_SEARCHABLE: Final = {name: UC_REG_GPR0 + n for n, name in enumerate(GPRS)} | {
    "lr": UC_REG_LR,
    "ctr": UC_REG_CTR,
    "cr": UC_REG_CR,
    "msr": UC_REG_MSR,
}
"""Registers that a block hook can look at; XER lies in pieces."""
_NOT_FOUND: Final = {"found": False}


def answer_at_once(
    query: Record, low_writes: Sequence[Record], checkpoints: Checkpoints
) -> Record | None:
    """The answer that needs no replay: the last writer of low memory is an event of the trace."""
    if query["q"] != "last-write":
        return None
    lo, hi = _place(query)
    if hi > LOW_COPY_BYTES:
        return None
    for row in reversed(low_writes):
        at = int(row["addr"], 16)
        if row["tick"] <= query["tick"] and at < hi and lo < at + row["size"]:
            kept = ("tick", "cpu", "nip", "symbol", "addr", "size", "value")
            stage = checkpoints.stage_at(row["tick"], row["cpu"])
            said = {"found": True, "kind": "w", "old": None, "stage": stage}
            return checkpoints.with_line(said | {name: row[name] for name in kept})
    return dict(_NOT_FOUND)


def respond(query: Record, checkpoints: Checkpoints) -> Record:
    """Answer one search; errors come back as a document."""
    try:
        return SEARCHES[query["q"]](_Searcher(checkpoints), query)
    except BootflowError as error:
        return error_document(error)


def _place(query: Record) -> tuple[int, int]:
    """Physical [lo, hi) of a query's addr and size."""
    addr, size = query.get("addr"), query.get("size", 1)
    if type(addr) is not int or type(size) is not int or not (addr >= 0 and 1 <= size <= 4096):
        raise LimitError(
            f"addr {addr!r}, size {size!r}", hint="Give a physical address and 1..4096 bytes."
        )
    return addr, addr + size


class _Unchanged(Exception):
    """Many instructions wrote into a register what it held already."""

    def __init__(self, register: str, since: int) -> None:
        super().__init__(f"{register} was written many times since tick {since}, unchanged")
        self.since = since


class _Searcher:
    """Asks checkpoints and waits for their answers."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.all = checkpoints

    def ask(self, index: int, last_tick: int, query: Record) -> Record:
        """One question to one checkpoint."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.all.ask_at(index, last_tick, query, theirs.fileno())
            return self._hear(ours)

    def ask_anyone(self, query: Record) -> Record:
        """One question to the checkpoint that it begins at."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.all.ask(query, theirs.fileno())
            return self._hear(ours)

    @staticmethod
    def _hear(ours: socket.socket) -> Record:
        data = bytearray()
        while piece := ours.recv(1 << 16):
            data += piece
        if not data:
            raise SessionError("a checkpoint crashed while it searched", hint="Try again.")
        document: Record = json.loads(data)
        if "error" in document:
            raise SessionError(document["error"]["message"], hint=document["error"]["hint"])
        return document

    def stretches(self, upto: int) -> Iterator[tuple[int, int, int]]:
        """(checkpoint, from, to) of every stretch, the one that holds tick `upto` first."""
        standing = self.all.standing
        for index in range(self.all.index_at(upto), -1, -1):
            after = standing[index + 1].tick if index + 1 < len(standing) else self.all.reached
            yield index, standing[index].tick, min(after, upto)

    def may_write(self, index: int, lo: int, hi: int) -> bool:
        """Whether a page of [lo, hi) was written between a checkpoint and the next."""
        standing = self.all.standing
        if index + 1 >= len(standing):
            return True
        pages = standing[index + 1].pages
        return any(((pages >= lo >> 12) & (pages <= (hi - 1) >> 12)).tolist())

    def last_write(self, lo: int, hi: int, tick: int) -> Record:
        """The newest write to physical [lo, hi) at or before a tick."""
        wanted = [
            (index, end, self._hits(begin, end, lo, hi, LOG_WRITE, "last"))
            for index, begin, end in self.stretches(tick)
            if begin < end and self.may_write(index, lo, hi)
        ]
        for found in self._ahead(wanted):
            if found["accesses"]:
                return self._with_stage(found["accesses"][0])
        return dict(_NOT_FOUND)

    def _ahead(self, wanted: Sequence[tuple[int, int, Record]]) -> Iterator[Record]:
        """The answers to (checkpoint, last tick, question), in order; the next is always asked.

        So two stretches are searched at once; what is asked in vain ends with its process.
        """
        asked: deque[socket.socket] = deque()
        rest = iter(wanted)
        try:
            while True:
                for index, end, query in islice(rest, AT_ONCE - len(asked)):
                    asked.append(self._put(index, end, query))
                if not asked:
                    return
                with asked.popleft() as ours:
                    yield self._hear(ours)
        finally:
            for ours in asked:
                ours.close()

    def _put(self, index: int, last_tick: int, query: Record) -> socket.socket:
        """Ask one checkpoint; where its answer will come."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.all.ask_at(index, last_tick, query, theirs.fileno())
        return ours

    def _with_stage(self, row: Record) -> Record:
        return row | {"stage": self.all.stage_at(row["tick"], row["cpu"])}

    @staticmethod
    def _hits(begin: int, end: int, lo: int, hi: int, kinds: int, want: str) -> Record:
        query = {"q": "hits", "from": begin, "to": end, "lo": lo, "hi": hi}
        return query | {"kinds": kinds, "want": want}

    def next_access(self, lo: int, hi: int, tick: int, kinds: int) -> Record:
        """The first access of physical [lo, hi) after a tick."""
        standing = self.all.standing
        wanted = []
        for index in range(self.all.index_at(tick), len(standing)):
            last = index + 1 == len(standing)
            end = self.all.reached if last else standing[index + 1].tick
            begin = max(tick, standing[index].tick)
            if kinds == LOG_WRITE and not self.may_write(index, lo, hi):
                continue
            if begin < end:
                wanted.append((index, end, self._hits(begin, end, lo, hi, kinds, "first")))
        for found in self._ahead(wanted):
            if found["accesses"]:
                return self._with_stage(found["accesses"][0])
        return dict(_NOT_FOUND)

    def all_accesses(self, query: Record) -> Record:
        """Every access of physical [lo, hi) in ticks (from, to]."""
        lo, hi = int(query["lo"]), int(query["hi"])
        begin, end = int(query.get("from", 0)), int(query.get("to", self.all.reached))
        rows: list[Record] = []
        more = False
        kinds = int(query.get("kinds", LOG_READ | LOG_WRITE))
        wanted = [
            (index, last, self._hits(max(first, begin), last, lo, hi, kinds, "all"))
            for index, first, last in reversed(list(self.stretches(end)))
            if last > begin
        ]
        for found in self._ahead(wanted):
            rows += [self._with_stage(row) for row in found["accesses"]]
            more = found["more"] or len(rows) > MAX_SPANS
            if more:
                break
        return {"accesses": rows[:MAX_SPANS], "more": more}

    def register_write(self, cpu: int, register: str, tick: int) -> Record:
        """The last instruction at or before a tick that changed a register of a CPU.

        What ran just before is looked at first, then the register's writers, the last first. Where
        many of them changed nothing, the values at blocks are compared, which takes longer.
        """
        for step in reversed(self.window(tick, JUST_BEFORE)):
            if step["cpu"] == cpu and register in step["changed"]:
                return {"found": True, "register": register} | step
        try:
            return self._change_by_writers(cpu, register, tick)
        except _Unchanged as error:
            number = _SEARCHABLE.get(register)
            if number is None:
                raise LimitError(str(error), hint="Ask about an earlier tick.") from None
            return self._change_by_value(cpu, register, number, error.since)

    def _change_by_value(self, cpu: int, register: str, number: int, tick: int) -> Record:
        query = {"q": "register", "cpu": cpu, "register": number, "name": register}
        wanted = [
            (index, end, query | {"from": begin, "to": end})
            for index, begin, end in self.stretches(tick)
            if begin < end
        ]
        for n, found in enumerate(self._ahead(wanted)):
            if "again" in found:
                found = self._inside(wanted[n], found["again"])
            if found:
                step = self._step_that_changed(cpu, register, found["from"], found["to"])
                if step is not None:
                    return {"found": True, "register": register} | step
        return dict(_NOT_FOUND)

    def register_read(self, cpu: int, register: str, tick: int) -> Record:
        """What becomes of a register's value as it stands at a tick: who reads or replaces it?

        Pieces of CR and XER are followed one by one: a stretch hangs on what the last one left.
        """
        live, note = pieces_of(register), NOTES.get(register)
        said: Record = {"register": register} | ({"note": note} if note else {})
        ahead = self._stretches_of(cpu, tick)
        while ahead:
            wanted = [
                (index, end, {"q": "first-reader", "cpu": cpu, "register": register, "live": live}
                 | {"from": begin, "to": end})
                for index, begin, end in ahead
            ]  # fmt: skip
            for n, found in enumerate(self._ahead(wanted)):
                if found["outcome"] != "unread":
                    row = self._with_stage(found)
                    return {"found": found["outcome"] == "read"} | said | row
                if found["live"] != live:
                    live, ahead = found["live"], ahead[n + 1 :]
                    break
            else:
                ahead = []
        return _NOT_FOUND | {"outcome": "unread", "last_tick": self.all.reached} | said

    def _stretches_of(self, cpu: int, tick: int) -> list[tuple[int, int, int]]:
        """(checkpoint, from, to) of every stretch after a tick in which a CPU runs."""
        standing = self.all.standing
        out = []
        for index in range(self.all.index_at(tick), len(standing)):
            last = index + 1 == len(standing)
            end = self.all.reached if last else standing[index + 1].tick
            if end > tick and self._runs_in(cpu, index):
                out.append((index, max(tick, standing[index].tick), end))
        return out

    def _change_by_writers(self, cpu: int, register: str, tick: int) -> Record:
        """The last writer of a register that changed it.

        Raises:
            _Unchanged: MAX_WRITERS windows hold writers that changed nothing.
        """
        windows = 0
        for ticks in self._writers(cpu, register, tick):
            below = tick + 1
            for at in ticks:
                if at >= below:
                    continue
                if windows == MAX_WRITERS:
                    raise _Unchanged(register, at)
                windows, below = windows + 1, max(0, at - WRITERS_WINDOW) + 1
                for step in reversed(self.window(at, at - below + 1)):
                    if step["cpu"] == cpu and register in step["changed"]:
                        return {"found": True, "register": register} | step
        return dict(_NOT_FOUND)

    def _writers(self, cpu: int, register: str, tick: int) -> Iterator[list[int]]:
        """The ticks of a register's writers up to a tick, newest first, some at a time."""
        query = {"q": "last-writers", "cpu": cpu, "register": register}
        query["number"] = _SEARCHABLE.get(register, 0)
        wanted = [
            (index, end, query | {"from": begin, "to": end})
            for index, begin, end in self.stretches(tick)
            if begin < end and self._runs_in(cpu, index)
        ]
        for (index, _, asked), first in zip(wanted, self._ahead(wanted), strict=False):
            found = first
            yield found["ticks"]
            while found["more"] and found["ticks"][-1] - 1 > asked["from"]:
                end = found["ticks"][-1] - 1
                found = self.ask(index, end, asked | {"to": end})
                yield found["ticks"]

    def _runs_in(self, cpu: int, index: int) -> bool:
        """Whether a CPU has a slice between a checkpoint and the next."""
        standing = self.all.standing
        last = None if index + 1 == len(standing) else standing[index + 1].first_slice
        ran = self.all.slices[standing[index].first_slice : last]
        return any(number == cpu for number, _ in ran)

    def _inside(self, asked: tuple[int, int, Record], again: Sequence[list[int]]) -> Record:
        """Ask again about code that may have changed a register and changed it back."""
        index, end, query = asked
        if len(again) > MAX_INSIDE:
            again = [[min(lo for lo, _ in again), max(hi for _, hi in again)]]
        return self.ask(index, end, query | {"inside": again})

    def _step_that_changed(self, cpu: int, register: str, begin: int, end: int) -> Record | None:
        while begin < end:
            before = min(end - begin, 2048)
            steps = self.window(end, before)
            for step in reversed(steps):
                if step["cpu"] == cpu and register in step["changed"]:
                    return step
            end -= before
        return None

    def window(self, tick: int, before: int) -> list[Record]:
        """The instructions that retired up to a tick."""
        query = {"q": "window", "tick": tick, "before": before, "after": 0}
        return list(self.ask_anyone(query)["steps"])


# --- the chain behind a value ---------------------------------------------------------------------


def _chain(searcher: _Searcher, query: Record) -> Record:
    """Where a value came from: stored here, loaded there, copied ..., newest first."""
    tick, links = int(query["tick"]), list[Record]()
    place: tuple[int, int] | None = None
    cpu, register = query.get("cpu"), query.get("register")
    if "addr" in query:
        place = _place(query)
    while len(links) < MAX_LINKS:
        if place is not None:
            link, cpu, register = _link_of_memory(searcher, place, tick)
            place = None
        elif cpu is not None and register is not None:
            link, place, register = _link_of_register(searcher, int(cpu), str(register), tick)
        else:
            break
        links.append(link)
        if link["tick"] is None:
            break
        tick = link["tick"] - 1
    return {"links": links}


def _link_of_memory(
    searcher: _Searcher, place: tuple[int, int], tick: int
) -> tuple[Record, int | None, str | None]:
    """The store that put a value there, and the register that it came from."""
    lo, hi = place
    found = searcher.last_write(lo, hi, tick)
    if not found["found"]:
        link = {"what": "loader", "tick": None, "addr": hex64(lo), "size": hi - lo}
        return link | {"text": "in memory since tick 0"}, None, None
    step = searcher.window(found["tick"], 1)[-1]
    register = _stored_register(int(step["word"], 16))
    link = _link("stored", step) | {"addr": found["addr"], "size": found["size"]}
    return link | {"value": found["value"], "register": register}, step["cpu"], register


def _link_of_register(
    searcher: _Searcher, cpu: int, register: str, tick: int
) -> tuple[Record, tuple[int, int] | None, str | None]:
    """The instruction that set a register, and where its value came from."""
    found = searcher.register_write(cpu, register, tick)
    if not found["found"]:
        link = {"what": "start", "tick": None, "cpu": cpu, "register": register}
        return link | {"text": "as the CPU started at tick 0"}, None, None
    link = _link("computed", found) | {"register": register, "value": found["changed"][register][1]}
    reads = [access for access in found["memory"] if access["kind"] == "r"]
    if reads:
        addr, size = int(reads[0]["addr"], 16), reads[0]["size"]
        return (
            link | {"what": "loaded", "addr": hex64(addr), "size": size},
            (addr, addr + size),
            None,
        )
    source = _copied_register(int(found["word"], 16))
    if source is not None:
        return link | {"what": "copied", "from": source}, None, source
    return link, None, None


def _link(what: str, step: Record) -> Record:
    kept = ("tick", "cpu", "nip", "text", "symbol", "line", "stage")
    return {"what": what} | {name: step[name] for name in kept if name in step}


_STORES: Final = {36, 38, 44, 62, 37, 39, 45}
_STORES_31: Final = {151, 183, 215, 247, 407, 439, 149, 181, 662, 660, 918, 150, 214}


def _stored_register(word: int) -> str | None:
    """The general register that a store writes to memory, None for any other instruction."""
    primary = word >> 26
    if primary in _STORES or (primary == 31 and word >> 1 & 0x3FF in _STORES_31):
        return f"r{word >> 21 & 31}"
    return None


def _copied_register(word: int) -> str | None:
    """The one register that an instruction's result comes from, None if several or a constant."""
    primary, extended = word >> 26, word >> 1 & 0x3FF
    rt, ra, rb = word >> 21 & 31, word >> 16 & 31, word >> 11 & 31
    if primary in (14, 15):  # addi, addis
        return f"r{ra}" if ra else None
    if primary in (24, 25, 26, 27, 28, 29, 21, 30):  # ori .. andis., rotates
        return f"r{rt}"
    if primary != 31:
        return None
    if extended == 444 and rt == rb:  # mr
        return f"r{rt}"
    if extended == 339:  # mfspr
        return {8: "lr", 9: "ctr"}.get(ra)
    if extended == 467:  # mtspr
        return f"r{rt}"
    return f"r{rt}" if extended in (986, 954, 922) else None


def _last_write(searcher: _Searcher, query: Record) -> Record:
    return searcher.last_write(*_place(query), int(query["tick"]))


def _next_read(searcher: _Searcher, query: Record) -> Record:
    return searcher.next_access(*_place(query), int(query["tick"]), LOG_READ)


def _next_write(searcher: _Searcher, query: Record) -> Record:
    return searcher.next_access(*_place(query), int(query["tick"]), LOG_WRITE)


def _accesses(searcher: _Searcher, query: Record) -> Record:
    return searcher.all_accesses(query)


def _register_write(searcher: _Searcher, query: Record) -> Record:
    return searcher.register_write(*_register(searcher, query), int(query["tick"]))


def _register_read(searcher: _Searcher, query: Record) -> Record:
    return searcher.register_read(*_register(searcher, query), int(query["tick"]))


def _register(searcher: _Searcher, query: Record) -> tuple[int, str]:
    """CPU and register of a query."""
    cpu, register = query.get("cpu", 0), query.get("register")
    if type(cpu) is not int or not 0 <= cpu < searcher.all.cpus:
        raise LimitError(f"cpu {cpu!r}", hint=f"This machine has CPUs 0..{searcher.all.cpus - 1}.")
    pieces_of(register)
    return cpu, str(register)


def take_census(checkpoints: Checkpoints) -> None:
    """Have every stretch of the run noted in the census, in a process of its own."""
    searcher = _Searcher(checkpoints)
    for index, begin, end in reversed(list(searcher.stretches(checkpoints.reached))):
        if begin < end:
            query = {"q": "census", "from": begin, "to": end}
            if not searcher.ask(index, end, query)["fits"]:
                return
    checkpoints.census.finish()


def _functions(searcher: _Searcher, query: Record) -> Record:
    """The function that each CPU was in during [from, to), in at most 2,000 spans."""
    reached = searcher.all.reached
    begin, end = int(query.get("from", 0)), int(query.get("to", reached))
    width = int(query.get("width", 1000))
    if not (0 <= begin < end <= reached and 1 <= width <= MAX_SPANS):
        raise LimitError(
            f"from {begin}, to {end}, width {width}",
            hint=f"Give ticks within 0..{reached} and a width of 1..{MAX_SPANS}.",
        )
    per_cpu = min(width, MAX_SPANS // 2)
    rows = searcher.all.exact_spans(begin, end, per_cpu)
    exact = rows is not None or end - begin <= EXACT_TICKS
    if rows is None:
        if exact:
            query = {"q": "trail", "tick": end, "from": begin, "to": end}
            spans = searcher.ask_anyone(query)["spans"]
        else:
            spans = searcher.all.sampled_spans(begin, end)
        rows = squeeze(spans, begin, end, width, per_cpu)
    for row in rows:
        row["stage"] = searcher.all.stage_at((row["from"] + row["to"] + 1) // 2, row["cpu"])
    return {"from": begin, "to": end, "exact": exact, "spans": rows}


def _turn(searcher: _Searcher, query: Record) -> Record:
    """Where a turn of a loop that a CPU is in begins: {"found", "tick"}."""
    cpu, wanted, text = query.get("cpu"), query.get("turn"), str(query.get("head"))
    cpus = len(searcher.all.run.machine.cpus)
    if type(cpu) is not int or not 0 <= cpu < cpus or type(wanted) is not int or wanted < 1:
        raise LimitError(f"cpu {cpu!r}, turn {wanted!r}", hint="Give a CPU and a turn from 1.")
    if wanted > MAX_TURN or not re.fullmatch(r"0x[0-9a-f]{1,16}", text):
        raise LimitError(f"head {text[:20]}, turn {wanted}", hint=f"At most turn {MAX_TURN}.")
    head = int(text, 16)

    def entry_at(tick: int) -> tuple[int, int, int] | None:
        found = searcher.ask_anyone({"q": "standing", "tick": tick, "cpu": cpu})
        entries = [(turn, begun, since) for at, turn, begun, since in found["loops"] if at == head]
        return entries[-1] if entries else None

    here = int(query["tick"])
    entry = entry_at(here)
    if entry is None:
        raise SessionError(
            f"cpu {cpu} is in no loop at 0x{head:x} at tick {here}, or in its first turn",
            hint="Take a tick of its second turn.",
        )
    since = entry[2]

    def turn_at(tick: int) -> tuple[int, int]:
        entry = entry_at(tick)
        if entry is not None and entry[2] == since:
            return entry[0], entry[1]
        return (LEFT, tick) if tick > here else (1, since)

    begin = begin_of_turn(turn_at, since, here, searcher.all.reached, wanted)
    return dict(_NOT_FOUND) if begin is None else {"found": True, "tick": begin}


Search = Callable[[_Searcher, Record], Record]
SEARCHES: Final[dict[str, Search]] = {
    "last-write": _last_write,
    "next-read": _next_read,
    "next-write": _next_write,
    "accesses": _accesses,
    "register-write": _register_write,
    "register-read": _register_read,
    "chain": _chain,
    "functions": _functions,
    "turn": _turn,
}
