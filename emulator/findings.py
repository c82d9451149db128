"""What a rule found, and the words that rules, verdict and explanation share.

What it is: the finding of one rule, and values, places and counts as people write them. What it is
not: a rule (`rules`).
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.evidence import Touch
from emulator.handoff import RUN_AT_ZERO_MAGIC

PASSED, FAILED, NA = "passed", "failed", "n-a"


@dataclass(frozen=True)
class Finding:
    """What a rule found; tick and cpu are those of the moment that shows it, if one does."""

    status: str
    text: str
    tick: int | None = None
    cpu: int | None = None


def flag_text(value: int | None) -> str:
    """A flag's value as people write it."""
    if value is None:
        return "nothing"
    if value == RUN_AT_ZERO_MAGIC:
        return '"run0"'
    return str(value) if value < 10 else f"0x{value:x}"


def who_of(touch: Touch) -> str:
    """What made an access: the symbol, or where no name is known the address."""
    return touch.symbol or f"nip 0x{touch.nip:x}"


def count_of(count: int, name: str) -> str:
    """So many of them: 1 secondary, 3 secondaries."""
    return f"{count} {name}" if count == 1 else f"{count} {name[:-1]}ies"


def as_sentence(text: str) -> str:
    """With a capital, unless it begins with a symbol, and with a full stop."""
    if text.split(" ")[0].rstrip(":,").isalpha():
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
