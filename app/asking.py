"""Asks the sessions on behalf of pages: several questions at once, each answer kept for a while.

A tick of an ended run never changes, so neither do its answers: they are kept as JSON, up to a
bound in bytes, and readers of the same moment share one question. Not here: how a session is
reached (`sessions.py`, `broker.py`), what an answer means (`moments.py`).
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from emulator.errors import BootflowError

Json = dict[str, Any]
Query = Callable[[str, Json], Json]

KEPT_BYTES = 48 << 20
AT_ONCE = 8


class Answers:
    """The answers of this process's sessions; every method may be called from any thread."""

    def __init__(self, query: Query, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._query = query
        self._most = kept_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0
        self._asked: dict[tuple[str, str], Future[Json]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ask")

    def ask(self, run_id: str, question: Json, *, keep: bool) -> Json:
        """Ask one question.

        Args:
            run_id: whose session.
            question: {"q": ...}.
            keep: the run has ended, so that the answer holds for ever.

        Raises:
            BootflowError: there is no answer; usually a SessionError.
        """
        if not keep:
            return self._query(run_id, question)
        key = (run_id, json.dumps(question, sort_keys=True))
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                found: Json = json.loads(kept)
                return found
            asked = self._asked.get(key)
            mine = asked is None
            if asked is None:
                asked = self._asked[key] = Future()
        if mine:
            self._fetch(key, question, asked)
        return asked.result()

    def _fetch(self, key: tuple[str, str], question: Json, asked: Future[Json]) -> None:
        """Ask, tell all who wait for it, keep the answer."""
        try:
            answer = self._query(key[0], question)
            if answer.get("exact", True):  # a sample is until the session knows better
                self._keep(key, json.dumps(answer).encode())
            asked.set_result(answer)
        except BaseException as error:
            asked.set_exception(error)
        finally:
            with self._lock:
                del self._asked[key]

    def _keep(self, key: tuple[str, str], data: bytes) -> None:
        with self._lock:
            self._kept[key] = data
            self._bytes += len(data)
            while self._bytes > self._most and self._kept:
                _, old = self._kept.popitem(last=False)
                self._bytes -= len(old)

    def ask_all(
        self, run_id: str, questions: Sequence[Json], *, keep: bool
    ) -> list[tuple[Json, str]]:
        """Ask several questions at once; return (answer, "") or ({}, what went wrong) of each."""
        if len(questions) == 1:
            return [self._try(run_id, questions[0], keep)]
        futures = [self._pool.submit(self._try, run_id, q, keep) for q in questions]
        return [future.result() for future in futures]

    def _try(self, run_id: str, question: Json, keep: bool) -> tuple[Json, str]:
        try:
            return self.ask(run_id, question, keep=keep), ""
        except BootflowError as error:
            return {}, f"{error.message}. {error.hint}" if error.hint else error.message

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False)
