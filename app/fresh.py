"""Whether a reader's copy of a page is still what this server would send; and pages sent before.

A moment of an ended run never changes, but what its owner says of the run does, and so do we. So
browsers keep pages and ask again each time, with an entity tag that covers all that a page is made
of: run, trace file, address, the owner's title and notes, and this program. It is known before
anything is drawn or any session asked; the same tag is the key under which bodies are kept, packed,
for other readers of the same moment.

Not here: who may keep a page at all (`runs.cached`).
"""

from __future__ import annotations

import gzip
import hashlib
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from threading import Lock

from flask import Response, current_app, g, request

from app.compress import LEVEL, accepts_gzip
from app.index import Index, Note, Run, trace_path

KEPT_BYTES = 16 << 20
"""Of packed bodies: a thousand moments."""
Headers = list[tuple[str, str]]
_KINDS = ("text/html", "text/plain", "application/json", "image/svg+xml")


def notes_of(run_id: str) -> list[Note]:
    """Return what is pinned to a run, read once for each request."""
    found: dict[str, list[Note]] = g.setdefault("notes_of", {})
    if run_id not in found:
        index: Index = current_app.extensions["bootflow.index"]
        found[run_id] = index.notes(run_id)
    return found[run_id]


@lru_cache(maxsize=1)
def _program(root: Path) -> str:
    """Return a hash of our own code, templates and style: another one makes other pages."""
    digest = hashlib.sha256()
    for folder in ("app", "emulator", "templates", "static"):
        for path in sorted((root / folder).rglob("*.*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def tag_of(run: Run) -> str:
    """Return the entity tag of the page of an ended run that was asked for; "" if it has none."""
    path = trace_path(Path(current_app.config["DATA_DIR"]), run.id)
    if not run.ended or not path.is_file():
        return ""
    trace = path.stat()
    said = [run.status, run.title, run.note, run.message_id, run.listed, run.created_utc]
    said += [(note.tick, note.text) for note in notes_of(run.id)]
    made = [
        _program(Path(__file__).resolve().parent.parent), run.id, trace.st_mtime_ns, trace.st_size,
        said, current_app.config["PUBLIC_URL"] or request.host_url, request.full_path,
        [request.headers.get(name, "") for name in ("HX-Boosted", "HX-History-Restore-Request")],
    ]  # fmt: skip
    return hashlib.sha256(repr(made).encode()).hexdigest()[:32]


class Bodies:
    """Packed bodies by their tags, the one that was wanted longest ago going first."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._most, self._bytes = kept_bytes, 0
        self._kept: OrderedDict[str, tuple[bytes, Headers]] = OrderedDict()
        self._lock = Lock()

    def known(self, tag: str) -> Response | None:
        """Return what was sent to another reader who asked for the same; or None."""
        with self._lock:
            kept = self._kept.get(tag)
            if kept is None:
                return None
            self._kept.move_to_end(tag)
        return _answer(*kept)

    def keep(self, tag: str, response: Response) -> Response:
        """Keep the body of an answer with this tag for other readers; return the answer, packed."""
        whole = response.status_code == 200 and response.get_etag()[0] == tag
        if not (tag and whole and response.mimetype in _KINDS):
            return response
        body = gzip.compress(response.get_data(), LEVEL, mtime=0)
        headers = [(n, v) for n, v in response.headers if n.lower() != "content-length"]
        with self._lock:
            before, _ = self._kept.pop(tag, (b"", []))
            self._kept[tag] = body, headers
            self._bytes += len(body) - len(before)
            while self._bytes > self._most:
                _, (old, _) = self._kept.popitem(last=False)
                self._bytes -= len(old)
        return _answer(body, headers)


def _answer(body: bytes, headers: Headers) -> Response:
    packed = accepts_gzip(request.headers.get("Accept-Encoding", ""))
    response = Response(body if packed else gzip.decompress(body), headers=headers)
    if packed:
        response.headers["Content-Encoding"] = "gzip"
        response.headers["ETag"] = f"W/{response.headers['ETag']}"
    response.vary.add("Accept-Encoding")
    return response


def has(tag: str) -> bool:
    """Say whether the reader's own copy is the one with this tag."""
    return bool(tag) and request.if_none_match.contains_weak(tag)
