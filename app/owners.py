"""The cookie in which a browser keeps its own runs and their delete tokens."""

from __future__ import annotations

import re

from flask import request
from werkzeug.wrappers import Response

COOKIE = "bootflow_runs"
KEEP = 24
_ENTRY = re.compile(r"([a-z2-7]{26})\.([A-Za-z0-9_-]{8,40})\Z")


def own_tokens() -> dict[str, str]:
    """Return {run id: delete token} of the runs that this browser started, newest first."""
    entries = (_ENTRY.match(part) for part in request.cookies.get(COOKIE, "").split("~")[:KEEP])
    return {entry[1]: entry[2] for entry in entries if entry}


def remember(response: Response, run_id: str, token: str) -> None:
    """Put a new run in front of the cookie."""
    tokens = {run_id: token, **own_tokens()}
    value = "~".join(f"{key}.{word}" for key, word in list(tokens.items())[:KEEP])
    response.set_cookie(
        COOKIE, value, max_age=365 * 86400, httponly=True, samesite="Strict",
        secure=request.is_secure,
    )  # fmt: skip
