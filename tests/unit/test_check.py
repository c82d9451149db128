"""The rules of the hand-off: what each says of each sample, and of pairs nobody has seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.samples import sample_spec
from emulator import samples
from emulator.check import Report, check, check_trace
from emulator.evidence import Evidence
from emulator.recorder import Recorder, RunSpec, prepare
from emulator.rules import RULES
from emulator.samples import SAMPLES, Sample, get_sample
from emulator.trace import TraceReader, TraceWriter
from emulator.verdict import verdict

IDS = tuple(rule.id for rule in RULES)
ALL = frozenset(IDS)

# Sample -> (outcome, flag's ABI, rules that fail, rules that are not applicable).
EXPECTED: dict[str, tuple[str, str, str, str]] = {
    "kdump-le": ("stayed", "run_at_load", "", "iseries-pointer"),
    "kexec-le": ("relocated", "run_at_load", "", "iseries-pointer"),
    "kdump-be": ("stayed", "run_at_load", "", "iseries-pointer"),
    "kexec-be": ("relocated", "run_at_load", "", "iseries-pointer"),
    "noflag-be": ("stayed", "none", "",
                  "iseries-pointer flag-identified flag-abi flag-written flag-value"),
    "noflag0-be": ("relocated", "none", "flag-abi outcome",
                   "iseries-pointer flag-identified flag-written flag-value"),
    "kdumpflag-be": ("stayed", "kdump_flag", "flag-identified", "iseries-pointer"),
    "kdumpflag-kexec-be": ("relocated", "kdump_flag", "flag-identified",
                           "iseries-pointer flag-abi flag-written"),
    "runatload-be": ("stayed", "run_at_load", "", "iseries-pointer"),
    "posted-be": ("relocated", "run_at_load", "flag-written flag-value outcome",
                  "iseries-pointer flag-abi"),
    "meant-be": ("stayed", "run_at_load", "", "iseries-pointer"),
    "posted-le": ("relocated", "run_at_load", "flag-written flag-value outcome",
                  "iseries-pointer flag-abi"),
    "meant-le": ("stayed", "run_at_load", "", "iseries-pointer"),
    "restores-be": ("relocated", "run_at_load", "", "iseries-pointer"),
    "restores-le": ("stayed", "run_at_load", "", "iseries-pointer"),
    "iseries-be": ("relocated", "run_at_load", "", ""),
    "nomagic-be": ("relocated", "run_at_load", "flag-identified flag-value outcome",
                   "iseries-pointer"),
    "nomagic-le": ("relocated", "run_at_load", "flag-identified flag-value outcome",
                   "iseries-pointer"),
    "late-be": ("relocated", "run_at_load", "flag-written flag-value outcome bounds",
                "iseries-pointer"),
    "late-le": ("relocated", "run_at_load", "flag-written flag-value outcome bounds",
                "iseries-pointer"),
    "race-be": ("stayed", "run_at_load", "bounds", "iseries-pointer"),
    "race-lost-be": ("stopped", "run_at_load", "flag-written flag-value outcome bounds",
                     "iseries-pointer"),
    "waits-be": ("stayed", "run_at_load", "bounds", "iseries-pointer"),
    "offset-be": ("relocated", "run_at_load", "flag-written flag-value outcome bounds",
                  "iseries-pointer flag-abi"),
    "offset-le": ("relocated", "run_at_load", "flag-written flag-value outcome bounds",
                  "iseries-pointer flag-abi"),
    "width-be": ("relocated", "run_at_load", "flag-written flag-value outcome",
                 "iseries-pointer"),
    "width-le": ("stayed", "run_at_load", "", "iseries-pointer"),
    "clobber-be": ("stopped", "run_at_load", "low-code outcome bounds secondaries",
                   "boot-entry iseries-pointer flag-abi flag-written flag-value"),
    "clobber-le": ("stopped", "run_at_load", "low-code outcome bounds secondaries",
                   "boot-entry iseries-pointer flag-abi flag-written flag-value"),
    "below-be": ("relocated", "run_at_load", "secondary-entry bounds", "iseries-pointer"),
    "wrongid-be": ("relocated", "run_at_load", "secondary-entry bounds", "iseries-pointer"),
    "wrongid-le": ("relocated", "run_at_load", "secondary-entry bounds", "iseries-pointer"),
    "digest-be": ("stopped", "run_at_load", "outcome digest",
                  "boot-entry iseries-pointer flag-abi flag-written flag-value bounds"),
    "digest-le": ("stopped", "run_at_load", "outcome digest",
                  "boot-entry iseries-pointer flag-abi flag-written flag-value bounds"),
    "mismatch-old-new-be": ("relocated", "run_at_load",
                            "flag-abi flag-written flag-value outcome bounds", "iseries-pointer"),
    "mismatch-none-new-be": ("relocated", "run_at_load",
                             "flag-abi flag-written flag-value outcome", "iseries-pointer"),
    "mismatch-new-old-be": ("relocated", "kdump_flag",
                            "flag-identified flag-abi flag-written flag-value outcome",
                            "iseries-pointer"),
    "mismatch-le-be": ("relocated", "run_at_load", "flag-abi flag-value outcome",
                       "iseries-pointer"),
}  # fmt: skip

WORDS = {
    "mismatch-old-new-be": "speaks __kdump_flag (64 bits at 0x18), the kernel listens to"
    " __run_at_load (32 bits at 0x5c). The kernel was to stay; it relocated.",
    "mismatch-none-new-be": "has no run_at_load",
    "mismatch-new-old-be": "speaks __run_at_load (32 bits at 0x5c), the kernel listens to"
    " __kdump_flag",
    "mismatch-le-be": 'little-endian purgatory and a big-endian kernel: kexec compares "run0"',
    "noflag0-be": "asks no flag",
}


def judge(spec: dict[str, Any], kernel: bytes, purgatory: bytes) -> Report:
    images = {"kernel": ("vmlinux", kernel), "purgatory": ("purgatory.ro", purgatory)}
    prepared = prepare(RunSpec.from_json(spec), images)
    records = [prepared.record()]
    Recorder(prepared, records.append).record()
    _RECORDS[kernel + purgatory + repr(spec).encode()] = records
    return check(Evidence.of_records(spec, json.loads(json.dumps(records))))


_RECORDS: dict[bytes, list[dict[str, Any]]] = {}
_JUDGED: dict[str, Report] = {}


def judged(sample: Sample) -> Report:
    """Return the report of a sample, recorded once."""
    if sample.name not in _JUDGED:
        files = sample.kernel_bytes(), sample.purgatory_bytes()
        _JUDGED[sample.name] = judge(sample_spec(sample), *files)
    return _JUDGED[sample.name]


def test_every_sample_has_an_expectation() -> None:
    assert set(EXPECTED) == {sample.name for sample in SAMPLES}
    named = {rule for row in EXPECTED.values() for text in row[2:] for rule in text.split()}
    assert named <= ALL
    faulty = {rule for row in EXPECTED.values() for rule in row[2].split()}
    never = ALL - faulty
    assert never == {"boot-entry", "entry-mode", "low-copy", "iseries-pointer"}  # test_rules.py


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_each_rule_says_of_each_sample_what_it_should(sample: Sample) -> None:
    outcome, abi, failed, not_applicable = EXPECTED[sample.name]
    report = judged(sample)
    want = dict.fromkeys(IDS, "passed")
    want |= dict.fromkeys(failed.split(), "failed") | dict.fromkeys(not_applicable.split(), "n-a")
    assert report.statuses == want
    assert (report.seen.outcome, report.seen.abi) == (outcome, abi)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_document_has_the_keys_of_the_format(sample: Sample) -> None:
    document = json.loads(json.dumps(judged(sample).document()))
    assert list(document) == ["outcome", "at", "flag", "rules"]
    assert list(document["flag"]) == ["abi", "value", "written_by", "read_at"]
    assert document["outcome"] in ("stayed", "relocated", "stopped")
    assert document["at"].startswith("0x")
    assert [row["id"] for row in document["rules"]] == list(IDS)
    for row in document["rules"]:
        assert list(row) == ["id", "status", "tick", "cpu", "text"]
        assert row["status"] in ("passed", "failed", "n-a")
        assert row["text"].endswith(".")
        assert row["text"].isascii()
        end = judged(sample).seen.end["tick"]
        assert row["tick"] is None or 0 <= row["tick"] <= end


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_verdict_agrees(sample: Sample, tmp_path: Path) -> None:
    report, spec = judged(sample), sample_spec(sample)
    key = sample.kernel_bytes() + sample.purgatory_bytes() + repr(spec).encode()
    writer = TraceWriter(tmp_path / "trace")
    writer.start(spec, [])
    for record in _RECORDS[key]:
        writer.apply(record)
    writer.finish()
    with TraceReader(tmp_path / "trace") as reader:
        reader.check()
        told = verdict(reader)
        assert check_trace(reader).document() == report.document()
    words = {"stayed": ["STAYS"], "relocated": ["MOVES"], "stopped": ["STOPS", "SPINS"]}
    assert told.word in words[report.seen.outcome]
    assert told.as_asked == (report.statuses["outcome"] == "passed")


@pytest.mark.parametrize("name", WORDS)
def test_mismatch_is_told_in_words(name: str) -> None:
    rows = {row.rule.id: row.found.text for row in judged(get_sample(name)).rows}
    assert WORDS[name] in rows["flag-abi"]


@pytest.mark.parametrize(
    ("kernel", "purgatory", "signature", "words"),
    [
        ("le", "be", False, "A big-endian purgatory and a little-endian kernel: kexec compares"),
        ("le", "noflag-be", False, "has no run_at_load"),
        ("kdumpflag-be", "kdumpflag-be", False, "r6 was 0x0, and it wrote nothing"),
        ("kdumpflag-be", "posted-be", True, "r6 carried 0xfeed1234, and this purgatory wrote"),
        ("noflag0-be", "be", False, "asks no flag (2.6.27 and older, or"),
    ],
)
def test_other_mismatches_too(kernel: str, purgatory: str, signature: bool, words: str) -> None:
    folder = Path(samples.__file__).parent
    spec = {"mode": "load-panic", "cpus": 2, "checks": False, "mem_bytes": 256 << 20}
    report = judge(
        spec | {"signature": signature},
        (folder / f"kernel-{kernel}.elf").read_bytes(),
        (folder / f"purgatory-{purgatory}.ro").read_bytes(),
    )
    rows = {row.rule.id: row.found for row in report.rows}
    assert rows["flag-abi"].status == rows["outcome"].status == "failed"
    assert words in rows["flag-abi"].text
    assert "relocated" in rows["flag-abi"].text


def test_flag_is_told_by_what_was_accessed() -> None:
    document = judged(get_sample("kdumpflag-be")).document()["flag"]
    assert document["abi"] == "kdump_flag"
    assert document["value"] == "0x1"
    assert document["written_by"]["symbol"].startswith("master+")
    assert len(document["read_at"]) == 2
    assert document["written_by"]["tick"] < document["read_at"][0] < document["read_at"][1]
    assert judged(get_sample("posted-be")).document()["flag"]["written_by"] is None


def test_text_is_ascii_and_names_every_rule() -> None:
    lines = judged(get_sample("posted-be")).lines()
    text = "\n".join(lines)
    assert text.isascii()
    assert lines[0].startswith("outcome:  relocated at 0x0, asked: stay")
    assert all(rule.id in text and rule.statement in text for rule in RULES)
    assert text.index("failed  flag-written") < text.index("passed  boot-entry")


@pytest.mark.parametrize("name", ["kdump-le", "kexec-be", "kdumpflag-be", "runatload-be",
                                  "posted-be", "nomagic-le", "iseries-be"])  # fmt: skip
def test_stripped_kernel_is_judged_the_same(
    name: str, cross_tool: Callable[[str, bool], Any], tmp_path: Any
) -> None:
    import subprocess

    sample = get_sample(name)
    big = sample.kernel.endswith("be.elf")
    path = tmp_path / "vmlinux"
    path.write_bytes(sample.kernel_bytes())
    subprocess.run([cross_tool("strip", big), path], check=True)
    spec = sample_spec(sample) | {"checks": False}
    report = judge(spec, path.read_bytes(), sample.purgatory_bytes())
    outcome, abi, failed, _ = EXPECTED[name]
    assert (report.seen.outcome, report.seen.abi) == (outcome, abi)
    assert {row.rule.id for row in report.failed} == set(failed.split())
    assert report.seen.end["text"].endswith("boot CPU in the new kernel, 1 secondary released") or (
        sample.cpus > 2
    )
