"""The exception tree of bootflow; every error says what, where and what to do next.

    BootflowError
      ImageError            a bad upload
        NotElf, WrongMachine, MissingSymbol, UnsupportedRelocation
      PlacementError        regions overlap or do not fit
      LimitError            too large, too long, too many
      TraceError            a trace file that cannot be used
        TraceVersionError, TraceCorruptError
      SessionError          the session process died or gave no answer
        SessionGone         it had ended before; the pool asks another
      DivergenceError       a replay differs from its record: always our bug

A guest that faults or hangs is not an exception: it is an event of the trace.
`app/errors.py` maps each class to an HTTP status; `app/cli.py` maps all of them to exit status 2.
"""

from __future__ import annotations


class BootflowError(Exception):
    """Base of all errors shown to a user.

    Args:
        message: what is wrong and where (file and offset, or CPU, tick, pc, address).
        hint: what to do next, one sentence.
    """

    slug = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ImageError(BootflowError):
    """An uploaded file is not what it should be."""

    slug = "bad-image"


class NotElf(ImageError):
    """No ELF file was found where one was expected."""

    slug = "not-elf"


class WrongMachine(ImageError):
    """An ELF file, but not one of the class, machine or type expected."""

    slug = "wrong-machine"


class MissingSymbol(ImageError):
    """A symbol that the hand-off needs is not in the image."""

    slug = "missing-symbol"


class UnsupportedRelocation(ImageError):
    """A relocation type that kexec-tools does not know either."""

    slug = "unsupported-relocation"


class PlacementError(BootflowError):
    """Regions overlap, or do not fit into the memory asked for."""

    slug = "placement"


class LimitError(BootflowError):
    """Too large, too long or too many."""

    slug = "limit"


class TraceError(BootflowError):
    """A trace file cannot be used."""

    slug = "bad-trace"


class TraceVersionError(TraceError):
    """A trace written by another version of the format; both versions are named."""

    slug = "trace-version"


class TraceCorruptError(TraceError):
    """A trace whose content contradicts itself or its digest."""

    slug = "trace-corrupt"


class SessionError(BootflowError):
    """The session process died, was stopped, or gave no answer in time."""

    slug = "session"


class SessionGone(SessionError):
    """The session had ended before the question reached it; another one may be asked."""

    slug = "session-gone"


class DivergenceError(BootflowError):
    """A replay differs from what was recorded; names the first tick, CPU and register."""

    slug = "divergence"


def size_words(size_bytes: int) -> str:
    """Return a size as messages and options write it: 64M, 16G, 64K; else in bytes."""
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if size_bytes > 0 and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return f"{size_bytes} bytes"
