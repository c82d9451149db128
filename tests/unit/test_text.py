"""Text of moments and events: values in their width, CPUs at one place folded."""

from __future__ import annotations

from typing import Any

import pytest

from app.text import COLUMNS, event_lines, flag_value, moment_lines
from emulator.errors import size_words
from emulator.trace import Event


def cpu_row(cpu: int, nip: int = 0x60, **registers: int) -> dict[str, Any]:
    names = ["nip", "msr", "cr", "lr", "ctr", "xer", *(f"r{n}" for n in range(32))]
    values = {"nip": nip, "msr": 0x8000000000001002, "r3": cpu, "r24": cpu} | registers
    return {
        "cpu": cpu,
        "ticks": 10 * cpu,
        "stage": "hold",
        "symbol": "__secondary_hold+0x0/0xa0",
        "lr_symbol": "",
        "registers": {name: f"0x{values.get(name, 0):016x}" for name in names},
    }


def lines(*cpus: dict[str, Any], only: int | None = None) -> list[str]:
    state = {"tick": 1234567, "cpus": cpus, "low_memory": "00" * 256, "flags": []}
    return list(moment_lines(state, 7654321, only))


def test_cpus_at_one_place_are_told_by_what_differs() -> None:
    text = lines(cpu_row(0, 0x100), *(cpu_row(n) for n in (1, 2, 3)), cpu_row(4, r3=1, r24=1))
    assert text[0] == "tick 1234567 of 7654321", "plain digits, for grep"
    assert sum(line.startswith("GPR28:") for line in text) == 2
    assert "cpu 2: as cpu 1, but r3 = 0x2, r24 = 0x2" in text
    assert "cpu 3: as cpu 1, but r3 = 0x3, r24 = 0x3" in text
    assert "cpu 4: as cpu 1" in text
    assert max(map(len, text)) <= COLUMNS


def test_cpus_that_differ_alike_share_a_line() -> None:
    text = lines(cpu_row(1), cpu_row(2, r3=9, r24=1), cpu_row(3, r3=9, r24=1))
    assert "cpu 2, 3: as cpu 1, but r3 = 0x9" in text


def test_one_cpu_asked_for_is_printed_whole() -> None:
    text = lines(cpu_row(1), cpu_row(2), only=2)
    assert sum(line.startswith("GPR28:") for line in text) == 1
    assert not any("as cpu" in line for line in text)


@pytest.mark.parametrize(
    ("value", "size", "shown"),
    [
        ("0x72756e30", 4, '0x72756e30 ("run0")'),
        ("0x1", 4, "0x00000001"),
        ("0x1", 8, "0x0000000000000001"),
        (None, 4, "unreadable"),
    ],
)
def test_a_flag_has_its_width(value: str | None, size: int, shown: str) -> None:
    assert flag_value(value, size) == shown


def test_a_flag_write_tells_the_letters() -> None:
    addr, value = "0x000000000289005c", "0x0000000072756e30"
    event = Event(5, 0, "flag-write", addr, 4, value, None, "", "f")
    assert '0x289005c <- 0x72756e30 ("run0") f' in next(event_lines([event]))


@pytest.mark.parametrize(
    ("size", "words"),
    [(64 << 20, "64M"), (16 << 30, "16G"), (64 << 10, "64K"), (100, "100 bytes"), (0, "0 bytes")],
)
def test_sizes_are_written_as_options_are(size: int, words: str) -> None:
    assert size_words(size) == words
