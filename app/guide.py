"""TABLE: what can be asked of the web page: keys, addresses, searches, fields, limits, data.

The help page, its text and its JSON are made from these rows, and so is the dialog that `?` opens;
a test holds them together with the routes, the script and the documents. Blueprint of /help/.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, Response, current_app
from werkzeug.wrappers import Response as AnyResponse

from app.documents import FORMAT_VERSION
from app.errors import BadOption
from app.explorations import LIMITS as EXPLORED
from app.looping import TEXT_HEAD
from app.render import render
from emulator.handoff import FLAGS, LOW_FIELDS, STAGES

blueprint = Blueprint("guide", __name__)


@dataclass(frozen=True)
class Key:
    """Keys of the keyboard and what they do."""

    keys: tuple[str, ...]
    does: str


KEYS = (
    Key(("h", "l"), "previous, next instruction; held down, many"),
    Key(("H", "L"), "previous, next event"),
    Key(("{", "}"), "previous, next slice: a CPU's turn begins"),
    Key(("j", "k"), "previous, next instruction of the open CPU alone"),
    Key(("J", "K"), "previous, next event of the open CPU alone"),
    Key(("(", ")"), "previous, next slice of the open CPU alone"),
    Key(("v",), "make the next CPU the open one"),
    Key(("[", "]"), "previous, next touch of the flag"),
    Key(("w",), "last write of what is followed: its writer"),
    Key((",", "."), "previous, next access of the followed byte"),
    Key(("r",), "next read of what is followed, or its end unread"),
    Key(("b",), "into the grid of low memory: arrows move, Enter follows the byte"),
    Key(("f",), "follow the flag"),
    Key(("Escape",), "let go of what is followed; leave a field"),
    Key(("1", "2", "3", "4"), "open, close the registers of CPU 0, 1, 2, 3"),
    Key(("g",), "go to a tick: type the number, Enter"),
    Key(("/",), "find a symbol, an address, a kind of event"),
    Key(("+", "-", "0"), "zoom in, zoom out, the whole run"),
    Key(("ArrowLeft", "ArrowRight"), "pan the timeline"),
    Key(("o",), "open the fold under the cursor, or close all"),
    Key(("Home", "End"), "first, last tick"),
    Key(("m",), "the most telling moment of the run"),
    Key(("y",), "copy the link of exactly this"),
    Key(("T",), "copy this page as a block of text"),
    Key(("t",), "this page as text"),
    Key(("c",), "compare with another run"),
    Key(("d", "n", "p"), "compare: first divergence, next, previous difference"),
    Key(("a", "B", "x"), "compare: open side A, open side B, swap"),
    Key(("u",), "up: to the run, to the gallery"),
    Key(("?",), "this table"),
)


@dataclass(frozen=True)
class Address:
    """One form of URL."""

    url: str
    gives: str
    formats: str = ""
    """Suffixes of its twins."""


ADDRESSES = (
    Address("/", "gallery, filter, upload; POST: a new run", "/runs.txt /runs.json"),
    Address("/t/<id>/", "a run: verdict, timeline, events", ".txt .json .svg .png .html .bootflow"),
    Address("/t/<id>/<tick>/", "the machine at one tick", ".txt .json .svg .png .html"),
    Address("/t/<id>/embed", "verdict and timeline, to be put into an iframe"),
    Address("/t/<id>/<tick>/embed", "the same with a cursor"),
    Address("/t/<id>/go?tick=", "redirects to a tick; commas may stand in it"),
    Address(
        "/t/<id>/<tick>/seek?at=&what=",
        "redirects to the access of a byte or register: last-write, next-read, previous, next; or "
        "by a step of all CPUs or of cpu=: next-insn, next-event, next-slice, previous-...",
        "seek.txt seek.json",
    ),
    Address(
        "/t/<id>/<tick>/turn?cpu=&head=&turn=",
        "redirects to where a turn begins of a loop that a CPU is in at the tick",
    ),
    Address("/t/<id>/search?q=", "find in a run", "search.txt search.json"),
    Address("/t/<id1>..<id2>/", "two runs aligned by stage", ".txt .json"),
    Address("/compare?a=&b=", "redirects to the comparison of two ids or links"),
    Address("/t/<id>/check/", "the rules of a hand-off, each passed or failed", ".txt .json"),
    Address("/t/<id>/check/explore", "POST schedules: look for races under so many random orders"),
    Address("/t/<id>/check/explore/cancel", "POST token: stop that; what was found stays"),
    Address(
        "/t/<id>/story/",
        "notes pinned to ticks; POST token, tick, text: one more",
        "/t/<id>/story.txt",
    ),
    Address("/t/<id>/story/<number>/", "one note with its moment; ?play=1 goes on by itself"),
    Address("/t/<id>/cancel", "POST: stop a run that goes on"),
    Address("/t/<id>/edit", "POST token, title, note, message_id, listed: what the owner says"),
    Address("/t/<id>/delete", "POST token: delete the files"),
    Address("/help/", "this page", "/help.txt /help.json"),
)

PARAMETERS = (
    ("w", "so many ticks of the timeline, round the cursor; -1: all, folds open"),
    ("from, to", "exactly these ticks of the timeline"),
    ("cpu", "the CPU whose registers and code are open"),
    ("at", "what is followed: 0x5c, 0x200005c+4 (physical), r7"),
    ("kind", "events of one kind"),
)


@dataclass(frozen=True)
class Question:
    """A form that the search takes."""

    example: str
    does: str


QUESTIONS = (
    Question("relocate", "a symbol, or any words of an event or of the console"),
    Question("first NIP = early_setup", "the first time that the trace names a symbol"),
    Question("writes to 0x5c", "all writes of a byte; reads, accesses likewise; 0x5c+4 is a word"),
    Question("0x60", "events at an address, as NIP or as data"),
    Question("1,500,000", "a tick"),
    Question("flag-read", "a kind of event"),
)

FIELDS = (
    ("format_version", f"{FORMAT_VERSION}; grows when a key changes its meaning or goes away"),
    ("run", "id, title, status, created (UTC), asked, note, message_id, parent, facts"),
    ("verdict", "word, asked, as_asked, sentence, lines"),
    ("flag_history", "the flag's chain of custody: number, title, value, text, tick, write"),
    ("last_tick", "the run has ticks 0 to this"),
    ("digest", "SHA-256 over the trace: two runs of the same inputs have the same"),
    ("images", "role, name, sha256, size_bytes; of a run"),
    ("placement", "the loader's work in the words of kexec -d"),
    ("command", "bootflow record with the options of the run, in lines for a shell; of a run"),
    ("where", "a line a CPU: stage, NIP, symbol, since when, what comes next"),
    ("loops", "cpu, level, stage, begin, end, ticks, turns, entries, head, tail, kind, name"),
    ("events", "tick, end_tick, cpu, kind, text, symbol, count; those round the tick"),
    ("events_left_out", "how many more there are"),
    ("console", "tick, cpu, text of each line up to here"),
    ("tick", "of a moment: after so many instructions of all CPUs together"),
    ("cpus", 'of a moment: cpu, id, stage, symbol, registers as "0x.." strings; with DWARF, line'),
    ("low_memory", "of a moment: hex of real 0x0-0xff"),
    ("kernel_low", "of a moment: hex of the first 0x100 bytes of the loaded kernel"),
    ("kernel_addr", "of a moment: where the kernel was loaded"),
    ("low_memory_writers", "a letter a byte: the stage that wrote it last, . if none"),
    ("low_memory_write_ticks", "a tick a byte, null if not written"),
    ("flags", "name, addr, size, value of each flag in the loaded kernel"),
    ("disassembly", "a list a CPU round its NIP: addr, bytes, text, symbol, le; with DWARF, line"),
    (
        "steps",
        "instructions as they ran: tick, cpu, nip, bytes, text, changed, memory; with DWARF, line",
    ),
    ("selected", "what is followed: name, value, and the chain of steps that the value came by"),
    ("in_loops", "of a moment: cpu, last_cpu, level, name, kind, turn, turns, since, end of each"),
    ("moves", "ticks of the neighbours: insn, event, slice, flag; those of the open cpu again"),
    ("problem", "why the session could not be asked, else empty"),
)

DATA = (
    "A run is unlisted until its owner publishes it: its id of 128 random bits is the key.",
    "Who has the link can take the images away with the trace file.",
    "The delete token comes once, as text, and to the uploading browser as a cookie; the server "
    "keeps a hash of it.",
    "A deleted run keeps title, names and hashes of the images, and verdict; the files go at once.",
    "Images are parsed and run in a process without network, without files, with bounded memory "
    "and time.",
    "There is one cookie, bootflow_runs: the runs and explorations that this browser started. No "
    "address is kept.",
)

LEGEND = (
    "A tick is one instruction of the one global order over all CPUs; tick 0 is before the first.",
    "A filled disc writes the flag, a ring reads it; outlined: not 1; solid: 1.",
    "Hatched: a CPU in the hold loop. A torn edge folds a long loop. + after a name: several "
    "stages too narrow to show apart.",
    "A loop is what a CPU came back to by a branch backwards; its count is of turns that ran. A "
    "CPU that only spins is parked after a few: it retires nothing until what it reads changes.",
    "Low memory: the letter right of a row is the stage that wrote the byte last.",
    "file:line above instructions: where the image has DWARF, as objdump -dl writes it.",
)


@dataclass(frozen=True)
class HelpPage:
    """All tables."""

    keys: tuple[Key, ...]
    addresses: tuple[Address, ...]
    parameters: tuple[tuple[str, str], ...]
    questions: tuple[Question, ...]
    fields: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str, str], ...]
    low_fields: tuple[tuple[str, str, str], ...]
    flags: tuple[tuple[str, str, str], ...]
    legend: tuple[str, ...]
    limits: tuple[tuple[str, str], ...]
    data: tuple[str, ...]


def help_page() -> HelpPage:
    """Collect the tables, with the limits of this server."""
    config = current_app.config
    limits = (
        ("an upload", f"{config['MAX_UPLOAD_BYTES'] >> 20} MiB for all files together"),
        ("CPUs", f"1 to {config['MAX_CPUS']}"),
        ("memory of the machine", f"{config['MAX_MEM_BYTES'] >> 30} GiB"),
        ("runs waiting or going on", str(config["MAX_QUEUED"])),
        (
            "random orders of an exploration",
            f"{EXPLORED.seeds}, {EXPLORED.seconds / 60:.0f} minutes",
        ),
        ("explorations waiting or going on", f"{EXPLORED.waiting}, of a run one"),
        ("title, note, Message-ID", "200, 300, 250 characters"),
        ("events shown of one kind", "4,000; the trace file has all"),
        ("hits of a search", "200"),
    )
    low = (
        (
            f"0x{row.at:02x}" if row.at is not None else "moves",
            row.name,
            f"{row.note} ({row.source})",
        )
        for row in LOW_FIELDS
    )
    flags = ((f"0x{row.at:02x}", row.name, f"{row.note} ({row.source})") for row in FLAGS)
    stages = ((row.letter, row.name, row.source) for row in STAGES)
    return HelpPage(
        KEYS, ADDRESSES, PARAMETERS, QUESTIONS, FIELDS, tuple(stages), tuple(low), tuple(flags),
        LEGEND, limits, DATA,
    )  # fmt: skip


@blueprint.get("/help/")
def show_help() -> AnyResponse:
    """Show all tables."""
    return _cached(render(help_page(), "html"))


@blueprint.get("/help.<form>")
def show_help_twin(form: str) -> AnyResponse:
    """Show all tables as text or JSON."""
    if form not in ("txt", "json"):
        raise BadOption(f"no format .{form[:16]!r}", hint="There are txt and json.")
    return _cached(render(help_page(), form))


def _cached(response: Response) -> Response:
    response.headers["Cache-Control"] = "public, max-age=600"
    return response


@blueprint.get("/favicon.ico")
def icon() -> AnyResponse:
    """Give the icon to pages that cannot name it, such as text."""
    found: AnyResponse = current_app.send_static_file("icon.svg")
    return found


@blueprint.app_template_global()
def key_table() -> tuple[Key, ...]:
    """Return the keys for the dialog."""
    return KEYS


@blueprint.app_template_global()
def loop_head() -> str:
    """Return the head of a table of loops in text."""
    return TEXT_HEAD


@blueprint.app_template_global()
def search_table() -> tuple[Question, ...]:
    """Return the forms of a search."""
    return QUESTIONS
