"""The flattened device tree: parser with bounds, writer, text dump, questions about a machine.

What it is: bytes in, a tree out, and back. What it is not: a compiler of .dts, overlays, or the
content of a partition's own tree (partition.py).
Sources: Devicetree Specification v0.4 chapter 5; linux arch/powerpc/kernel/prom.c and kexec-tools
fs2dt.c for what is read and changed at the hand-off.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from emulator.errors import ImageError, LimitError

MAGIC: Final = 0xD00DFEED
VERSION: Final = 17
LAST_COMPATIBLE: Final = 16
MAX_TREE_BYTES: Final = 2 << 20
"""As libfdt's users in the kernel and firmware accept at most."""
MAX_DEPTH: Final = 64
MAX_NODES: Final = 20_000
MAX_PROPERTIES: Final = 100_000
MAX_RESERVATIONS: Final = 1024
_BEGIN, _END, _PROPERTY, _NOP, _FINISH = 1, 2, 3, 4, 9


@dataclass
class Node:
    """A node: properties in file order, then children in file order."""

    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def child(self, name: str) -> Node | None:
        """The child of that name, with or without its unit address."""
        for node in self.children:
            if name in (node.name, node.name.split("@", 1)[0]):
                return node
        return None

    def text(self, name: str) -> str:
        """A property as its first string, "" if absent."""
        return self.properties.get(name, b"").split(b"\0", 1)[0].decode("ascii", "replace")

    def cells(self, name: str) -> tuple[int, ...]:
        """A property as 32-bit cells; an odd tail is left out."""
        value = self.properties.get(name, b"")
        return struct.unpack(f">{len(value) // 4}I", value[: len(value) // 4 * 4])

    def copy(self) -> Node:
        """A deep copy."""
        return Node(self.name, dict(self.properties), [node.copy() for node in self.children])

    def walk(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """Every node with its path, this one first."""
        stack = [(path or "/", self)]
        while stack:
            here, node = stack.pop()
            yield here, node
            prefix = here.rstrip("/")
            stack += [(f"{prefix}/{child.name}", child) for child in reversed(node.children)]


@dataclass
class DeviceTree:
    """A tree with its memory reservations and the id of the CPU that boots."""

    root: Node
    reservations: list[tuple[int, int]] = field(default_factory=list)
    boot_cpuid: int = 0
    name: str = "device tree"
    sha256: str = ""
    """Of the file it was read from, "" for one of our own."""

    def copy(self) -> DeviceTree:
        """A deep copy, to be changed by the loader."""
        return DeviceTree(
            self.root.copy(), list(self.reservations), self.boot_cpuid, self.name, self.sha256
        )

    def find(self, path: str) -> Node | None:
        """The node at a path such as /chosen; unit addresses may be left out."""
        node: Node | None = self.root
        for part in path.strip("/").split("/"):
            if node is None or not part:
                break
            node = node.child(part)
        return node

    def cpu_ids(self) -> tuple[int, ...]:
        """Physical id of every hardware thread, in the order of the nodes."""
        ids: dict[int, None] = {}
        cpus = self.find("/cpus")
        for node in cpus.children if cpus else ():
            if node.text("device_type") != "cpu":
                continue
            if node.text("status") not in ("", "okay", "ok"):
                continue
            threads = node.cells("ibm,ppc-interrupt-server#s") or node.cells("reg")[:1]
            ids.update(dict.fromkeys(threads))
        return tuple(ids)

    def memory(self) -> list[tuple[int, int]]:
        """(start, length) of all memory nodes, in order."""
        wide = (self.root.cells("#address-cells") or (2,))[0]
        long = (self.root.cells("#size-cells") or (1,))[0]
        if wide not in (1, 2) or long not in (1, 2):
            return []
        ranges = []
        for node in self.root.children:
            if node.text("device_type") != "memory":
                continue
            cells = node.cells("reg")
            for at in range(0, len(cells) - wide - long + 1, wide + long):
                start = _join(cells[at : at + wide])
                ranges.append((start, _join(cells[at + wide : at + wide + long])))
        return sorted(ranges)

    def firmware_range(self) -> tuple[int, int] | None:
        """Where RTAS lies in RAM, (start, end); kexec leaves it alone."""
        node = self.find("/rtas")
        base = node.cells("linux,rtas-base") if node else ()
        size = node.cells("rtas-size") if node else ()
        return (base[0], base[0] + size[0]) if base and size and size[0] else None

    def page_table_order(self) -> int:
        """Log2 of the bytes of the partition's hashed page table, 0 if it offers none."""
        cpus = self.find("/cpus")
        rows = (node.cells("ibm,pft-size") for node in (cpus.children if cpus else ()))
        return max((row[1] for row in rows if len(row) == 2), default=0)

    def limit_memory(self, end: int) -> None:
        """Set linux,usable-memory: a crash kernel uses nothing above its own area."""
        for node in self.root.children:
            if node.text("device_type") == "memory":
                cells = node.cells("reg")
                start = _join(cells[:2]) if len(cells) >= 4 else 0
                size = _join(cells[2:4])
                usable = max(0, min(start + size, end) - start)
                row = struct.pack(">QQ", start if usable else 0, usable)
                node.properties["linux,usable-memory"] = row

    def to_bytes(self) -> bytes:
        """The blob, version 17: header, reservations, structure, strings."""
        structure, strings = _Writer().write(self.root)
        reserve = b"".join(struct.pack(">QQ", *row) for row in [*self.reservations, (0, 0)])
        at_structure = 40 + len(reserve)
        at_strings = at_structure + len(structure)
        total = at_strings + len(strings)
        total += -total % 4
        header = struct.pack(
            ">10I", MAGIC, total, at_structure, at_strings, 40, VERSION, LAST_COMPATIBLE,
            self.boot_cpuid & 0xFFFFFFFF, len(strings), len(structure),
        )  # fmt: skip
        return (header + reserve + structure + strings).ljust(total, b"\0")

    def to_text(self) -> str:
        """The tree in the form of a .dts; dtc reads it."""
        lines = ["/dts-v1/;", ""]
        lines += [f"/memreserve/ {start:#018x} {size:#018x};" for start, size in self.reservations]
        for depth, line in _dump(self.root):
            lines.append("\t" * depth + line)
        return "\n".join(lines) + "\n"


def _join(cells: tuple[int, ...]) -> int:
    value = 0
    for cell in cells:
        value = value << 32 | cell
    return value


def _dump(root: Node) -> Iterator[tuple[int, str]]:
    stack: list[tuple[int, Node | None]] = [(0, root)]
    while stack:
        depth, node = stack.pop()
        if node is None:
            yield depth, "};"
            continue
        yield depth, f"{node.name or '/'} {{"
        for name, value in node.properties.items():
            yield depth + 1, f"{name};" if not value else f"{name} = {_value_text(value)};"
        stack.append((depth, None))
        stack += [(depth + 1, child) for child in reversed(node.children)]


def _value_text(value: bytes) -> str:
    strings = value[:-1].split(b"\0")
    plain = all(s and all(32 <= byte < 127 and byte not in b'"\\' for byte in s) for s in strings)
    if value.endswith(b"\0") and plain:
        return ", ".join(f'"{s.decode("ascii")}"' for s in strings)
    if len(value) % 4 == 0:
        cells = struct.unpack(f">{len(value) // 4}I", value)
        return "<" + " ".join(f"{cell:#x}" for cell in cells) + ">"
    return "[" + value.hex(" ") + "]"


class _Writer:
    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}
        self.strings = bytearray()

    def write(self, root: Node) -> tuple[bytes, bytes]:
        out = bytearray()
        stack: list[Node | None] = [root]
        while stack:
            node = stack.pop()
            if node is None:
                out += struct.pack(">I", _END)
                continue
            out += struct.pack(">I", _BEGIN) + _padded(node.name.encode("ascii") + b"\0")
            for name, value in node.properties.items():
                out += struct.pack(">III", _PROPERTY, len(value), self._offset(name))
                out += _padded(value)
            stack.append(None)
            stack += reversed(node.children)
        out += struct.pack(">I", _FINISH)
        return bytes(out), bytes(self.strings)

    def _offset(self, name: str) -> int:
        if name not in self.offsets:
            self.offsets[name] = len(self.strings)
            self.strings += name.encode("ascii") + b"\0"
        return self.offsets[name]


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def parse_device_tree(data: bytes, name: str) -> DeviceTree:
    """Parse a flattened device tree.

    Raises:
        ImageError: with the offset at which it is damaged. LimitError: too large or too deep.
    """
    return _Parser(data, name).parse()


class _Parser:
    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.nodes = self.properties = 0

    def fail(self, what: str) -> ImageError:
        return ImageError(
            f"{self.name}: device tree: {what}", hint="The blob is damaged; dtc can check it."
        )

    def limit(self, what: str) -> LimitError:
        return LimitError(
            f"{self.name}: device tree with {what}", hint="A partition needs far less; shrink it."
        )

    def parse(self) -> DeviceTree:
        if len(self.data) < 40:
            raise self.fail(f"{len(self.data)} bytes are too short for a header of 40")
        fields = struct.unpack_from(">10I", self.data)
        magic, total, at_structure, at_strings, at_reserve, version, compatible = fields[:7]
        boot_cpuid, string_bytes, structure_bytes = fields[7:]
        if magic != MAGIC:
            raise self.fail(f"magic {magic:#010x} instead of {MAGIC:#010x}")
        if compatible > VERSION or version < LAST_COMPATIBLE:
            raise self.fail(f"version {version} (compatible with {compatible}) is not known")
        if total > MAX_TREE_BYTES:
            raise self.limit(f"{total} bytes; the limit is {MAX_TREE_BYTES}")
        if not 40 <= total <= len(self.data):
            raise self.fail(f"total size {total} does not fit the file of {len(self.data)} bytes")
        if version < VERSION:
            structure_bytes = total - at_structure
        blob = self.data[:total]
        if at_strings + string_bytes > total or at_structure + structure_bytes > total:
            raise self.fail("a block lies outside the blob")
        if structure_bytes < 0 or at_structure % 4:
            raise self.fail(f"structure block at {at_structure:#x} is not aligned")
        strings = blob[at_strings : at_strings + string_bytes]
        structure = blob[at_structure : at_structure + structure_bytes]
        return DeviceTree(
            self._structure(structure, strings, at_structure),
            self._reservations(blob, at_reserve),
            boot_cpuid,
            self.name,
            hashlib.sha256(self.data).hexdigest(),
        )

    def _reservations(self, blob: bytes, at: int) -> list[tuple[int, int]]:
        rows: list[tuple[int, int]] = []
        while at + 16 <= len(blob):
            row = struct.unpack_from(">QQ", blob, at)
            if row == (0, 0):
                return rows
            if len(rows) == MAX_RESERVATIONS:
                raise self.limit(f"more than {MAX_RESERVATIONS} memory reservations")
            rows.append(row)
            at += 16
        raise self.fail("the memory reservations have no end")

    def _structure(self, block: bytes, strings: bytes, base: int) -> Node:
        root: Node | None = None
        stack: list[Node] = []
        at = 0
        while at + 4 <= len(block):
            (token,) = struct.unpack_from(">I", block, at)
            here = base + at
            at += 4
            if token == _BEGIN:
                node, at = self._begin(block, at, here, len(stack))
                if stack:
                    stack[-1].children.append(node)
                elif root is None:
                    root = node
                else:
                    raise self.fail(f"a second root node at {here:#x}")
                stack.append(node)
            elif token == _END and stack:
                stack.pop()
            elif token == _PROPERTY and stack:
                at = self._property(block, at, here, strings, stack[-1])
            elif token == _FINISH and not stack and root is not None:
                return root
            elif token != _NOP:
                raise self.fail(f"token {token:#x} at {here:#x} is out of place")
        raise self.fail("the structure block has no end")

    def _begin(self, block: bytes, at: int, here: int, depth: int) -> tuple[Node, int]:
        self.nodes += 1
        if depth >= MAX_DEPTH or self.nodes > MAX_NODES:
            raise self.limit(f"more than {MAX_NODES} nodes or {MAX_DEPTH} levels")
        end = block.find(b"\0", at, at + 256)
        if end < 0:
            raise self.fail(f"the name of the node at {here:#x} has no end within 256 bytes")
        return Node(self._ascii(block[at:end], here)), (end + 4) & ~3

    def _property(self, block: bytes, at: int, here: int, strings: bytes, node: Node) -> int:
        self.properties += 1
        if self.properties > MAX_PROPERTIES:
            raise self.limit(f"more than {MAX_PROPERTIES} properties")
        if at + 8 > len(block):
            raise self.fail(f"the property at {here:#x} is cut off")
        size: int
        size, name_at = struct.unpack_from(">II", block, at)
        at += 8
        if at + size > len(block):
            raise self.fail(f"the property at {here:#x} ({size} bytes) lies outside")
        end = strings.find(b"\0", name_at, name_at + 256) if name_at < len(strings) else -1
        if end < 0:
            raise self.fail(f"the property at {here:#x} has no name")
        node.properties[self._ascii(strings[name_at:end], here)] = block[at : at + size]
        return (at + size + 3) & ~3

    def _ascii(self, raw: bytes, here: int) -> str:
        if any(not 32 < byte < 127 for byte in raw):
            raise self.fail(f"a name with odd characters at {here:#x}")
        return raw.decode("ascii")
