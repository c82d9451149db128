"""Blueprint: the gallery with its form, and what the form or `curl -F` sends.

Uploaded files are stored as bytes and hashed, never parsed here: that is the sandboxed session's.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, redirect, request, url_for
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.wrappers import Response as AnyResponse

from app import pages
from app.errors import BadOption, DiskFull, TooManyRuns, reads_html
from app.index import Run, new_id, trace_path, upload_path
from app.owners import own_tokens, remember
from app.panels import printable
from app.render import render
from app.runs import index, message_id, open_trace
from app.samples import sample_of_run, sample_run_id, sample_topics
from emulator.errors import BootflowError, LimitError
from emulator.options import no_such_cpu
from emulator.samples import SAMPLES, get_sample

blueprint = Blueprint("uploads", __name__)

ROLES = {"kernel": "kernel", "purgatory": "purgatory", "dtb": "dtb", "ramdisk": "initrd"}
NEEDED = ("kernel", "purgatory")
TRACE = "trace"
"""The field of a trace, which takes the place of images and options."""
ALIASES = {
    "boot-cpu": "boot_cpu", "no_checks": "no-checks", "load_panic": "load-panic",
    "command-line": "append", "command_line": "append", "limit_ticks": "limit",
    "mem_bytes": "mem", "base_addr": "base", "initrd": "ramdisk", "devicetreeblob": "dtb",
}  # fmt: skip
"""Other names of fields, most of them kexec's and the command line's -> the form's."""
FIELDS = (
    "mode", "load", "load-panic", "append", "cpus", "boot_cpu", "mem", "base", "no-checks", "debug",
    "quantum", "seed", "until", "limit", "corrupt", "signature", "title", "note", "message_id",
    "listed",
)  # fmt: skip
"""What the form may hold besides files; anything else is a mistake of the sender."""
_SIZE = re.compile(r"(0x[0-9a-fA-F]+|[0-9]+)([KMG]?)\Z")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_CHUNK_BYTES = 1 << 20
ROOM_HINT = "Delete runs that are no longer needed, or try again later."


@blueprint.get("/")
def show_gallery() -> AnyResponse:
    """Show the runs and the form."""
    return _gallery("html")


@blueprint.get("/runs.<form>")
def show_gallery_twin(form: str) -> AnyResponse:
    """Show the runs as text or JSON."""
    if form not in ("txt", "json"):
        raise BadOption(f"no format .{form[:16]!r}", hint="There are txt and json.")
    return _gallery(form)


def _gallery(form: str) -> AnyResponse:
    chosen = _filter()
    listed = index().recent(limit=200, words=chosen.words)
    own = index().recent(limit=20, words=chosen.words, ids=list(own_tokens()))
    mine, samples = {run.id for run in own}, _sample_ids()
    rows = [row for row in map(_row, listed) if row.head.id not in mine and chosen.fits(row)]
    featured = [row for row in rows if row.head.id in samples and not row.head.message_id]
    others = [row for row in rows if row not in featured]
    mine_rows = [row for row in map(_row, own) if chosen.fits(row)]
    page = pages.GalleryPage(
        pages.gallery_groups(mine_rows, list(map(_sample_row, featured)), others, sample_topics()),
        chosen,
        limits(),
    )
    response = render(page, form)
    response.headers["Cache-Control"] = "no-store"
    return response


def _filter() -> pages.Filter:
    names = {"words": "q"}
    fields = {
        name: request.args.get(names.get(name, name), "").strip()[:200]
        for name in ("words", "kernel", "purgatory", "outcome", "flag", "thread")
    }
    if fields["outcome"] not in ("", *pages.OUTCOMES):
        raise BadOption(f"outcome {fields['outcome'][:20]!r}", hint=", ".join(pages.OUTCOMES))
    if fields["flag"] not in ("", *pages.FLAG_NAMES):
        raise BadOption(f"flag {fields['flag'][:20]!r}", hint=", ".join(pages.FLAG_NAMES))
    return pages.Filter(**fields)


def _sample_row(row: pages.GalleryRow) -> pages.GalleryRow:
    """Add to a sample's row what to look at, and what it is to be read beside."""
    sample = sample_of_run(row.head.id)
    if sample is None:
        return row
    beside = sample_run_id(get_sample(sample.beside)) if sample.beside else ""
    return replace(row, head=replace(row.head, note=row.head.note or sample.note), beside=beside)


@lru_cache(maxsize=1)
def _sample_ids() -> frozenset[str]:
    return frozenset(sample_run_id(sample) for sample in SAMPLES)


def _row(run: Run) -> pages.GalleryRow:
    if run.ended and run.word:
        path = trace_path(Path(current_app.config["DATA_DIR"]), run.id)
        return replace(_ended_row(str(path), run.id), head=pages.head(run))
    return _open_row(run)


@lru_cache(maxsize=512)
def _ended_row(_path: str, run_id: str) -> pages.GalleryRow:
    return _open_row(index().get(run_id))


def _open_row(run: Run) -> pages.GalleryRow:
    """Make a row of the gallery; a trace that cannot be read costs its picture, not the page."""
    try:
        reader = open_trace(run)
        if reader is not None:
            with reader:
                return pages.gallery_row(run, reader)
    except BootflowError:
        current_app.logger.warning("run %s: no picture of its trace", run.id, exc_info=True)
    return pages.gallery_row(run, None)


def limits() -> dict[str, int]:
    """Return the limits that the form shows and that an error names."""
    names = ("MAX_UPLOAD_BYTES", "MAX_CPUS", "MAX_MEM_BYTES", "MAX_QUEUED")
    return {name.lower(): int(current_app.config[name]) for name in names}


@blueprint.post("/")
def upload() -> AnyResponse:
    """Store the files, queue the run, answer with its permalink."""
    whole = bool(_given(TRACE))
    form = known_fields(request.form, request.files)
    spec = {} if whole else parse_spec(form, limits())
    mail = message_id(form.get("message_id", ""))
    waiting = sum(not sample_of_run(run.id) for run in index().unfinished())
    if waiting >= limits()["max_queued"]:
        raise TooManyRuns(
            f"{waiting} runs are waiting or going on; {limits()['max_queued']} may",
            hint="Try again in a minute.",
        )
    run_id = new_id()
    data_dir = Path(current_app.config["DATA_DIR"])
    check_room()
    try:
        files = _store_trace(data_dir, run_id) if whole else _store_all(data_dir, run_id)
    except BootflowError:
        _forget(data_dir, run_id)
        raise
    except OSError as exc:
        _forget(data_dir, run_id)
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull("the disk is full", hint=ROOM_HINT) from exc
    title = " ".join(form.get("title", "").split())
    run, token = index().add(
        spec=spec,
        files=files,
        title=title,
        listed=form.get("listed", "") not in ("", "0"),
        run_id=run_id,
        note=" ".join(form.get("note", "").split()),
        message_id=mail,
    )
    current_app.config["ENQUEUE"](run.id)
    return _answer(run, token)


def check_room() -> None:
    """Refuse what would leave traces that are being recorded, and the index, without room."""
    floor = int(current_app.config["MIN_FREE_BYTES"])
    free = shutil.disk_usage(current_app.config["DATA_DIR"]).free - (request.content_length or 0)
    if free < floor:
        raise DiskFull(
            f"the disk of this server would have {max(free, 0) >> 20:,} MiB left; "
            f"{floor >> 20:,} MiB stay free",
            hint=ROOM_HINT,
        )


def _answer(run: Run, token: str) -> AnyResponse:
    path = url_for("runs.show_run", run_id=run.id)
    if reads_html():
        response: AnyResponse = redirect(path, code=303)
    else:
        base = (current_app.config["PUBLIC_URL"] or request.host_url).rstrip("/")
        text = (
            f"{base}{path}\n"
            f"state:        {run.status}\n"
            f"verdict:      {base}/t/{run.id}.txt\n"
            f"delete token: {token}\n"
        )
        response = Response(text, 201, mimetype="text/plain")
        response.headers["Location"] = f"{base}{path}"
    remember(response, run.id, token)
    response.headers["Cache-Control"] = "no-store"
    return response


def _given(name: str) -> FileStorage | None:
    """Return the file of a field; a browser sends the field of no file too, without a name."""
    for field in (name, *(other for other, known in ALIASES.items() if known == name)):
        storage = request.files.get(field)
        if storage is not None and storage.filename:
            return storage
    return None


def _store_trace(data_dir: Path, run_id: str) -> dict[str, Any]:
    """Store an uploaded trace; it is opened by the worker only, which runs it again."""
    storage = _given(TRACE)
    if storage is None or any(_given(name) for name in ROLES):
        raise BadOption("a trace holds its images", hint="Send a trace, or images, not both.")
    row = _store(storage, upload_path(data_dir, run_id, TRACE))
    if not row["size_bytes"]:
        raise BadOption(f"trace: {row['name']} is empty")
    return {TRACE: row}


def _store_all(data_dir: Path, run_id: str) -> dict[str, Any]:
    """Store the uploaded files; return {role: name, sha256 and size}."""
    files: dict[str, Any] = {}
    for name, role in ROLES.items():
        storage = _given(name)
        if storage is None:
            if name in NEEDED:
                raise BadOption(
                    f"no file {name!r} in the form",
                    hint="curl -F kernel=@vmlinux -F purgatory=@purgatory.ro sends both.",
                )
            continue
        files[role] = _store(storage, upload_path(data_dir, run_id, role))
        if not files[role]["size_bytes"]:
            raise BadOption(f"{name}: {files[role]['name']} is empty")
    return files


def _store(storage: FileStorage, path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as out:
        while chunk := storage.stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    name = printable(Path(storage.filename or "").name)[:100]
    return {"name": name, "sha256": digest.hexdigest(), "size_bytes": size}


def _forget(data_dir: Path, run_id: str) -> None:
    for role in (*ROLES.values(), TRACE):
        upload_path(data_dir, run_id, role).unlink(missing_ok=True)


def known_fields(
    form: MultiDict[str, str], files: MultiDict[str, FileStorage]
) -> MultiDict[str, str]:
    """Return the fields under the form's own names.

    Raises:
        BadOption: a field that means nothing here, or one thing said twice.
    """
    named: MultiDict[str, str] = MultiDict()
    for field in form:
        name = ALIASES.get(field, field)
        if name in (*ROLES, TRACE):
            raise BadOption(
                f"field {field!r} holds a text, not a file", hint=f"curl -F {field}=@FILE sends it."
            )
        if name not in FIELDS:
            raise _unknown(field)
        values = set(form.getlist(field)) | set(named.getlist(name))
        if len(values - {""}) > 1:
            raise BadOption(f"field {name!r} is given twice", hint="Give each field once.")
        named.setlist(name, [max(values)])
    for field in files:
        if ALIASES.get(field, field) not in (*ROLES, TRACE):
            raise _unknown(field)
    return named


def _unknown(field: str) -> BadOption:
    return BadOption(
        f"unknown field {printable(field[:40])!r}",
        hint=f"Files: {', '.join((*ROLES, TRACE))}. Fields: {', '.join(FIELDS)}.",
    )


def _mode(form: MultiDict[str, str]) -> str:
    """Return how to load: `mode=load`, or `load=1` as the command line has it."""
    asked = [name for name in ("load", "load-panic") if _ticked(form, name)]
    mode = form.get("mode", "") or (asked[0] if asked else "load-panic")
    if mode not in ("load", "load-panic") or any(name != mode for name in asked):
        raise BadOption(
            f"mode {' and '.join([mode[:40], *asked])!r}", hint="It is load or load-panic."
        )
    return mode


def parse_spec(form: MultiDict[str, str], limit: dict[str, int]) -> dict[str, Any]:
    """Return what the form asks for as a RunSpec document.

    Raises:
        BadOption: a field is not what it should be.
        LimitError: more CPUs or memory than this server gives.
    """
    mode = _mode(form)
    cpus = _integer(form, "cpus", 4)
    boot_cpu = _integer(form, "boot_cpu", 0)
    if not 1 <= cpus <= limit["max_cpus"]:
        raise LimitError(f"{cpus} CPUs; 1 to {limit['max_cpus']} are possible")
    if not 0 <= boot_cpu < cpus:
        raise BadOption(no_such_cpu(boot_cpu, cpus), hint="CPUs are counted from 0.")
    mem_bytes = parse_size(form.get("mem", "") or "1G", "mem")
    if mem_bytes > limit["max_mem_bytes"]:
        most = pages.size_text(limit["max_mem_bytes"])
        raise LimitError(f"mem {pages.size_text(mem_bytes)}; at most {most} is possible")
    base = form.get("base", "")
    append = form.get("append", "")
    if len(append) > 2047 or not append.isprintable():
        raise BadOption("append: at most 2,047 printable characters")
    spec: dict[str, Any] = {
        "mode": mode,
        "append": append,
        "cpus": cpus,
        "boot_cpu": boot_cpu,
        "mem_bytes": mem_bytes,
        "base_addr": parse_size(base, "base") if base else None,
        "checks": not _ticked(form, "no-checks"),
        "debug": _ticked(form, "debug"),
        "signature": mode == "load-panic" and _ticked(form, "signature"),
        "seed": _integer(form, "seed", 0),
        "until": _until(form),
    }
    if form.get("corrupt", "").strip():
        spec["corrupt"] = parse_size(form["corrupt"], "corrupt")
    for name, key in (("quantum", "quantum"), ("limit", "limit_ticks")):
        if form.get(name, "").strip():
            spec[key] = _integer(form, name, 0)
    return spec


def _until(form: MultiDict[str, str]) -> str | None:
    until = form.get("until", "").strip()
    if until and not re.fullmatch(r"[A-Za-z0-9_.$]{1,128}", until):
        raise BadOption(f"until {until[:40]!r}", hint="Give a symbol or a tick.")
    return until or None


def _ticked(form: MultiDict[str, str], name: str) -> bool:
    return form.get(name, "") not in ("", "0", "off", "false", "no")


def _integer(form: MultiDict[str, str], name: str, default: int) -> int:
    text = form.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise BadOption(f"{name} {text[:40]!r} is not a number")
    return int(text)


def parse_size(text: str, name: str) -> int:
    """Return bytes of "512M", "0x2000000" or "1073741824"."""
    match = _SIZE.match(text.strip())
    if not match or len(text) > 24:
        raise BadOption(f"{name} {text[:40]!r} is not a size", hint="Write 512M, 1G or 0x2000000.")
    return int(match[1], 0 if match[1].startswith("0x") else 10) << _UNITS[match[2]]
