"""What tests share: the real pair, the tools of the machine, golden files.

A test whose environment lacks something is skipped with the reason; with CI=true it fails, so that
nothing is left out unseen.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from app.debian import DebianPair, find_debian_pair

CROSS_PACKAGES = {
    "powerpc64le-linux-gnu": "binutils-powerpc64le-linux-gnu",
    "powerpc64-linux-gnu": "binutils-powerpc64-linux-gnu",
}


def missing(reason: str) -> NoReturn:
    """Skip the test that asked, or fail it where nothing may be missing (CI=true)."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def _tool(command: str, package: str) -> Path:
    path = shutil.which(command)
    if path is None:
        missing(f"{command} is not installed (Debian package {package})")
    return Path(path)


@pytest.fixture(scope="session")
def debian_pair() -> DebianPair:
    """Debian's vmlinux and kexec, from the cache; never downloads."""
    pair = find_debian_pair()
    if pair is None:
        missing("the Debian pair is not in the cache (bootflow fetch-debian)")
    return pair


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """Debian's Chromium, for Playwright's executable_path."""
    return _tool("chromium", "chromium")


@pytest.fixture(scope="session")
def dtc() -> Path:
    """The device tree compiler."""
    return _tool("dtc", "device-tree-compiler")


@pytest.fixture(scope="session")
def lynx() -> Path:
    """The text browser."""
    return _tool("lynx", "lynx")


@pytest.fixture(scope="session")
def cross_tool() -> Callable[[str, bool], Path]:
    """Return a function: name of a binutils program, big_endian -> its path."""

    def find(program: str, big_endian: bool) -> Path:
        prefix = "powerpc64-linux-gnu" if big_endian else "powerpc64le-linux-gnu"
        return _tool(f"{prefix}-{program}", CROSS_PACKAGES[prefix])

    return find


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --update-golden."""
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files anew; then git diff"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the golden fixture, for `make golden`."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker("golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return a function: compare a text with tests/golden/NAME; the actual is kept beside tests."""
    folder = Path(__file__).parent / "golden"
    artefacts = Path(__file__).parent / "artefacts"

    def compare(name: str, actual: str) -> None:
        path = folder / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(actual)
            return
        expected = path.read_text() if path.exists() else ""
        if actual != expected:
            kept = artefacts / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(actual)
        assert actual == expected, f"{name} differs; `make golden`, then review git diff"

    return compare
