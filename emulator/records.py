"""The record stream of a session: what each record may hold, checked field by field.

A record is a flat JSON object; its key `t` names the type. Records come from a process that parses
and runs hostile images, so nothing in them is believed: types, ranges and lengths are checked here,
before anything is written. The same table checks the rows of a trace file of a stranger.

Not here: how rows are stored (`trace.py`), how frames travel between processes (`app/sessions.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from emulator.errors import TraceCorruptError

Json = dict[str, Any]

MAX_TICK = 1 << 50
MAX_CPUS = 16
MAX_DOCUMENT_BYTES = 1 << 20
MAX_CONSOLE_CHUNK_BYTES = 64 << 10

EVENT_KINDS = (
    "low-write",
    "flag-read",
    "flag-write",
    "stage",
    "hypercall",
    "exception",
    "console",
    "cpu-released",
    "end",
)

_HEX = re.compile(r"0x[0-9a-f]{1,32}\Z")
_HEX64 = re.compile(r"0x[0-9a-f]{16}\Z")
_WORD = re.compile(r"[A-Za-z0-9_-]{0,32}\Z")
_DIGEST = re.compile(r"[0-9a-f]{32,64}\Z")
_UNSAFE = re.compile(r"[^\x20-\x7e]")


def clean_text(text: str, limit: int) -> str:
    """Return `text` as printable ASCII of at most `limit` characters ("?" for the rest)."""
    return _UNSAFE.sub("?", text[:limit])


class _Bad(ValueError):
    """A field that is not what the table says."""


def _number(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _Bad(f"expected an integer {low}..{high}")
        return value

    return check


def _optional(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        return None if value is None else inner(value)

    return check


def _hex64(value: Any) -> str:
    if type(value) is int and 0 <= value < 1 << 64:
        return f"0x{value:016x}"
    if type(value) is str and _HEX64.match(value):
        return value
    raise _Bad('expected a 64-bit value as "0x" and 16 digits')


def _hex_any(value: Any) -> str:
    if type(value) is int:
        return _hex64(value)
    if type(value) is str and _HEX.match(value):
        return value
    raise _Bad('expected a value as "0x.."')


def _text(limit: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if type(value) is not str:
            raise _Bad("expected a string")
        return clean_text(value, limit)

    return check


def _one_of(words: tuple[str, ...]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if type(value) is not str or value not in words:
            raise _Bad(f"expected one of {', '.join(words)}")
        return value

    return check


def _word(value: Any) -> str:
    if type(value) is not str or not _WORD.match(value):
        raise _Bad("expected a short word")
    return value


def _digest(value: Any) -> str:
    if type(value) is not str or not _DIGEST.match(value):
        raise _Bad("expected 32 to 64 hex digits")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _Bad("expected true or false")
    return value


def _console_data(value: Any) -> bytes:
    if type(value) is bytes:
        data = value
    elif type(value) is str and len(value) <= 2 * MAX_CONSOLE_CHUNK_BYTES:
        try:
            data = bytes.fromhex(value)
        except ValueError as exc:
            raise _Bad("expected hex digits") from exc
    else:
        raise _Bad("expected hex digits")
    if not 1 <= len(data) <= MAX_CONSOLE_CHUNK_BYTES:
        raise _Bad(f"expected 1..{MAX_CONSOLE_CHUNK_BYTES} bytes")
    return data


REQUIRED = object()


@dataclass(frozen=True)
class Field:
    """One field of a record: its check returns the value to store, or raises."""

    name: str
    check: Callable[[Any], Any]
    default: Any = REQUIRED


_TICK = _number(0, MAX_TICK)
_CPU = _number(0, MAX_CPUS - 1)

# The columns of the table of the same name, in the same order.
RECORDS: dict[str, tuple[Field, ...]] = {
    "slice": (
        Field("tick", _TICK),
        Field("cpu", _CPU),
        Field("ticks", _number(1, MAX_TICK)),
        Field("nip", _hex64),
        Field("stage", _word, ""),
        Field("symbol", _text(256), ""),
    ),
    "event": (
        Field("tick", _TICK),
        Field("cpu", _optional(_CPU), None),
        Field("kind", _one_of(EVENT_KINDS)),
        Field("addr", _optional(_hex64), None),
        Field("size", _optional(_number(0, 1 << 40)), None),
        Field("value", _optional(_hex_any), None),
        Field("nip", _optional(_hex64), None),
        Field("symbol", _text(256), ""),
        Field("text", _text(1024), ""),
    ),
    "console": (
        Field("tick", _TICK),
        Field("cpu", _CPU),
        Field("data", _console_data),
    ),
    "checkpoint": (
        Field("tick", _TICK),
        Field("digest", _digest),
    ),
    "progress": (Field("tick", _TICK),),
    "end": (
        Field("reason", _word),
        Field("text", _text(1024), ""),
        Field("tick", _TICK),
        Field("cpu", _optional(_CPU), None),
        Field("nip", _optional(_hex64), None),
        Field("symbol", _text(256), ""),
        Field("ok", _flag),
    ),
    "error": (
        Field("slug", _word),
        Field("message", _text(2048)),
        Field("hint", _text(1024), ""),
    ),
}


MAX_FACT_ROWS = {"entry": 128, "access": 512, "changed": 64, "stray": 32}

# The rows of the document "facts": what ran at the places that the rules speak of (`facts.py`).
FACTS: dict[str, tuple[Field, ...]] = {
    "entry": (
        Field("tick", _TICK),
        Field("cpu", _CPU),
        Field("place", _one_of(("purgatory", "kernel", "kernel-at-0", "low"))),
        *(Field(name, _hex64) for name in ("nip", "msr", "r3", "r4", "r5", "r6", "r7")),
        Field("text", _text(512)),
    ),
    "access": (
        Field("tick", _TICK),
        Field("cpu", _CPU),
        Field("write", _flag),
        Field("at", _number(0, 0xFF)),
        Field("size", _number(1, 16)),
        Field("value", _hex64),
        Field("old", _hex_any),
        Field("nip", _hex64),
        Field("stage", _word),
        Field("symbol", _text(256)),
        Field("le", _flag),
    ),
    "changed": (
        Field("tick", _TICK),
        Field("cpu", _CPU),
        Field("at", _number(0, 0xFF)),
        Field("now", _hex_any),
        Field("was", _hex_any),
        Field("nip", _hex64),
        Field("symbol", _text(256)),
        Field("text", _text(64)),
        Field("was_text", _text(64)),
    ),
    "stray": (
        Field("segment", _text(32)),
        Field("addr", _hex64),
        Field("at", _number(0, 1 << 40)),
        Field("size", _number(1, 1 << 40)),
        Field("old", _hex_any),
        Field("now", _hex_any),
    ),
}


def check_facts(document: Mapping[str, Any]) -> Json:
    """Return the document "facts" with every field of every row checked; unknown keys go.

    Raises:
        TraceCorruptError: a table is missing or too long, or a field is not what `FACTS` says.
    """
    checked: Json = {}
    for table, fields in FACTS.items():
        rows = document.get(table)
        if not isinstance(rows, list) or len(rows) > MAX_FACT_ROWS[table]:
            raise TraceCorruptError(f"facts: {table!r} is no list of {MAX_FACT_ROWS[table]} rows")
        checked[table] = [_check_fact(table, fields, row) for row in rows]
    return checked


def _check_fact(table: str, fields: tuple[Field, ...], row: Any) -> Json:
    if not isinstance(row, dict):
        raise TraceCorruptError(f"facts: a row of {table!r} that is no object")
    try:
        return {field.name: field.check(row.get(field.name)) for field in fields}
    except _Bad as exc:
        raise TraceCorruptError(f"facts: a row of {table!r}: {exc}") from exc


def check_fields(kind: str, record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields of `record` in the order of the table, each checked.

    Raises:
        TraceCorruptError: a field is missing, or not what the table says. Unknown keys are ignored.
    """
    values = []
    for field in RECORDS[kind]:
        value = record.get(field.name, field.default)
        if value is REQUIRED:
            raise TraceCorruptError(f"{kind} record without {field.name!r}")
        try:
            values.append(field.check(value))
        except _Bad as exc:
            raise TraceCorruptError(f"{kind} record, {field.name!r}: {exc}") from exc
    return tuple(values)


def check_row(kind: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check a row that was read from a trace file; as `check_fields`, by position."""
    try:
        return tuple([f.check(v) for f, v in zip(RECORDS[kind], row, strict=True)])
    except ValueError as exc:
        raise TraceCorruptError(f"a row of table {kind!r}: {exc}") from exc


def canonical_json(value: Any) -> str:
    """Serialise `value` the one way that a digest is taken of: sorted keys, no spaces, ASCII.

    Raises:
        TraceCorruptError: it is not JSON, or longer than MAX_DOCUMENT_BYTES.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise TraceCorruptError(f"not a JSON document: {exc}") from exc
    if len(text) > MAX_DOCUMENT_BYTES:
        raise TraceCorruptError(
            f"a JSON document of {len(text)} bytes; {MAX_DOCUMENT_BYTES} allowed"
        )
    return text


def parse_document(text: Any) -> Json:
    """Parse a JSON object of bounded size that came from a file or a pipe."""
    if not isinstance(text, str | bytes) or len(text) > MAX_DOCUMENT_BYTES:
        raise TraceCorruptError("a JSON document that is too long, or no text at all")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise TraceCorruptError(f"not a JSON document: {exc}") from exc
    if not isinstance(value, dict):
        raise TraceCorruptError("a JSON document that is not an object")
    return value
