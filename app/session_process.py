"""One session process seen from outside: start it, feed it, hear it, ask it, end it.

Wire, all of it JSON and bounded, never pickle:
    control     a SOCK_SEQPACKET pair; child to parent: one record a message, or several, one a
                line; parent to child: the job, then queries, each with a descriptor for the answer
    answer      one JSON document on that descriptor, then its end; an end without a document says
                that the query crashed

The child is hostile once it has read an image: nothing that it sends is believed here, and
`kill` ends it with everything that it forked (it cannot leave its process group).
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emulator.errors import BootflowError, SessionError, SessionGone
from emulator.trace import ImageFile

Json = dict[str, Any]

MAX_MESSAGE_BYTES = 256 << 10
MAX_ANSWER_BYTES = 16 << 20
ANSWER_BYTES = {"state": 2 << 20}
"""For questions whose answers are small; of 16 CPUs a state is some 100 KiB."""
_STDERR_BYTES = 16 << 10
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_KEPT_ENVIRONMENT = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TZ", "SYSTEMROOT")


class SessionProcess:
    """A child of `session_main`, from its start to its end."""

    def __init__(self, engine: str = "") -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        command = [sys.executable, "-P", "-m", "app.session_main", str(theirs.fileno())]
        self._process = subprocess.Popen(  # noqa: S603
            [*command, engine] if engine else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        self._pidfd = os.pidfd_open(self._process.pid)
        self._records: deque[Json] = deque()
        self._send_lock = threading.Lock()
        self._state = threading.Lock()
        self._ended = self._closed = self._ready = False
        self._users = 0
        self.received_bytes = 0
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        self._stderr = bytearray()
        self._listener = threading.Thread(target=self._listen_stderr, daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Process id, which is also that of its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """The process runs and was not told to end."""
        return not self._ended and self._process.poll() is None

    @property
    def stderr(self) -> str:
        """The last that the process said on stderr, for the log."""
        return self._stderr.decode("utf-8", "replace")

    def _listen_stderr(self) -> None:
        stderr = self._process.stderr
        with suppress(OSError, ValueError):
            while stderr is not None and (piece := os.read(stderr.fileno(), 4096)):
                self._stderr += piece
                del self._stderr[:-_STDERR_BYTES]

    def await_ready(self, timeout_seconds: float) -> None:
        """Wait until the child has imported its engine and is locked down; once is enough."""
        if self._ready:
            return
        record = self.receive(timeout_seconds)
        if record is None:
            raise SessionError("the session process does not start")
        if record.get("t") != "ready":
            raise error_from(record)
        self._ready = True

    def start(self, job: Mapping[str, Any], images: Sequence[ImageFile]) -> None:
        """Hand over the job and the images."""
        fds = [_sealed("job", json.dumps(job).encode())]
        try:
            fds += [_sealed(image.role, image.data) for image in images]
            head = json.dumps({"images": [image.role for image in images]}).encode()
            self._send(head, fds)
        finally:
            for fd in fds:
                os.close(fd)

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Keep the descriptors open while a thread waits on them."""
        with self._state:
            if self._ended:
                raise SessionGone("the session has ended")
            self._users += 1
        try:
            yield
        finally:
            with self._state:
                self._users -= 1
            self._close_if_unused()

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            with self._using(), self._send_lock:
                socket.send_fds(self._control, [message], list(fds), socket.MSG_DONTWAIT)
        except BlockingIOError as exc:
            raise SessionError(
                "the session has too many queries to answer", hint="Try again in a moment."
            ) from exc
        except OSError as exc:
            raise SessionGone(f"the session has ended: {exc}") from exc

    def cancel(self) -> None:
        """Ask the session to stop recording; it may not listen."""
        with suppress(SessionError):
            self._send(b'{"q":"cancel"}')

    def receive(self, timeout_seconds: float) -> Json | None:
        """Return the next record, or None if none came in time.

        Raises:
            SessionError: the process has ended, or sent what is no record.
        """
        if not self._records:
            with self._using():
                if not self._take_message(timeout_seconds):
                    return None
        return self._records.popleft()

    def _take_message(self, timeout_seconds: float) -> bool:
        size = self._receive_now()
        if size is None:
            if not self._wait_for(self._control, timeout_seconds):
                return False
            size = self._receive_now()
        if not size:  # closed, or only the process's end woke us
            raise SessionError(f"the session process ended ({self._exit_words()})")
        self.received_bytes += size
        for line in bytes(self._buffer[:size]).splitlines():
            self._records.append(_parse(line))
        return bool(self._records)

    def _receive_now(self) -> int | None:
        """Read one message into the buffer; its size, or None if there is none."""
        try:
            size, _, flags, _ = self._control.recvmsg_into([self._buffer], 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise SessionError(f"the session was stopped: {exc}") from exc
        if flags & socket.MSG_TRUNC:
            raise SessionError(f"the session sent a message of more than {MAX_MESSAGE_BYTES} bytes")
        return size

    def _wait_for(self, source: socket.socket, timeout_seconds: float) -> set[int]:
        """Wait until the socket can be read or the process has ended: which, as descriptors."""
        poller = select.poll()
        poller.register(source, select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        return {fd for fd, _ in poller.poll(max(timeout_seconds, 0.0) * 1000)}

    def _exit_words(self) -> str:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "control socket closed"
        if status >= 0:
            return f"exit status {status}"
        with suppress(ValueError):
            return f"signal {signal.Signals(-status).name}"
        return f"signal {-status}"

    def ask(self, query: Mapping[str, Any], timeout_seconds: float) -> Json:
        """Send a query and return its answer.

        Raises:
            SessionError: no answer in time, a crash while answering, or an answer that is none.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, self._using():
            with theirs:
                self._send(json.dumps(query).encode(), [theirs.fileno()])
            most = ANSWER_BYTES.get(str(query.get("q")), MAX_ANSWER_BYTES)
            answer = _parse(self._hear(ours, time.monotonic() + timeout_seconds, most))
        if isinstance(answer.get("error"), dict):
            raise error_from(answer["error"])
        return answer

    def _hear(self, answer: socket.socket, deadline: float, most: int) -> bytes:
        data = bytearray()
        while True:
            left = deadline - time.monotonic()
            ready = self._wait_for(answer, left) if left > 0 else set()
            if not ready:
                raise SessionError(
                    "the session did not answer in time", hint="Try again: it may be busy."
                )
            if answer.fileno() not in ready:
                raise SessionError(f"the session process ended ({self._exit_words()})")
            piece = answer.recv(1 << 16)
            if not piece:
                break
            data += piece
            if len(data) > most:
                raise SessionError(f"the session gave an answer of more than {most} bytes")
        if not data:
            raise SessionError("the session crashed, or ran out of CPU time, while it answered")
        return bytes(data)

    def kill(self) -> None:
        """End the process and all that it forked, at once; safe to call twice, from any thread."""
        with self._state:
            if self._ended:
                return
            self._ended = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(1.0)
        if self._process.stderr is not None:
            self._process.stderr.close()
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        with self._state:
            if not self._ended or self._users or self._closed or self._process.returncode is None:
                return
            self._closed = True
        self._control.close()
        os.close(self._pidfd)


def _environment() -> dict[str, str]:
    """Return the child's environment: what Python needs, and no secrets of ours."""
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    environment |= dict.fromkeys(_ONE_THREAD, "1")
    paths = [str(Path(path).resolve()) for path in sys.path if path and Path(path).exists()]
    here = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([here, *paths]))
    environment["PYTHONHASHSEED"] = "0"
    environment["LC_ALL"] = "C.UTF-8"
    return environment


def _sealed(name: str, data: bytes) -> int:
    """Return a descriptor of memory that holds `data` and that nobody can change any more."""
    fd = os.memfd_create(f"bootflow-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _parse(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise SessionError("the session sent something that is not JSON") from exc
    if not isinstance(value, dict):
        raise SessionError("the session sent JSON that is not an object")
    return value


def _error_classes(base: type[BootflowError]) -> dict[str, type[BootflowError]]:
    found = {base.slug: base} if "slug" in vars(base) else {}
    for derived in base.__subclasses__():
        found |= _error_classes(derived)
    return found


def error_from(document: Mapping[str, Any]) -> BootflowError:
    """Return the error that a session or the broker described as slug, message, hint."""
    classes = _error_classes(BootflowError)
    kind = classes.get(str(document.get("slug")), SessionError)
    message = str(document.get("message", "no reason given"))[:2048]
    return kind(message, hint=str(document.get("hint", ""))[:1024])


def error_document(exc: BootflowError) -> Json:
    """Return an error as slug, message, hint."""
    return {"slug": exc.slug, "message": exc.message, "hint": exc.hint}
