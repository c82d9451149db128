"""The worker's job of exploring a run: from its row to found races, queued as runs of their own.

What it is: begins an exploration, writes how far it has come, keeps each race the moment that it
is found, ends for whoever cancels. What it is not: the search (`emulator.explore`), its process
(`exploring.py`), or the recording of what it found, which is the queue's like any run's.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app import DEFAULTS
from app.explorations import LIMITS, Exploration, Explorations, Limits
from app.exploring import Explored, Race, explore_trace, explored_spec, images_of
from app.index import Index, NoSuchRun, Run, new_id, trace_path, upload_path
from emulator.errors import BootflowError, LimitError, SessionError
from emulator.trace import ImageFile, TraceReader

log = logging.getLogger("bootflow.explorer")

WRITE_SECONDS = 0.5
"""How often it is written how far an exploration has come."""
STOPPED_TEXT = "the worker was stopped while it ran"


class Explorer:
    """Explores one run: a row in, races out.

    Args:
        data_dir: where the traces and uploads lie.
        index: the index of runs.
        enqueue: hands the id of a run to the worker that records it.
    """

    def __init__(
        self,
        data_dir: Path,
        index: Index,
        enqueue: Callable[[str], None],
        limits: Limits = LIMITS,
    ) -> None:
        self._data_dir, self._index, self._enqueue = data_dir, index, enqueue
        self._limits = limits
        self.rows = Explorations(index)
        self.stopping = False

    def explore(self, identifier: str) -> None:
        """Explore unless it was cancelled, or its run deleted, in the meantime."""
        row = self.rows.get(identifier)
        if row is None or row.status != "queued" or self.stopping:
            return
        if row.attempts >= self._limits.attempts:
            text = f"the worker was stopped {row.attempts} times while it ran"
            self.rows.change(identifier, status="killed", text=text)
            return
        self.rows.change(identifier, status="running", attempts=row.attempts + 1, tried=0)
        log.info("run %s: exploring with %d seeds", row.run_id, row.seeds)
        status, text = "finished", ""
        try:
            text = self._explore(row)
        except NoSuchRun as exc:
            status, text = "failed", exc.message
        except BootflowError as exc:
            status, text = "failed", f"{exc.message} {exc.hint}".strip()
        except Exception as exc:
            log.exception("run %s: the exploration failed", row.run_id)
            status, text = "failed", f"internal error: {type(exc).__name__}"
        if self.stopping and status != "finished":
            status = "queued"
        if self.stopping and text == STOPPED_TEXT:
            status, text = "queued", ""
        log.info("run %s: exploration %s %s", row.run_id, status, text)
        self.rows.change(identifier, status=status, text=text)

    def _explore(self, row: Exploration) -> str:
        """Search, and keep what is found; returns why it ended early, or nothing."""
        run = self._index.get(row.run_id)
        path = trace_path(self._data_dir, run.id)
        before = list(row.found)  # by an exploration that was ended, or by an earlier one
        kept: list[dict[str, Any]] = []
        written = 0.0

        def change(so_far: Explored) -> None:
            nonlocal written
            new = so_far.found[len(kept) :]
            kept.extend(self._keep(run, path, race) for race in new)
            if new or time.monotonic() - written > WRITE_SECONDS:
                written = time.monotonic()
                self._write(row.id, so_far, _merged(before, kept))

        done = explore_trace(
            path, row.seeds, change, stop=lambda: self._stop(row), seconds=self._limits.seconds
        )
        self._write(row.id, done, _merged(before, kept))
        return done.stopped

    def _write(self, identifier: str, so_far: Explored, kept: list[dict[str, Any]]) -> None:
        self.rows.change(identifier, tried=so_far.tried, planned=so_far.planned, found=[*kept])

    def _stop(self, row: Exploration) -> str:
        """Say why the search is to end now; whoever cancels ends the row."""
        if self.stopping:
            return STOPPED_TEXT
        now = self.rows.get(row.id)
        if now is None or now.status != "running":
            return "cancelled"
        deleted = self._index.get(row.run_id).status == "deleted"
        return "the run was deleted" if deleted else ""

    def _keep(self, run: Run, path: Path, race: Race) -> dict[str, Any]:
        """Return a finding as the row keeps it; a race becomes a run of its own, once."""
        found = {
            "kind": race.kind, "rules": list(race.rules), "schedule": race.schedule,
            "write_tick": race.write_tick, "run": "",
        }  # fmt: skip
        if race.kind != "race":
            return found
        if self._index.get(run.id).status == "deleted":
            raise SessionError("the run was deleted")
        for other in self._index.found_by_exploring(run.id):
            if other.spec.get("schedule") == race.schedule:
                return found | {"run": other.id}
        with TraceReader(path) as reader:
            spec = explored_spec(reader) | {"schedule": race.schedule}
            images = images_of(reader)
        run_id = new_id()
        self._store(run_id, images)
        self._index.add(
            spec=spec,
            files={role: file for role, file in run.files.items() if role != "trace"},
            title=f"Race: {run.title}" if run.title else "",
            note=race.sentence,
            listed=self._index.get(run.id).listed,
            run_id=run_id,
            parent=run,
        )
        now = self._index.get(run.id)
        if now.status == "deleted":  # meanwhile: what goes with it goes now
            self._index.delete(run_id)
            raise SessionError("the run was deleted")
        if now.listed != self._index.get(run_id).listed:
            self._index.set_listed(run_id, listed=now.listed)
        self._enqueue(run_id)
        return found | {"run": run_id}

    def _store(self, run_id: str, images: Sequence[ImageFile]) -> None:
        """Write the images of a new run where the recorder looks for uploads.

        Raises:
            LimitError: the disk would have less room than uploads leave; nothing is left there.
        """
        free = shutil.disk_usage(self._data_dir).free - sum(len(image.data) for image in images)
        if free < DEFAULTS["MIN_FREE_BYTES"]:
            raise LimitError("the disk of this server has no room for the race that was found")
        folder = upload_path(self._data_dir, run_id, "kernel").parent
        try:
            folder.mkdir(parents=True)
            for image in images:
                upload_path(self._data_dir, run_id, image.role).write_bytes(image.data)
        except OSError as exc:
            shutil.rmtree(folder, ignore_errors=True)
            raise LimitError(f"the race that was found cannot be stored: {exc}") from exc


def _merged(
    before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What was found before, and now, each schedule once."""
    again = {(row["kind"], row["schedule"]) for row in now}
    return [*(row for row in before if (row["kind"], row["schedule"]) not in again), *now]
