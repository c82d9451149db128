"""WSGI middleware: answers go out compressed with gzip to whoever accepts that.

Only text, only whole answers of a known kind; a file that Flask streams, a range or an answer that
is already encoded passes as it is. Not here: what may be cached (`runs.py`).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable
from typing import Any

MIN_BYTES = 600
LEVEL = 6
_KINDS = ("text/", "application/json", "image/svg+xml", "application/javascript")

Start = Callable[..., Any]


def accepts_gzip(header: str) -> bool:
    """Say whether an Accept-Encoding header takes gzip."""
    for part in header.lower().split(","):
        name, _, rest = part.strip().partition(";")
        if name.strip() in ("gzip", "*"):
            quality = rest.replace(" ", "").removeprefix("q=") or "1"
            return quality not in ("0", "0.0", "0.00", "0.000")
    return False


class Gzip:
    """Wraps a WSGI application."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        """Answer a request; the body is compressed if that helps and is allowed."""
        if not accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", "")):
            return self._application(environ, start_response)
        held: list[tuple[str, list[tuple[str, str]], Any]] = []

        def hold(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Start:
            held[:] = [(status, headers, exc_info)]
            return _no_write

        body = self._application(environ, hold)
        status, headers, exc_info = held[0]
        if not _may_compress(status, headers):
            start_response(status, headers, exc_info)
            return body
        try:
            data = b"".join(body)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        if len(data) >= MIN_BYTES and environ.get("REQUEST_METHOD") != "HEAD":
            data = gzip.compress(data, LEVEL, mtime=0)
            headers = _encoded(headers, len(data))
        start_response(status, headers, exc_info)
        return [data]


def _no_write(_data: bytes) -> None:
    raise zlib.error("write() of WSGI is not used here")


def _may_compress(status: str, headers: list[tuple[str, str]]) -> bool:
    named = {name.lower(): value for name, value in headers}
    return (
        status[:3] not in ("204", "206", "304")
        and "content-encoding" not in named
        and not named.get("content-disposition", "").startswith("attachment")
        and named.get("content-type", "").startswith(_KINDS)
    )


def _encoded(headers: list[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """Return the headers of the compressed answer: a strong ETag names other bytes now."""
    out, vary = [], "Accept-Encoding"
    for name, value in headers:
        low = name.lower()
        if low == "vary":
            vary = f"{value}, {vary}"
        elif low == "etag" and not value.startswith("W/"):
            out.append((name, f"W/{value}"))
        elif low != "content-length":
            out.append((name, value))
    return [*out, ("Content-Encoding", "gzip"), ("Vary", vary), ("Content-Length", str(size))]
