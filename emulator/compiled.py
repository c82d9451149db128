"""numba, with a cache on disk that knows every source that it was compiled from.

What it is: `njit`, `cfunc` and what else the compiled modules use, and the place where the machine
code is kept. numba compares a function with its own file alone; a function that has one of another
module inlined would go on with the old one after an update. So the place is named by a hash of all
sources of `COMPILED`. What it is not: compiled code.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, Final

import numba
import numba.extending
from numba.core import cgutils

COMPILED: Final = (
    "census", "dwarf", "intercepts", "loopkinds", "mmu", "native", "nativeloops", "operands",
    "registers",
)  # fmt: skip
"""Modules with compiled functions."""


def _cache_dir() -> Path:
    """The folder of this version's machine code, made if it can be; others' beside it are gone."""
    here = Path(__file__).parent
    whole = hashlib.sha256(numba.__version__.encode())
    for name in COMPILED:
        whole.update((here / f"{name}.py").read_bytes())
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(chosen) if chosen else here / "__pycache__"
    if not chosen and not os.access(base if base.is_dir() else here, os.W_OK):
        caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
        base = caches / "bootflow" if caches.is_absolute() else base  # "~": who has no home
    folder = base / f"compiled-{whole.hexdigest()[:16]}"
    if not folder.is_dir():
        for old in base.glob("compiled-*"):
            if old != folder:  # another process may be making it right now
                shutil.rmtree(old, ignore_errors=True)
    return folder


_numba: Any = numba  # it ships no types
_numba.config.CACHE_DIR = str(_cache_dir())
njit: Any = _numba.njit
cfunc: Any = _numba.cfunc
carray: Any = _numba.carray
types: Any = _numba.types
intrinsic: Any = _numba.extending.intrinsic

__all__ = ["COMPILED", "carray", "cfunc", "cgutils", "intrinsic", "njit", "types"]
