"""The commands that only read a trace: its events, loops, console and verdict; nothing is run.

Beside them what all commands share: the options of a trace and of JSON, and how lines are printed.
`cli.py` puts them into the group.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from app.command import record_lines
from app.looping import TEXT_HEAD, loop_documents, loop_lines, text_lines
from app.panels import in_order
from app.text import event_lines, fit
from emulator.lanes import MAX_CHANGES, lanes
from emulator.trace import EVENT_KINDS, TraceReader
from emulator.verdict import verdict

in_file = click.Path(exists=True, dir_okay=False, path_type=Path)
trace_argument = click.argument("trace", type=in_file)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        click.echo(line)


def print_json(document: Any) -> None:
    """Print a document."""
    click.echo(json.dumps(document, indent=1))


@click.command()
@trace_argument
@click.option("--kind", type=click.Choice(EVENT_KINDS), help="Only these.")
@json_option
def events(trace: Path, kind: str | None, as_json: bool) -> None:
    """List the events of TRACE."""
    with TraceReader(trace) as reader, closing(reader.events(kind)) as found:
        if as_json:
            print_json([event._asdict() for event in found])
        else:
            print_lines(event_lines(in_order(found, reader.end)))


@click.command()
@trace_argument
@click.option("--least", type=click.IntRange(0), default=0, help="Only of so many instructions.")
@json_option
def loops(trace: Path, least: int, as_json: bool) -> None:
    """List the loops that the CPUs of TRACE ran through, with their counts."""
    with TraceReader(trace) as reader:
        cpus, last = int(reader.spec.get("cpus", 1)), reader.last_tick
        row = lanes(reader.events("stage", limit=MAX_CHANGES), reader.slices(), cpus, last)
        found = [line for line in loop_lines(reader.loops(), row) if line.ticks >= least]
    if as_json:
        print_json(loop_documents(found))
    else:
        print_lines([TEXT_HEAD, *text_lines(found)] if found else ["no loops"])


@click.command()
@trace_argument
@click.option("--tick", type=click.IntRange(0), help="Only what was out at this tick.")
@json_option
def console(trace: Path, tick: int | None, as_json: bool) -> None:
    """Print what the guest sent to its console."""
    with TraceReader(trace) as reader:
        if as_json:
            chunks = reader.console_chunks(tick)
            print_json(
                [{"tick": c.tick, "cpu": c.cpu, "text": c.data.decode("latin-1")} for c in chunks]
            )
            return
        text = reader.console(tick).decode("latin-1").replace("\r\n", "\n")
    # A guest that sends escape sequences does not get at the user's terminal.
    click.echo(re.sub(r"[^\x20-\x7e\n]", ".", text), nl=not text.endswith("\n"))


@click.command("verdict")
@trace_argument
@json_option
def show_verdict(trace: Path, as_json: bool) -> None:
    """Say in a few lines what happened: did the kernel stay or move, and who set the flag."""
    with TraceReader(trace) as reader:
        told = verdict(reader)
        document = {
            "status": reader.status,
            "word": told.word,
            "asked": told.asked,
            "sentence": told.sentence,
            "lines": list(told.lines),
            "digest": reader.digest,
            "end": reader.end,
            "command": list(_again(reader)),
        }
    if as_json:
        print_json(document)
    else:
        print_lines(part for line in told.lines for part in fit(line, indent=10))
        print_lines(["", *document["command"]] if document["command"] else [])


def _again(reader: TraceReader) -> tuple[str, ...]:
    """Return the command that records the same run, for a shell."""
    files = {info.role: info.name for info in reader.image_infos().values()}
    return record_lines(reader.spec, files)


READING = (events, loops, console, show_verdict)
