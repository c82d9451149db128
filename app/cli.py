"""The command line `bootflow`; the only place that prints and exits.

Results go to stdout, progress and errors to stderr. Exit status: 0, 1 for a run that hung or
faulted, 2 for bad input. Options have the names that kexec gives them. Recording and replaying
happen in the same locked-down process as for the web.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from app.cli_reading import READING, in_file, json_option, print_json, print_lines, trace_argument
from app.command import record_line, spec_of
from app.exploring import Explored, explore_trace, record_races
from app.seeking import ASKED, seek_document
from app.sessions import Outcome, PoolLimits, SessionPool
from app.text import check_lines, fit, moment_lines, schedule_document
from app.verify import verification_document, verification_lines, verify
from emulator.check import Report, check_trace
from emulator.errors import BootflowError, LimitError, SessionError, TraceError, size_words
from emulator.explanation import Sentence, explain
from emulator.options import no_such_cpu
from emulator.records import check_answer
from emulator.trace import ImageFile, TraceReader
from emulator.verdict import verdict

MAX_FILE_BYTES = 512 << 20
RECORD_CHECKPOINT_SECONDS = 0.25
"""Nobody asks the session of `record`: it ends with the command."""
MAX_CONNECTIONS = 1000
"""Open at once; who comes later waits until one closes, however little the others ask."""
_LIMITS = PoolLimits(record_seconds=3600.0, answer_seconds=300.0)


class Size(click.ParamType[int]):
    """Bytes as "512M", "1G", "0x2000000" or decimal."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(0x[0-9a-fA-F]{1,16}|[0-9]{1,18})([KMG]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size: write 512M, 1G or 0x2000000", param, ctx)
        base = 16 if match[1].startswith("0x") else 10
        return int(match[1], base) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


class Main(click.Group):
    """The group of all commands; turns our errors into messages and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BootflowError as exc:
            _complain(exc)
            ctx.exit(2)
        except BrokenPipeError:
            # Who reads has enough (`| head`): nothing more can be said, not at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(128 + signal.SIGPIPE)


def _complain(exc: BootflowError) -> None:
    click.echo(f"bootflow: {exc.message}", err=True)
    if exc.hint:
        click.echo(f"bootflow: {exc.hint}", err=True)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bootflow", prog_name="bootflow")
def main() -> None:
    """Show how a PowerPC64 Linux machine goes from one kernel to the next."""


for _command in READING:
    main.add_command(_command)


# --- record -----------------------------------------------------------------------------------


@main.command()
@click.option("-l", "--load", is_flag=True, help="Load as kexec -l does: an ordinary kexec.")
@click.option("-p", "--load-panic", is_flag=True, help="Load as kexec -p does: a crash kernel.")
@click.argument("kernel", type=in_file)
@click.option("--purgatory", type=in_file, required=True, help="purgatory.ro, kexec or vmlinux.")
@click.option("--append", "--command-line", default="", help="The new kernel's command line.")
@click.option("--dtb", "--devicetreeblob", type=in_file, help="Device tree of the machine.")
@click.option("--ramdisk", "--initrd", type=in_file, help="Initial ramdisk.")
@click.option("-i", "--no-checks", is_flag=True, help="Purgatory checks no digest.")
@click.option("-d", "--debug", is_flag=True, help="Print the placement; purgatory prints too.")
@click.option("--cpus", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--boot-cpu", type=click.IntRange(0, 15), default=0, show_default=True)
@click.option("--mem", type=Size(), default="1G", show_default=True, help="RAM of the machine.")
@click.option("--base", type=Size(), help="Load address of the kernel.")
@click.option("--signature", is_flag=True, help="r6 = 0xfeed1234, as 2.6.28-rc1 after a crash.")
@click.option(
    "--corrupt",
    metavar="ADDR",
    type=Size(),
    help="Invert the loaded byte at this real address after the digest was taken.",
)
@click.option("--quantum", type=click.IntRange(1), help="Instructions a slice.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the schedule.")
@click.option("--schedule", default="", help="One that check --schedules names.")
@click.option("--until", help="Stop at this symbol or tick.")
@click.option("--limit", type=click.IntRange(1), help="Ticks after which the run ends.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Trace.")
@click.pass_context
def record(ctx: click.Context, /, output: Path | None, **options: Any) -> None:
    """Run KERNEL's hand-off and write its trace; print the verdict and the file."""
    if options["load"] == options["load_panic"]:
        raise click.UsageError("give one of --load and --load-panic")
    path = output or _free_name(options["kernel"])
    if path.exists():
        raise TraceError(f"{path} exists", hint="Remove it, or choose another name with -o.")
    progress = _Progress(_until_tick(options["until"]) or 0)
    with SessionPool(
        _LIMITS, keep_spare=False, checkpoint_seconds=RECORD_CHECKPOINT_SECONDS
    ) as pool:
        images = [
            _image(role, options[name])
            for role, name in (
                ("kernel", "kernel"),
                ("purgatory", "purgatory"),
                ("dtb", "dtb"),
                ("initrd", "ramdisk"),
            )
            if options[name] is not None
        ]
        with _terminated_as_interrupted():
            outcome = pool.record("run", path, spec_of(options), images, on_tick=progress.show)
    progress.clear()
    ctx.exit(_report(path, outcome, debug=options["debug"]))


def _until_tick(until: str | None) -> int | None:
    return int(until) if until and until.isdecimal() else None


def _free_name(kernel: Path) -> Path:
    """Return a file name in the working directory that is not taken."""
    name = f"{kernel.name}.bootflow"
    for number in range(2, 10_000):
        if not Path(name).exists():
            break
        name = f"{kernel.name}-{number}.bootflow"
    return Path(name)


def _image(role: str, path: Path) -> ImageFile:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise LimitError(f"{path}: {size} bytes; {size_words(MAX_FILE_BYTES)} are possible")
    try:
        return ImageFile(role, path.name, path.read_bytes())
    except OSError as exc:
        raise TraceError(f"{path}: {exc.strerror}") from exc


class _Progress:
    """One line on a terminal's stderr: a bar where the end is known, else ticks and their rate."""

    WIDTH = 32

    def __init__(self, goal: int) -> None:
        self.goal, self._start, self._shown = goal, time.monotonic(), 0.0
        self._on = sys.stderr.isatty()

    def show(self, tick: int) -> None:
        """Say how far the run has come; cheap enough for every record."""
        now = time.monotonic()
        if not self._on or now - self._shown < 0.1:
            return
        self._shown = now
        rate = tick / max(now - self._start, 0.001) / 1e6
        bar = ""
        if self.goal:
            done = min(tick * self.WIDTH // self.goal, self.WIDTH)
            bar = f"[{'#' * done}{'.' * (self.WIDTH - done)}] "
        click.echo(f"\r{bar}{tick / 1e6:,.1f} M ticks, {rate:,.0f} M/s ", err=True, nl=False)

    def clear(self) -> None:
        """Make room for what comes next."""
        if self._on:
            click.echo("\r" + " " * 74 + "\r", err=True, nl=False)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that the trace says how the run ended."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _report(path: Path, outcome: Outcome, *, debug: bool) -> int:
    """Print what a recording came to; returns the exit status."""
    with TraceReader(path) as trace:
        placed = bool(trace.placement)
        if debug:
            print_lines(str(line) for line in trace.placement.get("debug", []))
        if outcome.status == "finished":
            print_lines(part for line in verdict(trace).lines for part in fit(line, indent=10))
            click.echo(f"digest: {outcome.digest}")
            click.echo(f"trace: {path}")
    if outcome.error is None:
        return 0 if outcome.end and outcome.end["ok"] else 1
    _complain(outcome.error)
    if placed:
        click.echo(f"trace: {path}")
        return 1
    path.unlink()
    return 1 if isinstance(outcome.error, SessionError) else 2


# --- reading a trace --------------------------------------------------------------------------


@main.command()
@trace_argument
@click.option("--tick", type=click.IntRange(0), help="The moment; the last one by default.")
@click.option("--cpu", type=click.IntRange(0, 15), help="Only this CPU.")
@json_option
def show(trace: Path, tick: int | None, cpu: int | None, as_json: bool) -> None:
    """Show the machine at one tick of TRACE: registers, code, low memory, the flag."""
    with TraceReader(trace) as reader:
        last = reader.last_tick
        if cpu is not None and cpu >= int(reader.spec.get("cpus", 1)):
            message = no_such_cpu(cpu, int(reader.spec.get("cpus", 1)))
            raise TraceError(f"{trace}: {message}", hint="CPUs are counted from 0.")
    if tick is not None and tick > last:
        raise TraceError(f"{trace}: no tick {tick}; the last one is {last}")
    with SessionPool(_LIMITS, keep_spare=False) as pool:
        question = {"q": "state", "tick": last if tick is None else tick}
        state = check_answer("state", pool.query("run", trace, question))
    try:
        if as_json:
            print_json(_state_document(state, cpu))
        else:
            print_lines(moment_lines(state, last, cpu))
    except (KeyError, TypeError, ValueError) as exc:
        raise SessionError(f"the session's answer lacks something: {exc!r}") from exc


def _state_document(state: dict[str, Any], cpu: int | None) -> dict[str, Any]:
    """Return the documented part of a session's answer."""
    per_cpu = ("cpu", "ticks", "stage", "symbol", "line", "registers")
    return {
        "tick": state["tick"],
        "cpus": [
            {key: row[key] for key in per_cpu if key != "line" or row.get(key)}
            for row in state["cpus"]
            if cpu is None or row["cpu"] == cpu
        ],
        "low_memory": state["low_memory"],
        "flags": [
            {key: flag[key] for key in ("name", "addr", "size", "value")} for flag in state["flags"]
        ],
    }


@main.command()
@trace_argument
@click.argument("what", type=click.Choice(ASKED), metavar="WHAT")
@click.option("--tick", type=click.IntRange(0), required=True, help="Seen from this moment.")
@click.option("--at", default="", help="A place or register: 0x5c, 0x200005c+4, r7.")
@click.option("--cpu", type=click.IntRange(0, 15), help="Whose register; a step of this CPU only.")
@json_option
@click.pass_context
def seek(ctx: click.Context, /, trace: Path, what: str, as_json: bool, **seen: Any) -> None:
    """Say who wrote last or reads next, or where one step leads; exit status 1 if nowhere.

    WHAT is last-write, next-read, previous or next (access) of --at; or next-insn, next-event,
    next-slice, previous-insn ..., of all CPUs or of --cpu.
    """
    with TraceReader(trace) as reader, SessionPool(_LIMITS, keep_spare=False) as pool:
        document = seek_document(reader, what, seen, lambda query: pool.query("run", trace, query))
    if as_json:
        print_json(document)
    else:
        print_lines(part for line in document["lines"] for part in fit(line, indent=4))
    ctx.exit(1 if document["tick"] is None else 0)


@main.command("check")
@trace_argument
@click.option("--schedules", type=click.IntRange(0, 10_000), help="Try N seeds, and adversaries.")
@json_option
@click.pass_context
def show_check(ctx: click.Context, trace: Path, schedules: int | None, as_json: bool) -> None:
    """Judge the rules of the hand-off on TRACE; exit status 1 when one fails."""
    with TraceReader(trace) as reader:
        report = check_trace(reader)
        names = {role: info.name for role, info in reader.image_infos().items()}
        spec = reader.spec

    def command(schedule: str) -> str:
        return record_line({**spec, "schedule": schedule}, names)

    with SessionPool(_LIMITS, keep_spare=False) as pool:
        why = () if as_json else _why(pool, trace, report)
        found = None if schedules is None else _explored(pool, trace, schedules)
    if as_json:
        document = report.document()
        if found is not None:
            document["schedules"] = schedule_document(found, command)
        print_json(document)
    else:
        lines = check_lines(report, why, found, command)
        print_lines(part for line in lines for part in fit(line, indent=10))
    ctx.exit(1 if report.failed or (found is not None and found.races) else 0)


def _why(pool: SessionPool, trace: Path, report: Report) -> tuple[Sentence, ...]:
    """Ask the replayed run for the deciding branches; the rules stand without them."""
    try:
        return explain(report.seen, lambda query: pool.query("run", trace, query))
    except (BootflowError, KeyError, TypeError, ValueError, StopIteration) as exc:
        click.echo(f"bootflow: no explanation: {exc}", err=True)
        return ()


def _explored(pool: SessionPool, trace: Path, seeds: int) -> Explored:
    """Explore the schedules, and record those that fail beside the trace."""

    def show(so_far: Explored) -> None:
        if sys.stderr.isatty():
            ended = so_far.tried == so_far.planned
            click.echo(f"\r{so_far.tried} of {so_far.planned} schedules ", err=True, nl=ended)

    return record_races(pool, trace, explore_trace(trace, seeds, show))


@main.command("verify")
@trace_argument
@json_option
@click.pass_context
def verify_trace(ctx: click.Context, trace: Path, as_json: bool) -> None:
    """Prove TRACE: run it again, compare every row; exit status 1 if anything differs."""
    progress = _Progress(0)

    def show(tick: int, goal: int) -> None:
        progress.goal = goal
        progress.show(tick)

    with (
        tempfile.TemporaryDirectory(prefix="bootflow-") as folder,
        SessionPool(_LIMITS, keep_spare=False) as pool,
        _terminated_as_interrupted(),
    ):
        done = verify(trace, pool, Path(folder) / "again", on_tick=show)
    progress.clear()
    if as_json:
        print_json(verification_document(done))
    else:
        print_lines(part for line in verification_lines(done) for part in fit(line, indent=10))
    ctx.exit(0 if done.verified else 1)


# --- the rest ---------------------------------------------------------------------------------


@main.command("fetch-debian")
@click.option("--debug-symbols", is_flag=True, help="The same kernel with DWARF too: 720 MB more.")
@json_option
def fetch_debian(debug_symbols: bool, as_json: bool) -> None:
    """Fetch Debian's ppc64el kernel and kexec into the cache; print where they are."""
    from app import debian

    made = debian.fetched(debug_symbols, say=lambda line: click.echo(line, err=True))
    if as_json:
        print_json({name: str(path) for name, path, _ in made})
    else:
        print_lines(f"{name}: {path} ({package})" for name, path, package in made)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var"),
    show_default=True,
    help="Where the index, the uploads and the traces lie.",
)
@click.option("--samples", is_flag=True, help="Record the sample runs if they are not there.")
@click.option(
    "--public-url",
    default="",
    help="Address that readers use, if it is not the one served at: https://boot.example/",
)
def serve(host: str, port: int, data: Path, samples: bool, public_url: str) -> None:
    """Serve the web page, with its worker, until interrupted."""
    import waitress

    from app import create_app
    from app.worker import raise_descriptor_limit

    os.umask(0o077)  # what users upload is nobody else's on this machine
    raise_descriptor_limit()
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    named = {"PUBLIC_URL": public_url, "HOSTS": _own_hosts(host)}
    application = create_app({"DATA_DIR": data, **named})
    try:
        server = waitress.create_server(
            application,
            host=host,
            port=port,
            threads=8,  # each takes the request that waits longest
            connection_limit=MAX_CONNECTIONS,
            asyncore_use_poll=True,  # select() ends at descriptor 1023
            # The application answers what is too large; this is for what lies about its size.
            max_request_body_size=int(application.config["MAX_UPLOAD_BYTES"]) + (64 << 20),
            ident=None,
        )
    except OSError as exc:
        raise LimitError(f"{host}:{port}: {exc.strerror}", hint="Choose another --port.") from exc
    with WorkerProcess(data), _terminated_as_interrupted():
        if samples:
            _queue_samples(data)
        bound = getattr(server, "effective_port", port)
        click.echo(f"http://{host}:{bound}/")
        server.run()  # returns on KeyboardInterrupt


def _own_hosts(bound: str) -> tuple[str, ...]:
    """Return under which names a server bound to an address is asked for."""
    if bound not in ("0.0.0.0", "::", "*", ""):  # noqa: S104
        return (f"[{bound}]" if ":" in bound else bound,)
    names = {socket.gethostname(), socket.getfqdn()}
    with suppress(OSError):
        for _, _, _, _, address in socket.getaddrinfo(socket.gethostname(), None):
            names.add(f"[{address[0]}]" if ":" in str(address[0]) else str(address[0]))
    return tuple(sorted(names))


def _queue_samples(data: Path) -> None:
    from app.index import Index
    from app.samples import add_sample_runs
    from app.worker import enqueue_record

    index = Index(data)
    try:
        enqueue: Callable[[str], None] = lambda run_id: enqueue_record(data, run_id)  # noqa: E731
        add_sample_runs(data, index, enqueue)
    finally:
        index.close()


class WorkerProcess:
    """The worker as a child of `serve`: started again if it dies, ended with it."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._stopping = threading.Event()
        self._process = self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "app.worker", str(self._data), "--with-parent"]
        paths = [str(Path(path).resolve()) for path in sys.path if path]
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *paths])}
        return subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, env=environment, start_new_session=True
        )

    def _watch(self) -> None:
        while True:
            self._process.wait()
            if self._stopping.wait(1.0):
                return
            click.echo("bootflow: the worker ended; starting it again", err=True)
            self._process = self._start()

    def __enter__(self) -> WorkerProcess:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(15.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    main()
