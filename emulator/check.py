"""The check of a hand-off: every rule judged on the evidence of one run. Pure.

What it is: `check`, from evidence to a report, and the report as JSON and as text. What it is not:
the rules themselves (`rules`), the reading of a trace (`evidence`), or why a branch went the way it
did (`explanation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from emulator.evidence import MAX_EVENTS, Evidence
from emulator.rules import FAILED, NA, PASSED, RULES, Finding, Rule, flag_text
from emulator.trace import TraceReader

NEEDS_ALL_OF: Final = {
    "low-copy": ("low-write",), "iseries-pointer": ("low-write",), "bounds": ("low-write",),
}  # fmt: skip
"""Rules that hold only if all events of a kind were looked at; one that breaks them is enough."""
ENDS_WITH: Final = {"outcome": ("stage",), "secondaries": ("stage", "exception")}
"""Rules that are about what came last."""

__all__ = ["FAILED", "NA", "PASSED", "Report", "Row", "check", "check_trace"]


@dataclass(frozen=True)
class Row:
    """One rule and what was found."""

    rule: Rule
    found: Finding


@dataclass(frozen=True)
class Report:
    """What the rules say of one run."""

    seen: Evidence
    rows: tuple[Row, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rules that fail."""
        return tuple(row for row in self.rows if row.found.status == FAILED)

    @property
    def statuses(self) -> dict[str, str]:
        """Rule id -> passed, failed or n-a."""
        return {row.rule.id: row.found.status for row in self.rows}

    @property
    def sentence(self) -> str:
        """The result in one line."""
        counts = [
            (sum(row.found.status == status for row in self.rows), name)
            for status, name in ((PASSED, "passed"), (FAILED, "failed"), (NA, "not applicable"))
        ]
        told = ", ".join(f"{count} {name}" for count, name in counts)
        return f"The kernel {self.seen.outcome} at 0x{self.seen.at:x}; rules: {told}."

    def document(self) -> dict[str, Any]:
        """As JSON; 64-bit values are "0x" strings, null where nothing was seen."""
        seen = self.seen
        writes = seen.flag_writes
        writer = writes[-1] if writes else None
        value = seen.flag_value
        return {
            "outcome": seen.outcome,
            "at": f"0x{seen.at:016x}",
            "flag": {
                "abi": seen.abi,
                "value": None if value is None else f"0x{value:x}",
                "written_by": None
                if writer is None
                else {"tick": writer.tick, "cpu": writer.cpu, "symbol": writer.symbol},
                "read_at": [touch.tick for touch in seen.flag_reads],
            },
            "rules": [
                {
                    "id": row.rule.id,
                    "status": row.found.status,
                    "tick": row.found.tick,
                    "cpu": row.found.cpu,
                    "text": row.found.text,
                }
                for row in self.rows
            ],
        }

    def lines(self) -> list[str]:
        """As text: the outcome, the flag, then a block a rule, failed ones first."""
        seen = self.seen
        flag = seen.abi if seen.abi == "none" else f"{seen.abi} = {flag_text(seen.flag_value)}"
        lines = [
            f"outcome:  {seen.outcome} at 0x{seen.at:x}, asked: {seen.meant}",
            f"flag:     {flag}",
            f"rules:    {self.sentence.split('rules: ')[1].rstrip('.')}",
        ]
        order = {FAILED: 0, PASSED: 1, NA: 2}
        for row in sorted(self.rows, key=lambda row: order[row.found.status]):
            tick = "" if row.found.tick is None else f", tick {row.found.tick}"
            cpu = "" if row.found.cpu is None else f" on cpu {row.found.cpu}"
            lines += ["", f"{row.found.status:<8}{row.rule.id}{tick}{cpu}"]
            lines += [f"        {row.rule.statement}", f"        {row.found.text}"]
        return lines


def check(seen: Evidence) -> Report:
    """Judge every rule."""
    return Report(seen, tuple(Row(rule, _judge(rule, seen)) for rule in RULES))


def _judge(rule: Rule, seen: Evidence) -> Finding:
    if not seen.has_facts:
        return Finding(NA, "The trace has no facts: it was cut short, or is older than this check.")
    found = rule.judge(seen)
    kinds = NEEDS_ALL_OF.get(rule.id, ()) if found.status == PASSED else ()
    cut = [kind for kind in (*kinds, *ENDS_WITH.get(rule.id, ())) if kind in seen.cut]
    if cut:
        text = f"More than {MAX_EVENTS:,} events of kind {cut[0]}: the rest was not looked at."
        return Finding(NA, text)
    return found


def check_trace(reader: TraceReader) -> Report:
    """Judge a recorded run."""
    return check(Evidence.of_trace(reader))
