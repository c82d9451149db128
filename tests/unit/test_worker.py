"""The worker: queued runs are recorded, cancelled, and survive a restart; with the fake engine."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import broker, worker
from app.index import Index, trace_path, upload_path
from app.samples import add_sample_runs
from app.sessions import PoolLimits
from emulator.errors import SessionError, TraceError
from emulator.trace import TraceReader

LIMITS = PoolLimits(silence_seconds=5, cancel_seconds=0.5, answer_seconds=3)
ENGINE = "tests.fake_engine"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path)
    yield made
    made.close()


@pytest.fixture
def serving(tmp_path: Path, index: Index) -> Iterator[worker.Worker]:
    made = worker.Worker(tmp_path, engine=ENGINE, limits=LIMITS)
    made.start()
    yield made
    made.stop()


def add(index: Index, **spec: Any) -> str:
    names = {"kernel": "vmlinux", "purgatory": "kexec"}
    files = {role: {"name": name} for role, name in names.items()}
    run, _ = index.add(spec={"mode": "load", "cpus": 1, **spec}, files=files, title="t")
    for role in names:
        path = upload_path(index.data_dir, run.id, role)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(role.encode() * 1000)
    return run.id


def wait_for(index: Index, run_id: str, *statuses: str, seconds: float = 10) -> str:
    deadline = time.monotonic() + seconds
    while (status := index.get(run_id).status) not in statuses:
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


def test_queued_run_is_recorded(tmp_path: Path, index: Index, serving: worker.Worker) -> None:
    run_id = add(index, ticks=700)
    worker.enqueue_record(tmp_path, run_id)
    wait_for(index, run_id, "finished")
    assert index.get(run_id).ticks == 700
    assert index.get(run_id).verdict
    with TraceReader(trace_path(tmp_path, run_id)) as trace:
        assert trace.status == "finished"
        assert trace.image_infos()["kernel"].name == "vmlinux"
    assert not upload_path(tmp_path, run_id, "kernel").parent.exists()
    answer = broker.query(tmp_path, run_id, {"q": "state", "tick": 5})
    assert answer["tick"] == 5


def test_bad_image_fails_with_its_own_words(
    tmp_path: Path, index: Index, serving: worker.Worker
) -> None:
    run_id = add(index, fault="error")
    worker.enqueue_record(tmp_path, run_id)
    wait_for(index, run_id, "failed")
    assert index.get(run_id).verdict == "no ELF"


def test_cancel_queued_and_running(tmp_path: Path, index: Index, serving: worker.Worker) -> None:
    first, second = add(index, ticks=10**6, slow=0.02), add(index)
    worker.enqueue_record(tmp_path, first)
    worker.enqueue_record(tmp_path, second)
    wait_for(index, first, "running")
    worker.cancel(tmp_path, second)
    assert index.get(second).status == "cancelled"
    worker.cancel(tmp_path, first)
    wait_for(index, first, "cancelled")
    with TraceReader(trace_path(tmp_path, first)) as trace:
        assert trace.status == "cancelled"
    third = add(index)
    worker.enqueue_record(tmp_path, third)
    wait_for(index, third, "finished")
    worker.cancel(tmp_path, third)
    assert index.get(third).status == "finished"
    assert index.get(second).status == "cancelled"


def test_deleted_while_running_leaves_no_file(
    tmp_path: Path, index: Index, serving: worker.Worker
) -> None:
    run_id = add(index, ticks=10**6, slow=0.02)
    worker.enqueue_record(tmp_path, run_id)
    wait_for(index, run_id, "running")
    time.sleep(0.3)
    index.set_status(run_id, "deleted")
    assert broker.cancel(tmp_path, run_id)
    deadline = time.monotonic() + 5
    while list((tmp_path / "traces").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert index.get(run_id).status == "deleted"


def test_only_one_worker_a_directory(tmp_path: Path, serving: worker.Worker) -> None:
    assert worker.worker_runs(tmp_path)
    with pytest.raises(SessionError, match="another worker"):
        worker.Worker(tmp_path, engine=ENGINE)


def test_clean_restart_records_what_was_running(tmp_path: Path, index: Index) -> None:
    done, slow = add(index), add(index, ticks=3000, slow=0.05)
    first = worker.Worker(tmp_path, engine=ENGINE, limits=LIMITS)
    first.start()
    worker.enqueue_record(tmp_path, done)
    worker.enqueue_record(tmp_path, slow)
    wait_for(index, slow, "running")
    digest = TraceReader(trace_path(tmp_path, done)).digest
    time.sleep(0.2)
    first.stop()
    assert index.get(slow).status == "queued"
    with TraceReader(trace_path(tmp_path, slow)) as trace:
        assert trace.status == "killed"
    second = worker.Worker(tmp_path, engine=ENGINE, limits=LIMITS)
    second.start()
    wait_for(index, slow, "finished")
    second.stop()
    assert index.get(done).status == "finished"
    with TraceReader(trace_path(tmp_path, done)) as trace:
        assert trace.digest == digest


_WORKER = """
import sys, pathlib
from app import worker
w = worker.Worker(pathlib.Path(sys.argv[1]), engine="tests.fake_engine")
w.start()
print("started", flush=True)
import time; time.sleep(60)
"""


def test_killed_worker_is_tried_once_more_then_marked(tmp_path: Path, index: Index) -> None:
    run_id = add(index, ticks=10**6, slow=0.02)
    for _ in range(2):
        command = [sys.executable, "-c", _WORKER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            wait_for(index, run_id, "running")
            path = trace_path(tmp_path, run_id)
            deadline = time.monotonic() + 5
            while not _growing(path):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        with TraceReader(path) as trace:
            assert trace.status == "killed"
            assert trace.last_tick > 0
        assert index.get(run_id).status == "running"
        index.set_status(run_id, "running")
    third = worker.Worker(tmp_path, engine=ENGINE, limits=LIMITS)
    third.start()
    wait_for(index, run_id, "killed")
    third.stop()
    assert "2 times" in index.get(run_id).verdict
    assert _orphans() == 0


def _growing(path: Path) -> bool:
    try:
        with TraceReader(path) as trace:
            return trace.status == "running" and trace.last_tick > 0
    except TraceError:
        return False


def _orphans() -> int:
    """Count session processes whose worker has gone."""
    deadline = time.monotonic() + 5
    while True:
        count = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                except (OSError, IndexError):
                    continue
                count += b"tests.fake_engine" in words and b"session_main" in words and parent == 1
        if not count or time.monotonic() > deadline:
            return count
        time.sleep(0.1)


def test_cancel_without_a_worker(tmp_path: Path, index: Index) -> None:
    run_id = add(index)
    index.set_status(run_id, "running")
    worker.cancel(tmp_path, run_id)
    assert index.get(run_id).status == "killed"


def test_worker_process_takes_runs_and_ends_with_its_parent(tmp_path: Path, index: Index) -> None:
    command = [sys.executable, "-m", "app.worker", str(tmp_path), "--with-parent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "sessions.sock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run_id = add(index)
        worker.enqueue_record(tmp_path, run_id)  # its kernel is none: the real engine says so
        wait_for(index, run_id, "failed", seconds=20)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 0
    assert not worker.worker_runs(tmp_path)
    assert not (tmp_path / "sessions.sock").exists()


def test_queue_speaks_json_only(tmp_path: Path) -> None:
    worker.enqueue_record(tmp_path, "x" * 26)
    task = worker.open_queue(tmp_path)
    raw = task.huey.storage.dequeue()
    task.huey.storage.close()
    assert raw.startswith(b"[")
    with pytest.raises(ValueError, match=r"utf-8|JSON|value"):
        task.huey.serializer.deserialize(b"\x80\x04\x95junk.")


def test_a_user_does_not_wait_for_the_samples(tmp_path: Path, index: Index) -> None:
    samples = add_sample_runs(
        tmp_path, index, lambda run_id: worker.enqueue_record(tmp_path, run_id)
    )
    assert len(samples) > 30
    run_id = add(index)
    worker.enqueue_record(tmp_path, run_id)
    queue = worker.open_queue(tmp_path).huey
    order = [queue.dequeue().args[0] for _ in range(len(samples) + 1)]
    assert order == [run_id, *(sample_id for _, sample_id in samples)]
