"""Address translation, compiled and as plain Python, on page tables built here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator import mmu
from emulator.mmu import ACCESS_FETCH, ACCESS_READ, ACCESS_WRITE

RAM_BYTES = 4 << 20
TABLE, ROOT, SECOND, THIRD, FOURTH = 0x1000, 0x10000, 0x20000, 0x30000, 0x40000
VALID, LEAF = 1 << 63, 1 << 62
REAL, VIRTUAL, USER = 0x8000000000001000, 0x8000000000001030, 0x8000000000005030
KERNEL = 0xC000000000000000


def build() -> np.ndarray:
    """One process table entry, a 4-level tree: a 2 MiB page at KERNEL, a 4 KiB page 4 MiB on."""
    ram = np.zeros(RAM_BYTES // 8, ">u8")
    ram[TABLE // 8] = ROOT | 13
    ram[ROOT // 8] = VALID | SECOND | 9
    ram[SECOND // 8] = VALID | THIRD | 9
    ram[THIRD // 8] = VALID | LEAF | 0x200000 | 0x8 | 0x4 | 0x2 | 0x1
    ram[THIRD // 8 + 2] = VALID | FOURTH | 9
    ram[FOURTH // 8 + 3] = VALID | LEAF | 0x7000 | 0x4
    return ram.view(np.uint8).view("<u8").astype(np.uint64)


RAM = build()
NO_SLB = np.zeros(mmu.SLB_ROW * mmu.SLB_ENTRIES, np.int64)
NO_HASH = np.zeros(0, np.int64)


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def ask(ea: int, access: int = ACCESS_READ, msr: int = VIRTUAL) -> tuple[int, int]:
    return tuple(
        mmu.translate(RAM, RAM_BYTES, signed(ea), access, signed(msr), TABLE, 0, NO_SLB, NO_HASH)
    )


@pytest.mark.parametrize(
    ("ea", "access", "msr", "expected"),
    [
        (0x3000, ACCESS_READ, REAL, (0x3000, mmu.OK)),
        (KERNEL | 0x3000, ACCESS_WRITE, REAL, (0x3000, mmu.OK)),
        (RAM_BYTES, ACCESS_READ, REAL, (0, mmu.OUTSIDE_RAM)),
        (KERNEL | 0x5000, ACCESS_FETCH, VIRTUAL, (0x205000, mmu.OK)),
        (KERNEL | 0x5000, ACCESS_WRITE, VIRTUAL, (0x205000, mmu.OK)),
        (KERNEL | 0x5000, ACCESS_READ, USER, (0, mmu.NOT_ALLOWED)),
        (KERNEL | 0x403000, ACCESS_READ, VIRTUAL, (0x7000, mmu.OK)),
        (KERNEL | 0x403000, ACCESS_READ, USER, (0x7000, mmu.OK)),
        (KERNEL | 0x403000, ACCESS_WRITE, VIRTUAL, (0, mmu.NOT_ALLOWED)),
        (KERNEL | 0x403000, ACCESS_FETCH, VIRTUAL, (0, mmu.NO_EXECUTE)),
        (KERNEL | 0x404000, ACCESS_READ, VIRTUAL, (0, mmu.NOT_MAPPED)),
        (KERNEL | 0x200000, ACCESS_READ, VIRTUAL, (0, mmu.NOT_MAPPED)),
        (0x4000000000000000, ACCESS_READ, VIRTUAL, (0, mmu.BAD_QUADRANT)),
    ],
)
def test_translation(ea: int, access: int, msr: int, expected: tuple[int, int]) -> None:
    assert ask(ea, access, msr) == expected


def test_no_process_table() -> None:
    found = mmu.translate(RAM, RAM_BYTES, 0, ACCESS_READ, signed(VIRTUAL), -1, 0, NO_SLB, NO_HASH)
    assert found[1] == mmu.NO_TABLE


@given(
    root=st.integers(0, 2**63 - 1),
    ea=st.integers(-(2**63), 2**63 - 1),
    access=st.sampled_from([ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH]),
    pid=st.integers(0, 2**32 - 1),
)
def test_any_tree_stays_in_ram(root: int, ea: int, access: int, pid: int) -> None:
    ram = RAM.copy()
    ram[TABLE // 8] = np.uint64(int.from_bytes(root.to_bytes(8, "big"), "little"))
    real, why = mmu.translate(
        ram, RAM_BYTES, ea & ~0xFFF, access, signed(VIRTUAL), TABLE, pid, NO_SLB, NO_HASH
    )
    assert why or 0 <= real < RAM_BYTES
