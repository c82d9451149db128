"""Lets other processes of the same user ask the worker's session pool, over a UNIX socket.

One connection, one line of JSON there, one document back, and its end:
    {"op": "query", "run": ID, "query": {...}}    {"answer": {...}}
    {"op": "cancel", "run": ID}                   {"answer": {"cancelled": true}}
    {"op": "ping"}                                {"answer": {}}
    anything that fails                           {"error": {"slug", "message", "hint"}}

Not here: the sessions themselves (`sessions.py`). Nobody but the owner of the data directory and
root may connect; the socket is made with mode 0600.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.index import RUN_ID, trace_path
from app.session_process import MAX_ANSWER_BYTES, error_document, error_from
from emulator.errors import BootflowError, LimitError, SessionError

if TYPE_CHECKING:
    from app.sessions import SessionPool

Json = dict[str, Any]

SOCKET_NAME = "sessions.sock"
MAX_REQUEST_BYTES = 64 << 10
MAX_CONNECTIONS = 64
_REQUEST_SECONDS = 5.0


@contextmanager
def _address(data_dir: Path) -> Iterator[str]:
    """Yield a name of the socket that fits into sun_path, however deep the directory lies."""
    folder = os.open(data_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_NAME}"
    finally:
        os.close(folder)


class Broker:
    """Serves the pool's queries on the socket until closed; a thread a connection."""

    def __init__(self, data_dir: Path, pool: SessionPool) -> None:
        self._data_dir, self._pool = Path(data_dir), pool
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(FileNotFoundError):
            (self._data_dir / SOCKET_NAME).unlink()
        with _address(self._data_dir) as address:
            mask = os.umask(0o177)
            try:
                self._listener.bind(address)
            finally:
                os.umask(mask)
        self._listener.listen(MAX_CONNECTIONS)
        self._thread = threading.Thread(target=self._accept, daemon=True, name="broker")
        self._thread.start()

    def close(self) -> None:
        """Take no more questions."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(2.0)
        self._listener.close()
        (self._data_dir / SOCKET_NAME).unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                connection.settimeout(_REQUEST_SECONDS)
                try:
                    _check_peer(connection)
                    reply: Json = {"answer": self._answer(_read_request(connection))}
                except BootflowError as exc:
                    reply = {"error": error_document(exc)}
                connection.settimeout(30.0)
                connection.sendall(json.dumps(reply).encode())
        finally:
            self._slots.release()

    def _answer(self, request: Json) -> Json:
        op, run_id = request.get("op"), request.get("run")
        if op == "ping":
            return {}
        if type(run_id) is not str or not RUN_ID.match(run_id):
            raise SessionError("a request without the id of a run")
        if op == "cancel":
            return {"cancelled": self._pool.cancel(run_id)}
        query = request.get("query")
        if op != "query" or not isinstance(query, dict):
            raise SessionError("a request that is neither query, cancel nor ping")
        return self._pool.query(run_id, trace_path(self._data_dir, run_id), query)


def _check_peer(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid = struct.unpack("3i", credentials)[1]
    if uid not in (0, os.geteuid()):
        raise SessionError("sessions answer their owner only")


def _read_request(connection: socket.socket) -> Json:
    data = bytearray()
    deadline = time.monotonic() + _REQUEST_SECONDS
    while not data.endswith(b"\n"):
        piece = connection.recv(4096)
        data += piece
        if not piece or len(data) > MAX_REQUEST_BYTES or time.monotonic() > deadline:
            raise SessionError("a request that is too long, too slow or cut off")
    try:
        request = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise SessionError("a request that is not JSON") from exc
    if not isinstance(request, dict):
        raise SessionError("a request that is not a JSON object")
    return request


def request(data_dir: Path, message: Mapping[str, Any], timeout_seconds: float = 90.0) -> Json:
    """Send one request to the worker that serves `data_dir` and return its answer.

    Raises:
        BootflowError: what the worker says went wrong, as the class it was raised as there.
        SessionError: no worker, or none that answers in time.
    """
    data = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            with _address(Path(data_dir)) as address:
                connection.connect(address)
            connection.sendall(json.dumps(message).encode() + b"\n")
            while piece := connection.recv(1 << 16):
                data += piece
                if len(data) > MAX_ANSWER_BYTES:
                    raise SessionError("the worker's answer is too long")
    except TimeoutError as exc:
        raise SessionError("the worker did not answer in time", hint="Try again.") from exc
    except OSError as exc:
        raise SessionError(
            "no worker is running", hint="Start it with bootflow serve; runs stay readable."
        ) from exc
    if not data:
        raise LimitError("the worker has too many questions to answer", hint="Try again.")
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise SessionError("the worker's answer was cut off") from exc
    if "error" in reply:
        raise error_from(reply["error"])
    answer: Json = reply["answer"]
    return answer


def query(data_dir: Path, run_id: str, question: Mapping[str, Any]) -> Json:
    """Ask the session of a run, e.g. {"q": "state", "tick": 7}; see `emulator.session`."""
    return request(data_dir, {"op": "query", "run": run_id, "query": dict(question)})


def cancel(data_dir: Path, run_id: str) -> bool:
    """Stop the recording of a run; returns whether one was going on."""
    answer = request(data_dir, {"op": "cancel", "run": run_id}, timeout_seconds=10.0)
    return bool(answer.get("cancelled"))
