"""Fills in the variables of a linked purgatory: symbols, low code, digest regions.

What it is: writes by symbol in the purgatory's byte order, each optional but the few that no
hand-off works without. What it is not: the decision what to write; that is placement's.
Sources: kexec-tools kexec/kexec.c update_purgatory, kexec-elf-ppc64.c (behaviour); linux
kernel/kexec_file.c for the names in the purgatory of a vmlinux.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from emulator.errors import MissingSymbol, PlacementError
from emulator.handoff import LOW_COPY_BYTES, PAGE_BYTES, PURGATORY_SYMBOLS, SHA256_REGIONS
from emulator.images import PurgatoryImage
from emulator.memory import Segment
from emulator.relocations import LinkedPurgatory

_ZEROS: Final = bytes(PAGE_BYTES)
_ROWS: Final = {row.name: row for row in PURGATORY_SYMBOLS}


def segments_digest(segments: Sequence[Segment]) -> bytes:
    """SHA-256 over the memory of segments, zeros where no data was loaded."""
    engine = hashlib.sha256()
    for segment in segments:
        engine.update(segment.data)
        rest = segment.mem_bytes - len(segment.data)
        while rest:
            piece = min(rest, len(_ZEROS))
            engine.update(_ZEROS[:piece])
            rest -= piece
    return engine.digest()


class Patcher:
    """Sets variables of the linked purgatory, by symbol, in its byte order."""

    def __init__(
        self, image: PurgatoryImage, linked: LinkedPurgatory, symbols: dict[str, tuple[int, int]]
    ) -> None:
        self.name = image.name
        self.order = ">" if image.big_endian else "<"
        self.linked = linked
        self.symbols = symbols
        missing = [row.name for row in PURGATORY_SYMBOLS if row.needed and not self.has(row.name)]
        if missing:
            raise MissingSymbol(
                f"{image.name}: the purgatory has no symbol {', '.join(missing)}",
                hint="Give the purgatory of kexec-tools or of a ppc64 vmlinux.",
            )

    def has(self, name: str) -> bool:
        """Whether the purgatory has that variable."""
        return name in self.symbols

    def store(self, name: str, data: bytes) -> bool:
        """Overwrite a variable; False if the purgatory does not have it."""
        place = self.symbols.get(name)
        if place is None:
            return False
        at = self._offset(name, place[0], place[1], len(data))
        self.linked.data[at : at + len(data)] = data
        return True

    def _offset(self, name: str, addr: int, size: int, need: int) -> int:
        at = addr - self.linked.addr
        if size not in (0, need) or not 0 <= at <= len(self.linked.data) - need:
            raise PlacementError(
                f"{self.name}: symbol {name} at {addr:#x} ({size} bytes) cannot hold {need} bytes",
                hint="The purgatory's variables must be initialised data of kexec's sizes.",
            )
        return at

    def number(self, name: str, value: int) -> bool:
        """Set a variable of the size that its row says; False if there is none."""
        row = _ROWS[name]
        return self.store(name, struct.pack(self.order + ("Q" if row.size == 8 else "I"), value))

    def doubleword(self, name: str, value: int) -> bool:
        """Set a variable of 8 bytes, whatever its row says; False if there is none."""
        return self.store(name, struct.pack(self.order + "Q", value))

    def size(self, name: str) -> int:
        """Bytes of a variable, 0 if there is none or it does not say."""
        return self.symbols.get(name, (0, 0))[1]

    def read(self, name: str) -> int | None:
        """A 32-bit variable, None if there is none."""
        place = self.symbols.get(name)
        if place is None:
            return None
        at = self._offset(name, place[0], place[1], 4)
        return int(struct.unpack_from(self.order + "I", self.linked.data, at)[0])

    def low_code(self, low: bytes) -> None:
        """The kernel's first 0x100 bytes over purgatory_start's, but for the first word."""
        addr, size = self.symbols["purgatory_start"]
        at = self._offset("purgatory_start", addr, size, LOW_COPY_BYTES)
        self.linked.data[at + 4 : at + LOW_COPY_BYTES] = low[4:LOW_COPY_BYTES]

    def regions(self, rows: list[tuple[int, int]]) -> None:
        """The table of (start, length) that the digest covers."""
        table = b"".join(struct.pack(self.order + "QQ", *row) for row in rows)
        table = table.ljust(SHA256_REGIONS * 16, b"\0")
        if not self.store("sha256_regions", table):
            self.store("purgatory_sha_regions", table)
