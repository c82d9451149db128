"""Heads that do what real kernels were seen to do, in shapes that no sample has.

Each is a few words of our own, big-endian, without a symbol: what is judged is what ran. The shapes
were found with kernels of 2.6.27 to 6.1 and purgatories of 2008 to today.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from emulator import samples
from emulator.check import Report, check
from emulator.evidence import Evidence
from emulator.recorder import Recorder, RunSpec, prepare
from emulator.rules import as_sentence
from emulator.samples import get_sample
from emulator.storms import STORM_COUNT, STORM_TICKS, Room, Storms
from emulator.trace import TraceReader, TraceWriter
from emulator.trace_schema import MAX_ROWS
from emulator.verdict import Verdict, verdict
from tests import asm
from tests.elfwriter import Elf, Segment

LINK = 0xC000000000000000
SPEC = {"mode": "load-panic", "checks": False, "mem_bytes": 256 << 20}
FLAG = 0x5C
WHERE_IT_RUNS = (asm.bl(4), asm.mfspr(31, asm.SPR_LR), asm.addi(31, 31, -0x104))
"""r31 = address of the kernel, for code at 0x100."""
ASKS = (asm.lwz(7, FLAG, 31), asm.cmpdi(7, 1))
SPEAKS = (asm.li(3, 0x58), asm.li(5, 0), asm.sc(1), asm.li(3, 0x68), asm.sc(1), asm.b(0))
"""H_PUT_TERM_CHAR of no byte, H_CPPR, then a spin: it has decided where it runs."""


def head(*words: int, flag: int = 0x72756E30) -> bytes:
    """Return a kernel without symbols whose code at 0x100 is `words`."""
    body = bytearray(0x400)
    struct.pack_into(">I", body, 0, asm.b(0x100))
    struct.pack_into(">I", body, FLAG, flag)
    struct.pack_into(">I", body, 0x60, asm.b(0))
    code = asm.code(*words, big_endian=True)
    body[0x100 : 0x100 + len(code)] = code
    return Elf(
        big_endian=True, flags=1, entry=LINK, segments=[Segment(LINK, 0, bytes(body), 0x10000)]
    ).to_bytes()


def judge(
    kernel: bytes, path: Path, *, purgatory: bytes = b"", **options: Any
) -> tuple[Report, Verdict]:
    """Return what the rules and the verdict say of a kernel after a purgatory."""
    spec = SPEC | options
    purgatory = purgatory or get_sample("runatload-be").purgatory_bytes()
    images = {"kernel": ("vmlinux", kernel), "purgatory": ("purgatory.ro", purgatory)}
    prepared = prepare(RunSpec.from_json(spec), images)
    records = [prepared.record()]
    Recorder(prepared, records.append).record()
    report = check(Evidence.of_records(spec, json.loads(json.dumps(records))))
    writer = TraceWriter(path / "trace")
    writer.start(spec, [])
    for record in records:
        writer.apply(record)
    writer.finish()
    with TraceReader(path / "trace") as reader:
        return report, verdict(reader)


def sweep(load: int, step: int) -> tuple[int, ...]:
    """Return a loop that reads the first 0x100 bytes of the kernel, `step` bytes at a time."""
    return (
        asm.li(8, 0x100 // step), asm.mtctr(8), asm.mr(9, 31),
        load, asm.addi(9, 9, step), asm.bdnz(-8),
    )  # fmt: skip


def test_passing_over_the_flag_asks_nothing(tmp_path: Path) -> None:
    """A stripped 6.1 copies its first instructions later on (do_final_fixups)."""
    kernel = head(*WHERE_IT_RUNS, *ASKS, *ASKS, *sweep(asm.lwz(10, 0, 9), 4), *SPEAKS)
    report, told = judge(kernel, tmp_path)
    assert (report.seen.outcome, report.seen.abi) == ("stayed", "run_at_load")
    assert len(report.seen.flag_reads) == 2
    assert not report.failed
    assert told.word == "STAYS"
    assert "the kernel read it twice" in told.sentence


def test_a_copy_of_doublewords_is_no_kdump_flag(tmp_path: Path) -> None:
    kernel = head(*WHERE_IT_RUNS, *sweep(asm.ld(10, 0, 9), 8), *SPEAKS, flag=0)
    report, told = judge(kernel, tmp_path, mode="load")
    assert report.seen.abi == "none"
    assert "the kernel never read it" in told.sentence


def test_a_flag_that_the_image_does_not_show_is_in_the_verdict(tmp_path: Path) -> None:
    """The stripped kernel of 2.6.28-rc2: nothing but its read of 0x18 tells of its flag."""
    reads = (asm.ld(7, 0x18, 31), asm.cmpdi(7, 1))
    report, told = judge(head(*WHERE_IT_RUNS, *reads, *reads, *SPEAKS, flag=0), tmp_path)
    assert report.seen.abi == "kdump_flag"
    assert "the kernel read it twice" in told.sentence
    assert [step.title for step in told.custody[1:3]] == ["read by", "read by"]


STORM = (
    asm.lis(3, 0x6000), asm.stw(3, 0x700, 0), asm.lis(3, 0x7FE0), asm.ori(3, 3, 8),
    asm.stw(3, 0x704, 0), asm.TRAP,
)  # fmt: skip


def test_exceptions_that_go_nowhere_end_the_run(tmp_path: Path) -> None:
    """2.6.29 without a page table: instruction storage interrupts for ever."""
    report, told = judge(head(*STORM), tmp_path)
    assert report.seen.end["reason"] == "fault"
    assert report.seen.end["text"] == (
        f"0x0000000000000704: program check, {STORM_COUNT} times over: its handler does not get on"
    )
    assert report.seen.end["tick"] < 500_000
    assert (report.seen.outcome, told.word) == ("stopped", "STOPS")
    assert report.statuses["boot-entry"] == "passed"


@pytest.mark.parametrize(
    ("gap", "cpus", "places", "storm"),
    [
        (20, 1, 1, True),
        (STORM_TICKS, 1, 1, True),
        (STORM_TICKS + 1, 1, 1, False),
        (20, 1, 2, False),
        (20, 2, 1, False),
    ],
)
def test_a_storm_is_told_from_work(gap: int, cpus: int, places: int, storm: bool) -> None:
    storms = Storms()
    told = [
        storms.note(n % cpus, n * gap, "program check", 4 * (n % places))
        for n in range(STORM_COUNT)
    ]
    assert bool(told[-1]) == storm
    assert not any(told[:-1])


def test_a_trace_without_room_is_noticed_before_it_is_full() -> None:
    room = Room()
    for _ in range(MAX_ROWS["event"] - 10_001):
        room.note("event")
    room.note("facts")
    assert room.full == ""
    room.note("event")
    assert room.full == "event"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("purgatory: it spins", "Purgatory: it spins."),
        ("the kernel stopped.", "The kernel stopped."),
        ("program_check_common+0x0/0x100: trap", "program_check_common+0x0/0x100: trap."),
    ],
)
def test_a_symbol_keeps_its_spelling(text: str, told: str) -> None:
    assert as_sentence(text) == told


def unnamed(purgatory: str) -> bytes:
    """Return a sample purgatory whose digest check has another name, as if it were inlined."""
    raw = (Path(samples.__file__).parent / f"purgatory-{purgatory}.ro").read_bytes()
    assert b"verify_sha256_digest\0" in raw
    return raw.replace(b"verify_sha256_digest\0", b"xxxxxx_sha256_digest\0")


@pytest.mark.parametrize(
    ("purgatory", "checks", "status", "words"),
    [
        ("be", True, "passed", "bytes, and the kernel was entered"),
        ("digest-be", True, "failed", "as many as a digest takes: it did not match."),
        ("be", False, "passed", "Skipped, as --no-checks asks."),
        ("waits-be", True, "passed", "bytes, and the kernel was entered"),
    ],
)
def test_a_digest_needs_no_name(
    purgatory: str, checks: bool, status: str, words: str, tmp_path: Path
) -> None:
    kernel = head(*WHERE_IT_RUNS, *ASKS, *SPEAKS)
    report, _ = judge(kernel, tmp_path, purgatory=unnamed(purgatory), checks=checks)
    found = next(row.found for row in report.rows if row.rule.id == "digest")
    assert (found.status, words in found.text) == (status, True), found.text
