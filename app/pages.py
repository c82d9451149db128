"""Page models: frozen dataclasses made from the index, a trace and a session's reply.

Everything that a page says is here, once, for HTML, text, JSON and SVG alike; how it looks is in
`templates/`. No Flask, no markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app import panels
from app.canvas import Drawing
from app.command import option_words, quote, record_lines
from app.drawing import mini, timeline
from app.index import Run
from app.looping import LoopLine, table, text_lines
from app.story import Story, scene
from app.telling import told_by
from app.view import View
from emulator.errors import BootflowError
from emulator.handoff import FLAGS
from emulator.lanes import Lanes
from emulator.trace import TraceReader
from emulator.verdict import Verdict, came_as_asked

if TYPE_CHECKING:
    from app.moments import Moment

WIDE, NARROW = 1400, 362
WIDTHS = (WIDE, NARROW)
CARD_WIDTHS = (960,)
LAST_SLICES = 20_000
"""In which it is looked where each CPU was last."""


class NoSuchTick(BootflowError):
    """The run has no such tick."""

    slug = "no-such-tick"


class NoTraceYet(BootflowError):
    """The run has not started, so that there is nothing to look at."""

    slug = "not-started"


@dataclass(frozen=True)
class Head:
    """What a run is: the line above the verdict."""

    id: str
    title: str
    status: str
    created: str
    facts: tuple[str, ...]
    ended: bool
    listed: bool
    asked: str
    note: str = ""
    message_id: str = ""
    parent: str = ""
    """Id of the run whose schedules were explored when this one was found."""


@dataclass(frozen=True)
class RunPage:
    """One run, at one tick if moment is given."""

    head: Head
    verdict: Verdict
    last_tick: int
    drawings: tuple[Drawing, ...]
    cpus: tuple[panels.CpuRow, ...]
    events: tuple[panels.EventRow, ...]
    more_events: int
    console: tuple[panels.ConsoleLine, ...]
    next_console: panels.ConsoleLine | None
    placement: tuple[str, ...]
    images: tuple[tuple[str, str, str, int], ...]
    digest: str
    view: View = View()  # noqa: RUF009 -- frozen
    moment: Moment | None = None
    flooded: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """`bootflow record` with the options of this run, in lines for a shell."""
    loops: tuple[LoopLine, ...] = ()
    """All that the story has; pages show the longest."""

    @property
    def long_loops(self) -> tuple[LoopLine, ...]:
        """The loops that a page shows."""
        return table(self.loops)

    @property
    def loop_text(self) -> list[str]:
        """The same as text of at most 75 columns."""
        return list(text_lines(self.long_loops))

    @property
    def live(self) -> bool:
        """The run still goes on: the page asks again."""
        return not self.head.ended

    @property
    def telling_tick(self) -> int:
        """The most telling moment: the flag's last write, or its first read, or the end."""
        steps = [step for step in self.verdict.custody if step.number > 0]
        writes = [step for step in steps if step.write]
        touched = writes[-1:] or steps[:1]
        return touched[0].tick if touched else self.last_tick


@dataclass(frozen=True)
class WaitPage:
    """A run that has no trace: queued, refused, or deleted."""

    head: Head
    live: bool
    sentence: str
    hint: str = ""
    images: tuple[tuple[str, str, str, int], ...] = ()


@dataclass(frozen=True)
class GalleryRow:
    """One run in the gallery."""

    head: Head
    word: str
    as_asked: bool | None
    sentence: str
    ticks: int
    mini: Drawing | None
    flag: str = ""
    """The flag that it is about: __run_at_load, __kdump_flag, or none."""
    beside: str = ""
    """Id of the run that it is to be read beside."""


@dataclass(frozen=True)
class Group:
    """Rows that stand together: one thread, the featured, the reader's own, the rest."""

    title: str
    note: str
    rows: tuple[GalleryRow, ...]
    message_id: str = ""

    @property
    def blocks(self) -> tuple[tuple[tuple[GalleryRow, ...], tuple[str, str] | None], ...]:
        """The rows as they stand: (rows, ids to compare); two that belong together are one."""
        if self.pair is not None:
            return ((self.rows, self.pair),)
        blocks: list[tuple[tuple[GalleryRow, ...], tuple[str, str] | None]] = []
        for row in self.rows:
            last = blocks[-1][0][-1] if blocks and blocks[-1][1] is None else None
            ids = (last.head.id, row.head.id) if last is not None else ("", "")
            both = last is not None and last.mini is not None and row.mini is not None
            if last is not None and both and (last.beside == ids[1] or row.beside == ids[0]):
                blocks[-1] = ((last, row), ids)
            else:
                blocks.append(((row,), None))
        return tuple(blocks)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The ids of two runs that ask to be compared: a thread's only two."""
        ended = [row for row in self.rows if row.mini is not None]
        if self.message_id and len(ended) == len(self.rows) == 2:
            return ended[1].head.id, ended[0].head.id
        return None


@dataclass(frozen=True)
class Filter:
    """What of the gallery is shown; empty fields let everything pass."""

    words: str = ""
    kernel: str = ""
    purgatory: str = ""
    outcome: str = ""
    """stays, moves, ended, stops, spins, or not-as-asked."""
    flag: str = ""
    thread: str = ""

    def fits(self, row: GalleryRow) -> bool:
        """Say whether a row passes what the index cannot tell."""
        facts = " ".join(row.head.facts).lower()
        if self.outcome == "not-as-asked":
            right = row.as_asked is False
        else:
            right = self.outcome in ("", row.word.lower())
        return (
            right
            and self.kernel.lower() in facts
            and self.purgatory.lower() in facts
            and self.flag in ("", row.flag)
            and self.thread in ("", row.head.message_id)
        )


@dataclass(frozen=True)
class GalleryPage:
    """The runs, and the form that makes a new one."""

    groups: tuple[Group, ...]
    chosen: Filter
    limits: dict[str, int]

    @property
    def rows(self) -> tuple[GalleryRow, ...]:
        """All rows, in the order of the page."""
        return tuple(row for group in self.groups for row in group.rows)


SAMPLES_NOTE = "samples of our own"
OUTCOMES = ("stays", "moves", "ended", "stops", "spins", "not-as-asked")
FLAG_NAMES = ("__run_at_load", "__kdump_flag", "none")


def gallery_groups(
    own: list[GalleryRow],
    featured: list[GalleryRow],
    listed: list[GalleryRow],
    topics: Iterable[tuple[str, tuple[str, ...]]] = (),
) -> tuple[Group, ...]:
    """Put the rows into groups: the reader's own, threads, recent, featured; none twice.

    Args:
        own: runs of this reader.
        featured: samples; those of no topic come last.
        listed: runs that others published, newest first.
        topics: headings of the featured, each with run ids in their order.
    """
    threads: dict[str, list[GalleryRow]] = {}
    for row in listed:
        if row.head.message_id:
            threads.setdefault(row.head.message_id, []).append(row)
    groups = [Group("Yours", "started by this browser, listed or not", tuple(own))]
    for key, rows in threads.items():
        groups.append(Group(f"Thread {key}", "", tuple(rows), key))
    rest = [row for row in listed if not row.head.message_id]
    groups.append(Group("Recent", "published by their owners, newest first", tuple(rest)))
    left = {row.head.id: row for row in featured}
    for title, ids in topics:
        found = tuple(left.pop(run_id) for run_id in ids if run_id in left)
        groups.append(Group(title, SAMPLES_NOTE, found))
    groups.append(Group("Featured", SAMPLES_NOTE, tuple(left.values())))
    return tuple(group for group in groups if group.rows)


def head(run: Run) -> Head:
    """Return what a run is, from its row of the index."""
    spec = run.spec
    facts = [str(file["name"]) for role, file in run.files.items() if role == "kernel"]
    facts += [f"{role}: {file['name']}" for role, file in run.files.items() if role != "kernel"]
    facts += [
        " ".join(map(quote, option_words(spec))),
        f"{spec.get('cpus', 1)} CPU{'s' * (spec.get('cpus', 1) != 1)}",
    ]
    facts[-1] += f", {size_text(int(spec.get('mem_bytes') or 0))}" if spec.get("mem_bytes") else ""
    title = run.title or " <- ".join(str(file["name"]) for file in run.files.values())
    return Head(
        run.id,
        panels.printable(title),
        run.status,
        run.created_utc.replace("T", " ").replace("Z", " UTC"),
        tuple(panels.printable(fact) for fact in facts if fact),
        run.ended,
        run.listed,
        run.asked,
        panels.printable(run.note),
        panels.printable(run.message_id),
        run.parent,
    )


def _command(reader: TraceReader) -> tuple[str, ...]:
    """Return the command line that makes this run again."""
    return record_lines(
        reader.spec, {info.role: info.name for info in reader.image_infos().values()}
    )


def size_text(size_bytes: int) -> str:
    """Return a size in the largest unit that divides it."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift} {unit}"
    return f"{size_bytes:,} bytes"


def run_page(
    run: Run,
    reader: TraceReader,
    told: Story,
    view: View,
    widths: tuple[int, ...] = WIDTHS,
) -> RunPage:
    """Make the page of a run, while it goes on and after."""
    drawn = scene(run.id, told)
    last = told.lanes.last_tick
    samples = _last_samples(reader, told.lanes)
    rows = [row for row in told.rows if not view.kind or row.kind == view.kind]
    window = view.span(last // 2, last)
    return RunPage(
        replace(head(run), facts=head(run).facts + _found(reader)),
        told.verdict,
        last,
        tuple(
            timeline(drawn, width=w, window=window, unfold=view.width == -1, keep=view.query())
            for w in widths
        ),
        panels.sampled_cpu_rows(samples, told.lanes, told.boot_cpu),
        tuple(_window(rows, 300, told.running)),
        max(len(rows) - 300, 0),
        told.console[-200:],
        None,
        placement_lines(reader),
        _images(reader),
        reader.digest or "",
        view,
        flooded=told.flooded,
        command=_command(reader),
        loops=told.loops,
    )


def _window(rows: list[panels.EventRow], limit: int, tail: bool) -> list[panels.EventRow]:
    return rows[-limit:] if tail else rows[:limit]


def _found(reader: TraceReader) -> tuple[str, ...]:
    """Return what the session found out about the images, where it says so."""
    found = reader.placement.get("purgatory_found")
    return (panels.printable(str(found)),) if found else ()


def placement_lines(reader: TraceReader) -> tuple[str, ...]:
    """Return what the placement says in the words of `kexec -d`."""
    return tuple(panels.printable(str(line)) for line in reader.placement.get("debug", [])[:200])


def _images(reader: TraceReader) -> tuple[tuple[str, str, str, int], ...]:
    infos = reader.image_infos().values()
    return tuple((info.role, info.name, info.sha256, info.size_bytes) for info in infos)


def _last_samples(reader: TraceReader, row: Lanes) -> dict[int, tuple[int, str, str, str]]:
    """Return (end tick, nip, stage, symbol) of each CPU's last slice, or of its last stage."""
    samples = {
        cpu: (stays[-1].lo, stays[-1].nip, stays[-1].stage, stays[-1].symbol)
        for cpu, stays in row.stays.items()
        if stays
    }
    for item in reader.last_slices(LAST_SLICES):
        samples[item.cpu] = (item.tick + item.ticks, item.nip, item.stage, item.symbol)
    return samples


def wait_page(run: Run, reader: TraceReader | None = None) -> WaitPage:
    """Make the page of a run that has no tick to show: not started, refused, deleted."""
    sentences = {
        "queued": "Waiting for a free worker.",
        "running": "Starting.",
        "verifying": "Running the uploaded trace again; it is shown if the same comes out.",
        "deleted": "Deleted by its owner. What is left: title, hashes, verdict.",
        "cancelled": "Cancelled before it began.",
    }
    sentence = sentences.get(run.status, "")
    if run.verdict:
        sentence = f"{sentence} {run.verdict}".strip()
    error = reader.error if reader is not None else None
    return WaitPage(
        head(run),
        not run.ended,
        panels.printable(sentence or f"The run is {run.status}."),
        panels.printable(str(error["hint"])) if error else "",
        _images(reader) if reader is not None else _uploaded(run),
    )


def _uploaded(run: Run) -> tuple[tuple[str, str, str, int], ...]:
    return tuple(
        (role, panels.printable(str(f["name"])), str(f["sha256"]), int(f["size_bytes"]))
        for role, f in run.files.items()
    )


def gallery_row(run: Run, reader: TraceReader | None) -> GalleryRow:
    """Make a row of the gallery; reader is None for a run without a trace."""
    word, sentence, ticks, drawing = run.word, run.verdict, run.ticks, None
    flag = ""
    as_asked = came_as_asked(word, run.asked)
    if reader is not None:
        told = told_by(run, reader)
        drawing = mini(scene(run.id, told))
        word, sentence, as_asked = told.verdict.word, told.verdict.sentence, told.verdict.as_asked
        ticks = told.lanes.last_tick
        flag = _flag_name(told)
    return GalleryRow(
        head(run), word or run.status.upper(), as_asked, panels.printable(sentence), ticks, drawing,
        flag,
    )  # fmt: skip


def _flag_name(told: Story) -> str:
    """Return the flag that the run wrote or read, "none" if it touched no flag."""
    offsets = {flag.at: flag.name for flag in FLAGS}
    for step in told.verdict.custody:
        for at, name in offsets.items():
            if f"kernel+0x{at:x}:" in step.text:
                return name
    touched = any(step.number > 0 for step in told.verdict.custody)
    return FLAGS[0].name if touched else "none"
