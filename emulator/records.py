"""The record stream of a session: what each record may hold, checked field by field.

A record is a flat JSON object; its key `t` names the type. Records come from a process that parses
and runs hostile images, so nothing in them is believed: types, ranges and lengths are checked here,
before anything is written or shown. The same tables check a trace file of a stranger, and
`ANSWERS` what a session answers.

Not here: how rows are stored (`trace.py`), how frames travel between processes (`app/sessions.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from emulator.errors import SessionError, TraceCorruptError
from emulator.loopkinds import KINDS

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
    "loop": (
        Field("cpu", _CPU),
        Field("level", _number(0, 64)),
        Field("begin", _TICK),
        Field("end", _TICK),
        Field("ticks", _number(1, MAX_TICK)),
        Field("turns", _number(1, MAX_TICK)),
        Field("entries", _number(1, MAX_TICK)),
        Field("head", _hex64),
        Field("tail", _hex64),
        Field("kind", _one_of(KINDS)),
        Field("symbol", _text(256), ""),
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


_HEX_LONG = re.compile(r"0x[0-9a-f]{1,2048}\Z")
_HEX_BYTES = re.compile(r"(?:[0-9a-f]{2}){0,4096}\Z")
_DEPTH = 8


def _hex_long(value: Any) -> str:
    if type(value) is not str or not _HEX_LONG.match(value):
        raise _Bad('expected a value as "0x.."')
    return value


def _hex_register(value: Any) -> str:
    if int(_hex_long(value), 16) >> 64:
        raise _Bad("expected a value of 64 bits")
    return str(value)


def _hex_bytes(value: Any) -> str:
    if type(value) is not str or not _HEX_BYTES.match(value):
        raise _Bad("expected bytes as hex digits")
    return value


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """Check what no table knows: bounded JSON; its text becomes clean text."""
    if type(value) is str:
        return clean_text(value, 4096)
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and -(1 << 64) < value < 1 << 64:
        return value
    if depth and type(value) is list:
        return [_plain(item, depth - 1) for item in value]
    if depth and type(value) is dict:
        return {clean_text(key, 64): _plain(item, depth - 1) for key, item in value.items()}
    raise _Bad("expected numbers of 64 bits, in a document that is not deep")


def _list(inner: Callable[[Any], Any], most: int) -> Callable[[Any], list[Any]]:
    def check(value: Any) -> list[Any]:
        if type(value) is not list or len(value) > most:
            raise _Bad(f"expected a list of at most {most}")
        return [inner(item) for item in value]

    return check


def _map(keys: re.Pattern[str], inner: Callable[[Any], Any], most: int) -> Callable[[Any], Json]:
    def check(value: Any) -> Json:
        if type(value) is not dict or len(value) > most:
            raise _Bad(f"expected an object of at most {most} entries")
        if not all(keys.match(key) for key in value):
            raise _Bad(f"expected keys like {keys.pattern}")
        return {key: inner(item) for key, item in value.items()}

    return check


def _object(*fields: Field) -> Callable[[Any], Json]:
    """Check an object by its fields; those with a default may be absent, others may be there."""

    def check(value: Any) -> Json:
        if type(value) is not dict:
            raise _Bad("expected an object")
        known = {field.name for field in fields}
        found = {key: _plain(item) for key, item in value.items() if key not in known}
        for field in fields:
            if field.name in value:
                try:
                    found[field.name] = field.check(value[field.name])
                except _Bad as exc:
                    raise _Bad(f"{field.name}: {exc}") from exc
            elif field.default is REQUIRED:
                raise _Bad(f"no {field.name!r}")
        return found

    return check


def _registers(value: Any) -> Json:
    names = ("nip", "lr", "ctr", "msr", "cr", "xer", *(f"r{number}" for number in range(32)))
    return _object(*(Field(name, _hex_register) for name in names))(value)


_ADDR = _optional(_hex64)
_SIZE = _number(0, 1 << 50)
_SYMBOL = Field("symbol", _optional(_text(256)), "")
_LINE = Field("line", _text(80), "")
_STAGE = Field("stage", _word, "")
_PLACE = (Field("addr", _ADDR, None), Field("size", _optional(_SIZE), None))

PLACEMENT = _object(
    *(
        Field(f"{what}_addr", _ADDR, None)
        for what in ("kernel", "entry", "purgatory", "dt", "stack", "backup", "handover")
    ),
    Field("kernel_bytes", _SIZE, 0),
    Field("mem_bytes", _SIZE, 0),
    Field("cpu_ids", _list(_number(0, 1 << 32), MAX_CPUS), ()),
    Field("boot_cpu", _CPU, 0),
    Field("kernel_big_endian", _flag, False),
    Field("purgatory_big_endian", _flag, False),
    Field("command_line", _text(4096), ""),
    Field("segments", _list(_object(Field("name", _text(256)), *_PLACE), 4096), ()),
    Field("flags", _list(_object(Field("name", _text(256)), *_PLACE), 64), ()),
    Field(
        "low_fields",
        _list(
            _object(
                Field("name", _text(256)),
                Field("at", _number(0, 1 << 40)),
                Field("size", _number(1, 4096)),
            ),
            256,
        ),
        (),
    ),
    Field("debug", _list(_text(4096), 20_000), ()),
    Field("purgatory_found", _optional(_text(1024)), ""),
)
"""The placement record; `Prepared.record` of the recorder makes it."""

_CODE = _object(
    Field("addr", _hex64), Field("bytes", _hex_bytes), Field("text", _text(256)), _SYMBOL,
    Field("le", _flag, False), _LINE,
)  # fmt: skip
_FLAG = _object(
    Field("name", _text(256)), Field("addr", _hex64), Field("size", _number(1, 16)),
    Field("value", _hex_any),
)  # fmt: skip
_LOOP = _object(
    Field("head", _hex64), Field("tail", _hex64), Field("turn", _number(1, MAX_TICK)),
    Field("since", _TICK), _SYMBOL,
)  # fmt: skip
_CPU_STATE = _object(
    Field("cpu", _CPU), Field("registers", _registers), _STAGE, Field("stage_letter", _word, ""),
    _SYMBOL, Field("lr_symbol", _text(256), ""), Field("parked", _flag, False), _LINE,
    Field("lr_line", _text(80), ""), Field("loops", _list(_LOOP, 16), ()),
)  # fmt: skip
_STEP = (
    Field("tick", _TICK), Field("cpu", _CPU), Field("nip", _hex64, ""), _SYMBOL, _LINE, _STAGE,
    Field("text", _text(256), ""), Field("bytes", _hex_bytes, ""), Field("le", _flag, False),
    Field("changed", _map(re.compile(r"[a-z0-9]{1,8}\Z"), _list(_hex_long, 2), 256), {}),
)  # fmt: skip
_ACCESS = (
    Field("kind", _one_of(("r", "w")), ""), *_PLACE, Field("value", _optional(_hex_long), None),
    Field("old", _optional(_hex_long), None),
)  # fmt: skip
_HIT = (
    Field("found", _flag, True), Field("tick", _optional(_TICK), None),
    Field("cpu", _optional(_CPU), None), _SYMBOL, _LINE, *_ACCESS,
)  # fmt: skip
_LINK = _object(
    Field("what", _text(64)), Field("tick", _optional(_TICK), None), *_PLACE, _SYMBOL, _LINE,
    Field("cpu", _optional(_CPU), None), Field("text", _optional(_text(1024)), ""),
    Field("register", _optional(_text(16)), None), Field("value", _optional(_hex_long), None),
)  # fmt: skip
_SPAN = _object(
    Field("cpu", _CPU), Field("from", _TICK), Field("to", _TICK), _SYMBOL, _STAGE,
)  # fmt: skip

# What a session may answer, by the question's "q"; `emulator.session` makes these.
ANSWERS: dict[str, Callable[[Any], Json]] = {
    "state": _object(
        Field("tick", _TICK, 0),
        Field("cpus", _list(_CPU_STATE, MAX_CPUS)),
        Field("low_memory", _hex_bytes),
        Field("kernel_low", _hex_bytes),
        Field("flags", _list(_FLAG, 64), ()),
        Field("disassembly", _map(re.compile(r"[0-9]{1,2}\Z"), _list(_CODE, 1024), MAX_CPUS), {}),
    ),
    "window": _object(
        Field("tick", _TICK, 0),
        Field(
            "steps",
            _list(_object(*_STEP, Field("memory", _list(_object(*_ACCESS), 4096), ())), 8192),
        ),
    ),
    "last-write": _object(*_HIT),
    "next-read": _object(*_HIT),
    "next-write": _object(*_HIT),
    "loops": _object(Field("loops", _list(_object(*RECORDS["loop"]), 500))),
    "turn": _object(Field("found", _flag, True), Field("tick", _optional(_TICK), None)),
    "register-write": _object(Field("found", _flag, True), Field("tick", _optional(_TICK), None)),
    "register-read": _object(
        Field("found", _flag, True),
        Field("tick", _optional(_TICK), None),
        _SYMBOL,
        Field("cpu", _optional(_CPU), None),
        Field("outcome", _text(16)),
        Field("register", _text(8)),
        Field("part", _text(64), ""),
        Field("text", _text(1024), ""),
        Field("by", _text(256), ""),
        Field("note", _text(256), ""),
    ),
    "accesses": _object(
        Field("accesses", _list(_object(Field("tick", _TICK), Field("cpu", _CPU, 0)), 100_000)),
        Field("more", _flag, False),
    ),
    "chain": _object(Field("links", _list(_LINK, 1024))),
    "functions": _object(Field("spans", _list(_SPAN, 100_000)), Field("exact", _flag, True)),
}


def check_placement(document: Json) -> None:
    """Check a placement record, or what a trace file has of one.

    Raises:
        TraceCorruptError: it is not what `PLACEMENT` says. Unknown keys hold any bounded JSON.
    """
    try:
        PLACEMENT(document)
    except _Bad as exc:
        raise TraceCorruptError(f"placement record, {exc}") from exc


def check_answer(kind: str, answer: Any) -> Json:
    """Return the answer to a question of a kind, with its text cleaned.

    Raises:
        SessionError: it is not what `ANSWERS` says. Unknown keys hold any bounded JSON.
    """
    try:
        return ANSWERS.get(kind, _object())(answer)
    except _Bad as exc:
        raise SessionError(f"the session's answer is none: {exc}") from exc


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
