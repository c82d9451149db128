"""The pool and its broker, with an engine that misbehaves on order in the real sandboxed child."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import broker
from app.broker import Broker
from app.index import new_id, trace_path
from app.session_process import ANSWER_BYTES
from app.sessions import Outcome, PoolLimits, SessionPool
from app.warden import memory_is_short, processes_by_session
from emulator.errors import DivergenceError, LimitError, SessionError, TraceError
from emulator.trace import ImageFile, TraceReader

IMAGES = [ImageFile("kernel", "vmlinux", b"\x7fELF" * 300_000), ImageFile("purgatory", "p", b"P")]
ENGINE = "tests.fake_engine"


@pytest.fixture(scope="module")
def pool() -> Iterator[SessionPool]:
    limits = PoolLimits(
        live_sessions=2,
        record_seconds=8,
        silence_seconds=1.5,
        cancel_seconds=1,
        answer_seconds=3.0,
    )
    with SessionPool(limits, engine=ENGINE) as made:
        yield made


def record(pool: SessionPool, path: Path, key: str = "", **spec: Any) -> Outcome:
    return pool.record(key or path.name, path, spec, IMAGES)


def wait_until_growing(path: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with TraceReader(path) as trace:
                if trace.last_tick > 0:
                    return
        except TraceError:
            pass
        time.sleep(0.02)
    pytest.fail("the trace does not grow")


def test_recording_streams_into_the_trace(pool: SessionPool, tmp_path: Path) -> None:
    ticks: list[int] = []
    outcome = pool.record("a", tmp_path / "a", {"ticks": 5000}, IMAGES, on_tick=ticks.append)
    assert (outcome.status, outcome.error) == ("finished", None)
    assert ticks[-1] == 5000
    with TraceReader(tmp_path / "a") as trace:
        assert trace.status == "finished"
        assert trace.digest == outcome.digest == trace.check()
        assert len(list(trace.slices())) == 50
        infos = trace.image_infos()
        assert trace.placement["images"] == {role: infos[role].sha256 for role in infos}


def test_session_answers_after_the_recording(pool: SessionPool, tmp_path: Path) -> None:
    record(pool, tmp_path / "b")
    answer = pool.query("b", tmp_path / "b", {"q": "state", "tick": 7})
    assert (answer["tick"], answer["op"]) == (7, "record")
    with pytest.raises(LimitError, match="no such tick"):
        pool.query("b", tmp_path / "b", {"q": "refuse"})
    for broken in ("garbage", "silence"):
        with pytest.raises(SessionError):
            pool.query("b", tmp_path / "b", {"q": broken})
    assert pool.query("b", tmp_path / "b", {"q": "state", "tick": 8})["pid"] == answer["pid"]


def test_least_recently_used_session_ends_and_comes_back(pool: SessionPool, tmp_path: Path) -> None:
    for name in ("c", "d", "e"):
        record(pool, tmp_path / name)
    state = {"q": "state", "tick": 1}
    assert pool.query("e", tmp_path / "e", state)["op"] == "record"
    assert pool.query("d", tmp_path / "d", state)["op"] == "record"
    again = pool.query("c", tmp_path / "c", state)
    assert (again["op"], again["ticks"]) == ("replay", 1000)
    assert len(pool._live) == 2


def test_session_that_dies_is_replaced(pool: SessionPool, tmp_path: Path) -> None:
    record(pool, tmp_path / "f")
    with pytest.raises(SessionError):
        pool.query("f", tmp_path / "f", {"q": "die"})
    assert pool.query("f", tmp_path / "f", {"q": "state", "tick": 1})["op"] == "replay"


def test_session_that_hangs_does_not_hang_the_reader(pool: SessionPool, tmp_path: Path) -> None:
    record(pool, tmp_path / "g")
    start = time.monotonic()
    with pytest.raises(SessionError, match="in time"):
        pool.query("g", tmp_path / "g", {"q": "sleep"})
    assert time.monotonic() - start < 5
    pool.drop("g")


def test_replay_that_differs_is_a_divergence(pool: SessionPool, tmp_path: Path) -> None:
    record(pool, tmp_path / "h", digest_of_replay="ff" * 32)
    pool.drop("h")
    with pytest.raises(DivergenceError, match="tick 1000"):
        pool.query("h", tmp_path / "h", {"q": "sleep"})


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("crash", "killed", "exit status 9"),
        ("fork", "killed", "exit status 9"),
        ("garbage", "killed", "not JSON"),
        ("array", "killed", "not an object"),
        ("deep", "killed", "not JSON"),
        ("hang", "killed", "silent"),
        ("progress", "killed", "2000 records of progress"),
        ("ready", "killed", "2000 records of progress"),
        ("error", "failed", "no ELF"),
        ("raise", "failed", "ValueError: a bug"),
        ("escape", "failed", "PermissionError"),
    ],
)
def test_misbehaviour_ends_in_a_readable_trace(
    pool: SessionPool, tmp_path: Path, monkeypatch: Any, fault: str, status: str, message: str
) -> None:
    monkeypatch.setattr("app.sessions.MAX_PROGRESS", 2000)
    outcome = record(pool, tmp_path / "t", fault=fault)
    assert outcome.status == status
    assert message in str(outcome.error)
    with TraceReader(tmp_path / "t") as trace:
        assert trace.status == status
        assert message in trace.why
        assert trace.images()["kernel"] == IMAGES[0].data


@pytest.mark.parametrize("late", [{"t": "progress", "tick": 1}, {"x": "y" * 2000}])
def test_session_that_floods_after_its_end_is_ended(
    pool: SessionPool, tmp_path: Path, late: dict[str, Any]
) -> None:
    started = _started(pool)
    assert record(pool, tmp_path / "t", late=late).status == "finished"
    deadline = time.monotonic() + 10
    while "t" in pool._live and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "t" not in pool._live
    assert _alive(started) == 0


def test_answers_are_bounded(
    pool: SessionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(pool, tmp_path / "t")
    monkeypatch.setitem(ANSWER_BYTES, "state", 500)
    with pytest.raises(SessionError, match="more than 500 bytes"):
        pool.query("t", tmp_path / "t", {"q": "state", "tick": 1})


def test_kill_takes_the_forks_along(pool: SessionPool, tmp_path: Path) -> None:
    started = _started(pool)
    record(pool, tmp_path / "t", fault="fork")
    assert _alive(started) == 0


def test_crowd_of_processes_is_ended(
    pool: SessionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.warden.MAX_PROCESSES", 10)
    started = _started(pool)
    outcome = record(pool, tmp_path / "t", fault="crowd")
    assert outcome.status == "killed"
    assert "processes" in str(outcome.error)
    assert _alive(started) == 0


def test_shortage_of_memory_ends_idle_sessions_first(pool: SessionPool, tmp_path: Path) -> None:
    record(pool, tmp_path / "old")
    record(pool, tmp_path / "new")
    for live in pool._live.values():
        live.bytes = 100
    pool._live["old"].bytes = 200
    pool._end_largest()
    state = {"q": "state", "tick": 1}
    assert pool.query("new", tmp_path / "new", state)["op"] == "record"
    assert pool.query("old", tmp_path / "old", state)["op"] == "replay"


def test_meminfo_is_understood() -> None:
    row = "MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\n"
    assert memory_is_short(row.format(8 << 20, 300 << 10))
    assert not memory_is_short(row.format(8 << 20, 600 << 10))
    assert not memory_is_short(row.format(2 << 20, 300 << 10))
    assert not memory_is_short("nonsense")


def _started(pool: SessionPool) -> set[int]:
    """The sessions (in the sense of setsid) of the process that the pool hands out next."""
    spare = pool.start_spare()
    assert spare is not None
    return {spare.pid}


def _alive(started: set[int]) -> int:
    """How many processes of these sessions are left, once SIGKILL has had its time."""
    for _ in range(50):
        counts = processes_by_session()
        left = sum(counts.get(session, 0) for session in started)
        if left == 0:
            break
        time.sleep(0.1)
    return left


def test_query_and_cancel_while_recording(pool: SessionPool, tmp_path: Path) -> None:
    path = tmp_path / "slow"
    outcomes: list[Outcome] = []
    spec = {"ticks": 100_000, "slow": 0.02}
    thread = threading.Thread(
        target=lambda: outcomes.append(pool.record("slow", path, spec, IMAGES))
    )
    thread.start()
    wait_until_growing(path)
    assert pool.query("slow", path, {"q": "state", "tick": 3}) == {"tick": 3, "live": True}
    with TraceReader(path) as trace:
        assert trace.status == "running"
        assert trace.last_tick > 0
    assert pool.cancel("slow")
    thread.join()
    assert outcomes[0].status == "cancelled"
    assert not pool.cancel("slow")
    with TraceReader(path) as trace:
        assert trace.status == "cancelled"


def test_killing_the_session_leaves_a_trace_that_says_so(pool: SessionPool, tmp_path: Path) -> None:
    path = tmp_path / "k"
    outcomes: list[Outcome] = []
    spec = {"ticks": 100_000, "slow": 0.02}
    thread = threading.Thread(target=lambda: outcomes.append(pool.record("k", path, spec, IMAGES)))
    thread.start()
    wait_until_growing(path)
    os.kill(pool._live["k"].process.pid, 9)
    thread.join()
    assert outcomes[0].status == "killed"
    with TraceReader(path) as trace:
        assert trace.status == "killed"
        assert "SIGKILL" in trace.why
        trace.check()


def test_total_time_is_limited(tmp_path: Path) -> None:
    with SessionPool(PoolLimits(record_seconds=0.5), engine=ENGINE) as pool:
        outcome = record(pool, tmp_path / "t", ticks=1_000_000, slow=0.05)
    assert outcome.status == "failed"
    assert isinstance(outcome.error, LimitError)


def test_trace_without_images_cannot_be_asked(pool: SessionPool, tmp_path: Path) -> None:
    pool.record("empty", tmp_path / "t", {}, [])
    pool.drop("empty")
    with pytest.raises(TraceError, match="images"):
        pool.query("empty", tmp_path / "t", {"q": "state", "tick": 0})


def test_broker_answers_from_another_connection(pool: SessionPool, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    (deep / "traces").mkdir(parents=True)
    run_id = new_id()
    pool.record(run_id, trace_path(deep, run_id), {"ticks": 300}, IMAGES)
    with pytest.raises(SessionError, match="no worker"):
        broker.query(deep, run_id, {"q": "state", "tick": 0})
    served = Broker(deep, pool)
    try:
        assert broker.query(deep, run_id, {"q": "state", "tick": 5})["tick"] == 5
        with pytest.raises(LimitError, match="no such tick"):
            broker.query(deep, run_id, {"q": "refuse"})
        with pytest.raises(TraceError, match="no such trace"):
            broker.query(deep, new_id(), {"q": "state", "tick": 5})
        with pytest.raises(SessionError, match="id of a run"):
            broker.query(deep, "../../etc/passwd", {"q": "state", "tick": 5})
        assert not broker.cancel(deep, run_id)
        for junk in (b"\n", b"[]\n", b"{\n", b"[" * 5000 + b"\n", b'{"op":"query"}\n'):
            assert "error" in _raw(deep, junk)
        assert (deep / "sessions.sock").stat().st_mode & 0o777 == 0o600
    finally:
        served.close()


def _raw(data_dir: Path, message: bytes) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        with broker._address(data_dir) as address:
            connection.connect(address)
        connection.sendall(message)
        data = b""
        while piece := connection.recv(4096):
            data += piece
    return json.loads(data)
