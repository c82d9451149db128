"""A test that lacks something is skipped with its reason, and fails where CI=true."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing

ROOT = Path(__file__).parent.parent.parent
HOMES = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")


def test_skips_on_a_developers_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no dtc"):
        missing("no dtc")


def test_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="missing in CI: no dtc"):
        missing("no dtc")


def test_who_has_no_home_can_still_compile() -> None:
    """A container's user without an entry in /etc/passwd, and without HOME."""
    script = "import pwd\npwd.getpwuid = lambda uid: {}[uid]\nimport emulator.compiled as c\n"
    script += "c.os.access = lambda *which: False\nassert c._cache_dir().is_absolute()"
    bare = {key: value for key, value in os.environ.items() if key not in HOMES}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=bare,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
