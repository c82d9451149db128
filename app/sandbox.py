"""Locks the calling process down, for good: what a session process does before it reads an image.

    rlimits           memory, CPU seconds, no file may grow, no core dump, few descriptors
    user              root becomes nobody; every capability is dropped
    namespaces        no network, no IPC, where the kernel lets a user have them
    no_new_privs      no program started from here could gain anything
    Landlock          no file at all, no TCP, no signal out of the process's own family
    seccomp           the system calls of `syscalls.CALLS`; the rest fail with EPERM

seccomp and no_new_privs are required: without them nothing runs. The others are added where the
kernel has them, and `lock_down` says which hold. What this is not: a limit on what all forks use
together (the pool of `sessions.py` watches their number), or a defence against side channels.

Source: seccomp(2), landlock(7), prctl(2), user_namespaces(7); classic BPF as in bpf(4) of the BSDs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from dataclasses import dataclass

from app.syscalls import CALLS, NOT_THERE, OWN_PID, Arg, Call
from emulator.errors import SessionError

_libc = ctypes.CDLL(None, use_errno=True)

NOBODY = 65534

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_NAMESPACES = _CLONE_NEWUSER | 0x40000000 | 0x08000000 | 0x04000000  # net, ipc, uts


@dataclass(frozen=True)
class Limits:
    """What a locked process may use."""

    memory_bytes: int = 64 << 30
    """Address space of one process: guest RAM and the engine's reserved code buffers."""
    cpu_seconds: int = 600
    """CPU time of one process; each fork counts its own."""
    descriptors: int = 208
    """One link for each of 160 checkpoints, and queries. So many may be in flight on sockets too,
    which the kernel counts for a user: the worker's own limit is higher (`worker.run_worker`)."""
    processes: int = 240
    """Processes at one moment, where user namespaces make them countable."""


@dataclass(frozen=True)
class Confinement:
    """Which of the optional walls stand."""

    namespaces: bool
    landlock_abi: int
    uid: int


@dataclass(frozen=True)
class _Machine:
    column: str
    audit_arch: int
    seccomp_nr: int


# AUDIT_ARCH_* of linux/audit.h, and the number of seccomp(2).
_MACHINES = {
    "x86_64": _Machine("x86_64", 0xC000003E, 317),
    "aarch64": _Machine("aarch64", 0xC00000B7, 277),
}


def lock_down(limits: Limits) -> Confinement:
    """Give up everything that a session does not need; there is no way back.

    Raises:
        SessionError: the kernel lacks seccomp, or refuses it: nothing hostile may be read then.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise SessionError(
            f"no system call table for {platform.machine()}",
            hint="Sessions run on x86_64 and aarch64 Linux.",
        )
    _become_nobody()
    namespaces = _call(_libc.unshare, _NAMESPACES) == 0
    _set_rlimits(limits, countable=namespaces)
    _drop_capabilities()
    _require(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    _require(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    abi = _enforce_landlock()
    _enforce_seccomp(machine)
    return Confinement(namespaces=namespaces, landlock_abi=abi, uid=os.getuid())


def _call(function: ctypes._NamedFuncPointer, *args: object) -> int:
    return int(function(*args))


def _require(result: int, what: str) -> None:
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise SessionError(f"cannot lock the session down: {what}: {reason}")


def _become_nobody() -> None:
    if os.getuid() == 0 or os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as exc:
            raise SessionError(
                f"cannot lock the session down: root cannot become nobody: {exc}",
                hint="Run bootflow as an ordinary user.",
            ) from exc


def _set_rlimits(limits: Limits, *, countable: bool) -> None:
    wanted = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits.descriptors,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if countable:  # outside a namespace of its own, the user's other processes would count too
        wanted[resource.RLIMIT_NPROC] = limits.processes
    for what, value in wanted.items():
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(what, (value, value))


def _drop_capabilities() -> None:
    """Drop the capabilities that a new user namespace gives its first process."""
    header = struct.pack("<II", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _require(_libc.capset(header, bytes(24)), "capset")


# Landlock: number of the calls (the same on both machines), rights by ABI version (landlock(7)).
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_FS_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_NET_RIGHTS = 0x3  # bind and connect TCP, from ABI 4
_SCOPES = 0x3  # abstract UNIX sockets and signals, from ABI 6


def _enforce_landlock() -> int:
    """Forbid every file by a ruleset without rules; returns the ABI version, 0 if there is none."""
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return 0
    attributes = struct.pack("<Q", _FS_RIGHTS[min(abi, 5)])
    if abi >= 4:
        attributes += struct.pack("<Q", _NET_RIGHTS)
    if abi >= 6:
        attributes += struct.pack("<Q", _SCOPES)
    ruleset = _libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    if ruleset < 0:
        return 0
    held = _libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return int(abi) if held else 0


# Classic BPF over struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]} (linux/seccomp.h).
_LD_ABS, _AND, _JEQ, _JGE, _RET = 0x20, 0x54, 0x15, 0x35, 0x06
_NR_AT, _ARCH_AT, _ARGS_AT = 0, 4, 16
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_X32_BIT = 0x40000000
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def _arg_check(arg: Arg, skip: int) -> list[Instruction]:
    """Load the low half of an argument, and skip `skip` instructions if it does not match."""
    value = os.getpid() if arg.value == OWN_PID else arg.value
    return [
        (_LD_ABS, 0, 0, _ARGS_AT + 8 * arg.index),
        (_AND, 0, 0, arg.mask),
        (_JEQ, 0, skip, value),
    ]


def _rule(number: int, call: Call) -> list[Instruction]:
    """Return the instructions that allow one call; they fall through for any other number."""
    body: list[Instruction] = []
    for conditions in call.when:
        for position, arg in enumerate(conditions):
            later = len(conditions) - position - 1
            body += _arg_check(arg, skip=3 * later + 1)
        body.append((_RET, 0, 0, _ALLOW))
    body.append((_RET, 0, 0, _ERRNO | errno.EPERM) if call.when else (_RET, 0, 0, _ALLOW))
    return [(_JEQ, 0, len(body), number), *body]


def build_filter(machine: str) -> list[Instruction]:
    """Return the seccomp program for a machine of `_MACHINES`."""
    row = _MACHINES[machine]
    program: list[Instruction] = [
        (_LD_ABS, 0, 0, _ARCH_AT),
        (_JEQ, 1, 0, row.audit_arch),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LD_ABS, 0, 0, _NR_AT),
    ]
    if machine == "x86_64":  # the same calls again under other numbers
        program += [(_JGE, 0, 1, _X32_BIT), (_RET, 0, 0, _KILL_PROCESS)]
    for call in CALLS:
        number = getattr(call, row.column)
        if number is not None:
            program += _rule(number, call)
    for call in NOT_THERE:
        absent = (_RET, 0, 0, _ERRNO | errno.ENOSYS)
        program += [(_JEQ, 0, 1, getattr(call, row.column)), absent]
    return [*program, (_RET, 0, 0, _ERRNO | errno.EPERM)]


def _enforce_seccomp(machine: _Machine) -> None:
    code = b"".join(struct.pack("<HBBI", *step) for step in build_filter(machine.column))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    result = _libc.syscall(machine.seccomp_nr, _SET_MODE_FILTER, _FLAG_TSYNC, program)
    _require(result, "seccomp")
