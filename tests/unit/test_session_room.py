"""The pool keeps to its memory, and starts a session once however many ask for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app import sessions
from app.room import SESSION_BYTES
from app.sessions import PoolLimits, SessionPool
from app.warden import used_bytes
from emulator.errors import LimitError, TraceError
from emulator.trace import ImageFile

IMAGES = [ImageFile("kernel", "vmlinux", b"\x7fELF"), ImageFile("purgatory", "p", b"P")]
ENGINE = "tests.fake_engine"
STATE = {"q": "state", "tick": 1}
MIB = 1 << 20
PATIENCE = 60.0


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Traces of runs, by name."""
    folder = tmp_path_factory.mktemp("traces")
    with SessionPool(engine=ENGINE) as pool:
        for name in "abcd":
            assert pool.record(name, folder / name, {}, IMAGES).status == "finished"
    return {name: folder / name for name in "abcd"}


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionPool]:
    """A pool with 1,000 MiB, whose warden measures nothing: the tests say what is used."""
    monkeypatch.setattr("app.warden.Warden._measure", lambda *_: None)
    limits = PoolLimits(session_bytes=1000 * MIB, answer_seconds=20.0)
    with SessionPool(limits, engine=ENGINE) as made:
        yield made


def measured(pool: SessionPool, key: str, mib: int) -> None:
    """Say what the session of a run uses, as the warden does."""
    pool._note_bytes(pool._live[key].process.pid, mib * MIB)


def test_sessions_stay_as_long_as_memory_allows(pool: SessionPool, traces: dict[str, Path]) -> None:
    for name in "abc":
        pool.query(name, traces[name], STATE)
        measured(pool, name, 100)
    assert list(pool._live) == ["a", "b", "c"]
    measured(pool, "b", 950)
    assert list(pool._live) == ["a", "c"]


def test_what_a_session_used_before_is_what_it_will_use(
    pool: SessionPool, traces: dict[str, Path]
) -> None:
    pool.query("a", traces["a"], STATE)
    measured(pool, "a", 900)
    pool.query("b", traces["b"], STATE)  # 512 MiB until measured
    assert list(pool._live) == ["b"]
    measured(pool, "b", 90)
    pool.query("c", traces["c"], STATE)
    assert list(pool._live) == ["b", "c"]
    pool.query("a", traces["a"], STATE)
    assert list(pool._live) == ["a"]


def test_many_who_ask_wait_for_one_start(
    pool: SessionPool, traces: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool._known_bytes |= {"a": 100 * MIB, "b": 100 * MIB}
    began: list[Path] = []
    asked = threading.Event()
    replay_job = sessions.replay_job

    def start(path: Path) -> Any:
        began.append(path)
        assert asked.wait(PATIENCE)
        return replay_job(path)

    monkeypatch.setattr(sessions, "replay_job", start)
    with ThreadPoolExecutor(12) as readers:
        first = [readers.submit(pool.query, "a", traces["a"], STATE) for _ in range(10)]
        other = readers.submit(pool.query, "b", traces["b"], STATE)
        asked.set()
        pids = {answer.result(PATIENCE)["pid"] for answer in first}
        assert other.result(PATIENCE)["pid"] not in pids
    assert len(pids) == 1
    assert sorted(began) == [traces["a"], traces["b"]]


def test_start_that_fails_fails_for_all_who_wait_and_only_for_them(
    pool: SessionPool, traces: dict[str, Path]
) -> None:
    with pytest.raises(TraceError):
        pool.query("a", traces["a"].with_name("none"), STATE)
    assert pool.query("a", traces["a"], STATE)["op"] == "replay"


def test_more_runs_than_memory_are_served_in_turn(
    pool: SessionPool, traces: dict[str, Path]
) -> None:
    pool._known_bytes |= dict.fromkeys("abc", 700 * MIB)  # one fits, and no other beside it

    def read(name: str) -> int:
        return sum(pool.query(name, traces[name], STATE)["tick"] for _ in range(3))

    with ThreadPoolExecutor(6) as readers:
        read_pages = [readers.submit(read, name) for name in "abc" * 2]
        assert [pages.result(PATIENCE) for pages in read_pages] == [3] * 6
    assert len(pool._live) == 1


def test_who_finds_no_room_is_told(traces: dict[str, Path]) -> None:
    limits = PoolLimits(session_bytes=1000 * MIB, live_sessions=1, answer_seconds=1.0)
    with SessionPool(limits, engine=ENGINE) as pool:
        pool.query("a", traces["a"], STATE)
        pool._live["a"].busy += 1  # somebody's search goes on
        with pytest.raises(LimitError, match="too many runs"):
            pool.query("b", traces["b"], STATE)
        assert not pool._live["a"].leaving
        pool._live["a"].busy -= 1
        assert pool.query("b", traces["b"], STATE)["op"] == "replay"
        assert list(pool._live) == ["b"]


def test_memory_of_processes_is_measured() -> None:
    here = os.getpid()
    used = used_bytes(here, [here])
    assert 10 * MIB < used < 4000 * MIB
    assert used_bytes(here, [here, here]) == pytest.approx(2 * used, rel=0.2)
    assert used_bytes(1 << 30, [1 << 30]) == 0


def test_warden_tells_the_pool_what_a_session_uses(traces: dict[str, Path]) -> None:
    with SessionPool(PoolLimits(session_bytes=1000 * MIB), engine=ENGINE) as pool:
        pool.query("a", traces["a"], STATE)
        with pool._moved:
            assert pool._moved.wait_for(lambda: "a" in pool._known_bytes, PATIENCE)
            assert pool._live["a"].bytes == pool._known_bytes["a"]
        assert 5 * MIB < pool._known_bytes["a"] < SESSION_BYTES


def test_memory_that_may_not_be_read_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def refuse(path: Path, *args: Any, **more: Any) -> str:
        if path.name == "smaps_rollup":
            raise PermissionError
        return read_text(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    here = os.getpid()
    alone = used_bytes(here, [here])
    assert 10 * MIB < alone < 8000 * MIB
    assert used_bytes(here, [here] * 11) - alone == pytest.approx(40 * MIB, abs=5 * MIB)
