"""The cookies in which a browser keeps its own runs and their delete tokens, and explorations."""

from __future__ import annotations

import re

from flask import request
from werkzeug.wrappers import Response

COOKIE = "bootflow_runs"
EXPLORATIONS = "bootflow_explorations"
"""Apart, so that no number of them takes the place of a run's token."""
KEEP = 24
_ENTRY = re.compile(r"([a-z2-7]{26})\.([A-Za-z0-9_-]{8,40})\Z")


def own_tokens(cookie: str = COOKIE) -> dict[str, str]:
    """Return {id: token} of what this browser started, newest first."""
    entries = (_ENTRY.match(part) for part in request.cookies.get(cookie, "").split("~")[:KEEP])
    return {entry[1]: entry[2] for entry in entries if entry}


def remember(response: Response, identifier: str, token: str, cookie: str = COOKIE) -> None:
    """Put a new run, or an exploration, in front of its cookie."""
    tokens = {identifier: token, **own_tokens(cookie)}
    value = "~".join(f"{key}.{word}" for key, word in list(tokens.items())[:KEEP])
    response.set_cookie(
        cookie, value, max_age=365 * 86400, httponly=True, samesite="Strict",
        secure=request.is_secure,
    )  # fmt: skip
