"""Reads and validates uploads: kernel, purgatory, device tree, wherever they hide.

What it is: bytes in, a checked image or an ImageError that says what the bytes look like out.
What an upload is, is found by looking, never by its name. What it is not: placement, or any trust
in a length, offset or count of the file. Limits: 512 MiB a file, 512 MiB decompressed.
Sources: gABI, kexec-tools (purgatory as a byte array in the program), linux kernel/kexec_file.c
(`kexec_purgatory`), RFC 1952, .xz file format, RFC 8878.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import zstandard

from emulator.devicetree import DeviceTree, parse_device_tree
from emulator.elf import (
    ELF_MAGIC,
    ET_DYN,
    ET_EXEC,
    ET_REL,
    PT_INTERP,
    PT_LOAD,
    SHF_ALLOC,
    SHF_EXECINSTR,
    ElfFile,
    describe_elf,
    read_elf,
)
from emulator.errors import (
    ImageError,
    LimitError,
    MissingSymbol,
    NotElf,
    WrongMachine,
    size_words,
)
from emulator.handoff import LOW_COPY_BYTES
from emulator.relocations import layout_purgatory
from emulator.symbols import SymbolTable

MAX_FILE_BYTES: Final = 512 << 20
MAX_UNPACKED_BYTES: Final = 512 << 20
MAX_KERNEL_BYTES: Final = 256 << 20
"""Of a kernel in memory; the largest real ones take 100 MiB."""
MAX_PURGATORY_FILE_BYTES: Final = 32 << 20
MAX_PURGATORY_SYMBOLS: Final = 50_000
MAX_ELF_MAGICS: Final = 4096
"""How many ELF magics inside a file are looked at,"""
MAX_EMBEDDED_ELFS: Final = 32
"""and how many relocatable ppc64 files among them are tried as a purgatory."""
MAX_WRAPPERS: Final = 3
_RELOCATABLE_PPC64: Final = (b"\x01\0\x15\0", b"\0\x01\0\x15")
"""e_type and e_machine of ET_REL, EM_PPC64 in either byte order."""
_CHUNK: Final = 1 << 20

_WANT_KERNEL: Final = "a vmlinux ELF file for 64-bit PowerPC (gzip, xz, zstd or bzip2 is fine)"
_WANT_PURGATORY: Final = (
    "purgatory.ro of kexec-tools, a ppc64 kexec program, or a ppc64 vmlinux with CONFIG_KEXEC_FILE"
)

MAGICS: Final = (
    (b"\x1f\x8b", "a gzip file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"BZh", "a bzip2 file"),
    (b"\xd0\x0d\xfe\xed", "a flattened device tree (dtb)"),
    (b"\x27\x05\x19\x56", "a U-Boot uImage"),
    (b"070701", "a cpio archive (an initramfs)"),
    (b"!<arch>\n", "an ar archive or a .deb package: unpack it first"),
    (b"\xed\xab\xee\xdb", "an RPM package: unpack it first"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"MZ", "a DOS, Windows or EFI program"),
    (b"hsqs", "a squashfs image"),
    (b"SQLite format 3\0", "an SQLite database (a bootflow trace?)"),
    (b"#!", "a script"),
    (b"\x04\x22\x4d\x18", "an lz4 file: unpack it first"),
    (b"\x5d\x00\x00", "an lzma file"),
)
"""Leading bytes -> what a person calls such a file (file(1)'s magic)."""


@dataclass(frozen=True)
class LoadSegment:
    """A PT_LOAD of a kernel; the data is a view of the file, never a copy."""

    vaddr: int
    paddr: int
    data: memoryview
    mem_bytes: int


@dataclass(frozen=True)
class _CheckedElf:
    """What a kernel and a purgatory have in common."""

    name: str
    upload: bytes
    """The file as given; its hash names it."""
    parsed: ElfFile

    @cached_property
    def sha256(self) -> str:
        """Of the file as given."""
        return hashlib.sha256(self.upload).hexdigest()

    @property
    def big_endian(self) -> bool:
        """Byte order of the data, and of the code but for a kernel's first instruction."""
        return self.parsed.big_endian

    @property
    def abi(self) -> int:
        """ELF ABI, 1 or 2."""
        return self.parsed.abi

    @property
    def elf(self) -> bytes | memoryview:
        """The ELF file itself, unpacked."""
        return self.parsed.data


@dataclass(frozen=True)
class KernelImage(_CheckedElf):
    """A checked vmlinux."""

    segments: tuple[LoadSegment, ...]

    @property
    def entry_vaddr(self) -> int:
        """e_entry as the file says it."""
        return self.parsed.entry

    @property
    def link_vaddr(self) -> int:
        """Where the image was linked to: its lowest p_vaddr."""
        return min(segment.vaddr for segment in self.segments)

    @property
    def mem_bytes(self) -> int:
        """From the lowest to the highest byte in memory."""
        return max(s.vaddr + s.mem_bytes for s in self.segments) - self.link_vaddr

    @cached_property
    def symbols(self) -> SymbolTable:
        """Empty if the file is stripped."""
        return SymbolTable(self.parsed)

    @property
    def low256(self) -> bytes:
        """The first 0x100 bytes of the image, which end up at real 0."""
        first = min(self.segments, key=lambda segment: segment.vaddr)
        return bytes(first.data[:LOW_COPY_BYTES]).ljust(LOW_COPY_BYTES, b"\0")


@dataclass(frozen=True)
class PurgatoryImage(_CheckedElf):
    """A checked purgatory: an ET_REL ELF file, wherever it was found."""

    found: str
    """Where: "purgatory.ro", "inside a kexec binary at offset 0x...", ..."""


def looks_like(data: bytes | memoryview) -> str:
    """What a file looks like by its first bytes, in words."""
    head = bytes(data[:300])
    if not head:
        return "an empty file"
    if head.startswith(ELF_MAGIC):
        return describe_elf(head)
    for magic, words in MAGICS:
        if head.startswith(magic):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        first = head.split(b"\n", 1)[0][:40].decode("ascii")
        return f'a text file that begins "{first}"'
    return f"unknown data that begins {head[:8].hex(' ')}"


def _check_size(data: bytes, name: str) -> None:
    if len(data) > MAX_FILE_BYTES:
        raise LimitError(
            f"{name}: {len(data)} bytes; the limit for a file is {size_words(MAX_FILE_BYTES)}",
            hint="Strip its debug sections: strip --strip-debug keeps the symbols.",
        )


def unwrap(data: bytes, name: str) -> tuple[bytes, str]:
    """Unpack gzip, xz, lzma, zstd or bzip2, one around the other, within the limit.

    Returns:
        The inner bytes, and what was around them in words ("" if nothing was).
    """
    around = ""
    for _ in range(MAX_WRAPPERS):
        unpacker = next((u for magic, u in _UNPACKERS if data.startswith(magic)), None)
        if unpacker is None:
            break
        around = f"{looks_like(data)} holding {around}".removesuffix(" holding ")
        data = _unpack(data, name, unpacker)
    return data, around


def _unpack(data: bytes, name: str, unpacker: Callable[[bytes], Iterator[bytes]]) -> bytes:
    pieces, total = [], 0
    try:
        for piece in unpacker(data):
            total += len(piece)
            if total > MAX_UNPACKED_BYTES:
                raise LimitError(
                    f"{name}: unpacks to more than {size_words(MAX_UNPACKED_BYTES)}",
                    hint="Unpack and strip it, or give the vmlinux itself.",
                )
            pieces.append(piece)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError) as exc:
        raise ImageError(
            f"{name}: {looks_like(data)} that does not unpack ({exc})",
            hint="The file is damaged or cut off; copy it again.",
        ) from exc
    return b"".join(pieces)


def _gunzip(data: bytes) -> Iterator[bytes]:
    engine = zlib.decompressobj(wbits=31)
    yield from _pump(lambda chunk: engine.decompress(chunk, _CHUNK), data, lambda: engine)
    if not engine.eof:
        raise EOFError("it ends too early")


def _pump(
    step: Callable[[bytes], bytes], data: bytes, engine: Callable[[], zlib._Decompress]
) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        chunk: bytes | memoryview = view[start : start + _CHUNK]
        while len(chunk):
            yield step(bytes(chunk))
            chunk = engine().unconsumed_tail
        if engine().eof:
            return


def _unxz(data: bytes) -> Iterator[bytes]:
    engine = lzma.LZMADecompressor(memlimit=256 << 20)
    yield from _pull(engine, data)


def _bunzip(data: bytes) -> Iterator[bytes]:
    yield from _pull(bz2.BZ2Decompressor(), data)


def _pull(engine: lzma.LZMADecompressor | bz2.BZ2Decompressor, data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    start = 0
    while not engine.eof:
        if engine.needs_input:
            if start >= len(view):
                raise EOFError("it ends too early")
            chunk = view[start : start + _CHUNK]
            start += len(chunk)
            yield engine.decompress(chunk, _CHUNK)
        else:
            yield engine.decompress(b"", _CHUNK)


def _unzstd(data: bytes) -> Iterator[bytes]:
    engine = zstandard.ZstdDecompressor(max_window_size=256 << 20)
    with engine.stream_reader(data) as reader:
        while piece := reader.read(_CHUNK):
            yield piece


_UNPACKERS: Final[tuple[tuple[bytes, Callable[[bytes], Iterator[bytes]]], ...]] = (
    (b"\x1f\x8b", _gunzip),
    (b"\xfd7zXZ\0", _unxz),
    (b"\x5d\x00\x00", _unxz),
    (b"\x28\xb5\x2f\xfd", _unzstd),
    (b"BZh", _bunzip),
)


def _read_ppc64(data: bytes, name: str, expected: str) -> tuple[ElfFile, str]:
    """Unpack and check an ELF file; errors say what the file looks like."""
    _check_size(data, name)
    inner, around = unwrap(data, name)
    look = f"{around} holding {looks_like(inner)}" if around else looks_like(inner)
    if not inner.startswith(ELF_MAGIC):
        raise NotElf(f"{name}: looks like {look}; expected {expected}", hint=_what_to_do(inner))
    try:
        return read_elf(inner, name, expected), look
    except WrongMachine as exc:
        raise WrongMachine(
            f"{name}: looks like {look}; expected {expected}", hint=_what_to_do(inner)
        ) from exc


def _what_to_do(data: bytes) -> str:
    if data.startswith((b"!<arch>\n", b"\xed\xab\xee\xdb")):
        return "Take boot/vmlinux-* or sbin/kexec out of the package (dpkg-deb -x, rpm2cpio)."
    if data.startswith(b"\x27\x05\x19\x56"):
        return "Give the vmlinux of that build instead of the uImage."
    return "On a ppc64 machine these are /boot/vmlinux-* and /sbin/kexec."


def read_kernel(data: bytes, name: str) -> KernelImage:
    """Read a vmlinux: 64-bit PowerPC, either byte order and ABI, stripped or not, packed or not.

    Raises:
        ImageError (NotElf, WrongMachine, ...), LimitError.
    """
    elf, look = _read_ppc64(data, name, _WANT_KERNEL)
    if elf.type not in (ET_EXEC, ET_DYN):
        raise WrongMachine(
            f"{name}: looks like {look}; expected {_WANT_KERNEL}",
            hint="A relocatable ppc64 ELF file goes into the purgatory field."
            if elf.type == ET_REL
            else "Give the vmlinux that was booted, not a dump or a module.",
        )
    _check_no_program(name, elf)
    view = memoryview(elf.data)
    segments = tuple(
        LoadSegment(h.vaddr, h.paddr, view[h.offset : h.offset + h.file_bytes], h.mem_bytes)
        for h in elf.program_headers
        if h.type == PT_LOAD and h.mem_bytes
    )
    if not segments:
        raise ImageError(
            f"{name}: {look} has nothing to load (no PT_LOAD)",
            hint="Give the vmlinux itself, not its debug symbols.",
        )
    _check_segments(name, segments)
    return KernelImage(name, data, elf, segments)


def _check_no_program(name: str, elf: ElfFile) -> None:
    """Refuse what the kernel would hand to a dynamic linker: kexec itself, for one."""
    interpreter = next((h for h in elf.program_headers if h.type == PT_INTERP), None)
    if interpreter is None:
        return
    at, size = interpreter.offset, min(interpreter.file_bytes, 80)
    path = bytes(memoryview(elf.data)[at : at + size]).split(b"\0", 1)[0]
    shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in path)
    kind = "a PIE program" if elf.type == ET_DYN else "a program"
    raise WrongMachine(
        f"{name}: looks like {kind} (PT_INTERP {shown}); expected a vmlinux",
        hint="A kexec program goes into the purgatory field."
        " On a ppc64 machine the kernel is /boot/vmlinux-*.",
    )


def _check_segments(name: str, segments: tuple[LoadSegment, ...]) -> None:
    low = min(segment.vaddr for segment in segments)
    for index, segment in enumerate(segments):
        if len(segment.data) > segment.mem_bytes:
            raise ImageError(
                f"{name}: PT_LOAD {index} has {len(segment.data):#x} bytes in the file"
                f" but only {segment.mem_bytes:#x} in memory",
                hint="The file is damaged; copy it again.",
            )
        if segment.vaddr + segment.mem_bytes - low > MAX_KERNEL_BYTES:
            raise LimitError(
                f"{name}: PT_LOAD {index} ends {segment.vaddr + segment.mem_bytes - low:#x} bytes"
                f" behind the start of the kernel; the limit is {size_words(MAX_KERNEL_BYTES)}",
                hint="A kernel has one or two PT_LOADs next to each other.",
            )


def read_purgatory(data: bytes, name: str) -> PurgatoryImage:
    """Find the purgatory in an upload: the .ro file itself, in a kexec program, in a vmlinux.

    Raises:
        ImageError (NotElf, WrongMachine, MissingSymbol, ...), LimitError.
    """
    elf, look = _read_ppc64(data, name, _WANT_PURGATORY)
    if elf.type == ET_REL:
        return _checked_purgatory(name, data, elf, "purgatory.ro")
    return _embedded_purgatory(name, data, elf, look)


def _embedded_purgatory(name: str, data: bytes, elf: ElfFile, look: str) -> PurgatoryImage:
    offset = _kexec_purgatory_offset(elf)
    if offset is not None:
        inner = read_elf(memoryview(elf.data)[offset:], name, _WANT_PURGATORY)
        return _checked_purgatory(name, data, inner, "kexec_purgatory of a vmlinux")
    first: ImageError | None = None
    for offset in _magics(elf.data):
        try:
            inner = read_elf(memoryview(elf.data)[offset:], name, _WANT_PURGATORY)
            where = f"inside a kexec binary at offset {offset:#x}"
            return _checked_purgatory(name, data, inner, where)
        except ImageError as exc:
            first = first or exc
    raise ImageError(
        f"{name}: looks like {look}, and holds no purgatory (no relocatable ppc64 ELF file inside)"
        + (f"; the nearest was refused: {first.message}" if first else ""),
        hint=f"Expected {_WANT_PURGATORY}.",
    )


def _magics(data: bytes | memoryview) -> Iterator[int]:
    """Offsets of ELF magics of relocatable ppc64 files behind the first, a bounded number."""
    raw = bytes(data)
    at = tried = 0
    for _ in range(MAX_ELF_MAGICS):
        at = raw.find(ELF_MAGIC, at + 1)
        if at < 0 or tried == MAX_EMBEDDED_ELFS:
            return
        if raw[at + 16 : at + 20] in _RELOCATABLE_PPC64:
            tried += 1
            yield at


def _kexec_purgatory_offset(elf: ElfFile) -> int | None:
    """File offset of the byte array kexec_purgatory in a vmlinux."""
    addr = SymbolTable(elf).find("kexec_purgatory")
    if addr is None:
        return None
    for header in elf.program_headers:
        if header.type == PT_LOAD and header.vaddr <= addr < header.vaddr + header.file_bytes:
            return header.offset + addr - header.vaddr
    return None


def _checked_purgatory(name: str, data: bytes, elf: ElfFile, found: str) -> PurgatoryImage:
    """Cut the ELF out of what is around it, and look for what a purgatory must have."""
    whole = memoryview(elf.data)
    if elf.file_bytes > MAX_PURGATORY_FILE_BYTES:
        raise LimitError(
            f"{name}: a purgatory file of {elf.file_bytes} bytes ({found});"
            f" the limit is {size_words(MAX_PURGATORY_FILE_BYTES)}",
            hint="kexec-tools' purgatory.ro has about 22,000 bytes.",
        )
    exact = read_elf(bytes(whole[: elf.file_bytes]), name, _WANT_PURGATORY)
    if exact.type != ET_REL:
        raise WrongMachine(
            f"{name}: {describe_elf(whole)} ({found})", hint=f"Give {_WANT_PURGATORY}."
        )
    layout_purgatory(exact)
    needs = SHF_ALLOC | SHF_EXECINSTR
    if not any(section.flags & needs == needs for section in exact.sections):
        raise ImageError(f"{name}: {found} has no code", hint=f"Give {_WANT_PURGATORY}.")
    table = SymbolTable(exact, {section.index: 0 for section in exact.sections})
    if len(table) > MAX_PURGATORY_SYMBOLS:
        raise LimitError(
            f"{name}: a purgatory with {len(table)} symbols; the limit is {MAX_PURGATORY_SYMBOLS}",
            hint="kexec-tools' purgatory has 80.",
        )
    if table.find("purgatory_start") is None:
        raise MissingSymbol(
            f"{name}: a relocatable ppc64 ELF file without the symbol purgatory_start ({found})",
            hint="Is it a kernel module? " + f"Expected {_WANT_PURGATORY}.",
        )
    return PurgatoryImage(name, data, exact, found)


def read_device_tree(data: bytes, name: str) -> DeviceTree:
    """Read a flattened device tree blob; header, bounds and structure are checked.

    Raises:
        ImageError, LimitError.
    """
    _check_size(data, name)
    inner, around = unwrap(data, name)
    if not inner.startswith(b"\xd0\x0d\xfe\xed"):
        look = f"{around} holding {looks_like(inner)}" if around else looks_like(inner)
        raise ImageError(
            f"{name}: looks like {look}; expected a flattened device tree (dtb)",
            hint="dtc -O dtb makes one; QEMU writes one with -M pseries,dumpdtb=FILE.",
        )
    return parse_device_tree(inner, name)
