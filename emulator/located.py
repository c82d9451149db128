"""Adds "file:line" to the answers of a session, where the images have DWARF.

What it is: `add_lines`, which knows where an answer names an instruction. Keys are added, none is
changed: `line` beside the `nip` or `addr` of an instruction, `lr_line` beside the registers of a
CPU. An answer about images without DWARF stays as it is. What it is not: the lookup
(`AddressMap.line_at`).
"""

from __future__ import annotations

from collections.abc import Iterator

from emulator.run import Record
from emulator.symbols import AddressMap


def add_lines(answer: Record, names: AddressMap) -> Record:
    """Say of every instruction that an answer names where in the source it is.

    Args:
        answer: a document of `queries` or `search`; it is added to.
        names: what can be named, at the tick of the answer.
    """
    if names.has_lines:
        names.renew_lines()
        for record, key, vaddr in _places(answer):
            line = names.line_at(int(vaddr, 16))
            if line:
                record[key] = line
    return answer


def add_line_of_event(event: Record, names: AddressMap) -> Record:
    """The same for what was noted while the run went on: before or after the kernel moved."""
    for known in (names, names.moved(not names.kernel_at_zero)):
        if known.name_at(int(event["nip"], 16)) == event["symbol"]:
            return add_lines(event, known)
    return event


def _places(answer: Record) -> Iterator[tuple[Record, str, str]]:
    """(record, key to add, address) of each instruction that an answer names."""
    for record in (answer, *answer.get("steps", ()), *answer.get("accesses", ())):
        if "nip" in record:
            yield record, "line", record["nip"]
    state = answer.get("state", answer)
    for cpu in state.get("cpus", ()):
        registers = cpu["registers"]
        yield cpu, "line", registers["nip"]
        if cpu.get("lr_symbol"):
            yield cpu, "lr_line", registers["lr"]
    for rows in state.get("disassembly", {}).values():
        for row in rows:
            yield row, "line", row["addr"]
