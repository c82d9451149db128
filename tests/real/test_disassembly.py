"""Our disassembly against objdump's, word for word, over two megabytes of the real kernel."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from app.debian import DebianPair
from emulator.disassembly import disassemble
from emulator.images import read_kernel

pytestmark = pytest.mark.real

START, END = 0xC000000000000000, 0xC000000000200000
LINE = re.compile(r"\s*(c0[0-9a-f]{14}):\s+(.*)")
MOST_DIFFERING = 0.006
"""Share of words that may read otherwise: aliases of rare instructions, and data."""


def test_objdump_reads_the_same(
    debian_pair: DebianPair, cross_tool: Callable[[str, bool], Path]
) -> None:
    kernel = read_kernel(Path(debian_pair.vmlinux).read_bytes(), "vmlinux")
    segment = kernel.segments[0]
    options = [f"--start-address={START:#x}", f"--stop-address={END:#x}"]
    command = [
        str(cross_tool("objdump", False)),
        "-d",
        "--no-show-raw-insn",
        "-M",
        "power10",
        *options,
    ]
    listing = subprocess.run(
        [*command, str(debian_pair.vmlinux)], capture_output=True, text=True, check=True
    ).stdout
    seen, differing = 0, Counter[str]()
    for line in listing.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        addr = int(match[1], 16)
        theirs = " ".join(match[2].split("<")[0].split())
        if theirs.startswith(".long"):
            continue
        at = addr - segment.vaddr
        raw = bytes(segment.data[at : at + 4])
        ours = " ".join(disassemble(raw, addr, big_endian=False)[0].text.split())
        seen += 1
        if ours != theirs:
            differing[f"{theirs.split()[0]} is {ours.split()[0]}"] += 1
    assert seen > 400_000
    assert differing.total() <= MOST_DIFFERING * seen, differing.most_common(10)
