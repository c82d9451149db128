"""The architecture, as far as `ast` can see it: who imports whom, and what lies where."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from emulator.compiled import COMPILED

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    "app", "emulator", "templates", "static", "tests", "pyproject.toml", "README.md", "Makefile",
    "CHANGELOG.md", "LICENSE", "requirements.lock",
}  # fmt: skip
MODULE_LINES = 600


def modules(package: str) -> list[Path]:
    """Return the Python files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the first word of every module that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def tracked() -> list[str]:
    """Return the files that git knows; a source archive without git has nothing to say here."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout: nothing is tracked")
    return [name for name in done.stdout.split("\0") if name]


@pytest.mark.parametrize("path", modules("emulator"), ids=lambda path: path.name)
def test_core_does_not_know_the_shell(path: Path) -> None:
    assert not imported(path) & {"app", "flask", "jinja2", "werkzeug", "huey", "sqlalchemy"}


@pytest.mark.parametrize("engine", ["unicorn", "capstone"])
def test_one_importer_of_each_engine(engine: str) -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for package in ("emulator", "app")
        for path in modules(package)
        if engine in imported(path)
    }
    expected = {"unicorn": "emulator/cpu.py", "capstone": "emulator/disassembly.py"}[engine]
    assert importers <= {expected}
    assert importers or not (ROOT / expected).exists()


def test_compiled_code_is_kept_by_all_its_sources() -> None:
    """`compiled` alone imports numba, and names every module that compiles with it."""
    importers = [path.stem for path in modules("emulator") if "numba" in imported(path)]
    assert importers == ["compiled"]
    users = {
        path.stem for path in modules("emulator") if "from emulator.compiled" in path.read_text()
    }
    assert users == set(COMPILED)


def test_no_module_is_two_nouns_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in ("emulator", "app", "tests")
        for path in modules(package)
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES
    }
    assert long == {}


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils.py", "util.py", "core.py", "constants.py", "helpers.py", "common.py"}
    assert not {p.name for package in ("emulator", "app") for p in modules(package)} & drawers


def test_top_level_is_closed() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_lock_file_names_every_dependency_with_hashes_and_no_host() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    entries = lock.replace("\\\n", " ").splitlines()
    entries = [line for line in entries if line and not line.startswith("#")]
    assert all("==" in line and "--hash=sha256:" in line for line in entries)
    locked = {line.split("==")[0]: line.split("==")[1].split()[0] for line in entries}
    for wish in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, _, pinned = wish.replace(">=", " ").partition("==")
        name = name.split()[0].lower()
        assert name in locked
        assert not pinned or locked[name] == pinned
