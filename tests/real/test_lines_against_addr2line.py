"""Lines of Debian's debug kernel against addr2line: 20,000 places, every one the same.

The kernel with its DWARF comes with `bootflow fetch-debian --debug-symbols` (720 MB); without it
there is nothing to compare, in CI too.
"""

import posixpath
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from app.debian import DebianPair, debug_kernel_path
from emulator.elf import SHF_ALLOC, SHF_EXECINSTR, ElfFile, read_elf
from emulator.sourcelines import SourceLines
from emulator.symbols import SymbolTable

pytestmark = [pytest.mark.real, pytest.mark.symbols]


@pytest.fixture(scope="module")
def debug_kernel(debian_pair: DebianPair) -> Path:
    path = debug_kernel_path(debian_pair)
    if not path.is_file():
        pytest.skip("Debian's debug kernel was not fetched (fetch-debian --debug-symbols)")
    return path


def places(elf: ElfFile) -> list[int]:
    """The head of the kernel, starts of functions, the words before them, and any others."""
    rng = random.Random(1)
    code = [s for s in elf.sections if s.flags & SHF_ALLOC and s.flags & SHF_EXECINSTR and s.size]
    head = min(code, key=lambda section: section.addr)
    found = set(range(head.addr, head.addr + min(head.size, 0x4000), 4))
    starts = [int(start) for start in SymbolTable(elf).starts()]
    starts = [at for at in starts if any(s.addr <= at < s.addr + s.size for s in code)]
    for start in rng.sample(starts, 4000):
        found |= {start, start - 4, start + 1}
    for section in code:
        found |= {section.addr + rng.randrange(section.size) for _ in range(4000)}
    return sorted(found)


def is_padding(table: SymbolTable, at: int) -> bool:
    """Behind a function: the line table runs on there, the ranges of its unit do not."""
    found = table.lookup(at)
    return found is not None and found[1] >= table.find_size(found[0])


def test_every_line_is_that_of_addr2line(
    debug_kernel: Path, cross_tool: Callable[[str, bool], Path]
) -> None:
    elf = read_elf(debug_kernel.read_bytes(), debug_kernel.name, "a vmlinux")
    lines, table = SourceLines(elf), SymbolTable(elf)
    asked = places(elf)
    assert len(asked) > 20_000
    command = [cross_tool("addr2line", elf.big_endian), "-e", debug_kernel]
    words = "\n".join(f"{at:#x}" for at in asked)
    said = subprocess.run(command, input=words, capture_output=True, text=True, check=True).stdout
    known = 0
    for at, words in zip(asked, said.splitlines(), strict=True):
        path, _, line = re.sub(r" \(discriminator \d+\)$", "", words).rpartition(":")
        found = lines.line_of(at)
        if line == "?":  # no line of DWARF: addr2line names a file of the symbol table, if any
            assert found == "" or is_padding(table, at)
            continue
        ours, _, our_line = found.rpartition(":")
        assert our_line == ("?" if line == "0" else line)
        assert posixpath.normpath(path).endswith("/" + ours.removeprefix(".../"))
        known += 1
    assert known > 19_000
