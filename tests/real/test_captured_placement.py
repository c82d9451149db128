"""The placement against two captured hand-offs: QEMU, Debian 6.1, kexec-tools 2.0.25.

Compared: the whole purgatory segment of 64 KiB, the addresses, the device tree and the words of
`kexec -d`. Two inputs of the captured loads are not in the kernel and kexec packages. One is where
kexec's own heap held the purgatory (it shows in .eh_frame, kexec_d.txt has it). The other is the
initrd: its size is known, its bytes are not, so the captured digest cannot be computed anew; it is
given, and `test_digest_is_all_that_differs` shows that nothing else needs it. That the digest is
computed as purgatory does is shown by test_purgatory_accepts.py, which runs purgatory over it.
"""

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.debian import DebianPair
from emulator.devicetree import DeviceTree, parse_device_tree
from emulator.images import KernelImage, PurgatoryImage, read_kernel, read_purgatory
from emulator.placement import Addresses, LoadOptions, Placement, place

pytestmark = pytest.mark.real

DATA = Path(__file__).parent.parent / "data" / "groundtruth"
APPEND = {
    "kexec_c_smp2": "console=hvc0 oracle2=second",
    "kdump_c_smp2": "console=hvc0 oracle2=second maxcpus=1 irqpoll",
}
INITRD_BYTES = 0x1221EF
DIGEST_AT, DIGEST_BYTES = 0x3910, 32
PURGATORY_BYTES = 0x10000


@dataclass(frozen=True)
class Capture:
    """One captured load."""

    case: str
    addresses: dict[str, int]
    words: list[str]
    purgatory: bytes
    tree: DeviceTree

    @property
    def digest(self) -> bytes:
        return self.purgatory[DIGEST_AT : DIGEST_AT + DIGEST_BYTES]

    @property
    def buffer_addr(self) -> int:
        """Where kexec's heap held the purgatory."""
        base = self.addresses["purg_base"]
        text = "\n".join(self.words)
        (index,) = re.findall(rf"segment\[(\d)\]\.mem   = {base:#x}$", text, re.M)
        (buffer,) = re.findall(rf"segment\[{index}\]\.buf   = (0x[0-9a-f]+)$", text, re.M)
        return int(buffer, 16)


@pytest.fixture(params=sorted(APPEND))
def capture(request: pytest.FixtureRequest) -> Capture:
    folder = DATA / request.param
    raw = json.loads((folder / "addresses.json").read_text())
    return Capture(
        request.param,
        {name: int(value, 16) for name, value in raw.items() if str(value).startswith("0x")},
        (folder / "kexec_d.txt").read_text().splitlines(),
        gzip.decompress((folder / "purgatory_seg.bin.gz").read_bytes()),
        parse_device_tree(gzip.decompress((folder / "dt_seg.bin.gz").read_bytes()), "dt_seg"),
    )


@pytest.fixture(scope="module")
def pair(debian_pair: DebianPair) -> tuple[KernelImage, PurgatoryImage]:
    return (
        read_kernel(debian_pair.vmlinux.read_bytes(), "vmlinux"),
        read_purgatory(debian_pair.kexec.read_bytes(), "kexec"),
    )


def load(
    pair: tuple[KernelImage, PurgatoryImage],
    capture: Capture,
    addresses: Addresses,
    digest: bytes | None = None,
) -> Placement:
    options = LoadOptions(
        panic=capture.case.startswith("kdump"),
        append=APPEND[capture.case],
        debug=True,
        cpus=2,
        mem_bytes=2 << 30,
        base_addr=capture.addresses["kernel"],
    )
    initrd = bytes(INITRD_BYTES)
    return place(
        *pair, options, dtb=capture.tree, initrd=initrd, addresses=addresses, digest=digest
    )


def purgatory_of(placed: Placement) -> bytes:
    segment = placed.segment("purgatory")
    assert segment is not None
    return bytes(segment.data).ljust(segment.mem_bytes, b"\0")


def test_given_addresses_yield_the_captured_purgatory_byte_for_byte(
    pair: tuple[KernelImage, PurgatoryImage], capture: Capture
) -> None:
    addr = capture.addresses
    given = Addresses(
        kernel=addr["kernel"],
        purgatory=addr["purg_base"],
        dt=addr["dt"],
        stack=addr["stack"],
        backup=addr["backup"] or None,
        purgatory_buffer=capture.buffer_addr,
    )
    placed = load(pair, capture, given, capture.digest)
    assert placed.entry_addr == addr["entry"]
    assert placed.toc_addr == addr["toc"]
    assert len(capture.purgatory) == PURGATORY_BYTES
    assert purgatory_of(placed) == capture.purgatory


def test_digest_is_all_that_differs(
    pair: tuple[KernelImage, PurgatoryImage], capture: Capture
) -> None:
    """Nothing is given but where kexec's heap was: addresses are chosen as kexec chose them."""
    placed = load(pair, capture, Addresses(purgatory_buffer=capture.buffer_addr))
    ours = purgatory_of(placed)
    different = [at for at in range(PURGATORY_BYTES) if ours[at] != capture.purgatory[at]]
    assert set(different) <= set(range(DIGEST_AT, DIGEST_AT + DIGEST_BYTES))
    assert ours[DIGEST_AT : DIGEST_AT + DIGEST_BYTES].hex() == placed.digest


def test_addresses_are_found_as_kexec_found_them(
    pair: tuple[KernelImage, PurgatoryImage], capture: Capture
) -> None:
    placed = load(pair, capture, Addresses())
    addr = capture.addresses
    assert (placed.kernel_addr, placed.purgatory_addr) == (addr["kernel"], addr["purg_base"])
    assert (placed.dt_addr, placed.stack_addr) == (addr["dt"], addr["stack"])
    assert (placed.backup_addr, placed.toc_addr) == (addr["backup"], addr["toc"])


def test_debug_lines_are_kexecs_words(
    pair: tuple[KernelImage, PurgatoryImage], capture: Capture
) -> None:
    """Every line stands in what `kexec -d` printed, but for one size and a space at the end.

    kexec's tree is larger because it repeats no string twice less often than ours.
    """
    theirs = {line.rstrip() for line in capture.words}
    ours = load(pair, capture, Addresses()).debug_lines()
    missing = [line for line in ours if line not in theirs]
    last = max(int(line[8]) for line in ours if line.startswith("segment["))
    assert [line.split("=")[0].strip() for line in missing] == [f"segment[{last}].bufsz"]


def test_device_tree_is_the_captured_one_in_content(
    pair: tuple[KernelImage, PurgatoryImage], capture: Capture
) -> None:
    """kexec's command line ends in a space; the reserved length is that of the blob."""
    placed = load(pair, capture, Addresses())
    expected = capture.tree.copy()
    chosen = expected.find("/chosen")
    assert chosen is not None
    chosen.properties["bootargs"] = chosen.properties["bootargs"].replace(b" \0", b"\0")
    blob = placed.segment("device-tree")
    assert blob is not None
    ours = parse_device_tree(bytes(blob.data), "ours")
    assert dict(ours.root.walk()).keys() == dict(expected.root.walk()).keys()
    for path, node in expected.root.walk():
        mine = ours.find(path)
        assert mine is not None
        assert mine.properties == node.properties, path
    assert ours.reservations[:-1] == expected.reservations[:-1]
    assert ours.reservations[-1] == (placed.dt_addr, len(blob.data))
