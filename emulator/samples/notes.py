"""TABLE: the story of each sample: notes for the list, pinned to what happens, not to numbers.

What it is: for each sample the places of its run that are worth a stop and a text for each. A place
is a name that `pin` finds in the evidence of the run, so that a note stays right when a schedule or
an image changes its ticks. What it is not: a judgement; what failed is told by the rules.
Source: the thread of October 2008; linux and kexec-tools as `handoff` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from emulator.evidence import Evidence
from emulator.samples import Sample

Tick = int | None


@dataclass(frozen=True)
class Note:
    """A text, and the moment that it speaks of."""

    tick: int
    text: str


def _first(ticks: Sequence[int]) -> Tick:
    return ticks[0] if ticks else None


def _entry(place: str) -> Callable[[Evidence], Tick]:
    def find(seen: Evidence) -> Tick:
        entry = seen.entered(place)
        return entry.tick if entry is not None else None

    return find


def _stage(name: str) -> Callable[[Evidence], Tick]:
    def find(seen: Evidence) -> Tick:
        return _first([e.tick for e in seen.events.get("stage", []) if e.text == name])

    return find


def _purgatory_low_write(seen: Evidence) -> Tick:
    return _first([t.tick for t in seen.low_writes if t.stage in ("purgatory", "digest")])


def _arrival(number: int) -> Callable[[Evidence], Tick]:
    def find(seen: Evidence) -> Tick:
        return seen.arrivals[number].tick if len(seen.arrivals) > number else None

    return find


def _read(number: int) -> Callable[[Evidence], Tick]:
    def find(seen: Evidence) -> Tick:
        return seen.flag_reads[number].tick if len(seen.flag_reads) > number else None

    return find


def _before(tick: Tick, instructions: int) -> Tick:
    """So many instructions of the snippet earlier: it runs without a break."""
    return None if tick is None else tick - instructions


PLACES: Final[dict[str, Callable[[Evidence], Tick]]] = {
    "start": lambda seen: 0,
    "copied": lambda seen: max(
        (t.tick for t in seen.low_writes if t.stage == "hand-over"), default=None
    ),
    "arrives": _arrival(0),
    "arrives again": _arrival(1),
    "purgatory": _entry("purgatory"),
    "digest": _stage("digest"),
    "low write": _purgatory_low_write,
    "head write": lambda seen: _first([t.tick for t in seen.head_writes]),
    "entry": _entry("kernel"),
    "compare": lambda seen: _before(_purgatory_low_write(seen), 3),
    "marks": lambda seen: _before(_first([t.tick for t in seen.head_writes]), 3),
    "first read": _read(0),
    "second read": _read(1),
    "copies": _stage("copy"),
    "moved": _entry("kernel-at-0"),
    "changed": lambda seen: _first([row["tick"] for row in seen.changed]),
    "joins": lambda seen: _first([e.tick for e in seen.events.get("cpu-released", [])]),
    "end": lambda seen: int(seen.end["tick"]) if "tick" in seen.end else None,
}

Row = tuple[str, str]

_OPENING: Final[tuple[Row, ...]] = (
    ("start", "The old kernel's last act. The boot CPU is about to copy the first 0x100 bytes of"
              " the image to 0; the secondaries spin until kexec_flag is set."),
    ("arrives", "A secondary comes to 0x60, big-endian, r3 = its physical id. What it executes"
                " here are the new kernel's first bytes, long before that kernel has run."),
    ("purgatory", "Purgatory: r3 = the id of this CPU, r4 = where purgatory lies."),
)  # fmt: skip
_STAYS: Final[tuple[Row, ...]] = (
    ("first read", "The kernel reads its flag, before it relocates: 1, so it is going to run where"
                   " it lies."),
    ("second read", "It reads the flag once more, before it copies: 1, so only its vectors go to"
                    " 0."),
    ("joins", "start_kernel has stored an address where the secondaries look, and they leave the"
              " hold loop. The kernel runs where it was loaded."),
)  # fmt: skip
_MOVES: Final[tuple[Row, ...]] = (
    ("first read", "The kernel reads its flag, before it relocates: not 1, so it is going to run"
                   " at 0."),
    ("second read", "It reads the flag once more, before it copies: not 1, so all of it goes to"
                    " 0, from offset 0x100 on. Below, the secondaries spin."),
    ("moved", "It jumps into its copy."),
    ("joins", "The secondaries leave the hold loop, which was never copied over."),
)  # fmt: skip
_MOVES_WRONGLY: Final[tuple[Row, ...]] = (
    *_MOVES[:2],
    ("moved", "It jumps into its copy, over the crashed kernel's memory that the dump was to"
              " save."),
)  # fmt: skip
_POSTED: Final[tuple[Row, ...]] = (
    ("compare", "Snippet 2: purgatory's flag is in r18, and it is 1. `cmpd 18,1` has just compared"
                " r18 not with the number 1, but with register r1, the stack pointer. They are not"
                " equal, so `bne` is going to jump over `stw 7,92(4)`, the store that marks the"
                " kernel's flag."),
    ("entry", 'The kernel is entered, and at kernel+0x5c stands what the image came with: "run0".'),
)  # fmt: skip

STORIES: Final[dict[str, tuple[Row, ...]]] = {
    "kdump": (
        *_OPENING,
        ("digest", "Purgatory hashes all that was loaded: a kernel that was overwritten in memory"
                   " is never started."),
        ("head write", "Purgatory stores its own word at 0x5c, where kexec-tools has put 1, to"
                       " kernel+0x5c: the flag goes into the new kernel itself."),
        ("entry", "The kernel is entered: r3 = device tree, r4 = kernel, r5 = 0."),
        *_STAYS,
    ),
    "kexec": (
        *_OPENING,
        ("head write", 'Purgatory stores its word at 0x5c back to the kernel: "run0", as it came.'),
        ("entry", "The kernel is entered: r3 = device tree, r4 = kernel, r5 = 0."),
        *_MOVES,
    ),
    "noflag": (
        *_OPENING,
        ("entry", "No flag was written: nobody knows of one. This kernel was linked at"
                  " PHYSICAL_START, 32 MiB, which is where it was loaded."),
        ("copies", "It copies itself to where it was linked: onto itself, word by word."),
        ("joins", "The secondaries are released by exactly 1 in the word that they read, and go"
                  " to a link address."),
    ),
    "noflag0": (
        *_OPENING,
        ("entry", "No flag was written, and this kernel would not read one."),
        ("copies", "It was linked at 0, so it copies itself to 0: over the crashed kernel."),
        ("moved", "It jumps into its copy. This is why a flag was asked for."),
    ),
    "kdumpflag": (
        *_OPENING[:2],
        ("purgatory", "Purgatory, with r6 = 0xfeed1234: kexec_sequence says that the old kernel"
                      " has crashed. This register is what the thread wants to keep out of the"
                      " ABI."),
        ("head write", "Purgatory stores 1, 64 bits, at kernel+0x18: the last 8 bytes before the"
                       " iSeries pointer. Nothing in the image said that a flag was there."),
        *_STAYS,
    ),
    "kdumpflag-kexec": (
        *_OPENING,
        ("entry", "r6 held no signature, so that nothing was written to kernel+0x18."),
        *_MOVES,
    ),
    "runatload": (
        *_OPENING,
        ("head write", "Purgatory stores its own word at 0x5c to kernel+0x5c. kexec-tools had"
                       ' found "run0" in the image, and made it 1 in purgatory.'),
        *_STAYS,
    ),
    "posted": (*_OPENING, *_POSTED, *_MOVES_WRONGLY),
    "meant": (
        *_OPENING,
        ("marks", "Snippet 2: `cmpdi 18,1` has just compared r18 with the number 1: equal, so the"
                  " `bne` after it does not jump. As posted it said `cmpd`, one letter less."),
        ("head write", "`stw 7,92(4)` marks the flag in the kernel: 1 at kernel+0x5c."),
        ("low write", "The instruction that was stolen, the kernel's first, is put to 0."),
        *_STAYS,
    ),
    "restores": (
        *_OPENING,
        ("low write", "Purgatory puts the kernel's first word to 0: the loader had left it out,"
                      " because the branch to purgatory stands there. The secondaries spin at"
                      " 0x60 and do not execute it."),
        ("entry", "The kernel is entered where it lies. The word at 0 is for nobody now."),
    ),
    "iseries": (
        _OPENING[0],
        ("copied", "0x20 holds the offset of hvReleaseData in the image: the iSeries hypervisor"
                   " reads it, in the image and at 0. No flag may stand there."),
        *_OPENING[1:],
        ("head write", "The flag goes to 0x5c, and 0x20 stays what it is."),
        *_MOVES,
    ),
    "nomagic": (
        *_OPENING,
        ("head write", 'The image has 0 at 0x5c, not "run0" (no CRASH_DUMP), so kexec-tools did'
                       " not dare to set the flag: purgatory stores 0 back."),
        *_MOVES_WRONGLY,
    ),
    "late": (
        *_OPENING,
        ("low write", "Purgatory stores an address of its own where the secondary looks: it is to"
                      " write the flag, after some other work."),
        _MOVES_WRONGLY[0],
        ("second read", "It reads the flag once more, before it copies: not 1, so all of it goes to"
                        " 0. The secondary is still busy with its other work."),
        ("head write", "Now the secondary writes 1. The kernel runs at 0 already."),
    ),
    "race": (
        *_OPENING,
        ("low write", "Purgatory calls the secondary to write the flag, and waits for nobody."),
        ("head write", "The secondary comes in time, in this schedule."),
        *_STAYS[:2],
    ),
    "race-lost": (
        *_OPENING,
        ("low write", "The same images as beside; but from this store on the boot CPU runs 50"
                      " instructions before the secondary runs any. On real CPUs that is an"
                      " interrupt, a cache miss, a hypervisor's choice."),
        ("first read", 'The kernel reads "run0": it is going to run at 0, and relocates for it.'),
        ("head write", "Now the secondary writes 1, between the two reads."),
        ("second read", "The kernel reads 1: only the vectors are copied. It has relocated itself"
                        " for 0, where nothing of it lies."),
        ("end", "It has jumped to where its code was to be. Only the vectors lie there, and in one"
                " of them it spins."),
    ),
    "waits": (
        *_OPENING,
        ("low write", "Purgatory calls the secondary to write the flag, and turns 65,536 times."),
        ("head write", "The secondary has written it long before that ends."),
        *_STAYS[:2],
    ),
    "offset": (
        *_OPENING,
        ("head write", "The store goes to kernel+0x58. The flag is at 0x5c."),
        *_MOVES_WRONGLY,
    ),
    "width-be": (
        *_OPENING,
        ("head write", "`ld` has loaded 8 bytes from 0x5c: the flag, 1, and the word behind it, an"
                       " instruction at 0x60. `stw` stores the low half of the register, and on big"
                       " endian that is the instruction."),
        ("first read", "The kernel reads that instruction as its flag. It is not 1, so it is going"
                       " to run at 0."),
        *_MOVES_WRONGLY[1:],
    ),
    "width-le": (
        *_OPENING,
        ("head write", "`ld` has loaded 8 bytes from 0x5c: the flag, 1, and the word behind it."
                       " `stw` stores the low half of the register, and on little endian that is"
                       " the flag. The same code is wrong on big endian."),
        *_STAYS,
    ),
    "clobber": (
        *_OPENING,
        ("low write", "Purgatory clears low memory from 0 on. A secondary spins there."),
        ("changed", "The secondary has branched back in its loop. What it is going to execute is"
                    " what stands there now: zeros, no instruction at all."),
    ),
    "below": (
        *_OPENING,
        ("low write", "Purgatory calls the secondary and sends it back, as the old kernel did."),
        ("arrives again", "But to 0x5c: the flag. To a CPU, \"run0\" is `andi. r21,r19,0x6e30`;"
                          " it goes on to 0x60 as if nothing were. With 1 there it would not."),
    ),
    "wrongid": (
        *_OPENING,
        ("low write", "Purgatory calls the secondary and sends it back to 0x60."),
        ("arrives again", "r3 is not its physical id: the kernel takes it for another CPU."),
        ("joins", "It joins under the wrong number."),
    ),
    "digest": (
        *_OPENING,
        ("digest", "Purgatory hashes all that was loaded."),
        ("end", "The digest is not the one that the loader noted, so it spins here for good."),
    ),
    "mismatch-old-new": (
        *_OPENING,
        ("head write", "This purgatory is of October 2008: it stores 64 bits at kernel+0x18."),
        *_MOVES_WRONGLY,
    ),
    "mismatch-none-new": (
        *_OPENING,
        ("entry", "This purgatory knows of no flag; nothing was written."),
        *_MOVES_WRONGLY,
    ),
    "mismatch-new-old": (
        *_OPENING,
        ("head write", "This purgatory stores its word at kernel+0x5c."),
        ("first read", "The kernel reads 64 bits at 0x18: 0, as it was built."),
        *_MOVES_WRONGLY[1:],
    ),
    "mismatch-le": (
        *_OPENING,
        ("head write", 'A little-endian kexec compared the big-endian "run0" in its own order,'
                       " found something else, and left it alone: purgatory stores it back."),
        *_MOVES_WRONGLY,
    ),
}  # fmt: skip


def story_key(sample: Sample) -> str:
    """The name of a sample's story: its own, or that of both byte orders."""
    return sample.name if sample.name in STORIES else sample.name[: -len("-be")]


def story_of(sample: Sample) -> tuple[Row, ...]:
    """The rows of a sample."""
    return STORIES[story_key(sample)]


def pin(sample: Sample, seen: Evidence) -> tuple[Note, ...]:
    """The notes of a sample's run at their ticks, in order of time; a place that is not, is not."""
    rows = [(PLACES[place](seen), text) for place, text in story_of(sample)]
    notes = [Note(tick, text) for tick, text in rows if tick is not None]
    return tuple(sorted(notes, key=lambda note: note.tick))
