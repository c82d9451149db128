"""Small image pairs of our own, to look at and to test with: a kernel head and a purgatory.

Each image is built from kernel.S or purgatory.S beside this file, for one byte order and ABI, with
the switches that build.sh names; README.md tells what they do. They are not Linux and not
kexec-tools: the code is our own, the symbols carry the names that the hand-off goes by.
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
    checks: bool = False
    """Purgatory checks the digest; most samples leave that out, for it is the same everywhere."""
    signature: bool = False
    """The old kernel leaves 0xfeed1234 in r6."""
    seed: int = 0
    """Of the schedule."""
    thread: str = ""
    """What of the thread of October 2008 it shows."""
    schedule: str = ""
    """A schedule that looks for trouble (`emulator/adversary.py`); "" for the usual one."""
    beside: str = ""
    """Name of the sample that it is to be read beside."""

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


def _pair(
    name: str,
    kernel: str,
    purgatory: str,
    mode: str,
    title: str,
    note: str,
    thread: str,
    *,
    order: str = "be",
    purgatory_order: str = "",
    checks: bool = False,
    signature: bool = False,
    schedule: str = "",
    beside: str = "",
) -> Sample:
    """Return a sample on two CPUs; kernel and purgatory are the names that build.sh gives them."""

    def file(kind: str, stem: str, of: str, ending: str) -> str:
        return f"{kind}-{stem}.{ending}" if stem in ("be", "le") else f"{kind}-{stem}-{of}.{ending}"

    return Sample(
        name=name,
        kernel=file("kernel", kernel, order, "elf"),
        purgatory=file("purgatory", purgatory, purgatory_order or order, "ro"),
        mode=mode,
        cpus=2,
        boot_cpu=0,
        title=title,
        note=note,
        checks=checks,
        signature=signature,
        thread=thread,
        schedule=schedule,
        beside=beside,
    )


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
        checks=True,
        thread="as merged: __run_at_load through kexec-tools",
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
        checks=True,
        thread="as merged: __run_at_load through kexec-tools",
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
        checks=True,
        thread="as merged: __run_at_load through kexec-tools",
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
        checks=True,
        thread="as merged: __run_at_load through kexec-tools",
    ),
    _pair(
        "noflag-be",
        "noflag",
        "noflag",
        "load-panic",
        "2.6.27: no flag, a kernel linked at 32 MiB",
        "Nobody tells it anything: it copies itself to where it was linked, onto itself.",
        "before: PHYSICAL_START decides, at build time",
        beside="noflag0-be",
    ),
    _pair(
        "noflag0-be",
        "noflag0",
        "noflag",
        "load-panic",
        "2.6.27: no flag, a kernel linked at 0, loaded for a crash",
        "Nothing can tell it to stay: it runs over the crashed kernel's memory.",
        "why a flag is needed at all",
        beside="noflag-be",
    ),
    _pair(
        "kdumpflag-be",
        "kdumpflag",
        "kdumpflag",
        "load-panic",
        "2.6.28-rc1: __kdump_flag at 0x18, by the signature in r6",
        "kexec_sequence leaves 0xfeed1234 in r6; purgatory stores 64 bits at kernel+0x18.",
        "the __kdump_flag ABI that Milton Miller calls overly constraining",
        signature=True,
        beside="runatload-be",
    ),
    _pair(
        "kdumpflag-kexec-be",
        "kdumpflag",
        "kdumpflag",
        "load",
        "2.6.28-rc1: __kdump_flag, an ordinary kexec",
        "No signature in r6, so nobody writes the flag, and the kernel moves to 0.",
        "the __kdump_flag ABI",
    ),
    _pair(
        "runatload-be",
        "runatload",
        "be",
        "load-panic",
        "2.6.28: __run_at_load at 0x5c, as merged",
        "The kernel's word goes through purgatory's own 0x5c, where kexec-tools makes it 1.",
        "this flag only controls run without relocating, so rename it __run_at_load",
        beside="kdumpflag-be",
    ),
    _pair(
        "posted-be",
        "runatload",
        "posted",
        "load-panic",
        "Snippets 1-3 as posted: cmpd 18,1",
        "cmpd 18,1 compares r18 with r1, the stack pointer: the flag is never marked.",
        "code snippets 1, 2 and 3, word for word",
        beside="meant-be",
    ),
    _pair(
        "meant-be",
        "runatload",
        "meant",
        "load-panic",
        "Snippets 1-3 as meant: cmpdi 18,1",
        "One letter more: r18 is compared with the number 1, and the flag is marked.",
        "code snippets 1, 2 and 3, with cmpdi",
        beside="posted-be",
    ),
    _pair(
        "posted-le",
        "le",
        "posted",
        "load-panic",
        "Snippets 1-3 as posted, little-endian",
        "The same mistake in the other byte order.",
        "code snippets 1, 2 and 3, word for word",
        order="le",
        beside="meant-le",
    ),
    _pair(
        "meant-le",
        "le",
        "meant",
        "load-panic",
        "Snippets 1-3 as meant, little-endian",
        "The same cure in the other byte order.",
        "code snippets 1, 2 and 3, with cmpdi",
        order="le",
        beside="posted-le",
    ),
    _pair(
        "restores-be",
        "runatload",
        "restores",
        "load",
        "A purgatory that restores the stolen first word",
        "0x0 gets the kernel's own first word, while the secondaries spin at 0x60.",
        "get the first instruction that we stole and put it in the slave loop at 0",
    ),
    _pair(
        "restores-le",
        "le",
        "restores",
        "load-panic",
        "A purgatory that restores the stolen first word, little-endian",
        "The secondaries that spin at 0x60 do not notice.",
        "get the first instruction that we stole and put it in the slave loop at 0",
        order="le",
    ),
    _pair(
        "iseries-be",
        "iseries",
        "be",
        "load",
        "An iSeries kernel: 0x20 is the hypervisor's",
        "The pointer at 0x20 stays what it is, in the image and in low memory.",
        "offset 0x20 is used by the iseries hypervisor",
    ),
    _pair(
        "nomagic-be",
        "nomagic",
        "be",
        "load-panic",
        "A kernel without the magic, loaded for a crash",
        'No "run0" at 0x5c: kexec-tools does not set the flag, and the kernel moves to 0.',
        "no way of identifying that the flag was present",
    ),
    _pair(
        "nomagic-le",
        "nomagic",
        "le",
        "load-panic",
        "A kernel without the magic, little-endian",
        'No "run0" at 0x5c: kexec-tools does not set the flag, and the kernel moves to 0.',
        "no way of identifying that the flag was present",
        order="le",
    ),
    _pair(
        "late-be",
        "be",
        "late",
        "load-panic",
        "Mistake: the flag is written after the kernel has read it",
        "A secondary writes it, and comes too late: the kernel has read run0 twice.",
        "who writes the flag, and when",
    ),
    _pair(
        "late-le",
        "le",
        "late",
        "load-panic",
        "Mistake: the flag is written after the kernel has read it, little-endian",
        "A secondary writes it, and comes too late: the kernel has read run0 twice.",
        "who writes the flag, and when",
        order="le",
    ),
    _pair(
        "race-be",
        "be",
        "race",
        "load-panic",
        "Race: a secondary writes the flag, and nobody waits",
        "It comes in time here; `bootflow check --schedules` finds when it does not.",
        "who writes the flag, and when",
        beside="race-lost-be",
    ),
    _pair(
        "race-lost-be",
        "be",
        "race",
        "load-panic",
        "Race, lost: the same images, another schedule",
        "The flag is written between the kernel's two reads: relocated for 0, not copied there.",
        "who writes the flag, and when",
        schedule="writer:cpu0:0x38:2:50",
        beside="race-be",
    ),
    _pair(
        "waits-be",
        "be",
        "waits",
        "load-panic",
        "No race: a secondary writes the flag, and purgatory waits",
        "65,536 turns of a loop are enough in every schedule.",
        "who writes the flag, and when",
        beside="race-be",
    ),
    _pair(
        "offset-be",
        "be",
        "offset",
        "load-panic",
        "Mistake: the flag goes to the wrong offset",
        "kernel+0x58 is nobody's flag; at 0x5c the kernel reads run0.",
        "instead of setting the value at 0x5c",
    ),
    _pair(
        "offset-le",
        "le",
        "offset",
        "load-panic",
        "Mistake: the flag goes to the wrong offset, little-endian",
        "kernel+0x58 is nobody's flag; at 0x5c the kernel reads run0.",
        "instead of setting the value at 0x5c",
        order="le",
    ),
    _pair(
        "width-be",
        "be",
        "width",
        "load-panic",
        "Mistake: the flag of 4 bytes is loaded as 8, and stored as 4",
        "On big endian the word at 0x60 goes to 0x5c.",
        "it was 8 bytes for a boolean flag",
        beside="width-le",
    ),
    _pair(
        "width-le",
        "le",
        "width",
        "load-panic",
        "No mistake here: ld and stw, little-endian",
        "The same code is right on little endian: the flag is the low half.",
        "it was 8 bytes for a boolean flag",
        order="le",
        beside="width-be",
    ),
    _pair(
        "clobber-be",
        "be",
        "clobber",
        "load",
        "Mistake: low memory is overwritten while a secondary executes it",
        "Purgatory clears 0x0-0xff below the spinning secondaries.",
        "secondary cpus must be well behaved when the first 256 bytes are copied",
    ),
    _pair(
        "clobber-le",
        "le",
        "clobber",
        "load",
        "Mistake: low memory is overwritten while a secondary executes it, little-endian",
        "Purgatory clears 0x0-0xff below the spinning secondaries.",
        "secondary cpus must be well behaved when the first 256 bytes are copied",
        order="le",
    ),
    _pair(
        "below-be",
        "be",
        "below",
        "load",
        "Mistake: a secondary enters below 0x60",
        "It enters at 0x5c and executes the flag: run0 is `andi.` to a CPU.",
        "offset 0x60 is code for the slave cpus",
    ),
    _pair(
        "wrongid-be",
        "be",
        "wrongid",
        "load",
        "Mistake: a secondary enters with a wrong r3",
        "r3 is its physical id plus one.",
        "entered with r3 set to their device tree physical id",
    ),
    _pair(
        "wrongid-le",
        "le",
        "wrongid",
        "load",
        "Mistake: a secondary enters with a wrong r3, little-endian",
        "r3 is its physical id plus one.",
        "entered with r3 set to their device tree physical id",
        order="le",
    ),
    _pair(
        "digest-be",
        "be",
        "digest",
        "load-panic",
        "Mistake: the digest does not match",
        "Purgatory never starts a kernel that was overwritten in memory.",
        "",
        checks=True,
    ),
    _pair(
        "digest-le",
        "le",
        "digest",
        "load-panic",
        "Mistake: the digest does not match, little-endian",
        "Purgatory never starts a kernel that was overwritten in memory.",
        "",
        order="le",
        checks=True,
    ),
    _pair(
        "mismatch-old-new-be",
        "runatload",
        "kdumpflag",
        "load-panic",
        "Mismatch: purgatory of October 2008, kernel of today's ABI",
        "Purgatory writes __kdump_flag at 0x18; the kernel listens at 0x5c.",
        "the flag's ABI is between two projects",
        signature=True,
        beside="mismatch-new-old-be",
    ),
    _pair(
        "mismatch-none-new-be",
        "runatload",
        "noflag",
        "load-panic",
        "Mismatch: a purgatory without a flag, a kernel with one",
        "Purgatory writes nothing; the kernel reads run0 and moves.",
        "the flag's ABI is between two projects",
    ),
    _pair(
        "mismatch-new-old-be",
        "kdumpflag",
        "be",
        "load-panic",
        "Mismatch: today's purgatory, kernel of 2.6.28-rc1",
        "Purgatory writes 0x5c; the kernel listens at 0x18.",
        "the flag's ABI is between two projects",
        signature=True,
        beside="mismatch-old-new-be",
    ),
    _pair(
        "mismatch-le-be",
        "be",
        "le",
        "load-panic",
        "Mismatch: little-endian purgatory, big-endian kernel",
        'kexec compares "run0" in its own byte order, and never sets the flag.',
        "the flag's ABI is between two projects",
        purgatory_order="le",
    ),
)
