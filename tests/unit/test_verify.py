"""`bootflow verify`, uploaded traces: a good one passes, a forged one is named.

With the real engine on the big-endian sample, whose run takes a quarter of a second.
"""

import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import cli, worker
from app.index import Index, Run, trace_path, upload_path
from app.samples import sample_spec
from app.sessions import SessionPool
from app.verify import SpecLimits, Verification, check_spec, compare, verify
from emulator.errors import BootflowError, TraceCorruptError, TraceError, TraceVersionError
from emulator.revision import ENGINE_REVISION
from emulator.samples import get_sample
from emulator.trace import TRACE_VERSION, ImageFile, TraceReader

SAMPLE = get_sample("kexec-be")
IMAGES = [
    ImageFile("kernel", SAMPLE.kernel, SAMPLE.kernel_bytes()),
    ImageFile("purgatory", SAMPLE.purgatory, SAMPLE.purgatory_bytes()),
]
Forge = Callable[[sqlite3.Connection], object]


@pytest.fixture(scope="module")
def pool() -> Iterator[SessionPool]:
    with SessionPool() as made:
        yield made


@pytest.fixture(scope="module")
def good(pool: SessionPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.bootflow"
    outcome = pool.record("good", path, sample_spec(SAMPLE), IMAGES)
    assert outcome.status == "finished"
    return path


def prove(pool: SessionPool, path: Path, **more: Any) -> Verification:
    with tempfile.TemporaryDirectory() as folder:
        return verify(path, pool, Path(folder) / "again", **more)


def forged(good: Path, folder: Path, *forge: str | Forge, sign: bool = True) -> Path:
    """Change a copy of a trace; then give it the digest that belongs to its rows."""
    path = folder / "forged.bootflow"
    shutil.copyfile(good, path)
    with sqlite3.connect(path, isolation_level=None) as db:
        for change in forge:
            if isinstance(change, str):
                db.execute(change)
            else:
                change(db)
    db.close()
    if sign:
        with TraceReader(path) as trace:
            digest = trace.compute_digest()
        with sqlite3.connect(path, isolation_level=None) as db:
            db.execute("UPDATE meta SET value = ? WHERE key = 'digest'", (digest,))
        db.close()
    return path


def test_good_trace_is_verified(pool: SessionPool, good: Path) -> None:
    done = prove(pool, good)
    assert (done.verified, done.status) == (True, "finished")
    with TraceReader(good) as trace:
        assert done.digest == trace.digest
        assert done.ticks == trace.last_tick
        assert done.rows["slice"] == len(list(trace.slices()))
        assert done.rows["event"] == len(list(trace.events()))
        assert done.rows["checkpoint"] == len(trace.checkpoints()) > 2
    assert done.rows["console"] > 0


FORGERIES = {
    "value": (
        "UPDATE event SET value = '0x0000000000000001' WHERE kind = 'flag-write'",
        "event",
        r"recorded value 0x0{15}1; ran value 0x0{8}72756e30",
    ),
    "event that was not": (
        "INSERT INTO event (tick, cpu, kind, symbol, text) VALUES (77, 1, 'stage', '', 'copy')",
        "event",
        "tick 77",
    ),
    "event that is missing": ("DELETE FROM event WHERE kind = 'cpu-released'", "event", "tick"),
    "order of events": (
        "UPDATE event SET id = id + 1000 WHERE kind = 'flag-write'",
        "digest",
        "digest",
    ),
    "slice": ("UPDATE slice SET cpu = 1 - cpu WHERE tick = 0", "slice", "tick 0, cpu"),
    "symbol": ("UPDATE slice SET symbol = 'x+0x0/0x4' WHERE tick > 1000", "slice", "symbol x"),
    "console": ("UPDATE console SET data = x'414243' WHERE id = 5", "console", "data 414243"),
    "checkpoint": (
        "UPDATE checkpoint SET digest = '00112233445566778899aabbccddeeff' WHERE tick > 0",
        "checkpoint",
        "00112233445566778899aabbccddeeff",
    ),
    "placement": (
        "UPDATE meta SET value = replace(value, '\"boot_cpu\":0', '\"boot_cpu\":1')"
        " WHERE key = 'placement'",
        "placement",
        "boot_cpu 1; ran boot_cpu 0",
    ),
    "end": (
        "UPDATE meta SET value = replace(value, 'complete', 'stuck') WHERE key = 'end'",
        "end",
        "stuck",
    ),
}
SPEC_FORGERY = (
    "UPDATE meta SET value = replace(value, '\"seed\":0', '\"seed\":7') WHERE key = 'spec'"
)


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("sign", [True, False], ids=["signed", "unsigned"])
def test_forgery_is_named(good: Path, tmp_path: Path, name: str, sign: bool) -> None:
    statement, table, words = FORGERIES[name]
    path = forged(good, tmp_path, statement, sign=sign)
    with TraceReader(path) as trace, TraceReader(good) as ran:
        done = compare(trace, ran, ran.last_tick)
    assert done.difference is not None
    assert not done.verified
    assert done.difference.table == table
    assert re.search(words, done.difference.words), done.difference.words


def test_forged_spec(pool: SessionPool, good: Path, tmp_path: Path) -> None:
    done = prove(pool, forged(good, tmp_path, SPEC_FORGERY))
    assert done.difference is not None
    assert done.difference.tick < done.ticks  # another seed, another schedule


def test_first_difference_is_the_one_of_the_lowest_tick(
    pool: SessionPool, good: Path, tmp_path: Path
) -> None:
    statements = [FORGERIES[name][0] for name in ("end", "value", "console")]
    done = prove(pool, forged(good, tmp_path, *statements))
    with TraceReader(good) as trace:
        said = list(trace.console_chunks())[4].tick
        written = next(trace.events("flag-write")).tick
    assert written < said
    assert done.difference is not None
    assert (done.difference.table, done.difference.tick) == ("event", written)


def _replace_image(role: str, data: bytes, *, honest: bool = True) -> Forge:
    sha256 = hashlib.sha256(data).hexdigest() if honest else "0" * 64
    packed = zstandard.ZstdCompressor().compress(data)

    def forge(db: sqlite3.Connection) -> None:
        row = (packed, sha256, len(data), role)
        db.execute("UPDATE image SET data = ?, sha256 = ?, size_bytes = ? WHERE role = ?", row)

    return forge


def test_forged_image(pool: SessionPool, good: Path, tmp_path: Path) -> None:
    kernel = bytearray(IMAGES[0].data)
    kernel[kernel.index(b"Linux version")] ^= 0x20
    done = prove(pool, forged(good, tmp_path, _replace_image("kernel", bytes(kernel))))
    assert done.difference is not None
    assert (done.difference.table, done.difference.tick) == ("placement", 0)
    done = prove(pool, forged(good, tmp_path, _replace_image("purgatory", b"no ELF at all")))
    assert done.difference is not None
    assert done.difference.table == "error"
    assert "ran, but is not recorded" in done.difference.words
    path = forged(good, tmp_path, _replace_image("kernel", bytes(kernel), honest=False))
    with pytest.raises(TraceCorruptError, match="sha256"):
        prove(pool, path)
    with pytest.raises(TraceError, match="cut off before its images"):
        prove(pool, forged(good, tmp_path, "DELETE FROM image WHERE role = 'kernel'"))


def test_images_too_large_are_not_unpacked(pool: SessionPool, good: Path, tmp_path: Path) -> None:
    path = forged(good, tmp_path, _replace_image("kernel", bytes(64 << 20)))
    with pytest.raises(BootflowError, match="possible here"):
        prove(pool, path, limits=SpecLimits(image_bytes=1 << 20))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpus", 17),
        ("cpus", True),
        ("cpus", "4"),
        ("boot_cpu", 2),
        ("mem_bytes", 1 << 50),
        ("quantum", 0),
        ("limit_ticks", 1 << 60),
        ("seed", -1),
        ("append", "x" * 5000),
        ("addresses", {"kernel": "0x1"}),
        ("until", 7),
        ("mode\n", "load"),
    ],
)
def test_spec_of_a_stranger_is_checked(field: str, value: object) -> None:
    spec = sample_spec(SAMPLE)
    check_spec(spec, SpecLimits())
    with pytest.raises(TraceCorruptError, match="the trace's spec"):
        check_spec(spec | {field: value}, SpecLimits())


def test_other_version_names_both(pool: SessionPool, good: Path, tmp_path: Path) -> None:
    path = forged(good, tmp_path, f"PRAGMA user_version = {TRACE_VERSION + 6}", sign=False)
    with pytest.raises(TraceVersionError, match=rf"{TRACE_VERSION + 6}; .* {TRACE_VERSION}\b"):
        prove(pool, path)


def _content(path: Path) -> tuple[object, ...]:
    with TraceReader(path) as t:
        documents = (t.status, t.spec, t.placement, t.end, t.digest, t.images())
        rows = (list(t.slices()), list(t.events()), list(t.console_chunks()), t.checkpoints())
        return *documents, *rows


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_flipped_bit_is_found_or_harmless(pool: SessionPool, good: Path, data: Any) -> None:
    broken = bytearray(good.read_bytes())
    bit = data.draw(st.integers(0, len(broken) * 8 - 1))
    broken[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flipped"
        path.write_bytes(broken)
        try:
            done = verify(path, pool, Path(folder) / "again")
        except TraceError:
            return
        if done.verified:
            assert _content(path) == _content(good)


def test_part_of_a_run_is_verified_as_far_as_it_goes(
    pool: SessionPool, good: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cancelled.bootflow"

    def stop(tick: int) -> None:
        if tick > 100_000:
            pool.cancel("part")

    outcome = pool.record("part", path, sample_spec(SAMPLE), IMAGES, on_tick=stop)
    if outcome.status == "finished":
        pytest.fail("the run was over before it could be cancelled")
    done = prove(pool, path)
    assert (done.verified, done.status, done.digest) == (True, "cancelled", None), done.difference
    assert done.rows["event"] > 10
    with TraceReader(path) as trace:
        last = trace.last_tick
        assert last in [loop.end for loop in trace.loops()]
    for table, change in (
        ("loop", f'UPDATE loop SET turns = 1 << 40 WHERE "end" = {last}'),
        ("loop", f'UPDATE loop SET ticks = 1 << 40 WHERE "end" = {last}'),
        ("loop", f"UPDATE loop SET head = '0x0000000000000040' WHERE \"end\" = {last}"),
        ("loop", f'UPDATE loop SET begin = 0 WHERE "end" = {last}'),
        ("loop", f'UPDATE loop SET cpu = 1 WHERE "end" = {last}'),
        ("loop", f'UPDATE loop SET "end" = 1 << 40 WHERE "end" = {last}'),
        ("loop", f'UPDATE loop SET turns = turns + 1 WHERE "end" < {last}'),
    ):
        found = prove(pool, forged(path, tmp_path, change, sign=False)).difference
        assert found is not None, change
        assert found.table == table, change
    killed = forged(good, tmp_path, *_KILL, sign=False)
    done = prove(pool, killed)
    assert (done.verified, done.status) == (True, "killed")
    assert 0 < done.ticks < 4_000_000
    wrong = forged(killed, tmp_path / "..", "UPDATE event SET cpu = 1 WHERE id = 3", sign=False)
    done = prove(pool, wrong)
    wrong.unlink()
    assert done.difference is not None
    assert (done.difference.table, done.difference.cpu) == ("event", 1)


def test_a_cpu_that_waits_when_a_run_is_cut_off_was_in_its_loop(
    pool: SessionPool, tmp_path: Path
) -> None:
    """Its loop ends where it last stopped, before the end; run again, it goes on."""
    path = tmp_path / "early.bootflow"
    sample = get_sample("kdump-be")
    images = [
        ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
        ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
    ]

    def stop(tick: int) -> None:
        if tick > 700:
            pool.cancel("early")

    outcome = pool.record("early", path, sample_spec(sample), images, on_tick=stop)
    assert outcome.status == "cancelled"
    with TraceReader(path) as trace:
        assert trace.end is not None
        assert min(loop.end for loop in trace.loops()) < trace.end["tick"]
    done = prove(pool, path)
    assert done.verified, done.difference
    assert done.rows["loop"] > 0


_KILL = (
    *(f"DELETE FROM {table} WHERE tick > 3000000" for table in ("slice", "event", "console")),
    "DELETE FROM slice WHERE tick + ticks > 3000000",
    "DELETE FROM checkpoint WHERE tick > 3000000",
    'DELETE FROM loop WHERE "end" > 3000000',
    "DELETE FROM meta WHERE key IN ('end', 'digest', 'progress')",
    "UPDATE meta SET value = 'killed' WHERE key = 'status'",
)


def test_command_line(good: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.main, ["verify", str(good)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("verify:   OK: running it again gives the same\n")
    with TraceReader(good) as trace:
        assert f"digest:   {trace.digest}" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 75
    wrong = forged(good, tmp_path, FORGERIES["value"][0])
    done = CliRunner().invoke(cli.main, ["verify", "--json", str(wrong)])
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["verified"] is False
    assert document["difference"]["table"] == "event"
    assert document["difference"]["recorded"]["value"] == "0x0000000000000001"
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    done = CliRunner().invoke(cli.main, ["verify", str(tmp_path / "junk")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "not readable as a trace" in done.stderr


# --- uploaded -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Index]]:
    """A data directory with a worker in a process of its own."""
    folder = tmp_path_factory.mktemp("data")
    index = Index(folder)
    command = [sys.executable, "-m", "app.worker", str(folder), "--with-parent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield folder, index
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 0
    index.close()


def upload(site: tuple[Path, Index], data: bytes) -> Run:
    folder, index = site
    files = {"trace": {"name": "x.bootflow", "sha256": "0" * 64, "size_bytes": len(data)}}
    run, _ = index.add(spec={}, files=files)
    assert run.asked == ""
    path = upload_path(folder, run.id, "trace")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    worker.enqueue_record(folder, run.id)
    deadline = time.monotonic() + 30
    while not (run := index.get(run.id)).ended:
        assert time.monotonic() < deadline
        assert not trace_path(folder, run.id).exists() or run.status == "verifying"
        time.sleep(0.02)
    while path.parent.exists():  # the last thing to go
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return run


def test_uploaded_trace_is_shown_once_verified(site: tuple[Path, Index], good: Path) -> None:
    run = upload(site, good.read_bytes())
    assert (run.status, run.word, run.asked) == ("finished", "MOVES", "move")
    assert run.spec["cpus"] == SAMPLE.cpus
    assert run.files["kernel"]["sha256"] == hashlib.sha256(IMAGES[0].data).hexdigest()
    kept = trace_path(site[0], run.id)
    assert _content(kept) == _content(good)
    assert kept.read_bytes() != good.read_bytes()  # it is our own recording


@pytest.mark.parametrize("name", ["value", "end"])
def test_forged_upload_is_not_shown(
    site: tuple[Path, Index], good: Path, tmp_path: Path, name: str
) -> None:
    run = upload(site, forged(good, tmp_path, FORGERIES[name][0]).read_bytes())
    assert run.status == "failed"
    assert "running it again gives something else" in run.verdict
    assert not trace_path(site[0], run.id).exists()


def test_upload_of_another_version_names_both(
    site: tuple[Path, Index], good: Path, tmp_path: Path
) -> None:
    path = forged(good, tmp_path, f"PRAGMA user_version = {TRACE_VERSION + 6}", sign=False)
    run = upload(site, path.read_bytes())
    assert run.status == "failed"
    assert f"version {TRACE_VERSION + 6}; this bootflow reads {TRACE_VERSION}" in run.verdict
    assert str(site[0]) not in run.verdict


def test_upload_that_is_cut_off_or_none(site: tuple[Path, Index], good: Path) -> None:
    run = upload(site, b"no trace")
    assert run.status == "failed"
    assert "not readable as a trace" in run.verdict
    with tempfile.TemporaryDirectory() as folder:
        part = forged(good, Path(folder), *_KILL, sign=False).read_bytes()
    run = upload(site, part)
    assert (run.status, run.word) == ("failed", "")
    assert "only finished traces are shown" in run.verdict


def test_a_trace_of_version_1_is_read_and_verified(pool: SessionPool) -> None:
    """Recorded by the bootflow of 2026-11-22 from our own pair; it knows no loops."""
    path = Path(__file__).parents[1] / "data" / "version-1.bootflow"
    with TraceReader(path) as reader:
        assert (reader.version, list(reader.loops())) == (1, [])
        assert reader.check() == reader.digest
        engine = reader.placement["engine"]
    if engine == ENGINE_REVISION:
        done = prove(pool, path)
        assert (done.verified, done.digest) == (True, reader_digest(path))
        assert "loop" not in done.rows


def reader_digest(path: Path) -> str | None:
    with TraceReader(path) as reader:
        return reader.digest
