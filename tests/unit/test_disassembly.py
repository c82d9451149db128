"""Words that capstone gets wrong or names otherwise than objdump, in both byte orders."""

from __future__ import annotations

import pytest

from emulator.disassembly import disassemble, trampolines

WORDS = (
    (0x7C210B78, "or      1,1,1"),
    (0x7FFFFB78, "or      31,31,31"),
    (0x7E038378, "mr      r3,r16"),
    (0x4C000024, "rfid"),
    (0x7C9A03A6, "mtsrr0  r4"),
    (0x78A507A4, "clrrdi  r5,r5,1"),
    (0x78C507C6, "sldi    r5,r6,32"),
    (0x90E4005C, "stw     r7,92(r4)"),
    (0x7C0004AC, "hwsync"),
    (0x4E800420, "bctr"),
    (0x7D4C42A6, "mftb    r10"),
    (0x00000000, ".long   0x00000000"),
    (0x48000008, "b       10008"),
    (0x7C002264, "tlbie   r4,r0,0,0,0"),
    (0x429F0005, "bcl     20,4*cr7+so,10004"),
    (0x40000020, "bdnzf   lt,10020"),
    (0x419E0008, "beq     cr7,10008"),
    (0x4D820020, "beqlr"),
    (0x4E860420, "bcctr   20,4*cr1+eq"),
    (0x42A00004, ".long   0x42a00004"),
    (0x7C71D2A6, "mfvtb   r3"),
)


@pytest.mark.parametrize(("word", "text"), WORDS)
@pytest.mark.parametrize("big_endian", [True, False])
def test_text(word: int, text: str, big_endian: bool) -> None:
    raw = word.to_bytes(4, "big" if big_endian else "little")
    (line,) = disassemble(raw, 0x10000, big_endian=big_endian)
    assert (line.addr, line.raw, line.text) == (0x10000, raw, text)


def test_short_tail_is_left_out() -> None:
    assert len(disassemble(bytes(11), 0, big_endian=True)) == 2


def test_an_endian_trampoline_tells_its_own_byte_order() -> None:
    enters = bytes.fromhex("480000082c000048")  # tdi and b, which run in either order
    turn = bytes.fromhex(
        "7d6000a6 696b0001 39400000 7d410164 429f0005 7d4802a6 394a0014 7d5a03a6 7d7b03a6 4c000024"
    )
    little = bytes.fromhex("a600007f020018636401007f")
    assert trampolines(enters + turn + little) == frozenset(range(8, 48, 4))
    assert trampolines(enters + little) == frozenset()
    assert trampolines(turn[-4:] + little) == frozenset(), "an rfid alone is none"
    assert trampolines(little + turn[:-4]) == frozenset(), "cut off before its rfid"
