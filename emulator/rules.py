"""TABLE: the rules of the hand-off, each with its source and the function that judges it.

What it is: one row a rule; a function takes the evidence of a run and says passed, failed or not
applicable, with the tick and CPU that show it. What it is not: a look at names, versions or offsets
other than the ABI's (0, 0x18, 0x20, 0x5c, 0x60, 0x100): it judges what ran.
Sources: named in the rows; "thread" is the mail of October 2008 that the design begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from emulator.evidence import EA_MASK, Entry, Evidence, Touch
from emulator.handoff import (
    CRASH_SIGNATURE,
    FLAG_OFFSET,
    FLAGS,
    LOW_COPY_BYTES,
    RUN_AT_LOAD,
    RUN_AT_ZERO_MAGIC,
    SECONDARY_ENTRY,
)
from emulator.ppc64 import MSR_DR, MSR_IR, MSR_LE, MSR_SF
from emulator.trace import Event

PASSED, FAILED, NA = "passed", "failed", "n-a"
HASH_TICKS: Final = 4
"""Instructions a byte that SHA-256 takes at least: 12 and more in C, about 4 with vshasigmaw. A
purgatory that does not hash takes some 400,000 in all, one that does 8 to 40 a byte (measured)."""
ISERIES_OFFSET: Final = 0x20
ISERIES_BYTES: Final = 8
_OLD_FLAG: Final = FLAGS[1]
_NEW_FLAG: Final = FLAGS[0]
_IN_HEAD: Final = ("purgatory", "digest")


@dataclass(frozen=True)
class Finding:
    """What a rule found; tick and cpu are those of the moment that shows it, if one does."""

    status: str
    text: str
    tick: int | None = None
    cpu: int | None = None


@dataclass(frozen=True)
class Rule:
    """One rule of the hand-off."""

    id: str
    statement: str
    source: str
    judge: Callable[[Evidence], Finding]


def flag_text(value: int | None) -> str:
    """A flag's value as people write it."""
    if value is None:
        return "nothing"
    if value == RUN_AT_ZERO_MAGIC:
        return '"run0"'
    return str(value) if value < 10 else f"0x{value:x}"


def _where(touch: Touch) -> str:
    return touch.symbol or f"nip 0x{touch.nip:x}"


# --- entries ------------------------------------------------------------------------------------


def _boot_entry(seen: Evidence) -> Finding:
    entry = seen.entered("kernel")
    if entry is None:
        return Finding(NA, "The boot CPU never came to the kernel.")
    wrong = []
    offset = (entry.nip & EA_MASK) - seen.kernel_addr
    if offset:
        wrong.append(f"it enters at offset 0x{offset:x}, not 0")
    if entry.text != "valid":
        wrong.append(f"r3 = 0x{entry.gpr['r3']:x}: {entry.text}")
    if entry.gpr["r4"] & EA_MASK != seen.kernel_addr:
        wrong.append(f"r4 = 0x{entry.gpr['r4']:x}, the kernel lies at 0x{seen.kernel_addr:x}")
    if entry.gpr["r5"]:
        wrong.append(f"r5 = 0x{entry.gpr['r5']:x}, which says Open Firmware; kexec's is 0")
    if wrong:
        return Finding(FAILED, f"At the entry {'; '.join(wrong)}.", entry.tick, entry.cpu)
    text = (
        f"Entered at 0x{entry.nip:x}, offset 0; r3 = 0x{entry.gpr['r3']:x}, a valid device tree;"
        f" r4 = 0x{entry.gpr['r4']:x}, r5 = 0."
    )
    return Finding(PASSED, text, entry.tick, entry.cpu)


def _entry_mode(seen: Evidence) -> Finding:
    entries = [*seen.arrivals]
    boot = seen.entered("kernel")
    if boot is not None:
        entries.append(boot)
    if not entries:
        return Finding(NA, "No CPU came to the kernel's code.")
    for entry in entries:
        wrong = [
            text
            for bad, text in (
                (entry.msr & MSR_LE, "little-endian"),
                (entry.msr & (MSR_IR | MSR_DR), "with translation on"),
                (not entry.msr & MSR_SF, "in 32-bit mode"),
            )
            if bad
        ]
        if wrong:
            text = f"CPU {entry.cpu} enters {' and '.join(wrong)}: MSR 0x{entry.msr:016x}."
            return Finding(FAILED, text, entry.tick, entry.cpu)
    last = entries[-1]
    text = f"All enter 64-bit, big-endian and in real mode: MSR 0x{last.msr:016x}."
    return Finding(PASSED, text, last.tick, last.cpu)


def _secondary_entry(seen: Evidence) -> Finding:
    if not seen.arrivals:
        return _no_secondaries(seen)
    for entry in seen.arrivals:
        want = seen.cpu_ids[entry.cpu] if entry.cpu < len(seen.cpu_ids) else entry.cpu
        wrong = []
        if entry.nip & EA_MASK != SECONDARY_ENTRY:
            wrong.append(f"enters at 0x{entry.nip & EA_MASK:x}, not at 0x60")
        if entry.gpr["r3"] != want:
            wrong.append(f"comes with r3 = 0x{entry.gpr['r3']:x}; its physical id is {want}")
        if wrong:
            text = f"CPU {entry.cpu} {' and '.join(wrong)}."
            return Finding(FAILED, text, entry.tick, entry.cpu)
    last = seen.arrivals[-1]
    count = len({entry.cpu for entry in seen.arrivals})
    text = f"{_count(count, 'secondary')} at 0x60, r3 = its physical id."
    return Finding(PASSED, text, last.tick, last.cpu)


def _no_secondaries(seen: Evidence) -> Finding:
    if not seen.secondaries:
        return Finding(NA, "There is one CPU only.")
    return Finding(NA, "No secondary came to low memory.")


# --- low memory -----------------------------------------------------------------------------------


def _low_copy(seen: Evidence) -> Finding:
    if not seen.arrivals:
        return _no_secondaries(seen)
    if len(seen.kernel_low) < LOW_COPY_BYTES:
        return Finding(NA, "The image has fewer than 0x100 bytes.")
    for entry, own in _written_by_owners(seen):
        low = bytes.fromhex(entry.text) if len(entry.text) == 2 * LOW_COPY_BYTES else b""
        for at in range(4, min(len(low), LOW_COPY_BYTES), 4):
            if at == FLAG_OFFSET or low[at : at + 4] == seen.kernel_low[at : at + 4] or at in own:
                continue
            text = (
                f"When CPU {entry.cpu} arrives, 0x{at:x} holds 0x{low[at : at + 4].hex()}; the"
                f" image has 0x{seen.kernel_low[at : at + 4].hex()} there."
            )
            return Finding(FAILED, text, entry.tick, entry.cpu)
    first = seen.arrivals[0]
    text = (
        "0x4-0xff are the image's at each arrival, but for the flag and what secondaries store;"
        " 0x0 is purgatory's branch or the image's."
    )
    return Finding(PASSED, text, first.tick, first.cpu)


def _written_by_owners(seen: Evidence) -> Iterator[tuple[Entry, set[int]]]:
    """Each arrival, in order, and the words of low memory that their owners had written by then.

    They are the hold loop's acknowledgement and what the kernel releases it by.
    """
    kernel = seen.entered("kernel")
    writes = iter(seen.low_writes)
    touch = next(writes, None)
    own: set[int] = set()
    for entry in sorted(seen.arrivals, key=lambda entry: entry.tick):
        while touch is not None and touch.tick <= entry.tick:
            boots = touch.cpu == seen.boot_cpu
            kernels = boots and kernel is not None and touch.tick > kernel.tick
            if kernels or (not boots and touch.stage == "hold"):
                own |= set(range(touch.at & ~3, touch.at + touch.size, 4))
            touch = next(writes, None)
        yield entry, own


def _low_code(seen: Evidence) -> Finding:
    if not seen.arrivals:
        return _no_secondaries(seen)
    if seen.changed:
        row = seen.changed[0]
        writer = _last_low_write(seen, row["at"], row["tick"])
        who = f" {_where(writer)} on CPU {writer.cpu} wrote it." if writer is not None else ""
        text = (
            f'CPU {row["cpu"]} executes "{row["text"]}" at 0x{row["at"]:x}, where'
            f' "{row["was_text"]}" stood when it came.{who}'
        )
        return Finding(FAILED, text, row["tick"], row["cpu"])
    first = seen.arrivals[0]
    text = "What each secondary executed below 0x100 is what stood there when it came."
    return Finding(PASSED, text, first.tick, first.cpu)


def _last_low_write(seen: Evidence, at: int, tick: int) -> Touch | None:
    found = [t for t in seen.low_writes if t.covers(at, 4) and t.tick <= tick]
    return found[-1] if found else None


def _iseries(seen: Evidence) -> Finding:
    raw = seen.kernel_low[ISERIES_OFFSET : ISERIES_OFFSET + ISERIES_BYTES]
    pointer = int.from_bytes(raw, "big")
    link, size = seen.link_addr, int(seen.placement.get("kernel_bytes", 0))
    inside = pointer >> 60 == 0xC and link <= pointer & EA_MASK < link + size
    if not seen.kernel_big or not inside:
        return Finding(NA, "0x20 holds no pointer into the kernel: no iSeries kernel.")
    first = seen.entered("purgatory")
    since = first.tick if first is not None else 0
    for touch in (*seen.low_writes, *seen.head_writes):
        if touch.covers(ISERIES_OFFSET, ISERIES_BYTES) and touch.changes and touch.tick > since:
            text = (
                f"{_where(touch)} writes 0x{touch.value:x} at 0x{touch.at:x}, over the pointer"
                f" 0x{pointer:x} that the hypervisor reads."
            )
            return Finding(FAILED, text, touch.tick, touch.cpu)
    return Finding(PASSED, f"0x20 keeps the pointer 0x{pointer:x}, in both copies.")


# --- the flag -------------------------------------------------------------------------------------


def _flag_identified(seen: Evidence) -> Finding:
    flag = seen.flag
    if flag is None:
        return Finding(NA, "The kernel asks no flag.")
    at = seen.flag_reads[0] if seen.flag_reads else None
    tick, cpu = (at.tick, at.cpu) if at else (None, None)
    if flag.at == FLAG_OFFSET and seen.has_magic:
        return Finding(PASSED, 'The image has "run0" at 0x5c: a loader can tell.', tick, cpu)
    raw = seen.kernel_low[flag.at : flag.at + flag.size].hex()
    text = (
        f"The kernel reads {8 * flag.size} bits at 0x{flag.at:x}, where the image has 0x{raw}:"
        " nothing tells a loader that a flag is there."
    )
    return Finding(FAILED, text, tick, cpu)


def _flag_abi(seen: Evidence) -> Finding:
    """Do kernel and purgatory speak of the same flag, in the same byte order?"""
    flag = seen.flag
    if seen.entered("kernel") is None:
        return Finding(NA, "The kernel never ran.")
    result = f"it {seen.outcome if seen.outcome != 'stopped' else 'stopped'}"
    writes = [t for t in seen.head_writes if t.changes or t.covers(FLAG_OFFSET, 4)]
    if flag is None:
        wrote = [t for t in writes if t.changes]
        if seen.meant == "stay" and seen.outcome == "relocated":
            by = f"; purgatory wrote kernel+0x{wrote[0].at:x}, which nobody reads" if wrote else ""
            text = (
                f"The kernel asks no flag (2.6.27 and older, or built without RELOCATABLE){by}:"
                f" nothing can tell it to stay, and {result} to 0."
            )
            last = wrote[-1] if wrote else None
            return Finding(FAILED, text, *((last.tick, last.cpu) if last else ()))
        return Finding(NA, f"The kernel asks no flag; {result}.")
    reads = seen.flag_reads
    at = (reads[0].tick, reads[0].cpu) if reads else ()
    mismatch = _flag_mismatch(seen, writes) if seen.meant == "stay" else ""
    if mismatch:
        return Finding(FAILED, f"{mismatch} The kernel was to stay; {result}.", *at)
    exact = [t for t in seen.flag_writes if (t.at, t.size) == (flag.at, flag.size)]
    if exact:
        text = f"Purgatory writes {flag.name} at kernel+0x{flag.at:x}, and the kernel reads it."
        return Finding(PASSED, text, exact[-1].tick, exact[-1].cpu)
    return Finding(NA, f"Purgatory wrote no flag, and {result}.", *at)


def _flag_mismatch(seen: Evidence, writes: list[Touch]) -> str:
    """A sentence on why purgatory's flag is not the kernel's; "" if that is not the reason."""
    flag = seen.flag
    if flag is None or any(t.value == flag.stay and t.at == flag.at for t in seen.flag_writes):
        return ""
    order = _order_mismatch(seen)
    if order:
        return order
    other = next(row for row in FLAGS if row.at != flag.at)
    if any(t.at == other.at and (t.changes or other is _NEW_FLAG) for t in writes):
        return (
            f"The purgatory speaks {other.name} ({8 * other.size} bits at 0x{other.at:x}), the"
            f" kernel listens to {flag.name} ({8 * flag.size} bits at 0x{flag.at:x})."
        )
    if flag is _NEW_FLAG and seen.placement.get("run_at_load") is None and not writes:
        return (
            "The purgatory has no run_at_load (kexec-tools before 16 January 2009), and wrote no"
            f" flag; the kernel listens to {flag.name} at 0x{flag.at:x}."
        )
    if flag is _OLD_FLAG and not writes:
        entry = seen.entered("purgatory")
        r6 = entry.gpr["r6"] if entry is not None else 0
        if r6 == CRASH_SIGNATURE:
            return (
                f"The kernel listens to {flag.name} at 0x{flag.at:x}; r6 carried 0xfeed1234, and"
                " this purgatory wrote nothing there."
            )
        return (
            f"The kernel listens to {flag.name}, which purgatory sets when r6 carries 0xfeed1234;"
            f" r6 was 0x{r6:x}, and it wrote nothing."
        )
    return ""


def _order_mismatch(seen: Evidence) -> str:
    """Loader and purgatory of one byte order, kernel of the other."""
    knows = seen.placement.get("run_at_load") is not None
    if seen.kernel_big == seen.purgatory_big or seen.flag is not _NEW_FLAG or not knows:
        return ""
    names = {True: "big", False: "little"}
    read = seen.flag_reads[-1].value if seen.flag_reads else seen.flag_value
    given = int(seen.placement.get("run_at_load") or 0)
    swapped = int.from_bytes(RUN_AT_ZERO_MAGIC.to_bytes(4, "big"), "little")
    pair = (
        f"A {names[seen.purgatory_big]}-endian purgatory and a"
        f" {names[seen.kernel_big]}-endian kernel:"
    )
    if given == swapped:
        return (
            f'{pair} kexec compares "run0" in its own byte order, reads 0x{given:x} and does not'
            f" set the flag; the kernel reads {flag_text(read)}."
        )
    return f"{pair} the flag was written as {flag_text(given)} and reads {flag_text(read)}."


def _flag_written(seen: Evidence) -> Finding:
    flag = seen.flag
    if flag is None:
        return Finding(NA, "The kernel asks no flag.")
    reads, exact = seen.flag_reads, []
    for touch in seen.flag_writes:
        if (touch.at, touch.size) != (flag.at, flag.size):
            text = (
                f"{_where(touch)} writes {touch.size} bytes at kernel+0x{touch.at:x}; {flag.name}"
                f" is {flag.size} bytes at 0x{flag.at:x}."
            )
            return Finding(FAILED, text, touch.tick, touch.cpu)
        exact.append(touch)
    if not reads:
        return Finding(NA, "The kernel never came to read it.")
    late = [t for t in exact if t.tick > reads[0].tick]
    if late:
        text = (
            f"{_where(late[0])} on CPU {late[0].cpu} writes {flag_text(late[0].value)} at tick"
            f" {late[0].tick}; the kernel had read it at tick {reads[0].tick}."
        )
        return Finding(FAILED, text, late[0].tick, late[0].cpu)
    if exact:
        return _flag_width(seen, exact[-1])
    if seen.meant == "move":
        is_now = flag_text(reads[0].value)
        return Finding(NA, f"Nobody wrote it, and nobody had to: it reads {is_now}.")
    near = [t for t in seen.head_writes if t.changes]
    beside = (
        f" {_where(near[0])} writes {flag_text(near[0].value)} at kernel+0x{near[0].at:x} instead."
        if near
        else ""
    )
    text = (
        f"Nobody wrote {flag.name} before the kernel read it at 0x{flag.at:x}, tick"
        f" {reads[0].tick}.{beside}"
    )
    shown = near[0] if near else reads[0]
    return Finding(FAILED, text, shown.tick, shown.cpu)


def _flag_width(seen: Evidence, touch: Touch) -> Finding:
    """The store has the right width; was what it stored loaded with the right one?"""
    after = seen.kernel_low[SECONDARY_ENTRY : SECONDARY_ENTRY + 4]
    if touch.at == FLAG_OFFSET and touch.value and touch.raw == after:
        text = (
            f"{_where(touch)} stores 0x{touch.value:x} at 0x5c, the word that stands at 0x60 of the"
            " image: a flag of 4 bytes was loaded as 8 (`ld`, then `stw`), on big endian its"
            " neighbour."
        )
        return Finding(FAILED, text, touch.tick, touch.cpu)
    text = (
        f"{_where(touch)} writes {flag_text(touch.value)} at kernel+0x{touch.at:x}, {touch.size}"
        " bytes, before the kernel reads it."
    )
    return Finding(PASSED, text, touch.tick, touch.cpu)


def _flag_value(seen: Evidence) -> Finding:
    flag, reads = seen.flag, seen.flag_reads
    if flag is None or not reads:
        return Finding(NA, "The kernel asks no flag." if flag is None else "It was never read.")
    for touch in reads:
        if (touch.value == RUN_AT_LOAD) != (seen.meant == "stay"):
            means = "stay" if touch.value == RUN_AT_LOAD else "move"
            text = (
                f"{_where(touch)} reads {flag_text(touch.value)}, which means {means}; {seen.meant}"
                " was meant."
            )
            return Finding(FAILED, text, touch.tick, touch.cpu)
    times = "once" if len(reads) == 1 else "twice" if len(reads) == 2 else f"{len(reads)} times"
    text = f"The kernel reads {flag_text(reads[-1].value)}, {times}: {seen.meant}."
    return Finding(PASSED, text, reads[-1].tick, reads[-1].cpu)


# --- the whole ------------------------------------------------------------------------------------


def _outcome(seen: Evidence) -> Finding:
    option = "--load-panic" if seen.meant == "stay" else "--load"
    if seen.outcome == "stopped":
        if seen.ended_as_asked or seen.end.get("reason") == "cancelled":
            return Finding(NA, "The run was ended before the kernel had decided.")
        text = as_sentence(str(seen.end.get("text", "")) or "the run was cut short")
        cpu = seen.end.get("cpu")
        return Finding(FAILED, f"Neither: {text}", seen.end.get("tick"), cpu)
    moved = seen.entered("kernel-at-0")
    tick = moved.tick if moved is not None else seen.decided_tick
    text = (
        f"The kernel {seen.outcome}, it runs at 0x{seen.at:x}; {option} means it to run at"
        f" 0x{seen.meant_addr:x}."
    )
    status = PASSED if seen.at == seen.meant_addr else FAILED
    return Finding(status, text, tick, seen.boot_cpu)


def _digest(seen: Evidence) -> Finding:
    checked = [
        event
        for event in seen.events.get("stage", [])
        if event.cpu == seen.boot_cpu and event.text == "digest"
    ]
    entry = seen.entered("kernel")
    if not seen.spec.get("checks", True):
        return Finding(PASSED, "Skipped, as --no-checks asks.")
    if not seen.placement.get("digest"):
        return Finding(NA, "This purgatory checks no digest.")
    worked = seen.purgatory_ticks
    hashed = worked >= HASH_TICKS * seen.loaded_bytes
    amount = f"{worked} instructions for {seen.loaded_bytes} bytes"
    stuck = seen.end.get("reason") in ("stuck", "fault") and seen.end.get("cpu") == seen.boot_cpu
    if entry is not None:
        if not checked and not hashed:
            return Finding(NA, f"This purgatory checks no digest: {amount}.")
        since = f"it begins at tick {checked[0].tick}" if checked else amount
        at = checked[0] if checked else entry
        text = f"Verified: {since}, and the kernel was entered."
        return Finding(PASSED, text, at.tick, seen.boot_cpu)
    if stuck and (checked or hashed):
        text = as_sentence(str(seen.end.get("text", "")))
        if not checked:
            text += f" That is after {amount}, as many as a digest takes: it did not match."
        return Finding(FAILED, text, seen.end.get("tick"), seen.boot_cpu)
    if not checked:
        return Finding(NA, "The check was not reached.")
    return Finding(NA, "The run ended during the check.", checked[0].tick, seen.boot_cpu)


def _bounds(seen: Evidence) -> Finding:
    """Purgatory's are its memory, the flag, the first word at 0, the device tree's boot CPU."""
    if seen.entered("purgatory") is None:
        return Finding(NA, "Purgatory never ran.")
    flag = seen.flag
    for touch in seen.head_writes:
        own = flag is not None and touch.at >= flag.at and touch.at + touch.size <= (
            flag.at + flag.size
        )  # fmt: skip
        if touch.changes and not own:
            text = (
                f"{_where(touch)} writes {touch.size} bytes at kernel+0x{touch.at:x}, value"
                f" 0x{touch.value:x}, where 0x{touch.old.hex()} stood."
            )
            return Finding(FAILED, text, touch.tick, touch.cpu)
    for touch in seen.low_writes:
        if touch.stage in _IN_HEAD and touch.changes and touch.at + touch.size > 4:
            text = (
                f"{_where(touch)} writes {touch.size} bytes at 0x{touch.at:x}, value"
                f" 0x{touch.value:x}, where 0x{touch.old.hex()} stood."
            )
            return Finding(FAILED, text, touch.tick, touch.cpu)
    entry = seen.entered("kernel")
    if entry is None:
        return Finding(NA, "The kernel was not reached, so that memory was not compared.")
    if seen.strays:
        row = seen.strays[0]
        what = f"{row['segment']}+0x{row['at']:x}" if row["segment"] else row["addr"]
        text = (
            f"{what}, {row['size']} bytes, was changed between the loader and the kernel's entry:"
            f" 0x{row['old'][2:]} is 0x{row['now'][2:]}."
        )
        return Finding(FAILED, text, entry.tick, entry.cpu)
    text = (
        "At the kernel's entry all that the loader placed is as it left it, but for the flag and"
        " the boot CPU's id in the device tree; nothing else was written."
    )
    return Finding(PASSED, text, entry.tick, entry.cpu)


def _secondaries(seen: Evidence) -> Finding:
    if not seen.secondaries:
        return Finding(NA, "There is one CPU only.")
    reached = seen.entered("kernel") is not None
    waiting: list[int] = []
    released: list[int] = []
    last_tick: int | None = None
    for cpu in seen.secondaries:
        last = seen.last_stage(cpu)
        stage = last.text if last is not None else "hand-over"
        if seen.end.get("reason") == "fault" and seen.end.get("cpu") == cpu:
            text = as_sentence(f"CPU {cpu} stopped: {seen.end.get('text', '')}")
            return Finding(FAILED, text, seen.end.get("tick"), cpu)
        lost = _lost_in_hold(seen, cpu)
        if lost is not None:
            text = f"CPU {cpu} took a {lost.text} in the hold loop, and was never released."
            return Finding(FAILED, text, lost.tick, cpu)
        if stage == "hold":
            waiting.append(cpu)
        elif stage in ("joins", "head", "early_setup", "start_kernel", "relocate", "copy"):
            released.append(cpu)
            last_tick = last.tick if last is not None else None
        elif reached:
            text = f"CPU {cpu} is neither released nor in the hold loop: it is in {stage}."
            return Finding(FAILED, text, last.tick if last is not None else None, cpu)
    if released or waiting:
        parts = [f"{_count(len(released), 'secondary')} released"] if released else []
        held = [f"{_count(len(waiting), 'secondary')} in the hold loop at the end"]
        text = as_sentence(", ".join(parts + (held if waiting else [])))
        return Finding(PASSED, text, last_tick, released[-1] if released else None)
    return Finding(NA, "The run ended before they came.")


def _lost_in_hold(seen: Evidence, cpu: int) -> Event | None:
    """The exception that took a secondary out of the hold loop; no kernel handles any there."""
    released = [e.tick for e in seen.events.get("stage", []) if e.cpu == cpu and e.text == "joins"]
    for event in seen.events.get("exception", []):
        late = released and event.tick > released[0]
        if event.cpu == cpu and not late and seen.stage_at(cpu, event.tick) == "hold":
            return event
    return None


def _count(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name[:-1]}ies"


def as_sentence(text: str) -> str:
    """With a capital, unless it begins with a symbol, and with a full stop."""
    if text.split(" ")[0].rstrip(":,").isalpha():
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


RULES: Final = (
    Rule("boot-entry", "The boot CPU enters at 0 with r3 = device tree, r4 = kernel, r5 = 0.",
         "thread; linux head_64.S: __start; kexec-tools v2wrap.S", _boot_entry),
    Rule("entry-mode", "Every CPU enters the kernel's code 64-bit, big-endian, in real mode.",
         "linux head_64.S: FIXUP_ENDIAN; misc_64.S", _entry_mode),
    Rule("secondary-entry", "Secondaries enter at 0x60 with r3 = their physical id.",
         "thread; linux misc_64.S: kexec_wait", _secondary_entry),
    Rule("low-copy", "The first 0x100 bytes at 0 equal the image's when the secondaries arrive.",
         "linux misc_64.S: kexec_sequence", _low_copy),
    Rule("low-code", "No secondary executes a word of 0x0-0x100 that was changed under it.",
         "thread: well behaved when the first 256 bytes are copied to 0", _low_code),
    Rule("iseries-pointer", "0x20 is untouched where it is the iSeries hypervisor's.",
         "thread; linux v2.6.27 head_64.S", _iseries),
    Rule("flag-identified", "The flag can be identified.",
         "thread: it had no way of identifying that the flag was present", _flag_identified),
    Rule("flag-abi", "Kernel and purgatory speak of the same flag.",
         "linux 54622f10a6, 8b8b0cc1c7; kexec-tools d9c5b2d, 79c650e", _flag_abi),
    Rule("flag-written", "The flag is written before it is read, at its offset, in its width.",
         "thread: code snippets 1 and 2", _flag_written),
    Rule("flag-value", "The kernel reads the value that was meant.",
         "thread: code snippet 1; linux head_64.S: __after_prom_start", _flag_value),
    Rule("outcome", "The kernel stays or relocates as meant.",
         "kexec(8): --load-panic, --load", _outcome),
    Rule("digest", "The SHA-256 digest of what was loaded is verified, or skipped as asked.",
         "kexec-tools purgatory.c: verify_sha256_digest", _digest),
    Rule("bounds", "Nobody writes outside what is his between the loader and the kernel.",
         "kexec-tools v2wrap.S, crashdump_backup.c", _bounds),
    Rule("secondaries", "Every secondary is released, or is accounted for.",
         "linux setup_64.c: smp_release_cpus", _secondaries),
)  # fmt: skip
RULE_BY_ID: Final = {rule.id: rule for rule in RULES}
