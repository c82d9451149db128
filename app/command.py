"""The command line that makes a run again: `bootflow record` with a run's options, for a shell.

What it is: a spec document back into the words of `app/cli.py`, quoted for sh, in lines of at most
75 columns. Pure. What it is not: a check of the spec; the recorder does that.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from emulator.options import DEFAULT_LIMIT_TICKS, DEFAULT_MEM_BYTES, DEFAULT_QUANTUM

COLUMNS = 75
INDENT = "    "
FILES = (("purgatory", "--purgatory"), ("dtb", "--dtb"), ("initrd", "--ramdisk"))
"""Roles of images -> the options that name their files; the kernel's is the argument."""

_SIZES = ((30, "G"), (20, "M"), (10, "K"))
_NUMBERS = (
    ("quantum", "--quantum", DEFAULT_QUANTUM),
    ("seed", "--seed", 0),
    ("limit_ticks", "--limit", DEFAULT_LIMIT_TICKS),
)
"""(key of a spec, option, value that goes without saying)."""


def option_words(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of a run beside its machine, each a word: what is not as it always is.

    The first is how it was loaded. CPUs and memory are left out: pages name them in words.
    """
    words = ["--load-panic" if spec.get("mode") == "load-panic" else "--load"]
    if spec.get("append"):
        words.append(f"--append={spec['append']}")
    words += ["--no-checks"] if spec.get("checks") is False else []
    words += [f"--{name}" for name in ("debug", "signature") if spec.get(name)]
    for name, option in (("base_addr", "--base"), ("corrupt", "--corrupt")):
        if spec.get(name) is not None:
            words.append(f"{option}=0x{int(spec[name]):x}")
    if spec.get("boot_cpu"):
        words.append(f"--boot-cpu={spec['boot_cpu']}")
    for name, option, usual in _NUMBERS:
        if spec.get(name) not in (None, usual):
            words.append(f"{option}={spec[name]}")
    words += [f"--{name}={spec[name]}" for name in ("schedule", "until") if spec.get(name)]
    return tuple(words)


def record_words(spec: Mapping[str, Any], files: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words of the command, unquoted; none if `record` cannot make this run.

    Args:
        spec: a RunSpec document, whole or with only what was asked for.
        files: {role: file name} of the images.
    """
    if spec.get("addresses") or not {"kernel", "purgatory"} <= set(files):
        return ()
    mode, *more = option_words(spec)
    words = ["bootflow", "record", mode, _as_file(files["kernel"])]
    words += [f"{option}={files[role]}" for role, option in FILES if role in files]
    words.append(f"--cpus={spec.get('cpus', 1)}")
    mem_bytes = int(spec.get("mem_bytes") or DEFAULT_MEM_BYTES)
    if mem_bytes != DEFAULT_MEM_BYTES:
        words.append(f"--mem={_size(mem_bytes)}")
    return (*words, *more)


def record_lines(spec: Mapping[str, Any], files: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command as lines that can be pasted into a shell."""
    return shell_lines(record_words(spec, files))


def record_line(spec: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return the command on one line."""
    return " ".join(quote(word) for word in record_words(spec, files))


def _as_file(name: str) -> str:
    """Keep a file name from being read as an option."""
    return f"./{name}" if name.startswith("-") else name


def _size(size_bytes: int) -> str:
    for shift, unit in _SIZES:
        if size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return str(size_bytes)


def shell_lines(words: Iterable[str]) -> tuple[str, ...]:
    """Quote words for sh and break them with backslashes, ASCII, at most 75 columns a line.

    A word that is longer than a line is broken too: its quoted pieces stand at the very left, where
    the shell joins them again.
    """
    lines: list[str] = []
    line = ""
    for word in words:
        quoted = quote(word)
        if line and len(line) + 1 + len(quoted) + 2 > COLUMNS:
            lines.append(f"{line} \\")
            line = INDENT
        else:
            line += " " if line.strip() else ""
        if len(line) + len(quoted) + 2 <= COLUMNS:
            line += quoted
            continue
        *whole, rest = _pieces(word, COLUMNS - len(line) - 2, COLUMNS - 2)
        for piece in whole:
            lines.append(f"{line}{piece}\\")
            line = ""
        line += rest
    return (*lines, line) if line.strip() else tuple(lines)


def quote(word: str) -> str:
    """Quote one word: `--append='a b'` rather than `'--append=a b'`."""
    option, equals, value = word.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={_quote_value(value)}"
    return _quote_value(word)


def _quote_value(text: str) -> str:
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    codes = (f"\\{byte:03o}" if not 32 <= byte < 127 or chr(byte) in "\\'" else chr(byte)
             for byte in text.encode())  # fmt: skip
    return f"$'{''.join(codes)}'"


def _pieces(word: str, first: int, room: int) -> list[str]:
    """Cut a word into quoted pieces; the first has less room than the others."""
    pieces: list[str] = []
    while word:
        size = min(len(word), max(first, 8))
        while size > 1 and len(quote(word[:size])) > max(first, 8):
            size -= 1
        pieces.append(quote(word[:size]) if not pieces else _quote_value(word[:size]))
        word, first = word[size:], room
    return pieces


def spec_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as a RunSpec document."""
    spec = {
        "mode": "load-panic" if options["load_panic"] else "load",
        "append": options["append"],
        "cpus": options["cpus"],
        "boot_cpu": options["boot_cpu"],
        "mem_bytes": options["mem"],
        "base_addr": options["base"],
        "checks": not options["no_checks"],
        "debug": options["debug"],
        "signature": options["signature"],
        "seed": options["seed"],
        "schedule": options["schedule"],
        "until": options["until"],
    }
    if options["corrupt"] is not None:
        spec["corrupt"] = options["corrupt"]
    if options["quantum"] is not None:
        spec["quantum"] = options["quantum"]
    if options["limit"] is not None:
        spec["limit_ticks"] = options["limit"]
    return spec
