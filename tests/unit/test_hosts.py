"""Who may call the site what, and where its disk ends."""

import errno
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app, host_name
from app.cli import _own_hosts
from app.index import Index, trace_path
from tests import fabricated

Make = Callable[..., FlaskClient]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Make]:
    made: list[Index] = []

    def make(**config: Any) -> FlaskClient:
        app = create_app({"DATA_DIR": tmp_path, "ENQUEUE": lambda run_id: None, **config})
        made.append(app.extensions["bootflow.index"])
        return app.test_client()

    yield make
    for index in made:
        index.close()


def _ended(tmp_path: Path) -> str:
    index = Index(tmp_path)
    run, _ = index.add(spec=fabricated.SPEC, files={})
    fabricated.write_trace(trace_path(tmp_path, run.id))
    index.set_status(run.id, "finished", word="STAYS")
    index.close()
    return run.id


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200),
        ("[::1]", 200), ("boot.example", 200), ("boot.example.:443", 200), ("box", 200),
        ("evil.example", 421), ("boot.example.evil.example", 421), ("127.0.0.1.evil.example", 421),
        ("169.254.169.254", 421), ("xboot.example", 421),
    ],
)  # fmt: skip
def test_only_own_names_are_answered(client: Make, host: str, status: int) -> None:
    web = client(PUBLIC_URL="https://boot.example:8443/", HOSTS=("box",))
    for path in ("/", "/runs.txt", "/static/bootflow.css"):
        with web.get(path, headers={"Host": host}) as page:
            assert page.status_code == status
    answer = web.get("/runs.json", headers={"Host": host})
    assert ("foreign-host" in answer.text) == (status == 421)


def test_a_form_sent_to_another_name_is_refused(client: Make) -> None:
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert client().post("/", data={}, headers=headers).status_code == 421


@pytest.mark.parametrize("origin", ["", "null", "http://evil.example"])
def test_a_form_of_no_origin_of_ours_is_refused(client: Make, origin: str) -> None:
    assert client().post("/", data={}, headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize(("url", "kept"), [("", "private"), ("https://boot.example", "public")])
def test_shared_caches_keep_only_pages_of_a_configured_name(
    client: Make, tmp_path: Path, url: str, kept: str
) -> None:
    run_id = _ended(tmp_path)
    answer = client(PUBLIC_URL=url).get(f"/t/{run_id}.txt")
    assert answer.headers["Cache-Control"].startswith(f"{kept}, no-cache")
    assert f"{url or 'http://localhost'}/t/{run_id}/" in answer.text


def test_serve_knows_the_names_it_is_bound_to() -> None:
    assert _own_hosts("10.1.2.3") == ("10.1.2.3",)
    assert _own_hosts("fd00::1") == ("[fd00::1]",)
    everywhere = _own_hosts("0.0.0.0")
    assert everywhere
    assert "0.0.0.0" not in everywhere
    assert [host_name(name) for name in ("A:80", "[::1]:80", "[::1]")] == ["a", "[::1]", "[::1]"]


def _upload(client: FlaskClient, size: int = 1) -> Any:
    files = {"kernel": (io.BytesIO(b"k" * size), "k"), "purgatory": (io.BytesIO(b"p"), "p")}
    return client.post("/", data=files)


def test_uploads_end_before_the_disk_does(client: Make, tmp_path: Path, monkeypatch: Any) -> None:
    free = (2 << 30) + 50_000
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    web = client(MIN_FREE_BYTES=2 << 30)
    assert _upload(web, 1_000).status_code == 201
    answer = _upload(web, 60_000)
    assert answer.status_code == 507
    assert "have 2,047 MiB left; 2,048 MiB stay" in answer.text
    assert "Delete runs" in answer.text
    assert len(list((tmp_path / "uploads").iterdir())) == 1


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    client: Make, tmp_path: Path, monkeypatch: Any
) -> None:

    def full(storage: Any, path: Path) -> Any:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("app.uploads._store", full)
    answer = _upload(client())
    assert (answer.status_code, "disk is full" in answer.text) == (507, True)
    assert not [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
