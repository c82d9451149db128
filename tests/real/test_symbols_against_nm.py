"""Symbols of Debian's vmlinux against nm and pyelftools, and how long they take to read."""

import io
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from app.debian import DebianPair
from emulator.images import read_kernel, read_purgatory

pytestmark = pytest.mark.real


def test_a_thousand_symbols_both_ways(
    debian_pair: DebianPair, cross_tool: Callable[[str, bool], Path]
) -> None:
    nm = subprocess.run(
        [cross_tool("nm", False), debian_pair.vmlinux], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in nm.stdout.splitlines()]
    named = [(int(row[0], 16), row[2]) for row in rows if len(row) == 3 and row[1] in "tTdDbBrR"]
    addresses: dict[str, set[int]] = {}
    for addr, name in named:
        addresses.setdefault(name, set()).add(addr)
    symbols = read_kernel(debian_pair.vmlinux.read_bytes(), "vmlinux").symbols
    assert len(symbols) > 100_000
    at: dict[int, set[str]] = {}
    for addr, name in named:
        at.setdefault(addr, set()).add(name)
    for addr, name in random.Random(1).sample(named, 1000):
        assert symbols.find(name) in addresses[name]
        found = symbols.lookup(addr)
        assert found is not None
        assert found[1] == 0
        assert found[0] in at[addr]


def test_sections_and_segments_are_those_of_pyelftools(debian_pair: DebianPair) -> None:
    for image in (
        read_kernel(debian_pair.vmlinux.read_bytes(), "vmlinux"),
        read_purgatory(debian_pair.kexec.read_bytes(), "kexec"),
    ):
        oracle = ELFFile(io.BytesIO(bytes(image.elf)))
        ours = [(s.name, s.offset, s.size, s.addr, s.flags) for s in image.parsed.sections]
        assert ours == [
            (s.name, s["sh_offset"], s["sh_size"], s["sh_addr"], s["sh_flags"])
            for s in oracle.iter_sections()
        ]
        loads = [(h.vaddr, h.file_bytes, h.mem_bytes) for h in image.parsed.program_headers]
        assert loads == [
            (h["p_vaddr"], h["p_filesz"], h["p_memsz"]) for h in oracle.iter_segments()
        ]


def test_vmlinux_of_debian_holds_no_purgatory(debian_pair: DebianPair) -> None:
    """Debian's ppc64el kernel keeps no kexec_purgatory; the error says what was looked at."""
    with pytest.raises(Exception, match="holds no purgatory"):
        read_purgatory(debian_pair.vmlinux.read_bytes(), "vmlinux")
