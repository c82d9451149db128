"""Rules that no sample breaks, on evidence that was changed by hand; and rows of a stranger."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from app.samples import sample_spec
from emulator.check import Report, check
from emulator.errors import TraceCorruptError
from emulator.evidence import Evidence
from emulator.recorder import Recorder, RunSpec, prepare
from emulator.records import check_facts
from emulator.samples import get_sample

Json = dict[str, Any]
Change = Callable[[list[Json]], object]

_RECORDED: dict[str, tuple[Json, list[Json]]] = {}


def recorded(name: str) -> tuple[Json, list[Json]]:
    """Return spec and records of a sample, recorded once; a copy."""
    if name not in _RECORDED:
        sample = get_sample(name)
        spec = sample_spec(sample)
        images = {
            "kernel": (sample.kernel, sample.kernel_bytes()),
            "purgatory": (sample.purgatory, sample.purgatory_bytes()),
        }
        prepared = prepare(RunSpec.from_json(spec), images)
        records = [prepared.record()]
        Recorder(prepared, records.append).record()
        _RECORDED[name] = (spec, records)
    return copy.deepcopy(_RECORDED[name])


def changed(name: str, change: Change) -> Report:
    spec, records = recorded(name)
    change(records)
    return check(Evidence.of_records(spec, records))


def facts(records: list[Json]) -> Json:
    return next(record for record in records if record["t"] == "facts")


def entry(records: list[Json], place: str) -> Json:
    row: Json = next(row for row in facts(records)["entry"] if row["place"] == place)
    return row


def hexed(value: int) -> str:
    return f"0x{value:016x}"


def low_write(records: list[Json], at: int, value: int, tick: int) -> None:
    new = {
        "t": "event", "tick": tick, "cpu": 0, "kind": "low-write", "addr": hexed(at), "size": 8,
        "value": hexed(value), "nip": hexed(0x2010200), "symbol": "", "text": "",
    }  # fmt: skip
    index = next(n for n, r in enumerate(records) if r["t"] == "event" and r["tick"] > tick)
    records.insert(index, new)


@pytest.mark.parametrize(
    ("rule", "change", "words"),
    [
        ("boot-entry", lambda r: entry(r, "kernel").update(r5=hexed(1)), "r5 = 0x1"),
        ("boot-entry", lambda r: entry(r, "kernel").update(r4=hexed(0)), "r4 = 0x0"),
        ("boot-entry", lambda r: entry(r, "kernel").update(nip=hexed(0x2000004)), "offset 0x4"),
        ("boot-entry", lambda r: entry(r, "kernel").update(text="no device tree there"),
         "no device tree there"),
        ("entry-mode", lambda r: entry(r, "kernel").update(msr=hexed(0x8000000000001003)),
         "little-endian"),
        ("entry-mode", lambda r: entry(r, "low").update(msr=hexed(0x8000000000001032)),
         "translation on"),
        ("entry-mode", lambda r: entry(r, "low").update(msr=hexed(0x1002)), "32-bit"),
        ("low-copy", lambda r: entry(r, "low").update(text="00" * 256), "0x4 holds 0x00000000"),
        ("bounds", lambda r: facts(r)["stray"].append(
            {"segment": "initrd", "addr": hexed(0x3000000), "at": 16, "size": 3, "old": "0x00",
             "now": "0x01"}), "initrd+0x10, 3 bytes"),
        ("low-code", lambda r: facts(r)["changed"].append(
            {"tick": 900, "cpu": 1, "at": 0x6C, "now": "0x60000000", "was": "0x4182fff8",
             "nip": hexed(0x6C), "symbol": "", "text": "nop", "was_text": "beq 0x60"}),
         'executes "nop" at 0x6c'),
    ],
)  # fmt: skip
def test_what_no_sample_does(rule: str, change: Change, words: str) -> None:
    failed = {row.rule.id: row.found.text for row in changed("runatload-be", change).failed}
    assert set(failed) == {rule}
    assert words in failed[rule]


def test_pointer_of_the_hypervisor_is_guarded_in_low_memory() -> None:
    def overwrite(records: list[Json]) -> None:
        low_write(records, 0x20, 1, entry(records, "purgatory")["tick"] + 10)

    report = changed("iseries-be", overwrite)
    failed = {row.rule.id: row.found.text for row in report.failed}
    assert set(failed) == {"iseries-pointer", "bounds"}
    assert "writes 0x1 at 0x20, over the pointer" in failed["iseries-pointer"]


def test_a_kernel_for_either_order_may_be_entered_little_endian() -> None:
    """kexec-tools before a304e2d left MSR[LE] set; FIXUP_ENDIAN turns the kernel round."""
    report = changed("kdump-le", lambda r: entry(r, "kernel").update(msr=hexed(0x8000000000001003)))
    row = next(row.found for row in report.rows if row.rule.id == "entry-mode")
    assert (row.status, not report.failed) == ("passed", True)
    assert "enters little-endian" in row.text
    assert "turned itself" in row.text


def test_same_bytes_again_are_no_change() -> None:
    spec, records = recorded("iseries-be")
    seen = Evidence.of_records(spec, records)
    pointer = int.from_bytes(seen.kernel_low[0x20:0x28], "big")
    low_write(records, 0x20, pointer, entry(records, "purgatory")["tick"] + 10)
    assert not check(Evidence.of_records(spec, records)).failed


def test_without_facts_nothing_is_claimed() -> None:
    spec, records = recorded("runatload-be")
    report = check(Evidence.of_records(spec, [r for r in records if r["t"] != "facts"]))
    assert set(report.statuses.values()) == {"n-a"}
    assert "no facts" in report.rows[0].found.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.pop("entry"),
        lambda f: f.update(access="none"),
        lambda f: f["entry"].append({}),
        lambda f: f["entry"].append("row"),
        lambda f: f["entry"][0].update(tick=-1),
        lambda f: f["entry"][0].update(nip="0xzz"),
        lambda f: f["access"][0].update(at=0x100),
        lambda f: f["access"][0].update(size=1 << 40),
        lambda f: f.update(changed=[{}] * 65),
    ],
)
def test_facts_of_a_stranger_are_checked(damage: Callable[[Json], object]) -> None:
    _, records = recorded("runatload-be")
    document = facts(records)
    check_facts(document)
    damage(document)
    with pytest.raises(TraceCorruptError):
        check_facts(document)


def test_facts_are_the_same_each_time() -> None:
    _, records = recorded("posted-be")
    del _RECORDED["posted-be"]
    assert facts(recorded("posted-be")[1]) == facts(records)
