"""README says what is there: commands, options, targets, stages, files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WIDTH = 120


def console_lines() -> list[list[str]]:
    """Return the words of every command in README's console blocks, comments cut off."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.S)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in lines]


def make_targets() -> set[str]:
    """Return the targets that a bare `make` lists."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


def test_console_blocks_name_programs_of_the_project() -> None:
    assert {words[0] for words in console_lines()} == {"make", "bootflow"}


def test_make_targets_exist() -> None:
    named = {words[1] for words in console_lines() if words[0] == "make"}
    develop = README.split("## Develop")[1]
    named |= set(re.findall(r"`([a-z]+)`", develop.split("`.ci/run`")[0])) - {"make"}
    assert {"run", "test", "check"} <= named <= make_targets()


@pytest.mark.parametrize(
    "words", [words for words in console_lines() if words[0] == "bootflow"], ids=" ".join
)
def test_commands_and_options_exist(words: list[str]) -> None:
    from app.cli import main

    assert isinstance(main, click.Group)
    command = main.commands[words[1]]
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    assert {word for word in words[2:] if word.startswith("-")} <= known


def test_options_in_prose_exist() -> None:
    from app.cli import main

    assert isinstance(main, click.Group)
    prose = re.sub(r"```.*?```", "", README, flags=re.S).split("## Command line")[1]
    named = set(re.findall(r"`(--[a-z-]+)`", prose))
    known = {name for cmd in main.commands.values() for param in cmd.params for name in param.opts}
    assert named
    assert named <= known


def test_legend_has_every_stage_in_order() -> None:
    from emulator.handoff import STAGES

    rows = re.findall(r"^\| ([A-Z]) \| ([^|]+?) \|", README, re.M)
    assert [letter for letter, _ in rows] == [stage.letter for stage in STAGES]


def test_listed_folders_exist_and_lines_fit() -> None:
    listing = README.split("## How it works")[1].split("## Develop")[0]
    for name in re.findall(r"^    ([a-z]+)/", listing, re.M):
        assert (ROOT / name).is_dir(), name
    assert max(len(line) for line in README.splitlines()) <= WIDTH


def test_changelog_has_an_unreleased_section_first() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.M)
    assert headings[0] == "Unreleased"
