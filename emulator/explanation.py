"""Why the flag is what it is: the deciding branches, in sentences with the ticks that show them.

What it is: `explain` looks with the queries of a session at a few instructions around the flag's
write, the branch that skipped it, and the kernel's reads, and says what was compared with what and
where both came from. What it is not: a judgement (`rules`), or a guess: every sentence is made of
instructions that ran and of values that registers held.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from emulator.evidence import EA_MASK, Evidence, Touch, number
from emulator.handoff import LOW_COPY_BYTES
from emulator.rules import flag_text

Step = Mapping[str, Any]
Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Asks a session: {"q": "window" | "state" | "register-write", ...} -> its reply."""

WINDOW_BEFORE: Final = 400
SKIP_BYTES: Final = 128
"""A branch that leaves out more than this is no `skip the store` any more."""
_STORES: Final = {36: 4, 37: 4, 38: 1, 44: 2, 62: 8}
_NOT_SET: Final = ("st", "cmp", "mt", "dcb", "icb", "tw", "td", "b")


@dataclass(frozen=True)
class Part:
    """A piece of a sentence; with a tick it is a link to that moment."""

    text: str
    tick: int | None = None


@dataclass(frozen=True)
class Sentence:
    """One explanation."""

    kind: str
    """skipped, stored, relocate or copy."""
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The sentence without its links."""
        return "".join(part.text for part in self.parts)

    @property
    def tick(self) -> int | None:
        """The moment of the branch, or of the store."""
        return next((part.tick for part in self.parts if part.tick is not None), None)


def explain(seen: Evidence, ask: Ask) -> tuple[Sentence, ...]:
    """The sentences on a run's flag, the most telling one first."""
    teller = _Teller(seen, ask)
    return tuple(s for s in (teller.skipped(), teller.stored(), *teller.decided()) if s is not None)


class _Teller:
    def __init__(self, seen: Evidence, ask: Ask) -> None:
        self.seen, self._ask = seen, ask

    # --- the three tales ----------------------------------------------------------------------

    def skipped(self) -> Sentence | None:
        """The branch before the kernel's entry that left out a store to the flag."""
        seen, entry = self.seen, self.seen.entered("kernel")
        if entry is None or seen.flag is None or seen.flag_writes:
            return None
        steps = self._window(entry.tick, WINDOW_BEFORE, 0, seen.boot_cpu)
        for index in range(len(steps) - 2, 0, -1):
            if not _jumps_ahead(steps[index], steps[index + 1]):
                continue
            state = self._ask({"q": "state", "tick": steps[index]["tick"] - 1})
            store = self._store_between(steps[index], steps[index + 1], state)
            compare = _compare_of(steps[:index], int(steps[index]["word"], 16))
            if store is not None and compare is not None:
                return self._tell_skipped(steps, compare, store, state)
        return None

    def _tell_skipped(
        self, steps: Sequence[Step], compare: Step, store: str, state: Mapping[str, Any]
    ) -> Sentence:
        registers = _registers(state, self.seen.boot_cpu)
        parts = [Part(self._place(compare), compare["tick"]), Part(f" `{_asm(compare)}`: ")]
        values = []
        for operand in _operands(compare):
            if operand.startswith("r"):
                values.append(registers[operand])
                parts += self._origin(steps, compare, operand, registers[operand])
            else:
                values.append(int(operand, 0))
                parts.append(Part(f"with the number {operand}"))
            parts.append(Part(", "))
        parts[-1] = Part("; ")
        equal = len(set(values)) == 1
        parts.append(Part(f"{'equal' if equal else 'not equal'}, so {store} was skipped."))
        return Sentence("skipped", tuple(parts))

    def stored(self) -> Sentence | None:
        """The store that made the flag what the kernel read, and where its value came from."""
        writes = self.seen.flag_writes
        if not writes:
            return None
        write = writes[-1]
        steps = self._window(write.tick, 24, 0, write.cpu)
        step = next((s for s in reversed(steps) if s["tick"] == write.tick), None)
        if step is None:
            return None
        register = f"r{int(step['word'], 16) >> 21 & 31}"
        when = "" if not self._is_late(write) else ", too late,"
        parts = [
            Part(self._place(step), write.tick),
            Part(f" `{_asm(step)}` on CPU {write.cpu}{when} stores {flag_text(write.value)} to"),
            Part(f" kernel+0x{write.at:x}: "),
            *self._origin(steps[:-1], step, register, None),
            Part("."),
        ]
        return Sentence("stored", tuple(parts))

    def _is_late(self, write: Touch) -> bool:
        return bool(self.seen.flag_reads) and write.tick > self.seen.flag_reads[0].tick

    def decided(self) -> list[Sentence]:
        """What the kernel made of its flag: relocate, then copy."""
        told = []
        for index, read in enumerate(self.seen.flag_reads[:2]):
            steps = self._window(read.tick, 1, 6, read.cpu)
            load = next((s for s in steps if s["tick"] == read.tick), None)
            compare = next((s for s in steps if s["tick"] > read.tick and _operands(s)), None)
            if load is None or compare is None:
                continue
            stays = read.value == (self.seen.flag.stay if self.seen.flag else 1)
            does = (
                (f"it relocates itself to run at 0x{self.seen.link_addr:x}",
                 f"it relocates itself to run at 0x{self.seen.kernel_addr:x}, where it lies"),
                ("it copies all of itself to 0", "it copies only its vectors to 0 and stays"),
            )[index][stays]  # fmt: skip
            parts = (
                Part(self._place(load), read.tick),
                Part(f" `{_asm(load)}` reads {flag_text(read.value)}, {self._written(read)}; "),
                Part(f"`{_asm(compare)}`", compare["tick"]),
                Part(f": {'equal' if stays else 'not equal'}, so {does}."),
            )
            told.append(Sentence(("relocate", "copy")[index], parts))
        return told

    def _written(self, read: Touch) -> str:
        before = [w for w in self.seen.flag_writes if w.tick <= read.tick]
        if before:
            return f"written at tick {before[-1].tick}"
        return "as the loader left it"

    # --- where a value came from --------------------------------------------------------------

    def _origin(
        self, steps: Sequence[Step], at: Step, register: str, value: int | None
    ) -> list[Part]:
        """The register's value and the instruction that set it, as parts of a sentence."""
        shown = register if value is None else f"{register} = {_value(value)}"
        setter = next(
            (s for s in reversed(steps) if s["tick"] < at["tick"] and _sets(s, register)), None
        )
        if setter is None:
            query = {"q": "register-write", "tick": at["tick"] - 1, "cpu": at["cpu"]}
            found = self._ask(query | {"register": register})
            setter = found if found.get("found") else None
        if setter is None:
            return [Part(f"{shown} has not changed since the old kernel")]
        if value is None:
            value = number(setter["changed"].get(register, ["", ""])[1])
            shown = (
                register if register not in setter["changed"] else f"{register} = {_value(value)}"
            )
        reads = [access for access in setter["memory"] if access["kind"] == "r"]
        since = Part(self._place(setter), setter["tick"])
        if reads:
            size = sum(access["size"] for access in reads)
            name = self._name(number(reads[0]["addr"]))
            wide = f" ({size} bytes)" if setter["text"].split()[0] != "lwz" else ""
            return [Part(f"{shown} was loaded from {name}{wide} at "), since]
        if register == "r1":
            return [Part(f"{shown} is the stack pointer since "), since]
        if setter["text"].split()[0] == "li":
            return [Part(f"{shown} is the number that `{_asm(setter)}` sets at "), since]
        return [Part(f"{shown} was computed by `{_asm(setter)}` at "), since]

    def _name(self, addr: int) -> str:
        """What lies at a physical address."""
        placement = self.seen.placement
        for row in placement.get("variables", []):
            start = number(row["addr"])
            if start <= addr < start + int(row["size"]):
                offset = f"+0x{addr - start:x}" if addr > start else ""
                return f"{row['name']}{offset}"
        if 0 <= addr - self.seen.kernel_addr < LOW_COPY_BYTES:
            return f"kernel+0x{addr - self.seen.kernel_addr:x}"
        for row in placement.get("segments", []):
            start = number(row["addr"])
            if start <= addr < start + int(row["mem"]):
                return f"{row['name']}+0x{addr - start:x}"
        return f"0x{addr:x}"

    def _place(self, step: Step) -> str:
        """symbol+offset of an instruction, or its segment's name and offset."""
        symbol = str(step["symbol"])
        if symbol:
            return symbol.split("/")[0]
        return self._name(number(step["nip"]) & EA_MASK)

    def _store_between(
        self, branch: Step, target: Step, state: Mapping[str, Any]
    ) -> str | None:  # fmt: skip
        """The store to the kernel's flag that a branch jumps over, in words."""
        cpu = self.seen.boot_cpu
        registers = _registers(state, cpu)
        for line in state.get("disassembly", {}).get(str(cpu), []):
            if not number(branch["nip"]) < number(line["addr"]) < number(target["nip"]):
                continue
            order = "little" if line["le"] else "big"
            word = int.from_bytes(bytes.fromhex(line["bytes"]), order)  # type: ignore[arg-type]
            size = _STORES.get(word >> 26)
            base = word >> 16 & 31
            if size is None:
                continue
            low = word & 0xFFFC if size == 8 else word & 0xFFFF
            offset = low - 0x10000 if low & 0x8000 else low
            addr = (registers[f"r{base}"] if base else 0) + offset
            at = (addr & EA_MASK) - self.seen.kernel_addr
            if 0 <= at < LOW_COPY_BYTES:
                return f"the store `{' '.join(line['text'].split())}` to kernel+0x{at:x}"
        return None

    def _window(self, tick: int, before: int, after: int, cpu: int) -> list[Step]:
        last = number(self.seen.end.get("tick"))
        query = {
            "tick": tick,
            "before": min(before, tick),
            "after": min(after, max(last - tick, 0)),
        }
        reply = self._ask({"q": "window", **query})
        return [step for step in reply["steps"] if step["cpu"] == cpu]


def _registers(state: Mapping[str, Any], cpu: int) -> dict[str, int]:
    row = next(row for row in state["cpus"] if row["cpu"] == cpu)
    return {name: number(value) for name, value in row["registers"].items()}


def _asm(step: Step) -> str:
    return " ".join(str(step["text"]).split())


def _value(value: int) -> str:
    return str(value) if value < 10 else f"0x{value:x}"


def _jumps_ahead(step: Step, after: Step) -> bool:
    """A conditional branch that was taken, a short way forward."""
    ahead = number(after["nip"]) - number(step["nip"])
    return int(step["word"], 16) >> 26 == 16 and 4 < ahead <= SKIP_BYTES


def _compare_of(steps: Sequence[Step], branch: int) -> Step | None:
    """The comparison whose result a conditional branch looks at."""
    field = (branch >> 16 & 31) >> 2
    for step in reversed(steps):
        word = int(step["word"], 16)
        primary = word >> 26
        compares = primary in (10, 11) or (primary == 31 and word >> 1 & 0x3FF in (0, 32))
        if compares and word >> 23 & 7 == field:
            return step
    return None


def _operands(step: Step) -> tuple[str, ...]:
    """What a comparison compares: registers and numbers; empty for anything else."""
    match = re.match(r"cmpl?[wd]i?\s+(?:cr\d,)?\s*(\w+),\s*(-?\w+)$", str(step["text"]).strip())
    return (match[1], match[2]) if match else ()


def _sets(step: Step, register: str) -> bool:
    """Whether the instruction's result goes to the register, changed or not."""
    if register in step["changed"]:
        return True
    mnemonic, _, operands = str(step["text"]).partition(" ")
    first = operands.strip().split(",")[0]
    return first == register and not mnemonic.startswith(_NOT_SET)
