"""The command line: exit status, formats, 75 columns; with the fake engine in the real sandbox."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app import cli
from app.sessions import SessionPool
from emulator.errors import TraceError
from emulator.trace import ImageFile, TraceReader, TraceWriter

Invoke = Callable[..., Result]

ROOT = str(Path(cli.__file__).parent.parent)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([ROOT, *filter(None, sys.path)])}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setattr(cli, "SessionPool", partial(SessionPool, engine="tests.fake_engine"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinux").write_bytes(b"K" * 100)
    (tmp_path / "kexec").write_bytes(b"P" * 100)

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(cli.main, list(args))

    return invoke


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recorded trace that the tests only read."""
    path = tmp_path_factory.mktemp("trace") / "t"
    images = [ImageFile("kernel", "vmlinux", b"K"), ImageFile("purgatory", "kexec", b"P")]
    with SessionPool(engine="tests.fake_engine", keep_spare=False) as pool:
        pool.record("t", path, {"mode": "load", "cpus": 2}, images)
    return str(path)


def record(run: Invoke, *args: str, **fake: object) -> Result:
    words = ["record", "--load", "vmlinux", "--purgatory", "kexec", *args]
    return run(*words, "--append", json.dumps(fake))


def test_record_prints_the_verdict_and_the_file(run: Invoke, tmp_path: Path) -> None:
    done = record(run, "--cpus", "2", "--debug", "-o", "t.bootflow")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:2] == ["kernel is 2000000", "dt_offset is 1000"]
    assert lines[-1] == "trace: t.bootflow"
    assert lines[-2].startswith("digest: ")
    with TraceReader(tmp_path / "t.bootflow") as trace:
        assert trace.spec["cpus"] == 2
        assert trace.spec["mode"] == "load"


def test_record_names_traces_of_its_own(run: Invoke, tmp_path: Path) -> None:
    names = [record(run).stdout.splitlines()[-1] for _ in range(2)]
    assert names == ["trace: vmlinux.bootflow", "trace: vmlinux-2.bootflow"]


def test_a_run_that_hung_is_status_1(run: Invoke) -> None:
    done = record(run, ok=False)
    assert done.exit_code == 1
    assert "trace: " in done.stdout


def test_bad_input_is_status_2_and_leaves_no_file(run: Invoke, tmp_path: Path) -> None:
    done = record(run, "-o", "t", fault="error")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "bootflow: no ELF\nbootflow: give one\n"
    assert not (tmp_path / "t").exists()


def test_session_that_crashes_is_status_1(run: Invoke) -> None:
    assert record(run, fault="crash").exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        ["record", "vmlinux", "--purgatory", "kexec"],
        ["record", "--load", "--load-panic", "vmlinux", "--purgatory", "kexec"],
        ["record", "--load", "missing", "--purgatory", "kexec"],
        ["record", "--load", "vmlinux"],
        ["record", "--load", "vmlinux", "--purgatory", "kexec", "--cpus", "17"],
        ["record", "--load", "vmlinux", "--purgatory", "kexec", "--mem", "much"],
        ["record", "--load", "vmlinux", "--purgatory", "kexec", "-o", "kexec"],
        ["show", "vmlinux"],
        ["events", "missing"],
        ["show", "TRACE", "--tick", "1001"],
        ["show", "TRACE", "--cpu", "5"],
    ],
)
def test_bad_use_is_status_2(run: Invoke, trace: str, words: list[str]) -> None:
    done = run(*[trace if word == "TRACE" else word for word in words])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert done.stderr


def test_show_json_has_the_documented_keys(run: Invoke, trace: str) -> None:
    document = json.loads(run("show", trace, "--tick", "5", "--json").stdout)
    assert set(document) == {"tick", "cpus", "low_memory", "flags"}
    assert document["tick"] == 5
    assert len(bytes.fromhex(document["low_memory"])) == 256
    cpu = document["cpus"][1]
    assert set(cpu) == {"cpu", "ticks", "stage", "symbol", "registers"}
    assert set(cpu["registers"]) == {
        *("nip", "msr", "cr", "lr", "ctr", "xer"),
        *(f"r{n}" for n in range(32)),
    }
    assert set(document["flags"][0]) == {"name", "addr", "size", "value"}
    only = json.loads(run("show", trace, "--cpu", "0", "--json").stdout)
    assert [row["cpu"] for row in only["cpus"]] == [0]
    assert only["tick"] == 1000


def test_show_is_an_oops_block_of_75_columns(run: Invoke, trace: str) -> None:
    text = run("show", trace, "--tick", "5").stdout
    assert "NIP:  c000000002000010 LR: 0000000000000000 CTR: 0000000000000000\n" in text
    assert "MSR:  8000000000001003 <SF,ME,RI,LE>  CR: 24000220  XER: 00000000\n" in text
    assert "NIP [c000000002000010] start_here_multiplatform+0x1c/0x30\n" in text
    assert "LR [0000000000000000] 0x0\n" in text
    assert "=> c000000002000010: 4c 00 00 48  b 0x5c\n" in text
    assert text.count("GPR28:") == 1
    assert "\ncpu 1: as cpu 0\n" in text
    assert "__run_at_load at 0x000000000200005c, 4 bytes: 0x00000001\n" in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 75
    assert "\t" not in text
    assert run("show", trace, "--cpu", "1").stdout.count("GPR28:") == 1


def test_events(run: Invoke, trace: str) -> None:
    rows = json.loads(run("events", trace, "--json").stdout)
    assert set(rows[0]) == {
        *("tick", "cpu", "kind", "addr", "size", "value", "nip", "symbol", "text"),
    }
    text = run("events", trace).stdout
    assert "flag-write   0x200005c <- 0x00000001 __run_at_load" in text
    assert max(map(len, text.splitlines())) <= 75
    assert len(json.loads(run("events", trace, "--kind", "stage", "--json").stdout)) == 1


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "many"
    writer = TraceWriter(path)
    writer.start({"mode": "load"}, [ImageFile("kernel", "vmlinux", b"K")])
    event = {"t": "event", "cpu": 0, "kind": "hypercall", "text": "x" * 40}
    for tick in range(20_000):
        writer.apply(event | {"tick": tick})
    writer.apply({"t": "end", "reason": "complete", "tick": 20_000, "ok": True})
    writer.finish()
    command = [sys.executable, "-P", "-m", "app.cli", "events", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip().startswith(b"0")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_a_generator_may_outlive_its_trace(trace: str) -> None:
    with TraceReader(trace) as reader:
        events = reader.events()
        next(events)
    events.close()


def test_a_cpu_that_is_not_there_is_named(run: Invoke, trace: str) -> None:
    assert "there is no CPU 5: --cpus 2 gives 0 and 1" in run("show", trace, "--cpu", "5").stderr


def test_console_cannot_drive_the_terminal(run: Invoke, trace: str) -> None:
    assert run("console", trace).stdout == "Linux version 6.1\n.[31mred\n"
    assert run("console", trace, "--tick", "49").stdout.strip() == ""
    (chunk,) = json.loads(run("console", trace, "--json").stdout)
    assert (chunk["tick"], chunk["cpu"]) == (50, 0)


def test_verdict_command(run: Invoke, trace: str) -> None:
    document = json.loads(run("verdict", trace, "--json").stdout)
    assert document["status"] == "finished"
    assert run("verdict", trace).exit_code == 0


_RECORD = """
import sys
from functools import partial
from app import cli
from app.sessions import SessionPool
cli.SessionPool = partial(SessionPool, engine="tests.fake_engine")
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, "killed"), (signal.SIGTERM, "killed")]
)
def test_interrupted_recording_is_a_trace_that_says_so(
    run: Invoke, tmp_path: Path, number: signal.Signals, status: str
) -> None:
    fake = json.dumps({"ticks": 10**6, "slow": 0.02})
    words = ["record", "-l", "vmlinux", "--purgatory", "kexec", "-o", "t", "--append", fake]
    with subprocess.Popen(
        [sys.executable, "-c", _RECORD, *words],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 20
        while not _growing(tmp_path / "t"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    with TraceReader(tmp_path / "t") as trace:
        assert (trace.status, trace.why) == (status, "interrupted")


def _growing(path: Path) -> bool:
    try:
        with TraceReader(path) as trace:
            return trace.last_tick > 0
    except TraceError:
        return False


def test_serve_answers_and_ends_cleanly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=10) as page:
            assert b"bootflow" in page.read()
        deadline = time.monotonic() + 20
        while not (tmp_path / "sessions.sock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(20) == 0
    assert not (tmp_path / "sessions.sock").exists()


def test_seek_steps_by_the_slices(run: Invoke, trace: str) -> None:
    with TraceReader(Path(trace)) as reader:
        starts = [item.tick for item in reader.slices()]
    done = run("seek", trace, "next-slice", "--tick", "0")
    assert (done.exit_code, done.stdout) == (0, f"next-slice: tick {starts[1]}\n")
    document = json.loads(run("seek", trace, "next-insn", "--tick", "5", "--json").stdout)
    assert (document["found"], document["tick"], document["from"]) == (True, 6, 5)
    nowhere = run("seek", trace, "previous-insn", "--tick", "0")
    assert (nowhere.exit_code, nowhere.stdout) == (1, "no previous insn from tick 0\n")


def test_seek_refuses_what_cannot_be_asked(run: Invoke, trace: str) -> None:
    for words in (
        ("next-read", "--tick", "5"),
        ("next", "--tick", "5", "--at", "r7"),
        ("next-insn", "--tick", "5", "--cpu", "9"),
        ("next-insn", "--tick", "99999999"),
        ("fly", "--tick", "5"),
        ("next-read", "--tick", "5", "--at", "r99"),
    ):
        assert run("seek", trace, *words).exit_code == 2, words
