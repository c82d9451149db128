"""The hash MMU: lookups worked out by hand, the hypercalls on the table, and guests that use it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator import mmu
from emulator.firmware import MAX_NOTES, Partition
from emulator.hashtable import HashTable, table_bytes
from emulator.machine import Machine
from emulator.mmu import ACCESS_FETCH, ACCESS_READ, ACCESS_WRITE
from emulator.papr import (
    BULK_END,
    BULK_REQUEST,
    H_ANDCOND,
    H_AVPN,
    H_EXACT,
    H_FUNCTION,
    H_NOT_FOUND,
    H_PARAMETER,
    H_PTEG_FULL,
    H_READ_4,
    H_SUCCESS,
)
from emulator.ppc64 import MSR_LE, MSR_ME, MSR_SF, effective_address
from tests import asm

RAM_BYTES = 64 << 20
TABLE_BYTES = 1 << 18
"""2,048 groups: 11 bits of a hash."""
REAL, VIRTUAL, USER = 0x8000000000001000, 0x8000000000001030, 0x8000000000005030
KERNEL = 0xC000000000000000
VALID_SLB, M, PP_RW, PP_RO = 0x8000000, 0x10, 0x0, 0x3
KS, KP, NO_EXECUTE = 0x800, 0x400, 0x200


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class Mmu:
    """An SLB and a table; entries are put at the slot that the test worked out."""

    def __init__(self) -> None:
        self.slb = np.zeros(mmu.SLB_ROW * mmu.SLB_ENTRIES, np.int64)
        self.table = np.zeros(TABLE_BYTES // 8, np.int64)

    def segment(self, n: int, esid: int, vsid: int) -> None:
        self.slb[3 * n : 3 * n + 2] = signed(esid), signed(vsid)

    def entry(self, slot: int, v: int, r: int) -> None:
        self.table[2 * slot : 2 * slot + 2] = signed(v), signed(r)

    def ask(self, ea: int, access: int = ACCESS_READ, msr: int = VIRTUAL) -> tuple[int, int]:
        ram = np.zeros(0, np.uint64)
        return tuple(
            mmu.translate(
                ram, RAM_BYTES, signed(ea), access, signed(msr), -1, 0, self.slb, self.table
            )
        )


# Debian 6.1 on a pseries partition: slbmte of the linear mapping, and what it gave H_ENTER for
# 0xc000000004000000: group 0xb217 ^ 4 of 2^16, AVPN 0xea1b217 << 17 | 0x4000000 >> 23.
LINEAR_VSID = 0x400EA1B217000500
LINEAR_V, LINEAR_R, LINEAR_SLOT = 0x400EA1B217000415, 0x4000190, 0x59098


def test_an_entry_as_linux_makes_it_is_found() -> None:
    m = Mmu()
    m.table = np.zeros((1 << 23) // 8, np.int64)
    m.segment(0, KERNEL | VALID_SLB, LINEAR_VSID)
    m.entry(LINEAR_SLOT, LINEAR_V, LINEAR_R)
    assert m.ask(KERNEL | RAM_BYTES) == (0, mmu.OUTSIDE_RAM)  # 64 MiB is where this RAM ends
    m.entry(LINEAR_SLOT, LINEAR_V, LINEAR_R - 0x1000000)
    assert m.ask(KERNEL | 0x4ABC000) == (0x3ABC000, mmu.OK)
    assert m.ask(KERNEL | 0x3FFF000) == (0, mmu.NOT_MAPPED)
    assert m.ask(KERNEL | 0x4ABC000, msr=REAL) == (0, mmu.OUTSIDE_RAM)
    assert m.ask(KERNEL | 1 << 40) == (0, mmu.NO_SEGMENT)


@pytest.mark.parametrize(
    ("vsid", "ea", "slot", "v", "r", "real"),
    [
        # 256 MiB segment, VSID 0x123456789. 4 KiB: page 5; 0x789 ^ 0x005 = 0x78c.
        (0x123456789000, 0x5678, 0x78C * 8, 0x123456789001, 0x3000, 0x3678),
        # the last page: index 0xffff; 0x789 ^ 0x7ff = 0x076; AVPN's low 5 bits are EA 36:40.
        (0x123456789000, 0xFFFF678, 0x076 * 8, 0x123456789F81, 0x3000, 0x3678),
        # secondary group: ~0x78c & 0x7ff = 0x073, H set.
        (0x123456789000, 0x5678, 0x073 * 8 + 7, 0x123456789003, 0x3000, 0x3678),
        # 64 KiB, L and LP of the segment 0x110, of the entry 1: page 0x12; 0x789 ^ 0x12 = 0x79b.
        (0x123456789110, 0x12FFFF, 0x79B * 8, 0x123456789005, 0x41000, 0x4FFFF),
        # 16 MiB, 0x100 and 0: page 1; 0x788; AVPN bit 0x080 << 1.
        (0x123456789100, 0x1234567, 0x788 * 8 + 3, 0x123456789105, 0x2000000, 0x2234567),
        # 64 KiB page in a segment of 4 KiB pages, LP 7: hashed by 4 KiB: page 0x12; 0x79b.
        (0x123456789000, 0x12345, 0x79B * 8, 0x123456789005, 0x47000, 0x42345),
        # 16 MiB page in a segment of 64 KiB pages, LP 8: page 0x123; 0x789 ^ 0x123 = 0x6aa.
        (0x123456789110, 0x1234567, 0x6AA * 8, 0x123456789105, 0x2008000, 0x2234567),
        # 16 MiB page in a segment of 4 KiB pages, LP 0x38: page 0x1234; 0x789 ^ 0x234 = 0x5bd.
        (0x123456789000, 0x1234567, 0x5BD * 8, 0x123456789105, 0x2038000, 0x2234567),
        # 1 TiB segment, VSID 0x2345: hash also VSID << 25, above these 11 bits. 4 KiB: EA
        # 0x4005678: page 0x4005; 0x345 ^ 0x005 = 0x340; AVPN 0x2345 << 17 | 8.
        (0x4000002345000000, 0x4005678, 0x340 * 8, 0x4000002345000401, 0x3000, 0x3678),
        # EA 0x1230005678: page 0x1230005; 0x345 ^ 0x005; AVPN low 17 bits 0x2460.
        (0x4000002345000000, 0x1230005678, 0x340 * 8, 0x4000002345123001, 0x3000, 0x3678),
    ],
)
def test_lookup(vsid: int, ea: int, slot: int, v: int, r: int, real: int) -> None:
    m = Mmu()
    m.segment(31, KERNEL | VALID_SLB, vsid)
    m.entry(slot, v, r | M)
    page, low = ea & ~0xFFF, ea & 0xFFF
    for access in (ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH):
        assert m.ask(KERNEL | page, access) == (real - low, mmu.OK)
    m.entry(slot, v ^ 0x2, r | M)
    assert m.ask(KERNEL | page) == (0, mmu.NOT_MAPPED), "the other hash"
    m.entry(slot, v ^ 0x1, r | M)
    assert m.ask(KERNEL | page) == (0, mmu.NOT_MAPPED), "not valid"
    m.entry(slot, v ^ 0x80, r | M)
    assert m.ask(KERNEL | page) == (0, mmu.NOT_MAPPED), "another page of the group"
    m.entry(slot, v ^ 1 << 62, r | M)
    assert m.ask(KERNEL | page) == (0, mmu.NOT_MAPPED), "another size of segment"
    m.segment(31, KERNEL, vsid)
    assert m.ask(KERNEL | page) == (0, mmu.NO_SEGMENT)


def test_a_hash_of_a_large_segment_has_the_vsid_twice() -> None:
    """VSID 5 in a table of 2^27 groups: 5 << 25 ^ 5 = 0xa000005, of which 27 bits: 0x2000005."""
    vsid = 0x4000000005000000
    found = mmu._find_entry.py_func(_OneEntry(0x2000005, 1 << 27), vsid, 0, 12)
    assert found == (0x2000005 * 8, 12)


class _OneEntry:
    """A table too large for a test, with one entry of VSID 5 in one group."""

    def __init__(self, group: int, groups: int) -> None:
        self._slot, self._groups = group * 8, groups

    def __len__(self) -> int:
        return self._groups * 16

    def __getitem__(self, at: int) -> int:
        return {2 * self._slot: 0x4000000005000001, 2 * self._slot + 1: 0x3010}.get(at, 0)


@pytest.mark.parametrize(
    ("pp", "key", "rights"),
    [
        (0, 0, "rw"), (1, 0, "rw"), (2, 0, "rw"), (3, 0, "r"), (6, 0, "r"), (4, 0, ""), (7, 0, ""),
        (0, 1, ""), (1, 1, "r"), (2, 1, "rw"), (3, 1, "r"), (6, 1, ""), (5, 1, ""),
    ],
)  # fmt: skip
def test_protection(pp: int, key: int, rights: str) -> None:
    """Power ISA 2.07 Book III-S, figure 31; the key is Ks for the kernel, Kp for a program."""
    r = 0x3000 | M | pp & 3 | (pp >> 2) << 63
    for msr, bit in ((VIRTUAL, KS), (USER, KP)):
        m = Mmu()
        m.segment(0, KERNEL | VALID_SLB, 0x123456789000 | (bit if key else 0))
        m.entry(0x789 * 8, 0x123456789001, r)
        found = {
            name: m.ask(KERNEL, access, msr)[1]
            for name, access in (("r", ACCESS_READ), ("w", ACCESS_WRITE), ("x", ACCESS_FETCH))
        }
        wanted = {name: mmu.OK if name in rights else mmu.NOT_ALLOWED for name in "rw"}
        assert found == wanted | {"x": wanted["r"]}


@pytest.mark.parametrize(("vsid", "r"), [(NO_EXECUTE, 0), (0, 0x4), (0, 0x8)])
def test_no_execution(vsid: int, r: int) -> None:
    """N of the segment, N of the entry, G of the entry."""
    m = Mmu()
    m.segment(0, KERNEL | VALID_SLB, 0x123456789000 | vsid)
    m.entry(0x789 * 8, 0x123456789001, 0x3000 | M | r)
    assert m.ask(KERNEL) == (0x3000, mmu.OK)
    assert m.ask(KERNEL, ACCESS_FETCH) == (0, mmu.NO_EXECUTE)


@given(
    words=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=20, max_size=20),
    ea=st.integers(-(2**63), 2**63 - 1),
    access=st.sampled_from([ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH]),
    msr=st.sampled_from([VIRTUAL, USER]),
)
def test_any_table_stays_in_ram(words: list[int], ea: int, access: int, msr: int) -> None:
    m = Mmu()
    m.slb[:2] = (ea & -1 << 28) | VALID_SLB, words[0]
    m.table[:] = np.resize(np.array(words[1:], np.int64) | 1, len(m.table))
    real, why = m.ask(ea & ~0xFFF & (1 << 64) - 1, access, msr)
    assert why or 0 <= real < RAM_BYTES


# --- the table and its hypercalls -----------------------------------------------------------------

V, R, AVPN = 0x123456789011, 0x3190, 0x123456789000


@pytest.fixture
def table() -> HashTable:
    return HashTable(TABLE_BYTES, RAM_BYTES)


def test_enter_takes_the_first_free_entry_of_the_group(table: HashTable) -> None:
    assert table.contents() == b""
    for n in range(8):
        assert table.enter([0, 0x3C65, V, R]) == [H_SUCCESS, 0x3C60 + n]
    assert table.enter([0, 0x3C60, V, R]) == [H_PTEG_FULL]
    assert table.enter([H_EXACT, 0x3C5F, V | 0x60, R]) == [H_SUCCESS, 0x3C5F]
    assert table.entry(0x3C5F) == (V, R), "the bits for the hypervisor's software are its own"
    assert table.enter([H_EXACT, 0x3C5F, V, R]) == [H_PTEG_FULL]
    assert len(table.contents()) == 2 * (8 + 128)


@pytest.mark.parametrize(
    ("slot", "v", "r"),
    [
        (TABLE_BYTES // 16, V, R),
        (1 << 63, V, R),
        (0, V | 4, 0x5190),  # LP 5 is no page size
        (0, V, 0x3000),  # memory, but not coherent
        (0, V, 0x31B0),  # memory, but caching inhibited
        (0, V, RAM_BYTES | 0x190),  # no memory, but cacheable
    ],
)
def test_enter_refuses(table: HashTable, slot: int, v: int, r: int) -> None:
    assert table.enter([0, slot, v, r]) == [H_PARAMETER]
    assert table.contents() == b""


def test_a_device_page_may_be_entered(table: HashTable) -> None:
    assert table.enter([0, 0, V, RAM_BYTES | 0x1A8]) == [H_SUCCESS, 0]


def test_read_remove_protect_clear(table: HashTable) -> None:
    table.enter([H_EXACT, 0x105, V, R])
    assert table.read([0, 0x105]) == [H_SUCCESS, V, R]
    assert table.read([H_READ_4, 0x105]) == [H_SUCCESS, 0, 0, V, R, 0, 0, 0, 0]
    other = AVPN ^ 0x80
    assert table.protect([H_AVPN | 3, 0x105, other]) == [H_NOT_FOUND]
    assert table.protect([H_AVPN | 0x107, 0x105, AVPN]) == [H_SUCCESS]
    assert table.read([0, 0x105]) == [H_SUCCESS, V, R | 0x8000000000000007], "pp0, n, pp"
    assert table.protect([0, 0x105, 0]) == [H_SUCCESS]
    assert table.clear_modified([0, 0x105]) == [H_SUCCESS, R]
    assert table.clear_referenced([0, 0x105]) == [H_SUCCESS, R & ~0x80]
    assert table.read([0, 0x105]) == [H_SUCCESS, V, R & ~0x180]
    assert table.remove([H_AVPN, 0x105, other]) == [H_NOT_FOUND]
    assert table.remove([H_ANDCOND, 0x105, 0x10]) == [H_NOT_FOUND], "bolted"
    assert table.remove([H_AVPN, 0x105, AVPN]) == [H_SUCCESS, V, R & ~0x180]
    for call in (table.remove, table.protect, table.clear_modified, table.clear_referenced):
        assert call([0, 0x105, 0]) == [H_NOT_FOUND]
        assert call([0, TABLE_BYTES // 16, 0]) == [H_PARAMETER]
    assert table.read([0, TABLE_BYTES // 16]) == [H_PARAMETER]


def test_bulk_remove(table: HashTable) -> None:
    """LoPAR 14.5.4.1.8: type, code, R and C, flags in the top byte of each request."""
    for slot in (1, 2, 3):
        table.enter([H_EXACT, slot, V, R])
    by_avpn, absolute = BULK_REQUEST | 2 << 56, BULK_REQUEST
    asked = [by_avpn | 1, AVPN, by_avpn | 2, AVPN ^ 0x80, absolute | 3, 0, BULK_END, 0]
    answer = table.bulk_remove(asked)
    assert answer == [
        H_SUCCESS,
        0x8E00000000000001, AVPN,
        0x9200000000000002, AVPN ^ 0x80,
        0x8C00000000000003, 0,
        BULK_END, 0,
    ]  # fmt: skip
    assert [table.entry(slot)[0] for slot in (1, 2, 3)] == [0, V, 0]
    bad = table.bulk_remove([absolute | 1 << 40, 0, *[0] * 6])
    assert bad[:2] == [H_PARAMETER, 0xA000010000000000]
    assert table.bulk_remove([0] * 8)[0] == H_PARAMETER


def test_digest_sees_an_entry_that_was_removed_again() -> None:
    machines = [guest(asm.NOP) for _ in range(2)]
    before = {m.state_digest() for m in machines}
    machines[0].hash_table.enter([0, 0, V, R])
    assert len(before | {machines[0].state_digest()}) == 2


@pytest.mark.parametrize(
    ("order", "size"), [(18, 1 << 18), (17, 0), (0, 0), (28, 1 << 28), (40, 0)]
)
def test_sizes_of_a_table(order: int, size: int) -> None:
    assert table_bytes(order) == size


def test_a_partition_without_a_table_has_no_calls() -> None:
    notes: list[str] = []
    partition = Partition(lambda cpu, data: None, lambda cpu, text, n: notes.append(text), int)
    machine = Machine(16 << 20, 1, hypercall=partition.answer)
    assert partition.answer(machine, 0, [0x8, 0, 0, V, R, *[0] * 5]) == [H_FUNCTION]
    for _ in range(MAX_NOTES + 5):
        partition.answer(machine, 0, [0x8, 0, 0, V, R, *[0] * 5])
    assert len(notes) == MAX_NOTES
    assert notes[0] == f"H_ENTER(0x0, 0x0, {V:#x}, {R:#x})"
    assert notes[-1].endswith("(further calls of it are not noted)")


# --- guests ---------------------------------------------------------------------------------------

BASE = 0x10000
DATA = 0x20000
SLB_ROW = {"r20": KERNEL | VALID_SLB, "r21": 0x123456789000}
BIG, LITTLE = MSR_SF | MSR_ME, MSR_SF | MSR_ME | MSR_LE
ORDERS = pytest.mark.parametrize("msr", [BIG, LITTLE])


def guest(*words: int, msr: int = BIG) -> Machine:
    """A CPU at BASE in real mode; handlers at 0x300, 0x380, 0x400 and 0x480 read what they need."""
    partition = Partition(lambda cpu, data: None, lambda cpu, text, number: None, int)
    machine = Machine(RAM_BYTES, 1, hypercall=partition.answer, hash_table_bytes=TABLE_BYTES)
    machine.interrupts_little_endian = bool(msr & MSR_LE)
    big = not msr & MSR_LE
    machine.write(BASE, asm.code(*words, big_endian=big))
    for vector in (0x300, 0x380, 0x400, 0x480):
        handler = (
            asm.li(10, vector),
            asm.mfspr(11, asm.SPR_DAR),
            asm.mfspr(12, asm.SPR_DSISR),
            asm.mfspr(13, asm.SPR_SRR0),
            asm.mfspr(14, asm.SPR_SRR1),
            asm.b(0),
        )
        machine.write(vector, asm.code(*handler, big_endian=big))
    machine.cpus[0].set_registers({"nip": BASE, "msr": msr, **SLB_ROW})
    return machine


def map_page(machine: Machine, ea: int, r: int) -> None:
    """Enter a 4 KiB page of the segment in SLB_ROW."""
    group = (0x789 ^ ea >> 12) & 0x7FF
    v = 0x123456789001 | (ea >> 16 & 0xF80)
    assert machine.hash_table.enter([0, 8 * group, v, r | 0x190])[0] == H_SUCCESS


def run(machine: Machine, count: int) -> dict[str, int]:
    assert machine.run(0, count, exact=True).why == "limit"
    return machine.cpus[0].registers().named()


ON = (asm.slbmte(21, 20), asm.mtspr(asm.SPR_SRR0, 22), asm.mtspr(asm.SPR_SRR1, 23), asm.RFID)
"""Make a segment and go to r22 with MSR r23."""


def prepared(*words: int, msr: int, **registers: int) -> Machine:
    """A guest that goes on at KERNEL | BASE + 0x1000 with translation; its code is mapped."""
    machine = guest(*ON, msr=msr)
    machine.write(BASE + 0x1000, asm.code(*words, big_endian=not msr & MSR_LE))
    map_page(machine, BASE + 0x1000, BASE + 0x1000)
    target = {"r22": KERNEL | BASE + 0x1000, "r23": msr | 0x32}
    machine.cpus[0].set_registers(target | registers)
    return machine


@ORDERS
def test_a_guest_enters_a_page_and_uses_it(msr: int) -> None:
    """H_ENTER from real mode; store and load through the entry; slbmfev reads the SLB back."""
    slbmfev = 31 << 26 | 15 << 21 | 16 << 11 | 851 << 1
    machine = guest(asm.sc(1), *ON, msr=msr)
    words = (asm.std(6, 8, 30), asm.ld(7, 8, 30), slbmfev, asm.b(0))
    machine.write(BASE + 0x1000, asm.code(*words, big_endian=not msr & MSR_LE))
    map_page(machine, BASE + 0x1000, BASE + 0x1000)
    machine.cpus[0].set_registers(
        {
            "r3": 0x8, "r4": 0, "r5": 8 * (0x789 ^ 0x40), "r6": V, "r7": DATA | 0x190,
            "r22": KERNEL | BASE + 0x1000, "r23": msr | 0x30, "r30": KERNEL | 0x40000,
        }
    )  # fmt: skip
    now = run(machine, 9)
    assert (now["r3"], now["r4"]) == (H_SUCCESS, 8 * (0x789 ^ 0x40))
    assert now["r7"] == V
    assert now["r15"] == SLB_ROW["r21"]
    order = "little" if msr & MSR_LE else "big"
    assert machine.read(DATA + 8, 8) == V.to_bytes(8, order)
    assert machine.cpus[0].slb[:2].tolist() == [signed(SLB_ROW["r20"]), SLB_ROW["r21"]]


@ORDERS
@pytest.mark.parametrize(
    ("word", "ea", "page", "expected"),
    [
        (asm.ld(4, 0x18, 30), 0x40018, None, (0x300, 0x40018, 0x40000000)),
        (asm.stw(4, -4, 30), 0x3FFFC, None, (0x300, 0x3FFFC, 0x42000000)),
        (asm.stw(4, 4, 30), 0x40004, DATA | PP_RO, (0x300, 0x40004, 0x0A000000)),
        (asm.lwz(4, 0, 31), 0x10000000, None, (0x380, 0x10000000, None)),
        (asm.ld(4, 0, 29), 0x3FFFC, None, (0x300, 0x40000, 0x40000000)),
    ],
)
def test_data_interrupts(
    word: int, ea: int, page: int | None, expected: tuple[int, int, int | None], msr: int
) -> None:
    """No entry, a store without, a store to a read-only page, no segment, across two pages."""
    machine = prepared(asm.NOP, word, asm.b(0), msr=msr, r30=KERNEL | 0x40000, r4=1,
                       r31=KERNEL | 0x10000000, r29=KERNEL | 0x3FFFC)  # fmt: skip
    if page is not None:
        map_page(machine, 0x40000, page)
    if word == asm.ld(4, 0, 29):
        map_page(machine, 0x3F000, DATA)
    now = run(machine, 10)
    vector, dar, dsisr = expected
    assert (now["r10"], now["r11"]) == (vector, KERNEL | dar)
    assert dsisr is None or now["r12"] == dsisr
    assert (now["r13"], now["r14"]) == (KERNEL | BASE + 0x1004, msr | 0x32)
    assert ea


@ORDERS
@pytest.mark.parametrize(
    ("target", "page", "expected"),
    [
        (0x50000, None, (0x400, 0x40000000)),
        (0x50000, DATA | 0x4, (0x400, 0x10000000)),
        (0x10000000, None, (0x480, 0)),
    ],
)
def test_instruction_interrupts(
    target: int, page: int | None, expected: tuple[int, int], msr: int
) -> None:
    machine = prepared(asm.mtctr(25), asm.BCTR, msr=msr, r25=KERNEL | target)
    if page is not None:
        map_page(machine, target, page)
    now = run(machine, 11)
    assert now["r10"] == expected[0]
    assert (now["r13"], now["r14"]) == (KERNEL | target, msr | 0x32 | expected[1])


@ORDERS
@pytest.mark.parametrize("drop", [asm.slbie(26), asm.slbia(), asm.slbmte(27, 28)])
def test_a_segment_that_goes_takes_its_translations_with_it(drop: int, msr: int) -> None:
    """slbie, slbia and an entry over it: the next load misses, though it was just translated."""
    load = asm.ld(4, 0, 30)
    esid = KERNEL | 0x10000000 | VALID_SLB | 1
    machine = prepared(asm.slbmte(21, 28), load, drop, load, asm.b(0), msr=msr,
                       r26=KERNEL | 0x10000000, r27=0x999000, r28=esid,
                       r30=KERNEL | 0x10040000)  # fmt: skip
    map_page(machine, 0x40000, DATA)
    now = run(machine, 12)
    assert now["r11"] == KERNEL | 0x10040000
    assert now["r10"] == (0x300 if drop == asm.slbmte(27, 28) else 0x380)
    assert now["r13"] == KERNEL | BASE + 0x100C


@ORDERS
def test_an_entry_that_goes_takes_its_translation_with_it(msr: int) -> None:
    """H_REMOVE from translated code; then H_PROTECT of the page of a store."""
    words = (asm.ld(9, 0, 30), asm.sc(1), asm.ld(9, 0, 30), asm.b(0))
    machine = prepared(*words, msr=msr, r3=0x4, r4=0, r5=8 * (0x789 ^ 0x40), r30=KERNEL | 0x40000)
    map_page(machine, 0x40000, DATA)
    now = run(machine, 12)
    assert (now["r3"], now["r4"], now["r5"]) == (H_SUCCESS, V & ~0x10, DATA | 0x190)
    assert (now["r10"], now["r13"]) == (0x300, KERNEL | BASE + 0x1008)


@ORDERS
def test_a_fork_of_slices_gives_the_same_state(msr: int) -> None:
    """Stopping, flushing and taking digests between any two instructions changes nothing."""
    words = (asm.std(4, 0, 30), asm.slbie(26), asm.lwz(4, 0, 31), asm.b(0))
    digests = set()
    for cuts in ((), range(1, 14), (5, 7)):
        machine = prepared(*words, msr=msr, r26=KERNEL | 0x10000000, r30=KERNEL | 0x40008,
                           r31=KERNEL | 0x10000000)  # fmt: skip
        map_page(machine, 0x40000, DATA)
        for cut in cuts:
            run(machine, cut)
            machine.take_dirty()
            machine.state_digest()
        run(machine, 14)
        digests.add(machine.state_digest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (asm.lwz(1, -8, 2), 0xFF8),
        (asm.lwz(1, 8, 0), 8),
        (asm.ld(1, 0x7FFC, 2) | 1, 0x8FFC),  # ldu
        (31 << 26 | 2 << 16 | 3 << 11 | 23 << 1, 0x1010),  # lwzx
        (31 << 26 | 2 << 16 | 3 << 11 | 597 << 1, 0x1000),  # lswi
        (61 << 26 | 2 << 16 | 0x20 | 5, 0x1020),  # stxv
        (61 << 26 | 2 << 16 | 0x20 | 2, 0x1020),  # stxsd
        (56 << 26 | 2 << 16 | 0x20, 0x1020),  # lq
        (asm.addi(1, 2, 3), None),
    ],
)
def test_effective_address(word: int, expected: int | None) -> None:
    assert effective_address(word, (7, 7, 0x1000, 0x10, *[0] * 28)) == expected
