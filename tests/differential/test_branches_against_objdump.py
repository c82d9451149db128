"""Every BO, BI and BH of the conditional branches, and SPR moves: our text against objdump's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emulator.branches import REGISTER_FORMS
from emulator.disassembly import disassemble

BASE = 0xC000000000000000
LINE = re.compile(r"\s*([0-9a-f]+):\t(.*)")
DISPLACEMENTS = (4, 0x20, 0x8000, 0xFFFC)


def _words() -> Iterator[int]:
    for bo_bi in range(1 << 10):
        fields = bo_bi << 16
        for displacement in DISPLACEMENTS:
            yield from (16 << 26 | fields | displacement | low for low in range(4))
        for extended in REGISTER_FORMS:
            form = 19 << 26 | fields | extended << 1
            yield from (form | hint << 11 | link for hint in range(4) for link in (0, 1))
            yield form | 1 << 13
    yield from (31 << 26 | 3 << 21 | 17 << 16 | 26 << 11 | move << 1 for move in (339, 467))


def _objdump(words: list[int], tool: Callable[[str, bool], Path], big: bool, at: Path) -> list[str]:
    source, linked = at / "words.s", at / "words.o"
    source.write_text("".join(f".long {word}\n" for word in words))
    subprocess.run([str(tool("as", big)), "-a64", "-o", str(linked), str(source)], check=True)
    command = [str(tool("objdump", big)), "-d", "-z", "--no-show-raw-insn", "-M", "power10"]
    command += [f"--adjust-vma={BASE:#x}", str(linked)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (LINE.match(line) for line in listing.splitlines())
    texts = [" ".join(row[2].split("<")[0].split()) for row in rows if row]
    # Where no symbol is near, objdump marks a target with 0x.
    return [text if text.startswith(".long") else text.replace("0x", "") for text in texts]


@pytest.mark.parametrize("big_endian", [True, False])
def test_every_conditional_branch_reads_as_in_objdump(
    big_endian: bool, cross_tool: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    words = list(_words())
    code = b"".join(word.to_bytes(4, "big" if big_endian else "little") for word in words)
    ours = [" ".join(line.text.split()) for line in disassemble(code, BASE, big_endian=big_endian)]
    theirs = _objdump(words, cross_tool, big_endian, tmp_path)
    rows = zip(words, ours, theirs, strict=True)
    assert [(f"{word:08x}", *texts) for word, *texts in rows if texts[0] != texts[1]] == []
