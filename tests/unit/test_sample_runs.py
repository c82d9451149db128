"""The sample runs of a fresh installation: queued once, like anybody's upload."""

import hashlib
from pathlib import Path

import pytest

from app.index import RUN_ID, Index, upload_path
from app.samples import add_sample_runs, sample_run_id
from emulator.samples import SAMPLES


def test_every_sample_is_queued_once(tmp_path: Path) -> None:
    index = Index(tmp_path)
    queued: list[str] = []
    added = add_sample_runs(tmp_path, index, queued.append)
    assert [sample for sample, _ in added] == list(SAMPLES)
    assert queued == [run_id for _, run_id in added]
    assert len(set(queued)) == len(SAMPLES)
    assert add_sample_runs(tmp_path, index, queued.append) == []
    assert len(queued) == len(SAMPLES)
    index.close()


@pytest.mark.parametrize("status", ["killed", "failed"])
def test_broken_off_recording_is_queued_again(tmp_path: Path, status: str) -> None:
    index = Index(tmp_path)
    (_, first), *_ = add_sample_runs(tmp_path, index, lambda run_id: None)
    upload_path(tmp_path, first, "kernel").unlink()
    index.set_status(first, status, word="STOPS", verdict="the session died")
    assert [run_id for _, run_id in add_sample_runs(tmp_path, index, lambda run_id: None)] == [
        first
    ]
    run = index.get(first)
    assert (run.status, run.word, run.verdict) == ("queued", "", "")
    assert upload_path(tmp_path, first, "kernel").read_bytes()[:4] == b"\x7fELF"
    index.set_status(first, "finished", word="STAYS")
    assert add_sample_runs(tmp_path, index, lambda run_id: None) == []
    index.close()


def test_rows_and_files_are_those_of_an_upload(tmp_path: Path) -> None:
    index = Index(tmp_path)
    for sample, run_id in add_sample_runs(tmp_path, index, lambda run_id: None):
        run = index.get(run_id)
        assert RUN_ID.match(run_id)
        assert (run.status, run.title, run.listed) == ("queued", sample.title, True)
        assert run.asked == ("stay" if sample.mode == "load-panic" else "move")
        for role in ("kernel", "purgatory"):
            data = upload_path(tmp_path, run_id, role).read_bytes()
            assert run.files[role]["sha256"] == hashlib.sha256(data).hexdigest()
            assert run.files[role]["size_bytes"] == len(data)
        assert (run.spec["mode"], run.spec["cpus"]) == (sample.mode, sample.cpus)
    index.close()


def test_id_depends_on_what_is_run_and_on_nothing_else() -> None:
    assert [sample_run_id(sample) for sample in SAMPLES] == [sample_run_id(s) for s in SAMPLES]
