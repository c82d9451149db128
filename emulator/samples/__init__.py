"""Small image pairs of our own, to look at and to test with: a kernel head and a purgatory.

Each pair is built from kernel.S and purgatory.S beside this file, for one byte order and ABI;
README.md tells what they do. They are not Linux and not kexec-tools: the code is our own, the
symbols carry the names that the hand-off goes by.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Sample:
    """One run that is worth looking at, with its pair of images."""

    name: str
    """Short name, fit for a file name or a URL."""
    kernel: str
    """File name of the kernel, beside this module."""
    purgatory: str
    """File name of the purgatory, beside this module."""
    mode: str
    """`load` (kexec) or `load-panic` (kdump), as a run's spec says it."""
    cpus: int
    """Number of CPUs, the boot CPU included."""
    boot_cpu: int
    """Index of the CPU that hands over."""
    title: str
    """One line for the gallery."""
    note: str
    """What to look at."""

    def kernel_bytes(self) -> bytes:
        """Return the kernel's file."""
        return _read(self.kernel)

    def purgatory_bytes(self) -> bytes:
        """Return the purgatory's file."""
        return _read(self.purgatory)


def _read(name: str) -> bytes:
    return resources.files(__name__).joinpath(name).read_bytes()


def get_sample(name: str) -> Sample:
    """Return the sample of this name.

    Raises:
        KeyError: there is none.
    """
    return {sample.name: sample for sample in SAMPLES}[name]


SAMPLES = (
    Sample(
        name="kdump-le",
        kernel="kernel-le.elf",
        purgatory="purgatory-le.ro",
        mode="load-panic",
        cpus=4,
        boot_cpu=0,
        title="Sample: kdump on 4 CPUs, little-endian",
        note="The flag becomes 1: only the vectors are copied to 0, the kernel stays.",
    ),
    Sample(
        name="kexec-le",
        kernel="kernel-le.elf",
        purgatory="purgatory-le.ro",
        mode="load",
        cpus=4,
        boot_cpu=0,
        title="Sample: kexec on 4 CPUs, little-endian",
        note="The flag stays run0: the kernel copies itself to 0 below its waiting secondaries.",
    ),
    Sample(
        name="kdump-be",
        kernel="kernel-be.elf",
        purgatory="purgatory-be.ro",
        mode="load-panic",
        cpus=2,
        boot_cpu=1,
        title="Sample: kdump after a crash on CPU 1 of 2, big-endian",
        note="ELFv1 with function descriptors; purgatory notes the crashed CPU in the device tree.",
    ),
    Sample(
        name="kexec-be",
        kernel="kernel-be.elf",
        purgatory="purgatory-be.ro",
        mode="load",
        cpus=2,
        boot_cpu=0,
        title="Sample: kexec on 2 CPUs, big-endian",
        note="One byte order throughout: no trampolines, no rfid into the kernel.",
    ),
)
