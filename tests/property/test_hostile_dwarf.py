"""Hostile DWARF: any bytes of the debug sections give a line or none; no crash, no hang, no memory.

Bytes of every .debug section are changed, set to telling values, cut and moved, and what asks for
lines asks. The compiled code runs with bounds checks here, which it does not elsewhere: a read
outside an array is an IndexError instead of somebody else's memory.
The default run is short; CI=true or BOOTFLOW_FUZZ=full makes more than 10,000 mutants.
"""

import importlib.util
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emulator import compiled, dwarf, sourcelines
from emulator.elf import ElfFile, read_elf
from emulator.errors import ImageError

FULL = os.environ.get("CI") == "true" or os.environ.get("BOOTFLOW_FUZZ") == "full"
MUTANTS = 1500 if FULL else 150
DATA = Path(__file__).parent.parent / "data" / "dwarf"
IMAGES = ("be-2.elf", "be-4.elf", "be-5-64.elf", "be-5-zlib.elf", "be-5-zstd.elf", "le-3.elf",
          "le-5.elf", "rel-be.ro", "rel-le.ro", "purgatory-be.ro")  # fmt: skip
TELLING = (b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\xff" * 8, b"\0" * 8, b"\x80" * 12,
           b"\xff" * 9 + b"\x01", b"\0\x09\x02", b"\0\x01\x01", b"\x7f" + b"\xff" * 7)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def with_bounds_checks() -> Iterator[None]:
    """Run a copy of the compiled code that checks every index."""
    plain = compiled.njit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "njit", lambda **_: plain(boundscheck=True))
        spec = importlib.util.spec_from_file_location("checked_dwarf", dwarf.__file__)
        assert spec is not None
        assert spec.loader is not None
        checked = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "checked_dwarf", checked)
        spec.loader.exec_module(checked)
        patch.setattr(sourcelines, "run_program", checked.run_program)
        yield


def test_the_checks_are_there(with_bounds_checks: None) -> None:
    array, room = np.frombuffer(b"\1" * 8, np.uint8), np.zeros((4, 3), np.int64)
    header, operands = np.array([4, -5, 14, 13, 1]), np.frombuffer(bytes(12), np.uint8)
    assert sourcelines.run_program(array, 0, 8, header, operands, room[:0], room) == (8, 0)
    with pytest.raises(IndexError):
        sourcelines.run_program(array, 0, 9, header, operands, room[:0], room)


def mutant(rng: random.Random, whole: bytes, elf: ElfFile) -> bytes:
    """Change one to eight places of the debug sections, or of their headers' flags and sizes."""
    data = bytearray(whole)
    debug = [s for s in elf.sections if ".debug_" in s.name and s.size]
    for _ in range(rng.choice((1, 1, 2, 8))):
        section = rng.choice([*debug, *(s for s in debug if s.name == ".debug_line")])
        at = section.offset + rng.randrange(section.size)
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            value = rng.choice(TELLING)
            data[at : at + len(value)] = value
        elif kind == 2:
            source = section.offset + rng.randrange(section.size)
            size = rng.randrange(1, 40)
            data[at : at + size] = bytes(data[source : source + size])
        else:
            data[at : section.offset + section.size] = bytes(section.offset + section.size - at)
    return bytes(data[: len(whole)])


def ask(data: bytes, name: str) -> int:
    """Ask for the lines of all places; how many there are."""
    try:
        elf = read_elf(data, name, "an image")
    except ImageError:
        return 0
    code = [s for s in elf.sections if s.flags & 4 and s.size]
    placed = {s.index: 0x10000 * s.index for s in code} if name.endswith(".ro") else None
    lines = sourcelines.source_lines(elf, placed)
    if lines is None:
        return 0
    found = 0
    for section in code:
        start = section.addr if placed is None else placed[section.index]
        for at in range(start, start + min(section.size, 400), 4):
            line = lines.line_of(at)
            assert line.isascii()
            assert line.isprintable()
            assert len(line) <= 64
            found += bool(line)
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_mutants(name: str) -> None:
    whole = (DATA / name).read_bytes()
    elf = read_elf(whole, name, "an image")
    rng = random.Random(name)
    assert ask(whole, name) > 40
    slowest = 0.0
    for _ in range(MUTANTS):
        begin = time.process_time()
        ask(mutant(rng, whole, elf), name)
        slowest = max(slowest, time.process_time() - begin)
    assert slowest < 2.0


@pytest.mark.parametrize("name", ["be-4.elf", "le-5.elf", "be-5-zlib.elf"])
def test_every_cut(name: str) -> None:
    """The line table ends at each of its bytes."""
    whole = (DATA / name).read_bytes()
    elf = read_elf(whole, name, "an image")
    section = elf.find_section(".debug_line")
    assert section is not None
    for size in range(0, section.size, 1 if FULL else 7):
        data = bytearray(whole)
        data[section.offset + size : section.offset + section.size] = bytes(section.size - size)
        ask(bytes(data), name)
