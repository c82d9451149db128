"""What a user asks the loader for, and what of it cannot be.

What it is: options and given addresses as dataclasses, and their checks; values may come from a
trace file of a stranger. What it is not: the placement. Source: kexec(8) for the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emulator.errors import LimitError, PlacementError, size_words
from emulator.handoff import PAGE_BYTES

MAX_CPUS: Final = 16
MIN_MEM_BYTES: Final = 128 << 20
MAX_MEM_BYTES: Final = 16 << 30
DEFAULT_MEM_BYTES: Final = 1 << 30
DEFAULT_QUANTUM: Final = 1000
"""Instructions a slice."""
DEFAULT_LIMIT_TICKS: Final = 8_000_000_000


@dataclass(frozen=True)
class LoadOptions:
    """What a user asks for, named as kexec names it."""

    panic: bool = False
    append: str = ""
    checks: bool = True
    debug: bool = False
    cpus: int = 1
    boot_cpu: int = 0
    """Index 0..cpus-1; its physical id comes from the device tree."""
    mem_bytes: int = DEFAULT_MEM_BYTES
    base_addr: int | None = None
    """Where the search for the kernel's place begins; None: 32 MiB, and for a load that is no crash
    kernel's not below the end of an old kernel of the same size at 0."""
    entry_r6: int = 0
    """What the old kernel leaves in r6 for purgatory (0xfeed1234 after a crash of 2.6.28-rc1)."""


@dataclass(frozen=True)
class Addresses:
    """Places to use instead of choosing them; None: choose."""

    kernel: int | None = None
    purgatory: int | None = None
    dt: int | None = None
    stack: int | None = None
    """Top of the stack."""
    backup: int | None = None
    elfcorehdr: int | None = None
    initrd: int | None = None
    purgatory_buffer: int | None = None
    """Where kexec held the purgatory while linking it; shows in .eh_frame only (REL32)."""


def check_addresses(addresses: Addresses) -> None:
    """Addresses may come from a trace file of a stranger."""
    for name, value in vars(addresses).items():
        if value is not None and not (type(value) is int and 0 <= value < 1 << 48):
            raise PlacementError(
                f"the address given for {name} is {value!r}",
                hint="An address is a whole number from 0 to 2^48.",
            )


def no_such_cpu(cpu: int, cpus: int) -> str:
    """Return the message about a CPU that the machine does not have."""
    there = {1: "only 0", 2: "0 and 1"}.get(cpus, f"0 to {cpus - 1}")
    return f"there is no CPU {cpu}: --cpus {cpus} gives {there}"


def check_options(options: LoadOptions) -> None:
    """Raise PlacementError or LimitError for options that no machine has."""
    for name in ("cpus", "boot_cpu", "mem_bytes", "entry_r6"):
        if type(getattr(options, name)) is not int:
            raise PlacementError(
                f"{name} is {getattr(options, name)!r}", hint="It is a whole number."
            )
    if not isinstance(options.append, str) or type(options.base_addr) not in (int, type(None)):
        raise PlacementError(
            f"append is {options.append!r}, base_addr is {options.base_addr!r}",
            hint="The command line is a text, the base an address.",
        )
    if not 0 <= options.entry_r6 < 1 << 64:
        raise PlacementError(f"r6 cannot hold {options.entry_r6:#x}", hint="It has 64 bits.")
    if not 1 <= options.cpus <= MAX_CPUS:
        raise LimitError(f"{options.cpus} CPUs; 1 to {MAX_CPUS} are possible", hint="Use --cpus.")
    if not 0 <= options.boot_cpu < options.cpus:
        raise PlacementError(
            no_such_cpu(options.boot_cpu, options.cpus), hint="--boot-cpu counts from 0."
        )
    if not MIN_MEM_BYTES <= options.mem_bytes <= MAX_MEM_BYTES or options.mem_bytes % PAGE_BYTES:
        raise LimitError(
            f"{size_words(options.mem_bytes)} of memory; possible are {size_words(MIN_MEM_BYTES)}"
            f" to {size_words(MAX_MEM_BYTES)} in pages of {size_words(PAGE_BYTES)}",
            hint="Use --mem, for example --mem 1G.",
        )
    base = options.base_addr
    if base is not None and (base < PAGE_BYTES or base % PAGE_BYTES or base >= options.mem_bytes):
        raise PlacementError(
            f"the kernel cannot lie at {base:#x}",
            hint="--base is a multiple of 64 KiB, not 0, and below --mem.",
        )
