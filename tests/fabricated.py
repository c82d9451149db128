"""A small run written down by hand through TraceWriter, for tests of pages without a machine.

Its ticks are shortened, its kinds of rows are those of a real kdump hand-off on 4 CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emulator.trace import ImageFile, TraceWriter

KERNEL_ADDR = 0x2000000
SPEC: dict[str, Any] = {
    "mode": "load-panic", "append": "", "cpus": 4, "boot_cpu": 0, "mem_bytes": 1 << 30,
    "base_addr": None, "checks": True, "debug": True, "quantum": 10000, "seed": 0,
    "until": None, "limit_ticks": 1 << 40, "addresses": None,
}  # fmt: skip
PLACEMENT: dict[str, Any] = {
    "t": "placement", "kernel_addr": KERNEL_ADDR, "entry_addr": 0x1EFF0700, "run_at_load": 1,
    "purgatory_addr": 0x1EFF0000, "dt_addr": 0x8000000,
    "debug": ["kernel is 2000000", "dt_offset is 8000000", "run_at_load flag is 1"],
    "low_fields": [
        {"name": "entry", "at": 0, "size": 4, "note": ""},
        {"name": "__secondary_hold_spinloop", "at": 0x38, "size": 8, "note": ""},
        {"name": "__secondary_hold_acknowledge", "at": 0x40, "size": 8, "note": ""},
        {"name": "__run_at_load", "at": 0x5C, "size": 4, "note": ""},
        {"name": "__secondary_hold", "at": 0x60, "size": 0xA0, "note": ""},
    ],
}  # fmt: skip
FLAG_TICK = 1_508_330_035
LAST_TICK = 1_533_444_221
RELEASED = 1_533_273_791


def _stage(tick: int, cpu: int, stage: str, nip: int, symbol: str) -> dict[str, Any]:
    return {
        "t": "event", "tick": tick, "cpu": cpu, "kind": "stage", "nip": nip, "symbol": symbol,
        "text": stage,
    }  # fmt: skip


def _touch(
    kind: str, tick: int, cpu: int, addr: int, size: int, value: int, symbol: str
) -> dict[str, Any]:
    return {
        "t": "event", "tick": tick, "cpu": cpu, "kind": kind, "addr": addr, "size": size,
        "value": value, "nip": 0x1EFF08F0, "symbol": symbol,
    }  # fmt: skip


def _events(moves: bool) -> list[dict[str, Any]]:
    value = 0x72756E30 if moves else 1
    setup = 0xC00000000200A3C4 if moves else 0xC00000000400A3C4
    events = [_stage(0, 0, "hand-over", 0x1EFE0000, "handover_boot+0x0/0x80")]
    for i in range(32):
        events.append(_touch("low-write", 9 + 4 * i, 0, 8 * i, 8, i, "handover_boot+0x1c/0x80"))
    for cpu in (1, 2, 3):
        events.append(_stage(123 + 20 * cpu, cpu, "hold", 0x60, "__secondary_hold+0x0/0xa0"))
        events.append(
            _touch("low-write", 131 + 20 * cpu, cpu, 0x40, 8, cpu, "__secondary_hold+0x44/0xa0")
        )
    events += [
        _stage(236, 0, "purgatory", 0x1EFF0700, "purgatory_start+0x0/0x100"),
        {"t": "event", "tick": 333, "cpu": 0, "kind": "hypercall", "value": 0x58, "text":
         "H_PUT_TERM_CHAR", "nip": 0x1EFF0A00, "symbol": "putchar+0x40/0x60"},
        _stage(1416, 0, "digest", 0x1EFF1000, "sha256_process+0x0/0x1000"),
        _stage(1_508_264_442, 0, "purgatory", 0x1EFF0868, "master+0x68/0x110"),
        _touch("flag-write", FLAG_TICK, 0, KERNEL_ADDR + 0x5C, 4, value, "master+0xf0/0x110"),
        _stage(1_508_330_044, 0, "head", KERNEL_ADDR, "__start+0x0/0x30"),
        _touch("flag-read", 1_508_330_099, 0, KERNEL_ADDR + 0x5C, 4, value, "__start+0x70/0x100"),
        _stage(1_508_330_104, 0, "relocate", 0xC000000002010000, "relocate+0x0/0x120"),
        _stage(1_509_693_305, 0, "head", 0xC00000000200D098, "__after_prom_start+0x98/0x200"),
        _touch(
            "flag-read", 1_509_693_308, 0, KERNEL_ADDR + 0x5C, 4, value,
            "__after_prom_start+0x98/0x200",
        ),
        _stage(1_509_693_317, 0, "copy", 0xC00000000200D200, "copy_and_flush+0x0/0x60"),
        _stage(
            1_509_707_677, 0, "head", 0xD300 if moves else 0xC00000000200D300,
            "start_here_multiplatform+0x0/0x80",
        ),
        _stage(1_510_064_651, 0, "early_setup", setup, "early_setup+0x0/0x400"),
        _stage(1_531_868_135, 0, "start_kernel", setup + 0x1000, "start_kernel+0x0/0x600"),
        _touch("low-write", RELEASED, 0, 0x38, 8, 0xC000000002008000, "smp_release_cpus+0x30/0xa0"),
    ]  # fmt: skip
    for cpu in (1, 2, 3):
        events.append(
            {"t": "event", "tick": RELEASED + cpu, "cpu": cpu, "kind": "cpu-released",
             "nip": 0xB8, "symbol": "__secondary_hold+0x58/0xa0"}
        )  # fmt: skip
        events.append(
            _stage(
                RELEASED + 40 * cpu,
                cpu,
                "joins",
                0xC000000002008000,
                "generic_secondary_smp_init+0x0/0x90",
            )
        )
    return events


def _slices() -> Iterator[dict[str, Any]]:
    rows = [
        (0, 0, 140, 0x1EFE0080, "hand-over", "handover_boot+0x80/0x80"),
        (140, 1, 20, 0xB0, "hold", "__secondary_hold+0x50/0xa0"),
        (160, 2, 20, 0xB4, "hold", "__secondary_hold+0x54/0xa0"),
        (180, 3, 20, 0xB8, "hold", "__secondary_hold+0x58/0xa0"),
        (200, 0, 1_508_264_242, 0x1EFF0868, "digest", "master+0x68/0x110"),
        (1_508_264_442, 0, 25_009_349, 0xC000000004001000, "start_kernel", "smp_release_cpus"),
    ]
    tick = RELEASED
    for tick_lo, cpu, ticks, nip, stage, symbol in rows:
        yield {"t": "slice", "tick": tick_lo, "cpu": cpu, "ticks": ticks, "nip": nip,
               "stage": stage, "symbol": symbol}  # fmt: skip
    for cpu in (1, 2, 3, 0):
        ticks = 100 if cpu else LAST_TICK - tick
        yield {"t": "slice", "tick": tick, "cpu": cpu, "ticks": ticks, "nip": 0xC000000002008000,
               "stage": "joins" if cpu else "start_kernel", "symbol": "x+0x0/0x1"}  # fmt: skip
        tick += ticks


def records(*, moves: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the record stream of the whole run, but its end."""
    yield PLACEMENT
    yield {"t": "console", "tick": 333, "cpu": 0, "data": b"I'm in purgatory\n".hex()}
    yield {
        "t": "console", "tick": 1_531_868_500, "cpu": 0,
        "data": b"Linux version 6.1.0-50-powerpc64le (gcc-12) #1 SMP\r\nUsing pSeries\n".hex(),
    }  # fmt: skip
    yield from _events(moves)
    yield from _slices()
    yield from _loops()


def _loops() -> Iterator[dict[str, Any]]:
    hold, master = "__secondary_hold+0x50/0xa0", "master+0x58/0x110"
    rows = [
        (0, 0, 4461, 1_508_264_400, 1_508_259_939, 16, 1, 0x1EFF0030, 8, "call",
         "verify_sha256_digest+0x30/0x134"),
        (0, 1, 4500, 1_508_264_300, 1_508_259_700, 320_171, 4, 0x1EFF31A0, 11, "call",
         "sha256_update.part.0+0x100/0x1dc"),
        (0, 0, FLAG_TICK - 65_500, FLAG_TICK + 36, 65_536, 65_536, 1, 0x1EFF0858, 1, "delay",
         master),
        (1, 0, 140, RELEASED, 160, 40, 1, 0xB0, 4, "spin", hold),
    ]  # fmt: skip
    for cpu, level, begin, last, ticks, turns, entries, head, words, kind, symbol in rows:
        yield {
            "t": "loop", "cpu": cpu, "level": level, "begin": begin, "end": last, "ticks": ticks,
            "turns": turns, "entries": entries, "head": f"0x{head:016x}",
            "tail": f"0x{head + 4 * words - 4:016x}", "kind": kind, "symbol": symbol,
        }  # fmt: skip


def end(text: str = "the hand-off is complete", *, ok: bool = True, reason: str = "complete",
        tick: int = LAST_TICK) -> dict[str, Any]:  # fmt: skip
    """Return an end record."""
    return {
        "t": "end", "reason": reason, "text": text, "tick": tick, "cpu": 0,
        "nip": 0xC000000004001000, "symbol": "start_kernel+0x10/0x600", "ok": ok,
    }  # fmt: skip


def write_trace(path: Path, *, finish: bool = True, moves: bool = False) -> None:
    """Write the trace of the run, or one that still goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = TraceWriter(path)
    spec = SPEC | {"mode": "load"} if moves else SPEC
    images = [ImageFile("kernel", "vmlinux", b"k" * 100), ImageFile("purgatory", "kexec", b"p")]
    writer.start(spec, images, title="fabricated", created_utc="2026-11-22T15:40:07Z")
    for record in records(moves=moves):
        writer.apply(record)
    if finish:
        writer.apply(end())
        writer.finish()
    else:
        writer.flush()


def state(tick: int) -> dict[str, Any]:
    """Return what a session would answer to a question for the state at a tick."""
    flag = 1 if tick >= FLAG_TICK else 0x72756E30
    low = bytearray((i * 7) & 0xFF for i in range(256))
    low[0x5C:0x60] = (1).to_bytes(4, "little")
    cpus = []
    for cpu in range(4):
        registers = {f"r{i}": f"0x{(i * cpu * 0x1111):016x}" for i in range(32)}
        registers |= {"r4": f"0x{KERNEL_ADDR + tick % 2:016x}"}
        registers |= {
            "nip": "0x000000001eff08f4" if cpu == 0 else "0x00000000000000b0",
            "msr": "0x8000000000001001", "cr": "0x40000000", "lr": "0x000000001eff0848",
            "ctr": "0x0000000000000000", "xer": "0x00000000",
        }  # fmt: skip
        cpus.append({
            "cpu": cpu, "id": cpu, "ticks": 100, "stage": "hold" if cpu else "purgatory",
            "stage_letter": "H" if cpu else "P", "parked": cpu > 0,
            "symbol": "__secondary_hold+0x50/0xa0" if cpu else "master+0xf4/0x110",
            "registers": registers,
            "loops": _standing(cpu, tick),
        })  # fmt: skip
    code = [
        {"addr": f"0x{0x1EFF08E8 + 4 * i:016x}", "bytes": "5c07c660", "text": text, "le": True,
         "symbol": f"master+0x{0xE8 + 4 * i:x}/0x110"}
        for i, text in enumerate(["ori     r6,r6,1884", "lwz     r7,0(r6)", "stw     r7,92(r4)",
                                  "mr      r3,r16", "mfmsr   r5"])
    ]  # fmt: skip
    return {
        "tick": tick, "cpus": cpus, "low_memory": bytes(low).hex(),
        "kernel_low": (bytes(4) + bytes(low[4:])).hex(),
        "flags": [{"name": "__run_at_load", "addr": f"0x{KERNEL_ADDR + 0x5C:016x}", "size": 4,
                   "value": f"0x{flag:08x}"}],
        "disassembly": {str(cpu): code for cpu in range(4)},
    }  # fmt: skip


def _standing(cpu: int, tick: int) -> list[dict[str, Any]]:
    """The loops that a CPU is in: CPU 0 in its delay, the others in their hold loop."""
    since, head = (FLAG_TICK - 65_500, 0x1EFF0858) if cpu == 0 else (140, 0xB0)
    if cpu == 0 and not since < tick < FLAG_TICK + 36:
        return []
    at = f"0x{head:016x}"
    turn = tick - since if cpu == 0 else 40
    return [{"head": at, "tail": at, "turn": turn, "since": since, "symbol": ""}]


_CODE = (
    ("ori     r6,r6,1884", {}, []),
    ("lwz     r7,0(r6)", {"r7": ["0x0000000000000000", "0x0000000000000001"]}, []),
    ("mr      r3,r16", {"r3": ["0x0000000000000000", "0x0000000008000000"]}, []),
    ("mfmsr   r5", {"r5": ["0x0000000000000000", "0x8000000000001001"]}, []),
)


def window(tick: int, before: int, after: int) -> dict[str, Any]:
    """Return what a session would answer to a question for the instructions round a tick."""
    steps = []
    for at in range(max(tick - before + 1, 1), min(tick + after, LAST_TICK) + 1):
        text, changed, memory = _CODE[at % 4]
        if at == FLAG_TICK:
            text, changed = "stw     r7,92(r4)", {}
            memory = [{"kind": "w", "addr": f"0x{KERNEL_ADDR + 0x5C:016x}", "size": 4,
                       "value": "0x1", "old": "0x72756e30"}]  # fmt: skip
        steps.append({
            "tick": at, "cpu": 0, "nip": f"0x{0x1EFF0000 + 4 * (at % 4096):016x}",
            "word": "0x60c6075c", "bytes": "5c07c660", "text": text, "symbol": "master+0xf0/0x110",
            "stage": "purgatory", "le": at <= FLAG_TICK + 9, "changed": changed, "memory": memory,
        })  # fmt: skip
    return {"tick": tick, "steps": steps}


def _accesses(lo: int, hi: int, since: int, until: int) -> dict[str, Any]:
    rows = []
    for tick, kind in ((FLAG_TICK, "w"), (1_508_330_099, "r"), (1_509_693_308, "r")):
        at = KERNEL_ADDR + 0x5C
        if since < tick <= until and lo < at + 4 and at < hi:
            rows.append({
                "found": True, "tick": tick, "cpu": 0, "kind": kind, "addr": f"0x{at:016x}",
                "size": 4, "value": "0x1", "old": None, "nip": "0x0", "symbol": "master+0xf0/0x110",
            })  # fmt: skip
    return {"accesses": rows, "more": False}


def _register_read(question: dict[str, Any]) -> dict[str, Any]:
    """Of r13 nobody reads the value, of r14 somebody writes over it; all others are read."""
    register, tick = question["register"], question["tick"]
    if register == "r13":
        return {"found": False, "outcome": "unread", "register": register, "last_tick": LAST_TICK}
    told = {"cpu": question["cpu"], "symbol": "master+0xf0/0x110", "by": "", "part": ""}
    if register == "r14":
        row = {"found": False, "outcome": "overwritten", "tick": tick + 9, "text": "li      r14,0"}
    else:
        row = {"found": True, "outcome": "read", "tick": tick + 5, "text": "mfcr    r3"}
    return told | row | {"register": register}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Answer any question of a page, as a session would."""
    kind = question["q"]
    if kind == "state":
        return state(question["tick"])
    if kind == "window":
        found = window(question["tick"], question["before"], question["after"])
        return found | ({"state": state(question["tick"])} if question.get("state") else {})
    if kind == "functions":
        spans = [{"cpu": 0, "from": question["from"], "to": question["to"], "symbol": "master",
                  "stage": "purgatory", "blocks": 3}]  # fmt: skip
        return {"spans": spans, "exact": True}
    if kind == "accesses":
        return _accesses(question["lo"], question["hi"], question["from"], question["to"])
    if kind == "chain":
        stored = {"what": "stored", "tick": FLAG_TICK, "cpu": 0, "text": "stw     r7,92(r4)",
                  "symbol": "master+0xf0/0x110", "addr": "0x000000000200005c", "size": 4,
                  "value": "0x0000000000000001", "register": "r7"}  # fmt: skip
        return {"links": [stored, {"what": "loader", "tick": None, "addr": "0x000000001eff075c",
                                   "size": 4, "text": "in memory since tick 0"}]}  # fmt: skip
    if kind == "register-read":
        return _register_read(question)
    found = _accesses(question.get("addr", 0), question.get("addr", 0) + 1, -1, LAST_TICK)
    rows = [row for row in found["accesses"] if row["tick"] <= question["tick"]]
    if kind == "next-read":
        rows = [r for r in found["accesses"] if r["tick"] > question["tick"] and r["kind"] == "r"]
        return rows[0] if rows else {"found": False}
    if kind == "register-write":
        return {"found": True, "tick": question["tick"] - 1, "cpu": question["cpu"]}
    return rows[-1] if rows else {"found": False}
