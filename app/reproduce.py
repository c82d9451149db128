"""A recorded run as the command line that records it again, under a schedule.

What it is: what the page of an exploration and `bootflow check --schedules` print below a race.
What it is not: the options themselves (`cli.py`); a test holds the two together.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from emulator.schedule import DEFAULT_QUANTUM

FLAGS = (("checks", False, "--no-checks"), ("debug", True, "--debug"),
         ("signature", True, "--signature"))  # fmt: skip
VALUES = (
    ("append", "--append", ""), ("cpus", "--cpus", 1), ("boot_cpu", "--boot-cpu", 0),
    ("mem_bytes", "--mem", 1 << 30), ("base_addr", "--base", None), ("corrupt", "--corrupt", None),
    ("quantum", "--quantum", DEFAULT_QUANTUM), ("seed", "--seed", 0), ("until", "--until", None),
)  # fmt: skip
"""Key of a spec, its option, and what it is where the option is not given."""


def record_command(spec: Mapping[str, Any], names: Mapping[str, str], schedule: str) -> str:
    """Return the command line that records a run again under a schedule.

    Args:
        spec: the run's spec.
        names: role -> file name.
        schedule: as `check --schedules` names it.
    """
    words = ["bootflow", "record", f"--{spec.get('mode', 'load')}", names.get("kernel", "vmlinux")]
    files = (("purgatory", "--purgatory"), ("dtb", "--dtb"), ("initrd", "--ramdisk"))
    for role, option in files:
        words += [option, names[role]] if role in names else []
    words += [option for key, value, option in FLAGS if spec.get(key, not value) == value]
    for key, option, default in VALUES:
        if spec.get(key, default) != default:
            words += [option, _shown(key, spec[key])]
    return shlex.join([*words, "--schedule", schedule])


def _shown(key: str, value: Any) -> str:
    """Return a value as people type it: 256M, 0x2000000."""
    if key == "mem_bytes" and value % (1 << 20) == 0:
        return f"{value >> 20}M"
    return hex(value) if key in ("base_addr", "corrupt") else str(value)
