"""Instruction words that need a code hook, because Unicorn does them wrong or unseen.

What it is: the recognition of such words, compiled, because each page is searched when code is
first fetched from it. What it is not: the hooks (`cpu`, `native`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emulator.compiled import njit


@njit(cache=True)
def is_timebase(word: int) -> bool:
    """Whether an instruction word reads a clock that Unicorn has not got.

    The timebase reads 0 for ever; SPURR, PURR and VTB (SPRs 308, 309, 849) end the process with
    SIGSEGV, because Unicorn makes no timer for them. No other SPR does, read or written (swept).
    """
    form = word & 0xFC1FFFFF
    return bool(
        form == 0x7C0C42A6  # mfspr rD,268
        or form == 0x7C0D42A6  # mfspr rD,269
        or form == 0x7C0C42E6  # mftb rD
        or form == 0x7C0D42E6  # mftbu rD
        or form == 0x7C144AA6  # mfspr rD,308
        or form == 0x7C154AA6  # mfspr rD,309
        or form == 0x7C11D2A6  # mfspr rD,849
    )


@njit(cache=True)
def changes_segments(word: int) -> bool:
    """Whether an instruction word changes the SLB.

    slbmte, slbie, slbieg, slbia; mtsr and mtsrin, which store into it on a 64-bit CPU.
    """
    extended = word >> 1 & 0x3FF
    return word >> 26 == 31 and (
        extended == 402
        or extended == 434
        or extended == 466
        or extended == 498
        or extended == 210
        or extended == 242
    )


@njit(cache=True)
def needs_hook(ram: Any, physical: int) -> bool:
    """Whether a code page holds a word that needs a code hook, in either byte order."""
    for i in range(1024):
        word: Any = np.int64(ram[(physical >> 2) + i])
        if word >> 26 == 31 and (is_timebase(word) or changes_segments(word)):
            return True
        if word >> 2 & 0x3F == 31:  # the primary opcode in the other byte order
            swapped = (word & 0xFF) << 24 | (word & 0xFF00) << 8 | (word >> 8 & 0xFF00) | word >> 24
            if is_timebase(swapped) or changes_segments(swapped):
                return True
    return False
