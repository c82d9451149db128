"""A test that lacks something is skipped with its reason, and fails where CI=true."""

import pytest

from tests.conftest import missing


def test_skips_on_a_developers_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no dtc"):
        missing("no dtc")


def test_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="missing in CI: no dtc"):
        missing("no dtc")
