"""Images: what an upload is, is found by looking; errors say what it looks like."""

import bz2
import gzip
import lzma
import struct
import zlib
from pathlib import Path

import pytest
import zstandard

from emulator import images, samples
from emulator.errors import ImageError, LimitError, MissingSymbol, NotElf, WrongMachine
from tests.elfwriter import ET_DYN, ET_REL, Elf, Section, Segment, Symbol, tiny_kernel

FOLDER = Path(samples.__file__).parent
LINK = 0xC000000000000000


def purgatory(order: str = "le") -> bytes:
    return (FOLDER / f"purgatory-{order}.ro").read_bytes()


def program_holding(inner: bytes, machine: int = 21) -> bytes:
    """A position-independent program with a file in its data, as kexec holds its purgatory."""
    return Elf(
        type=ET_DYN, machine=machine, segments=[Segment(0, 0, bytes(100) + inner)]
    ).to_bytes()


@pytest.mark.parametrize("big_endian", [False, True])
def test_kernel(big_endian: bool) -> None:
    kernel = images.read_kernel(tiny_kernel(big_endian=big_endian), "anything.txt")
    assert kernel.big_endian is big_endian
    assert kernel.abi == (1 if big_endian else 2)
    assert kernel.entry_vaddr == kernel.link_vaddr == LINK
    assert kernel.mem_bytes == 0x300
    assert kernel.low256[0x5C:0x60] == (b"run0" if big_endian else b"0nur")
    assert kernel.symbols.get("start_kernel") == LINK + 0x140
    assert isinstance(kernel.segments[0].data, memoryview)


def test_stripped_kernel_has_no_symbols() -> None:
    kernel = images.read_kernel(Elf(segments=[Segment(LINK, 0, bytes(64))]).to_bytes(), "k")
    assert len(kernel.symbols) == 0
    assert kernel.symbols.find("start_kernel") is None
    assert kernel.low256 == bytes(256)


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lzma.compress,
        lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
        zstandard.compress,
        bz2.compress,
        lambda data: gzip.compress(lzma.compress(data)),
    ],
    ids=["gzip", "xz", "lzma", "zstd", "bzip2", "xz in gzip"],
)
def test_packed_kernel(pack) -> None:  # type: ignore[no-untyped-def]
    plain = tiny_kernel()
    kernel = images.read_kernel(pack(plain), "k")
    assert bytes(kernel.elf) == plain
    assert kernel.sha256 != images.read_kernel(plain, "k").sha256


def test_hash_is_of_the_file_as_given() -> None:
    import hashlib

    data = gzip.compress(tiny_kernel())
    assert images.read_kernel(data, "k").sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("order", ["le", "be"])
def test_purgatory_alone(order: str) -> None:
    image = images.read_purgatory(purgatory(order), "p")
    assert image.found == "purgatory.ro"
    assert image.big_endian is (order == "be")
    assert image.abi == (1 if order == "be" else 2)


@pytest.mark.parametrize("order", ["le", "be"])
def test_purgatory_inside_a_program(order: str) -> None:
    inner = purgatory(order)
    image = images.read_purgatory(program_holding(inner + b"rest of the program"), "kexec")
    assert image.found == "inside a kexec binary at offset 0xdc"
    assert bytes(image.elf) == inner


def test_first_relocatable_file_that_is_a_purgatory_is_taken() -> None:
    module = Elf(type=ET_REL, sections=[Section(".text", bytes(8), flags=6)]).to_bytes()
    image = images.read_purgatory(program_holding(module + purgatory()), "kexec")
    assert bytes(image.elf) == purgatory()


def test_purgatory_inside_a_vmlinux_is_found_by_symbol() -> None:
    inner = purgatory()
    body = bytes(0x40) + inner
    vmlinux = Elf(
        segments=[Segment(LINK, 0, body)],
        sections=[Section(".rodata", body, addr=LINK)],
        symbols=[Symbol("kexec_purgatory", LINK + 0x40, len(inner), ".rodata")],
    ).to_bytes()
    image = images.read_purgatory(gzip.compress(vmlinux), "vmlinux.gz")
    assert image.found == "kexec_purgatory of a vmlinux"
    assert bytes(image.elf) == inner


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG picture"),
        (b"hello\nworld", 'a text file that begins "hello"'),
        (gzip.compress(b"hello"), "a gzip file holding a text file"),
        (bytes(257) + b"ustar" + bytes(40), "a tar archive"),
        (b"!<arch>\ndebian-binary", "a .deb package"),
        (b"\xd0\x0d\xfe\xed" + bytes(60), "a flattened device tree"),
        (b"\x01\x02\x03\x04\x80", "unknown data that begins 01 02 03 04 80"),
    ],
)
def test_what_is_no_elf_is_named(data: bytes, words: str) -> None:
    for read in (images.read_kernel, images.read_purgatory):
        with pytest.raises(NotElf) as caught:
            read(data, "upload")
        assert words in caught.value.message
        assert "expected" in caught.value.message
        assert caught.value.hint


def test_elf_of_another_machine_is_named() -> None:
    other = Elf(machine=62, segments=[Segment(0, 0, b"x")]).to_bytes()
    with pytest.raises(WrongMachine, match="little-endian x86-64 ELF file"):
        images.read_kernel(other, "vmlinux")
    with pytest.raises(WrongMachine, match="a gzip file holding a 64-bit little-endian x86-64"):
        images.read_purgatory(gzip.compress(other), "kexec")


def test_32_bit_powerpc_is_refused() -> None:
    raw = bytearray(tiny_kernel(big_endian=True))
    raw[4] = 1
    with pytest.raises(WrongMachine, match="32-bit big-endian"):
        images.read_kernel(bytes(raw), "vmlinux")


def test_purgatory_in_the_kernel_field_and_the_other_way_round() -> None:
    with pytest.raises(WrongMachine) as caught:
        images.read_kernel(purgatory(), "upload")
    assert "purgatory field" in caught.value.hint
    with pytest.raises(ImageError, match="holds no purgatory"):
        images.read_purgatory(tiny_kernel(), "vmlinux")


def test_module_is_no_purgatory() -> None:
    module = Elf(type=ET_REL, sections=[Section(".text", bytes(8), flags=6)]).to_bytes()
    with pytest.raises(MissingSymbol, match="purgatory_start"):
        images.read_purgatory(module, "ext4.ko")


def test_cut_off_files_are_named() -> None:
    whole = tiny_kernel()
    for size in (10, 63, 100, len(whole) - 1):
        with pytest.raises(ImageError) as caught:
            images.read_kernel(whole[:size], "vmlinux")
        assert "vmlinux" in caught.value.message
    packed = gzip.compress(whole)
    with pytest.raises(ImageError, match="does not unpack"):
        images.read_kernel(packed[:-20], "vmlinux")


def test_segment_outside_the_file() -> None:
    raw = bytearray(tiny_kernel())
    struct.pack_into("<Q", raw, 64 + 32, 1 << 60)
    with pytest.raises(ImageError, match=r"program header 0 .* lies outside"):
        images.read_kernel(bytes(raw), "vmlinux")


def test_huge_memory_size_is_a_limit() -> None:
    with pytest.raises(LimitError, match="the limit is"):
        images.read_kernel(Elf(segments=[Segment(LINK, 0, b"x", 1 << 40)]).to_bytes(), "vmlinux")


@pytest.mark.parametrize("pack", ["gzip", "xz", "zstd", "bzip2"])
def test_decompression_bomb_is_a_limit(pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_UNPACKED_BYTES", 4 << 20)
    zeros = bytes(40 << 20)
    packed = {
        "gzip": lambda: zlib.compress(zeros, 1, wbits=31),
        "xz": lambda: lzma.compress(zeros, preset=0),
        "zstd": lambda: zstandard.compress(zeros),
        "bzip2": lambda: bz2.compress(zeros, 1),
    }[pack]()
    with pytest.raises(LimitError, match="unpacks to more than"):
        images.read_kernel(packed, "vmlinux")


def test_file_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    with pytest.raises(LimitError, match="101 bytes; the limit for a file is 100"):
        images.read_kernel(bytes(101), "vmlinux")


def test_device_tree_is_told_apart() -> None:
    with pytest.raises(ImageError, match="64-bit little-endian PowerPC ELF"):
        images.read_device_tree(tiny_kernel(), "tree.dtb")


@pytest.mark.parametrize(("kind", "words"), [(ET_DYN, "a PIE program"), (2, "a program")])
def test_program_is_no_kernel(kind: int, words: str) -> None:
    interpreter = Segment(0x238, 0x238, b"/lib64/ld64.so.2\0", type=3)
    code = Segment(0, 0, bytes(0x400))
    program = Elf(type=kind, segments=[interpreter, code]).to_bytes()
    with pytest.raises(WrongMachine) as caught:
        images.read_kernel(program, "kexec")
    assert caught.value.message == (
        f"kexec: looks like {words} (PT_INTERP /lib64/ld64.so.2); expected a vmlinux"
    )
    assert "purgatory" in caught.value.hint
    kernel = Elf(type=kind, segments=[Segment(LINK, 0, bytes(0x400))]).to_bytes()
    assert images.read_kernel(kernel, "vmlinux").link_vaddr == LINK, "a relocatable vmlinux is one"
