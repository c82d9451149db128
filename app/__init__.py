"""The shell: web pages, command line, worker. Thin; what a hand-off is stands in `emulator/`.

`create_app` makes the WSGI application. It holds no state: runs are in the index and in trace
files, jobs in the queue, machines in the worker's sessions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, request, url_for
from werkzeug.wrappers import Response

from emulator.records import check_answer

DEFAULTS: dict[str, Any] = {
    "DATA_DIR": "var",
    "INDEX_URL": "",
    "PUBLIC_URL": "",
    "HOSTS": (),  # names beside those of PUBLIC_URL and of this machine's loopback
    "MAX_UPLOAD_BYTES": 256 << 20,
    "MAX_CPUS": 16,
    "MAX_MEM_BYTES": 4 << 30,
    "MAX_QUEUED": 16,
    "MIN_FREE_BYTES": 1 << 30,
}
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the application.

    Args:
        config: overrides of DEFAULTS; QUERY(run_id, question), ENQUEUE(run_id), CANCEL(run_id) and
            EXPLORE(id of an exploration) replace the worker.
    """
    from app import (
        at,
        checks,
        comparisons,
        errors,
        explores,
        guide,
        markup,
        render,
        runs,
        stories,
        uploads,
    )
    from app.asking import Answers
    from app.compress import Gzip
    from app.drawing import short
    from app.explorations import Explorations
    from app.fresh import Bodies
    from app.index import Index

    here = Path(__file__).resolve().parent
    root = here if (here / "templates").is_dir() else here.parent
    app = Flask(__name__, template_folder=root / "templates", static_folder=root / "static")
    app.config.update(DEFAULTS)
    app.config.update(config or {})
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_UPLOAD_BYTES"]
    app.config["MAX_FORM_PARTS"] = 40
    data_dir = Path(app.config["DATA_DIR"]).resolve()
    app.config["DATA_DIR"] = data_dir
    _use_worker(app, data_dir)
    app.extensions["bootflow.index"] = Index(data_dir, app.config["INDEX_URL"])
    app.extensions["bootflow.explorations"] = Explorations(app.extensions["bootflow.index"])
    app.extensions["bootflow.answers"] = Answers(
        lambda run_id, question: app.config["QUERY"](run_id, question)
    )
    app.extensions["bootflow.bodies"] = Bodies()
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters["fit"] = render.fit
    app.jinja_env.filters["n"] = lambda value: f"{value:,}"
    app.jinja_env.filters["short"] = short
    app.jinja_env.globals |= markup.GLOBALS
    app.jinja_env.globals["static_url"] = _static_url
    app.jinja_env.globals["site"] = lambda: (app.config["PUBLIC_URL"] or request.host_url).rstrip(
        "/"
    )
    errors.register(app)
    app.register_blueprint(uploads.blueprint)
    app.register_blueprint(runs.blueprint)
    app.register_blueprint(checks.blueprint)
    app.register_blueprint(explores.blueprint)
    app.register_blueprint(stories.blueprint)
    app.register_blueprint(at.blueprint)
    app.register_blueprint(comparisons.blueprint)
    app.register_blueprint(guide.blueprint)
    app.before_request(_check_host)
    app.before_request(_check_origin)
    app.after_request(_secure)
    app.wsgi_app = Gzip(app.wsgi_app)  # type: ignore[method-assign]
    return app


def _use_worker(app: Flask, data_dir: Path) -> None:
    """Fill in QUERY, ENQUEUE, CANCEL and EXPLORE with the real worker, imported when first asked.

    Whoever answers a QUERY is not believed: its answers are checked before any page sees them.
    """

    def query(run_id: str, question: dict[str, Any]) -> dict[str, Any]:
        from app import sessions

        return sessions.query(data_dir, run_id, question)

    def enqueue(run_id: str) -> None:
        from app import worker

        worker.enqueue_record(data_dir, run_id)

    def cancel(run_id: str) -> None:
        from app import worker

        worker.cancel(data_dir, run_id)

    def explore(identifier: str) -> None:
        from app import worker

        worker.enqueue_exploration(data_dir, identifier)

    asked = app.config.get("QUERY", query)
    app.config["QUERY"] = lambda run_id, question: check_answer(
        str(question.get("q")), asked(run_id, question)
    )
    app.config.setdefault("ENQUEUE", enqueue)
    app.config.setdefault("CANCEL", cancel)
    app.config.setdefault("EXPLORE", explore)


@lru_cache(maxsize=64)
def _content_tag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _static_url(name: str) -> str:
    """Return the address of a static file; it changes when its content does."""
    from flask import current_app

    return _tagged_url(str(current_app.static_folder), name, request.script_root)


@lru_cache(maxsize=64)
def _tagged_url(folder: str, name: str, _script_root: str) -> str:
    return url_for("static", filename=name, v=_content_tag(Path(folder) / name))


def host_name(text: str) -> str:
    """Return the host of "host:port" in lower case; an IPv6 address in its brackets."""
    name = text.rpartition(":")[0] if text.rpartition(":")[2].isdecimal() else text
    return name.lower().rstrip(".")


def _check_host() -> None:
    """Refuse names that are not this site's, whatever a stranger's DNS says."""
    from flask import current_app

    from app.errors import ForeignHost

    own = {host_name(urlsplit(str(current_app.config["PUBLIC_URL"])).netloc)}
    own |= {host_name(name) for name in (*current_app.config["HOSTS"], *LOOPBACK)}
    if host_name(request.host) not in own - {""}:
        raise ForeignHost(
            f"this site is not called {request.host[:100]!r}",
            hint="If it should be: bootflow serve --public-url http://NAME/",
        )


def _check_origin() -> None:
    """Refuse forms that another site sends; curl sends no Origin and is no browser."""
    from flask import current_app

    from app.errors import ForeignOrigin

    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    own = {request.host_url.rstrip("/"), str(current_app.config["PUBLIC_URL"]).rstrip("/")}
    own.discard("")
    if (origin is not None and origin not in own) or site not in ("same-origin", "none"):
        raise ForeignOrigin(
            "this form was sent by a page of another site",
            hint="Open the page here and send the form from it.",
        )


def _secure(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.path.startswith("/static/") and "v" in request.args:
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response
