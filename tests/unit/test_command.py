"""The command that makes a run again: what it prints is parsed back into the same spec."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import cli
from app.command import COLUMNS, option_words, record_lines, record_words, shell_lines, spec_of
from app.samples import sample_spec
from emulator.recorder import RunSpec
from emulator.samples import SAMPLES

FILES = {"kernel": "vmlinux-6.1.0-50-powerpc64le", "purgatory": "kexec"}
ODD = {"kernel": "-k 'of' \"mine\"", "purgatory": "$HOME`x`", "dtb": "a b.dtb", "initrd": "i"}

SPECS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"mode": "load", "cpus": 1}, FILES),
    ({"mode": "load-panic", "cpus": 4, "debug": True, "mem_bytes": 256 << 20}, FILES),
    (
        {
            "mode": "load-panic", "append": "a 'b' \"c\" $x `y` \\ ! # ;", "cpus": 3,
            "boot_cpu": 2, "mem_bytes": (1 << 30) + 65536, "base_addr": 0x4000000, "checks": False,
            "signature": True, "quantum": 7, "seed": 5, "until": "start_kernel",
            "limit_ticks": 123456, "corrupt": 0x2000040,
        },
        ODD,
    ),
    ({"mode": "load", "append": "-p --load-panic", "cpus": 2, "until": "1000"}, FILES),
    ({"mode": "load", "append": "x=" + "0123456789 '" * 60, "cpus": 2}, ODD),
    ({"mode": "load", "append": "café ☕ it's \\n", "cpus": 2}, FILES),
]  # fmt: skip


def words_of_shell(lines: tuple[str, ...], folder: Path) -> list[str]:
    """Let a shell read the lines, as it would when they are pasted."""
    script = folder / "pasted"
    script.write_text("bootflow() { printf '%s\\0' x \"$@\"; }\n" + "\n".join(lines) + "\n")
    done = subprocess.run(["bash", script], capture_output=True, check=True, timeout=30)
    return done.stdout.decode().split("\0")[1:-1]


def parsed(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let the command line's own parser read the words; return the spec that it would run."""
    assert words[0] == "record"
    monkeypatch.chdir(folder)
    context: click.Context = cli.record.make_context("record", words[1:])
    return spec_of(context.params)


@pytest.mark.parametrize(("spec", "files"), SPECS)
def test_a_pasted_command_is_the_same_run(
    spec: dict[str, Any], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files.values():
        (tmp_path / name).write_bytes(b"x")
    whole = RunSpec.from_json(spec).to_json()
    for asked in (spec, whole):
        lines = record_lines(asked, files)
        assert max(map(len, lines)) <= COLUMNS
        assert all(line.isascii() for line in lines)
        again = parsed(words_of_shell(lines, tmp_path), tmp_path, monkeypatch)
        assert RunSpec.from_json(again).to_json() == whole


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_commands_of_the_samples(
    sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = sample_spec(sample)
    files = {"kernel": sample.kernel, "purgatory": sample.purgatory}
    for name in files.values():
        (tmp_path / name).write_bytes(b"x")
    again = parsed(list(record_words(spec, files))[1:], tmp_path, monkeypatch)
    assert RunSpec.from_json(again) == RunSpec.from_json(spec)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=200)))
def test_any_words_come_out_of_the_shell_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    lines = shell_lines(["bootflow", *words])
    assert all(len(line) <= COLUMNS for line in lines)
    assert words_of_shell(lines, tmp_path_factory.mktemp("words")) == words


def test_a_run_at_given_addresses_has_no_command() -> None:
    assert record_lines({"mode": "load", "addresses": {"kernel": 1 << 25}}, FILES) == ()
    assert record_lines({"mode": "load"}, {"trace": "x.bootflow"}) == ()


def test_options_are_those_that_differ() -> None:
    assert option_words({"mode": "load", "seed": 0, "quantum": 1000}) == ("--load",)
    spec = {"mode": "load-panic", "base_addr": 0x4000000, "seed": 9, "boot_cpu": 1}
    assert option_words(spec) == (
        "--load-panic", "--base=0x4000000", "--boot-cpu=1", "--seed=9",
    )  # fmt: skip
