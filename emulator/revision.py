"""The engine's revision: which traces this bootflow can run again.

What it is: one number in the placement of every trace, and its check. What it is not: the version
of the file format (`trace_schema.TRACE_VERSION`).
"""

from __future__ import annotations

from typing import Final

from emulator.errors import TraceVersionError

ENGINE_REVISION: Final = 2
"""Goes up whenever the same inputs come to other ticks or events than before: with a change of the
machine, the schedule, the device tree, or of Unicorn. A trace can be replayed by its own only."""


def check_engine(recorded_by: object) -> None:
    """Refuse a trace of another engine revision.

    Raises:
        TraceVersionError: both revisions are named.
    """
    if recorded_by != ENGINE_REVISION:
        raise TraceVersionError(
            f"the trace was recorded by engine revision {recorded_by!r}, this is {ENGINE_REVISION}",
            hint="What it shows without a replay is right; record the run again for the rest.",
        )
