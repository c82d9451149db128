"""One table from exception class to HTTP status, and one handler for every format.

HTML, text and JSON carry the same message, hint and slug. An exception that is not in the table is
our bug: the reader gets a plain 500, the log gets the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from app.explorations import TooManyExplorations
from app.index import NoSuchRun, WrongToken
from app.pages import NoSuchTick, NoTraceYet
from app.render import send
from app.seeking import NotFound
from app.view import BadView
from emulator.errors import (
    BootflowError,
    DivergenceError,
    ImageError,
    LimitError,
    PlacementError,
    SessionError,
    TraceError,
)


class BadOption(BootflowError):
    """A field of the form is not what it should be."""

    slug = "bad-option"


class ForeignOrigin(BootflowError):
    """A page of another site tried to send a form here."""

    slug = "foreign-origin"


class ForeignHost(BootflowError):
    """The request is for a site of another name."""

    slug = "foreign-host"


class DiskFull(LimitError):
    """There is no room for an upload and its trace."""

    slug = "disk-full"


class TooManyRuns(LimitError):
    """The queue is full."""

    slug = "too-many-runs"


STATUS: tuple[tuple[type[BootflowError], int], ...] = (
    (NoSuchRun, 404),
    (NoSuchTick, 404),
    (NoTraceYet, 404),
    (WrongToken, 403),
    (ForeignOrigin, 403),
    (ForeignHost, 421),
    (NotFound, 404),
    (BadOption, 400),
    (BadView, 400),
    (ImageError, 400),
    (PlacementError, 422),
    (TooManyRuns, 429),
    (TooManyExplorations, 429),
    (DiskFull, 507),
    (LimitError, 413),
    (TraceError, 422),
    (SessionError, 503),
    (DivergenceError, 500),
    (BootflowError, 500),
)


@dataclass(frozen=True)
class ErrorPage:
    """What a reader gets instead of a page."""

    status: int
    slug: str
    message: str
    hint: str


def http_status(error: BootflowError) -> int:
    """Return the status of the first row of the table that fits."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def error_page(error: Exception) -> ErrorPage:
    """Turn any exception into what may be said about it."""
    if isinstance(error, BootflowError):
        return ErrorPage(http_status(error), error.slug, error.message, error.hint)
    if isinstance(error, RequestEntityTooLarge):
        return _too_large()
    if isinstance(error, HTTPException):
        slug = error.name.lower().replace(" ", "-")
        return ErrorPage(error.code or 500, slug, error.description or error.name, "")
    return ErrorPage(500, "internal", "bootflow failed; this is our bug, not your image's.", "")


def _too_large() -> ErrorPage:
    limit = current_app.config["MAX_UPLOAD_BYTES"]
    came = request.content_length
    message = f"the upload is too large: {limit:,} bytes are allowed together"
    message += f", {came:,} came" if came else ""
    return ErrorPage(413, "limit", message, "strip --strip-debug shrinks a vmlinux; so does xz.")


def wanted_format() -> str:
    """Return html, txt or json, by the suffix of the address; a POST by what its sender reads."""
    for suffix in ("txt", "json"):
        if request.path.endswith(f".{suffix}"):
            return suffix
    return "txt" if request.method == "POST" and not reads_html() else "html"


def reads_html() -> bool:
    """Say whether a browser asks; curl says that it takes anything."""
    return "text/html" in request.headers.get("Accept", "")


def answer(error: Exception) -> Response:
    """Answer a failed request."""
    if not isinstance(error, BootflowError | HTTPException):
        current_app.logger.exception("unexpected error on %s", request.path)
    if isinstance(error, HTTPException) and error.code is not None and error.code < 400:
        return Response(error.get_body(), error.code, error.get_headers())
    page = error_page(error)
    response = send(page, wanted_format())
    response.status_code = page.status
    response.headers["Cache-Control"] = "no-store"
    if page.status == 429:
        response.headers["Retry-After"] = "60"
    return response


def register(app: Flask) -> None:
    """Make `answer` the handler of everything."""
    app.register_error_handler(Exception, answer)
