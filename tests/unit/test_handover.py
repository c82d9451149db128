"""The old kernel's hand-over: the words are the assembly, the arrival state is the captured one."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from emulator import handover
from emulator.handoff import LOW_COPY_BYTES, MSR_BIG, MSR_LITTLE, SECONDARY_ENTRY


@pytest.mark.parametrize("rows", [handover.BOOT_CODE, handover.SECONDARY_CODE])
@pytest.mark.parametrize("big_endian", [False, True])
def test_words_are_what_the_assembler_makes_of_the_text(
    rows: tuple[handover.Word, ...],
    big_endian: bool,
    cross_tool: Callable[[str, bool], Path],
    tmp_path: Path,
) -> None:
    built, flat = tmp_path / "a.o", tmp_path / "a.bin"
    command = [str(cross_tool("as", big_endian)), "-mpower8", "-o", str(built), "-"]
    subprocess.run(command, input=handover.assembly(rows), text=True, check=True)
    copy = [str(cross_tool("objcopy", big_endian)), "-O", "binary", "-j", ".text"]
    subprocess.run([*copy, str(built), str(flat)], check=True)
    order = ">" if big_endian else "<"
    words = [word for (word,) in struct.iter_unpack(order + "I", flat.read_bytes())]
    assert [hex(word) for word in words] == [hex(row.word) for row in rows]


def test_rows_follow_each_other_and_fit_before_the_flag() -> None:
    for rows in (handover.BOOT_CODE, handover.SECONDARY_CODE):
        assert [row.at for row in rows] == list(range(rows[0].at, rows[0].at + 4 * len(rows), 4))
    assert handover.BOOT_CODE[-1].at < handover.SECONDARY_OFFSET
    assert handover.SECONDARY_CODE[-1].at < handover.FLAG_OFFSET_BYTES < handover.CODE_BYTES


@pytest.mark.parametrize("big_endian", [False, True])
def test_code_is_in_the_old_kernels_byte_order_and_the_flag_is_clear(big_endian: bool) -> None:
    code = handover.handover_code(big_endian)
    assert len(code) == handover.CODE_BYTES
    assert struct.unpack_from(">I" if big_endian else "<I", code, 0x60)[0] == 0x4E800020
    assert code[handover.FLAG_OFFSET_BYTES :][:4] == bytes(4)


def test_loops_copy_exactly_the_low_bytes_and_go_to_the_secondary_entry() -> None:
    words = {row.at: row.word for row in handover.BOOT_CODE + handover.SECONDARY_CODE}
    assert (words[0x04] & 0xFFFF) * 8 == LOW_COPY_BYTES
    assert (words[0x20] & 0xFFFF) * (words[0x34] & 0xFFFF) == LOW_COPY_BYTES
    assert words[0x8C] & 0xFFFF == SECONDARY_ENTRY


def test_every_cpu_starts_with_its_physical_id() -> None:
    starts = handover.cpu_starts(0x10000, 0x48A0700, (0, 8, 16), 1, big_endian=False, r6=0xFEED1234)
    boot = starts[1]
    assert (boot.nip, boot.msr) == (0x10000, MSR_LITTLE)
    assert boot.gpr == {25: 8, 26: 0x48A0700, 27: 0x100C0, 28: 0xFEED1234}
    for cpu, cpu_id in ((0, 0), (2, 16)):
        assert starts[cpu].nip == 0x10000 + handover.SECONDARY_OFFSET
        assert starts[cpu].gpr == {3: cpu_id, 5: 0x100C0}
    assert handover.cpu_starts(0, 0, (0,), 0, big_endian=True)[0].msr == MSR_BIG
