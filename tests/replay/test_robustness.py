"""What dies costs its own question: `kill -9` of any process of a session; crowds of readers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.samples import sample_spec
from app.sessions import SessionPool
from emulator.errors import BootflowError, SessionError
from emulator.samples import get_sample
from emulator.trace import ImageFile, TraceReader

SAMPLE = get_sample("kexec-be")
KEY = "run"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def pool() -> Iterator[SessionPool]:
    with SessionPool() as made:
        yield made


@pytest.fixture(scope="module")
def trace(pool: SessionPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "t.bootflow"
    images = [
        ImageFile("kernel", SAMPLE.kernel, SAMPLE.kernel_bytes()),
        ImageFile("purgatory", SAMPLE.purgatory, SAMPLE.purgatory_bytes()),
    ]
    assert pool.record(KEY, path, sample_spec(SAMPLE), images).status == "finished"
    return path


@pytest.fixture(scope="module")
def last(trace: Path) -> int:
    with TraceReader(trace) as reader:
        return reader.last_tick


def root_of(pool: SessionPool) -> int:
    return pool._live[KEY].process.pid


def processes(root: int) -> dict[int, int]:
    """Every process of a session and its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == root:
                found[int(entry.name)] = int(fields[1])
    return found


def settled(root: int) -> set[int]:
    """The processes of a session once it has nothing to do of its own any more."""
    before: set[int] = set()
    same = 0
    while same < 20:
        now = set(processes(root))
        same = same + 1 if now == before else 0
        before = now
        time.sleep(0.02)
    return before


def answer_of(ask: Callable[[], Json]) -> tuple[threading.Thread, list[Json | BaseException]]:
    """Ask in a thread; what came out, an answer or an error, will be in the list."""
    got: list[Json | BaseException] = []

    def work() -> None:
        try:
            got.append(ask())
        except BootflowError as exc:
            got.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, got


# Looks through the whole run for what is not there: long enough to be killed in the middle.
SEARCH: Json = {"q": "accesses", "lo": 0x8000000, "hi": 0x8000001}


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.15])
def test_killed_root_costs_its_readers_and_nobody_else(
    pool: SessionPool, trace: Path, last: int, delay: float
) -> None:
    right = pool.query(KEY, trace, {"q": "state", "tick": last // 2})
    root = root_of(pool)
    thread, got = answer_of(lambda: pool.query(KEY, trace, SEARCH))
    time.sleep(delay)
    os.kill(root, signal.SIGKILL)
    thread.join(30)
    assert len(got) == 1
    if isinstance(got[0], BaseException):
        assert isinstance(got[0], SessionError)
        assert "session" in str(got[0])
    else:  # it had its answer before, or was asked of the next session
        assert got[0]["accesses"] == []
    deadline = time.monotonic() + 10
    while processes(root) and time.monotonic() < deadline:  # the signal takes its time
        time.sleep(0.01)
    assert pool.query(KEY, trace, {"q": "state", "tick": last // 2}) == right
    assert root_of(pool) != root


@pytest.mark.parametrize("everything", [False, True])
def test_killed_checkpoints_cost_nobody_an_answer(
    pool: SessionPool, trace: Path, last: int, everything: bool
) -> None:
    tick = last // 2
    right = pool.query(KEY, trace, {"q": "state", "tick": tick})
    root = root_of(pool)
    settled(root)
    checkpoints = sorted(pid for pid, parent in processes(root).items() if parent == root)
    killed = set(checkpoints if everything else checkpoints[1:])
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    while killed & set(processes(root)):
        time.sleep(0.01)
    assert pool.query(KEY, trace, {"q": "state", "tick": tick}) == right
    assert pool.query(KEY, trace, {"q": "state", "tick": last - 1})["tick"] == last - 1
    assert pool.query(KEY, trace, SEARCH)["accesses"] == []
    assert (root_of(pool) == root) is not everything


def test_killed_query_is_a_clear_error(pool: SessionPool, trace: Path, last: int) -> None:
    pool.query(KEY, trace, {"q": "state", "tick": 5})
    root = root_of(pool)
    standing = settled(root)
    killed = 0
    for _ in range(20):
        thread, got = answer_of(lambda: pool.query(KEY, trace, SEARCH))
        deadline = time.monotonic() + 5
        while not killed and not got and time.monotonic() < deadline:
            for pid in set(processes(root)) - standing:
                os.kill(pid, signal.SIGKILL)
                killed = pid
        thread.join(30)
        if killed:
            break
    assert killed
    assert isinstance(got[0], SessionError)
    assert "crashed" in str(got[0])
    assert pool.query(KEY, trace, SEARCH)["accesses"] == []
    assert root_of(pool) == root


@pytest.mark.parametrize(
    "question",
    [
        {"q": "state", "tick": -1},
        {"q": "state", "tick": "7"},
        {"q": "state", "tick": 1 << 60},
        {"q": "window", "before": 1 << 40},
        {"q": "window", "after": "x"},
        {"q": "hits"},
        {"q": "census"},
        {"q": "last-write"},
        {"q": "last-write", "addr": "0x0", "size": 1},
        {"q": "accesses"},
        {"q": "accesses", "lo": [], "hi": {}},
        {"q": "register-write", "cpu": 99, "register": "r1"},
        {"q": "register-write", "cpu": "x", "register": "r1"},
        {"q": "register-write", "cpu": 0, "register": "pc"},
        {"q": "register-read", "cpu": 99, "register": "r1"},
        {"q": "register-read", "cpu": -1, "register": "r1"},
        {"q": "register-read", "cpu": "x", "register": "r1"},
        {"q": "register-read", "cpu": 0, "register": "nip"},
        {"q": "register-read", "cpu": 0, "register": ["r1"]},
        {"q": "functions", "from": 5, "to": 2},
        {"q": "chain"},
        {"q": None},
        {},
    ],
    ids=str,
)
def test_malformed_question_costs_itself(
    pool: SessionPool, trace: Path, last: int, question: Json
) -> None:
    pool.query(KEY, trace, {"q": "state", "tick": 5})
    root = root_of(pool)
    _, got = (asked := answer_of(lambda: pool.query(KEY, trace, question)))
    asked[0].join(30)
    assert "crashed" not in str(got[0])
    assert pool.query(KEY, trace, {"q": "state", "tick": 5})["tick"] == 5
    assert root_of(pool) == root


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.real)])
def test_many_readers_at_once(pool: SessionPool, trace: Path, last: int, count: int) -> None:
    ticks = [last * n // 24 for n in range(25)]
    right = {tick: pool.query(KEY, trace, {"q": "state", "tick": tick}) for tick in ticks}
    wrong: list[object] = []

    def read(number: int) -> None:
        for n in range(count):
            tick = ticks[(number * 7 + n * 5) % len(ticks)]
            try:
                if pool.query(KEY, trace, {"q": "state", "tick": tick}) != right[tick]:
                    wrong.append(tick)
            except BootflowError as exc:
                wrong.append(exc)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert wrong == []
