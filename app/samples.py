"""Queue one run of each sample pair, so that a fresh installation has something to look at.

What it is: `bootflow serve --samples`. A sample is uploaded like a user's files: bytes in the
uploads folder, a row in the index, a job in the queue.
What it is not: a recording made beforehand; the runs are this machine's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy.exc import IntegrityError

from app.index import Index, NoSuchRun, upload_path
from emulator.samples import SAMPLES, Sample

TOPICS = (
    ("The hand-off of today", ("kdump-le", "kexec-le", "kdump-be", "kexec-be")),
    (
        "How the flag came: 2.6.27 to 2.6.28",
        ("noflag-be", "noflag0-be", "kdumpflag-be", "runatload-be", "kdumpflag-kexec-be"),
    ),
    (
        "Code snippets 1 to 3: purgatory marks the flag in the kernel image",
        ("posted-be", "meant-be", "posted-le", "meant-le"),
    ),
    (
        "Who writes the flag, and when",
        ("race-be", "race-lost-be", "waits-be", "late-be", "late-le"),
    ),
    ("Where the flag lies, and how wide it is", ("width-be", "width-le", "offset-be", "offset-le")),
    (
        "Halves that do not fit: the flag is set where nobody reads it",
        ("mismatch-old-new-be", "mismatch-new-old-be", "mismatch-none-new-be", "mismatch-le-be"),
    ),
    ("A kernel that no loader can tell", ("nomagic-be", "nomagic-le")),
    (
        "Low memory: 0x0, 0x20, 0x60 and the first 256 bytes",
        (
            "restores-be", "restores-le", "iseries-be", "clobber-be", "clobber-le", "below-be",
            "wrongid-be", "wrongid-le",
        ),
    ),
    ("Digest", ("digest-be", "digest-le")),
)  # fmt: skip
"""Headings of the gallery, and the samples under each in the order they are to be read."""

BROKEN_OFF = ("killed", "failed")


def sample_run_id(sample: Sample) -> str:
    """Return the id of a sample's run: the same for the same images and options."""
    digest = hashlib.sha256(b"bootflow sample run\0")
    for part in (repr(sample).encode(), sample.kernel_bytes(), sample.purgatory_bytes()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return base64.b32encode(digest.digest()[:16]).decode().rstrip("=").lower()


@lru_cache(maxsize=1)
def _samples_by_run() -> dict[str, Sample]:
    return {sample_run_id(sample): sample for sample in SAMPLES}


def sample_of_run(run_id: str) -> Sample | None:
    """Return the sample that a run is, None for anybody's own run."""
    return _samples_by_run().get(run_id)


@lru_cache(maxsize=1)
def sample_topics() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the headings, each with the run ids of its samples."""
    ids = {sample.name: run_id for run_id, sample in _samples_by_run().items()}
    return tuple((title, tuple(ids[name] for name in names)) for title, names in TOPICS)


def sample_spec(sample: Sample) -> dict[str, Any]:
    """Return what the run of a sample asks for, as a RunSpec document."""
    return {
        "mode": sample.mode,
        "append": "",
        "cpus": sample.cpus,
        "boot_cpu": sample.boot_cpu,
        "mem_bytes": 256 << 20,
        "base_addr": None,
        "checks": sample.checks,
        "debug": True,
        "signature": sample.signature,
        "seed": sample.seed,
        "schedule": sample.schedule,
        "until": None,
    }


def add_sample_runs(
    data_dir: Path, index: Index, enqueue: Callable[[str], None]
) -> list[tuple[Sample, str]]:
    """Queue the samples that have no recording yet; return those with their run ids.

    Args:
        data_dir: where the uploads lie.
        index: the index of runs.
        enqueue: hands a run's id to the worker.
    """
    added = []
    for sample in SAMPLES:
        run_id = sample_run_id(sample)
        if not _is_missing(index, run_id):
            continue
        files = {
            "kernel": _store(data_dir, run_id, "kernel", sample.kernel, sample.kernel_bytes()),
            "purgatory": _store(
                data_dir, run_id, "purgatory", sample.purgatory, sample.purgatory_bytes()
            ),
        }
        spec = sample_spec(sample)
        try:
            index.add(spec=spec, files=files, title=sample.title, listed=True, run_id=run_id)
        except IntegrityError:  # it is there, but its recording broke off: once more
            index.set_status(run_id, "queued", word="", verdict="", ticks=0)
        enqueue(run_id)
        added.append((sample, run_id))
    return added


def _is_missing(index: Index, run_id: str) -> bool:
    """Say whether a sample was never recorded, or its recording broke off."""
    try:
        return index.get(run_id).status in BROKEN_OFF
    except NoSuchRun:
        return True


def _store(data_dir: Path, run_id: str, role: str, name: str, data: bytes) -> dict[str, Any]:
    """Write an image where the worker looks for uploads; return its row for the index."""
    path = upload_path(data_dir, run_id, role)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
