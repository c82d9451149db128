"""Going to what is looked for: the next access of a byte, and the search of a run.

`seek` is one step from a tick; `search_page` is a list. Low memory's writes and the flag's touches
are in the trace; any other place and the registers are asked of the session. No Flask, no markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app import pages, panels
from app.index import Run
from app.moments import AskAll, Json
from app.moves import STEPS, step
from app.story import Story, story
from app.view import BadView, View, parse
from emulator.errors import BootflowError, SessionError
from emulator.options import no_such_cpu
from emulator.records import check_answer
from emulator.trace import EVENT_KINDS, Event, TraceReader
from emulator.verdict import number

MAX_HITS = 200
SEEKS = ("last-write", "next-read", "previous", "next")
SEEK_TICKS = 1 << 24
"""How far the next access is looked for at once; then the search goes on from there."""
SEEK_ROUNDS = 8


class NotFound(BootflowError):
    """Nothing of what was looked for lies in that direction."""

    slug = "not-found"


def seek(told: Story, tick: int, view: View, what: str, ask_all: AskAll) -> int:
    """Return the tick of the access that was asked for.

    Args:
        told: the run's story.
        tick: where the reader stands.
        view: its `at` (and `cpu`) is what is followed.
        what: last-write, next-read, previous or next (access of either kind; not of a register).
        ask_all: asks the run's session.

    Raises:
        NotFound: there is no such access.
        SessionError: the session cannot say.
    """
    if what not in SEEKS:
        raise BadView(f"what={what[:20]!r}", hint=f"One of {', '.join(ASKED)}.")
    if view.register:
        return _of_register(tick, view, what, ask_all)
    if view.place is None:
        raise BadView("nothing is selected", hint="For example at=0x5c or at=r7&cpu=0.")
    addr, size = view.place
    if what == "last-write":
        known = [e.tick for e in told.low_writes if _touches(e, addr, size) and e.tick <= tick]
        found = known[-1] if known and addr + size <= panels.LOW_BYTES else None
        if found is None:
            found = _asked(ask_all, {"q": what, "tick": tick, "addr": addr, "size": size})
    elif what == "next-read":
        found = _asked(ask_all, {"q": what, "tick": tick, "addr": addr, "size": size})
    elif what == "next":
        found = _next_access(told, tick, addr, size, ask_all)
    else:
        found = _previous_access(told, tick, addr, size, ask_all)
    if found is None:
        raise NotFound(
            f"no {what.replace('-', ' ')}{' access' if what in ('next', 'previous') else ''} of "
            f"0x{addr:x} from tick {tick}",
            hint="The other direction may have one.",
        )
    return found


def _asked(ask_all: AskAll, question: Json) -> int | None:
    answer, problem = ask_all([question])[0]
    if problem:
        raise SessionError(problem)  # which says what to do next
    return int(answer["tick"]) if answer.get("found", True) and "tick" in answer else None


def _of_register(tick: int, view: View, what: str, ask_all: AskAll) -> int:
    """Return the tick of the last write of a register, or of its next read."""
    if what not in QUESTIONS:
        raise BadView(
            f"what={what[:20]!r} of a register", hint=f"One of {', '.join(QUESTIONS)}, or a byte."
        )
    answer = ask_register(tick, view, what, ask_all)
    if not answer.get("found"):
        said = register_lines(what, view.cpu or 0, view.register, tick, answer)
        raise NotFound(" ".join(said), hint="The other direction may have one.")
    return int(answer["tick"])


def ask_register(tick: int, view: View, what: str, ask_all: AskAll) -> Json:
    """Ask the session about the register that is followed."""
    question = {
        "q": QUESTIONS[what], "tick": tick, "cpu": view.cpu or 0, "register": view.register,
    }  # fmt: skip
    answer, problem = ask_all([question])[0]
    if problem:
        raise SessionError(problem)  # which says what to do next
    return answer


QUESTIONS = {"last-write": "register-write", "next-read": "register-read"}
"""What can be asked of a register, and what the session calls it."""


def register_lines(what: str, cpu: int, register: str, tick: int, answer: Json) -> tuple[str, ...]:
    """Say who wrote a register last, or what became of its value."""
    name = f"cpu {cpu} {register}"
    at = answer.get("tick")
    if what == "last-write":
        if at is None:
            return (f"{name}: not changed up to tick {tick}",)
        return (f"{name}: last changed at tick {at} by {_who(answer)}",)
    note = f"note: {panels.printable(str(answer['note']))}" if answer.get("note") else ""
    outcome, part = answer.get("outcome"), panels.printable(str(answer.get("part") or ""))
    if at is None:
        last = answer.get("last_tick", "?")
        said = f"{name}: its value at tick {tick} is not read up to the last tick, {last}"
    elif outcome == "read":
        said = f"{name}{f' ({part})' * bool(part)}: read at tick {at} by {_who(answer)}"
    elif outcome == "overwritten":
        said = f"{name}: overwritten unread at tick {at} by {_who(answer)}"
    else:
        said = (
            f"{name}: not known from tick {at} on; nobody knows what is touched by {_who(answer)}"
        )
    return (said, note) if note else (said,)


def _who(answer: Json) -> str:
    text = " ".join(str(answer.get("text") or "").split())
    by = f"{text} ({answer['by']})" if text and answer.get("by") else text or answer.get("by")
    return panels.printable(f"{by or '?'} at {answer.get('symbol') or answer.get('nip')}")


def turn_tick(told: Story, tick: int, cpu: int, head: int, turn: int, ask_all: AskAll) -> int:
    """Return where a turn of a loop begins that a CPU is in at a tick.

    Of a loop that was entered once the trace knows where it ends; there the session, which knows
    loops from their second turn on, is asked in its last turn.

    Raises:
        BadView: there is no such CPU.
        NotFound: this entry of the loop has not so many turns.
        SessionError: the session cannot say.
    """
    check_cpu(told, cpu)
    known = next(
        (
            line
            for line in told.loops
            if line.cpu == cpu and int(line.head, 16) == head and line.entries == 1
            if line.begin <= tick < line.end
        ),
        None,
    )
    name = f"the loop {known.name}" if known else f"the loop at 0x{head:x}"
    if known and turn > known.turns:
        raise NotFound(f"{name} that cpu {cpu} is in has {known.turns} turns, no turn {turn}")
    if known:
        tick = known.end - 1
    question = {"q": "turn", "tick": tick, "cpu": cpu, "head": f"0x{head:016x}", "turn": turn}
    found = _asked(ask_all, question)
    if found is None:
        raise NotFound(f"{name} that cpu {cpu} is in has no turn {turn} in this entry")
    return found


def check_cpu(told: Story, cpu: int | None) -> None:
    """Raise BadView if a run has no such CPU."""
    if cpu is not None and cpu not in told.lanes.stays:
        raise BadView(no_such_cpu(cpu, len(told.lanes.stays)), hint="CPUs are counted from 0.")


def _touches(event: Event, addr: int, size: int) -> bool:
    at = number(event.addr)
    return at is not None and at < addr + size and addr < at + (event.size or 1)


def _accesses(ask_all: AskAll, addr: int, size: int, lo: int, hi: int) -> list[int]:
    """Return the ticks of the accesses of a place in (lo, hi]."""
    question = {"q": "accesses", "lo": addr, "hi": addr + size, "from": lo, "to": hi}
    answer, problem = ask_all([question])[0]
    if problem:
        raise SessionError(problem)  # which says what to do next
    ticks = (int(row["tick"]) for row in answer.get("accesses", []))
    return sorted(tick for tick in ticks if lo < tick <= hi)


def _next_access(told: Story, tick: int, addr: int, size: int, ask_all: AskAll) -> int | None:
    lo, last, step = tick, told.lanes.last_tick, SEEK_TICKS
    for _ in range(SEEK_ROUNDS):
        if lo >= last:
            return None
        hi = min(lo + step, last)
        found = _accesses(ask_all, addr, size, lo, hi)
        if found:
            return found[0]
        lo, step = hi, step * 4
    return None


def _previous_access(told: Story, tick: int, addr: int, size: int, ask_all: AskAll) -> int | None:
    hi, step = tick - 1, SEEK_TICKS
    for _ in range(SEEK_ROUNDS):
        if hi <= 0:
            return None
        lo = max(hi - step, 0)
        found = _accesses(ask_all, addr, size, lo, hi)
        if found:
            return found[-1]
        hi, step = lo, step * 4
    return None


@dataclass(frozen=True)
class AnswerPage:
    """What a question or a step from a tick led to."""

    head: pages.Head
    tick: int
    what: str
    lines: tuple[str, ...]
    found: bool
    to: int | None
    """The tick of what was asked for, or of what happened instead."""
    view: View
    answer: Json
    """The session's, about a register."""


def answer_page(
    run: Run,
    reader: TraceReader,
    told: Story,
    tick: int,
    view: View,
    what: str,
    ask_all: AskAll,
) -> AnswerPage:
    """Answer a question about a byte or a register, or go one step.

    Args:
        run: its row of the index.
        reader: its trace.
        told: its story.
        tick: where the reader stands.
        view: what is followed, and which CPU is chosen.
        what: one of SEEKS or of `moves.STEPS`.
        ask_all: asks the run's session.

    Raises:
        BadView: that cannot be asked. SessionError: the session cannot say.
        NotFound: there is no such access or step.
    """
    found, lines, to, answer = _answered(reader, told, tick, view, what, ask_all)
    return AnswerPage(pages.head(run), tick, what, lines, found, to, view, answer)


def _answered(
    reader: TraceReader, told: Story, tick: int, view: View, what: str, ask_all: AskAll
) -> tuple[bool, tuple[str, ...], int | None, Json]:
    """Return whether there is what was asked for, what to say, the tick, the session's answer."""
    check_cpu(told, view.cpu)
    if what in STEPS:
        to = step(told, reader, tick, what, view.cpu)
        if to is None:
            whose = "" if view.cpu is None else f" of cpu {view.cpu}"
            raise NotFound(f"no {what.replace('-', ' ')}{whose} from tick {tick}")
        return True, (f"{what}: tick {to}",), to, {}
    if view.register and what in QUESTIONS:
        answer = ask_register(tick, view, what, ask_all)
        lines = register_lines(what, view.cpu or 0, view.register, tick, answer)
        return bool(answer.get("found")), lines, answer.get("tick"), answer
    to = seek(told, tick, view, what, ask_all)
    return True, (f"{what} of {view.at}: tick {to}",), to, {}


ASKED = (*SEEKS, *STEPS)
"""What the command line asks."""


def seek_document(
    reader: TraceReader, what: str, seen: Mapping[str, Any], ask: Callable[[Json], Json]
) -> Json:
    """Answer the command line: the same questions and steps as the page's.

    Args:
        reader: the trace.
        what: one of ASKED.
        seen: tick, at and cpu.
        ask: asks a session.

    Raises:
        BadView: that cannot be asked.
        SessionError: there is no session, or its answer is none.
    """
    told, tick, cpu = story(reader), seen["tick"], seen["cpu"]
    view = parse({"at": seen["at"], "cpu": "" if cpu is None else str(cpu)})
    if tick > told.lanes.last_tick:
        raise BadView(f"no tick {tick}; the last one is {told.lanes.last_tick}")

    def ask_all(questions: Sequence[Json]) -> list[tuple[Json, str]]:
        return [(check_answer(query["q"], ask(query)), "") for query in questions]

    try:
        found, lines, to, answer = _answered(reader, told, tick, view, what, ask_all)
    except NotFound as exc:
        found, lines, to, answer = False, (exc.message,), None, {}
    said = {"from": tick, "what": what, "at": view.at, "cpu": cpu, "found": found, "tick": to}
    return said | {"lines": list(lines), "answer": answer}


@dataclass(frozen=True)
class Hit:
    """One thing that was found."""

    tick: int
    cpu: int | None
    letter: str
    kind: str
    text: str
    symbol: str
    line: str = ""
    """`file:line`, of accesses that the session has found."""


@dataclass(frozen=True)
class SearchPage:
    """What a search found, by tick."""

    head: pages.Head
    words: str
    meaning: str
    """How the words were understood."""
    hits: tuple[Hit, ...]
    more: bool
    last_tick: int
    problem: str = ""
    at: str = ""
    """The place that was asked for, to go on following it."""
    also: str = ""
    """The same question about the same offset of the kernel where it was loaded."""


_ACCESS = re.compile(
    r"(?:all\s+|first\s+)?(writes?|reads?|accesses|access)\s+(?:to\s+|of\s+|at\s+)?"
    r"(0x[0-9a-f]{1,16})(?:\+([1248]))?\Z"
)
_FIRST = re.compile(
    r"(?:first\s+(?:time\s+)?)?(?:nip|pc)\s*==?\s*(\S+)\Z|first\s+(?:time\s+)?(\S+)\Z",
    re.IGNORECASE,
)


def search_page(
    run: Run, reader: TraceReader, told: Story, words: str, ask_all: AskAll
) -> SearchPage:
    """Search a run for a symbol, an address, a tick, a kind of event or any words of one."""
    low = words.lower()
    access, problem, at, also = _ACCESS.match(low), "", "", ""
    first = _FIRST.match(words)
    hits: list[Hit]
    if not words:
        meaning, hits = "nothing was asked for", []
    elif access:
        meaning, hits, problem = _find_accesses(told, access, ask_all)
        at = f"{access[2]}+{access[3]}" if access[3] else access[2]
        also = _in_kernel(told, access)
    elif re.fullmatch(r"[0-9][0-9,_]*", words):
        meaning, hits = _find_tick(told, int(re.sub("[,_]", "", words)))
    elif low in EVENT_KINDS:
        meaning = f"events of kind {low}"
        hits = list(_events(told, lambda row: row.kind == low))
    elif first:
        meaning, hits = _find_symbol(reader, told, (first[1] or first[2]), only_first=True)
    elif re.fullmatch(r"0x[0-9a-f]{1,16}", low):
        meaning, hits = _find_address(reader, told, int(low, 16))
    else:
        meaning, hits = _find_symbol(reader, told, words, only_first=False)
    hits.sort(key=lambda hit: hit.tick)
    return SearchPage(
        pages.head(run), panels.printable(words), panels.printable(meaning),
        tuple(hits[:MAX_HITS]), len(hits) > MAX_HITS, told.lanes.last_tick, problem, at,
        also,
    )  # fmt: skip


def _hit(row: panels.EventRow) -> Hit:
    return Hit(row.tick, row.cpu, row.letter, row.kind, row.text, row.symbol)


def _events(told: Story, fits: Callable[[panels.EventRow], bool]) -> Iterator[Hit]:
    return (_hit(row) for row in told.rows if fits(row))


def _find_tick(told: Story, tick: int) -> tuple[str, list[Hit]]:
    if tick > told.lanes.last_tick:
        return f"tick {tick:,}: the run ends at {told.lanes.last_tick:,}", []
    stay = told.lanes.at(told.boot_cpu, tick)
    hit = Hit(
        tick, told.boot_cpu, stay.letter if stay else "", "tick", stay.name if stay else "", ""
    )
    return f"tick {tick:,}", [hit]


def _find_accesses(
    told: Story, match: re.Match[str], ask_all: AskAll
) -> tuple[str, list[Hit], str]:
    """Find reads or writes of a place: low memory's writes are in the trace, the rest is asked."""
    verb, addr, size = match[1][:4], int(match[2], 16), int(match[3] or 1)
    what = {"writ": "writes", "read": "reads"}.get(verb, "accesses")
    meaning = f"{what} of 0x{addr:x}" + (f", {size} bytes" if size > 1 else "")
    if what == "writes" and addr + size <= panels.LOW_BYTES:
        hits = [
            Hit(
                e.tick, e.cpu, told.lanes.letter_of(e.cpu, e.tick), "write",
                f"0x{number(e.addr) or 0:x} <- {_value(e.value)}", panels.printable(e.symbol),
            )
            for e in told.low_writes
            if _touches(e, addr, size)
        ]  # fmt: skip
        return meaning, hits, ""
    question = {
        "q": "accesses", "lo": addr, "hi": addr + size, "from": 0, "to": told.lanes.last_tick,
    }  # fmt: skip
    answer, problem = ask_all([question])[0]
    hits = []
    for row in answer.get("accesses", []):
        kind = "write" if row.get("kind") == "w" else "read"
        if what == "accesses" or what == f"{kind}s":
            arrow = "<-" if kind == "write" else "is"
            tick, cpu = int(row["tick"]), int(row.get("cpu") or 0)
            text = f"0x{number(row.get('addr')) or 0:x} {arrow} {_value(row.get('value'))}"
            symbol = panels.printable(str(row.get("symbol") or ""))
            line = panels.printable(str(row.get("line") or ""))
            letter = told.lanes.letter_of(cpu, tick)
            hits.append(Hit(tick, cpu, letter, kind, text, symbol, line))
    if answer.get("more"):
        meaning += "; there are more than the session lists"
    return meaning, hits, problem


def _in_kernel(told: Story, match: re.Match[str]) -> str:
    """Return the question for the loaded kernel's own copy of a place in low memory; "" if none.

    The flag that the kernel reads is the one at its own 0x5c, not at real 0x5c.
    """
    addr = int(match[2], 16)
    if not told.kernel_addr or addr >= panels.LOW_BYTES:
        return ""
    size = f"+{match[3]}" if match[3] else ""
    return f"{match[1]} to 0x{told.kernel_addr + addr:x}{size}"


def _value(value: object) -> str:
    return "?" if value is None else f"0x{number(value) or 0:x}"


def _find_address(reader: TraceReader, told: Story, addr: int) -> tuple[str, list[Hit]]:
    """Find events that touch an address or happened at it."""
    hits = []
    for event in reader.events(limit=100_000):
        if _touches(event, addr, 1) or (number(event.nip) == addr):
            rows = panels.event_rows([event], told.lanes, told.kernel_addr)
            hits += [_hit(row) for row in rows]
    return f"events at 0x{addr:x}, as NIP or as data", hits


def _find_symbol(
    reader: TraceReader, told: Story, words: str, *, only_first: bool
) -> tuple[str, list[Hit]]:
    """Find a symbol where the trace names one, or any words of an event or of the console."""
    low = words.lower()
    hits = list(_events(told, lambda row: low in f"{row.kind} {row.text} {row.symbol}".lower()))
    hits += [
        Hit(
            line.tick, line.cpu, told.lanes.letter_of(line.cpu, line.tick), "console", line.text, ""
        )
        for line in told.console
        if low in line.text.lower()
    ]
    hits += _samples(reader, told, low, hits)
    if only_first:
        named = [hit for hit in hits if hit.symbol.lower().split("+")[0] == low]
        hits = sorted(named or hits, key=lambda hit: hit.tick)[:1]
        return f"first time that the trace names {words}", hits
    return f"{words}: in symbols, events and console", hits


def _samples(reader: TraceReader, told: Story, low: str, found: Iterable[Hit]) -> list[Hit]:
    """Find a symbol in the ends of slices; the first of each CPU and function is enough."""
    seen = {(hit.cpu, hit.symbol.split("+")[0]) for hit in found}
    hits = []
    for item in reader.slices():
        name = item.symbol.split("+")[0]
        if low in name.lower() and (item.cpu, name) not in seen:
            seen.add((item.cpu, name))
            tick = item.tick + item.ticks
            letter = told.lanes.letter_of(item.cpu, tick)
            hits.append(
                Hit(tick, item.cpu, letter, "seen", "where a slice of this CPU ends",
                    panels.printable(item.symbol))
            )  # fmt: skip
        if len(hits) >= MAX_HITS:
            break
    return hits
