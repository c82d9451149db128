"""TABLE: what a session may ask of the kernel once it is locked down; everything else is refused.

Two columns of numbers because seccomp sees numbers: x86_64 (linux/arch/x86/entry/syscalls/
syscall_64.tbl) and aarch64 (linux/include/uapi/asm-generic/unistd.h); None where the call does not
exist. `when` holds alternatives, each a tuple of conditions that all hold; empty means always.

Left out on purpose: every call that opens, creates or names a file, socket (other than a pair),
process, namespace, key, program or trace; `kill`; `memfd_create`; `io_uring`; `vfork`.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Arg:
    """A condition: (argument `index` & `mask`) == `value`; the mask covers the low 32 bits only."""

    index: int
    value: int
    mask: int = 0xFFFFFFFF


OWN_PID = -1
"""Value of an Arg that stands for the process id at lock-down."""


@dataclass(frozen=True)
class Call:
    """One system call that is allowed, and what for."""

    name: str
    x86_64: int | None
    aarch64: int | None
    why: str
    when: tuple[tuple[Arg, ...], ...] = ()


_STREAM = socket.SOCK_STREAM
_SEQPACKET = socket.SOCK_SEQPACKET
_UNIX = socket.AF_UNIX
_CLONE_NEW_ANYTHING = 0x7E020080 | 0x2000 | 0x8000  # namespaces, CLONE_PTRACE, CLONE_PARENT
_AT_EMPTY_PATH = 0x1000
_SO_SNDBUF, _SO_RCVBUF = 7, 8


def _one_of(index: int, *values: int) -> tuple[tuple[Arg, ...], ...]:
    return tuple((Arg(index, value),) for value in values)


CALLS = (
    Call("read", 0, 63, "inherited descriptors"),
    Call("write", 1, 64, "inherited descriptors; RLIMIT_FSIZE 0 refuses files"),
    Call("readv", 19, 65, "inherited descriptors"),
    Call("writev", 20, 66, "inherited descriptors"),
    Call("pread64", 17, 67, "job and images in sealed memory"),
    Call("close", 3, 57, "descriptors"),
    Call("close_range", 436, 436, "descriptors"),
    Call("lseek", 8, 62, "inherited descriptors"),
    Call("fstat", 5, 80, "inherited descriptors"),
    Call("newfstatat", 262, 79, "glibc's fstat", when=((Arg(3, _AT_EMPTY_PATH, _AT_EMPTY_PATH),),)),
    Call("dup", 32, 23, "descriptors"),
    Call("dup2", 33, None, "descriptors"),
    Call("dup3", 292, 24, "descriptors"),
    Call("fcntl", 72, 25, "dup, close-on-exec, non-blocking", when=_one_of(1, 0, 1, 2, 3, 4, 1030)),
    Call("ioctl", 16, 29, "FIONBIO, FIOCLEX, TCGETS", when=_one_of(1, 0x5421, 0x5451, 0x5401)),
    Call("pipe", 22, None, "between forks"),
    Call("pipe2", 293, 59, "between forks"),
    Call("poll", 7, None, "wait for a query"),
    Call("ppoll", 271, 73, "wait for a query"),
    Call("select", 23, None, "wait for a query"),
    Call("pselect6", 270, 72, "wait for a query"),
    Call("epoll_create1", 291, 20, "wait for a query"),
    Call("epoll_ctl", 233, 21, "wait for a query"),
    Call("epoll_wait", 232, None, "wait for a query"),
    Call("epoll_pwait", 281, 22, "wait for a query"),
    Call("eventfd2", 290, 19, "between threads"),
    Call("sendto", 44, 206, "inherited sockets; all are connected"),
    Call("recvfrom", 45, 207, "inherited sockets"),
    Call("sendmsg", 46, 211, "inherited sockets; passes descriptors"),
    Call("recvmsg", 47, 212, "inherited sockets; takes descriptors"),
    Call("shutdown", 48, 210, "inherited sockets"),
    Call("getsockname", 51, 204, "Python's socket object"),
    Call("getpeername", 52, 205, "Python's socket object"),
    Call("getsockopt", 55, 209, "Python's socket object"),
    Call(
        "setsockopt",
        54,
        208,
        "buffer sizes",
        when=((Arg(1, 1), Arg(2, _SO_SNDBUF)), (Arg(1, 1), Arg(2, _SO_RCVBUF))),
    ),
    # No datagram pair: sendto() on one reaches any named datagram socket of the machine.
    Call(
        "socketpair",
        53,
        199,
        "between forks",
        when=(
            (Arg(0, _UNIX), Arg(1, _STREAM, 0xF)),
            (Arg(0, _UNIX), Arg(1, _SEQPACKET, 0xF)),
        ),
    ),
    Call("mmap", 9, 222, "guest RAM, translated code"),
    Call("mprotect", 10, 226, "translated code"),
    Call("munmap", 11, 215, "memory"),
    Call("mremap", 25, 216, "memory"),
    Call("madvise", 28, 233, "memory"),
    Call("brk", 12, 214, "memory"),
    Call("membarrier", 324, 283, "translated code"),
    Call("fork", 57, None, "checkpoints; bounded by RLIMIT_NPROC and the pool"),
    Call("clone", 56, 220, "checkpoints and threads", when=((Arg(0, 0, _CLONE_NEW_ANYTHING),),)),
    Call("set_tid_address", 218, 96, "fork"),
    Call("set_robust_list", 273, 99, "fork"),
    Call("rseq", 334, 293, "fork"),
    Call("wait4", 61, 260, "checkpoints"),
    Call("waitid", 247, 95, "checkpoints"),
    Call("exit", 60, 93, "the end"),
    Call("exit_group", 231, 94, "the end"),
    Call("futex", 202, 98, "locks"),
    Call("sched_yield", 24, 124, "locks"),
    Call("sched_getaffinity", 204, 123, "number of CPUs"),
    Call("rt_sigaction", 13, 134, "signal handlers"),
    Call("rt_sigprocmask", 14, 135, "signal handlers"),
    Call("rt_sigreturn", 15, 139, "signal handlers"),
    Call("sigaltstack", 131, 132, "signal handlers"),
    Call("restart_syscall", 219, 128, "after a signal"),
    Call("setitimer", 38, 103, "a time limit of its own"),
    Call("tgkill", 234, 131, "abort() of itself", when=((Arg(0, OWN_PID),),)),
    Call("clock_gettime", 228, 113, "progress"),
    Call("clock_getres", 229, 114, "progress"),
    Call("clock_nanosleep", 230, 115, "sleep"),
    Call("nanosleep", 35, 101, "sleep"),
    Call("gettimeofday", 96, 169, "progress"),
    Call("getrandom", 318, 278, "Python's own needs"),
    Call("getpid", 39, 172, "who am I"),
    Call("getppid", 110, 173, "who am I"),
    Call("gettid", 186, 178, "who am I"),
    Call("getuid", 102, 174, "who am I"),
    Call("geteuid", 107, 175, "who am I"),
    Call("getgid", 104, 176, "who am I"),
    Call("getegid", 108, 177, "who am I"),
    Call("getrusage", 98, 165, "how much have I used"),
    Call("times", 100, 153, "how much have I used"),
    Call("sysinfo", 99, 179, "how much is there"),
    Call("uname", 63, 160, "what is this"),
    Call("prlimit64", 302, 261, "its own limits; never raised without a capability", _one_of(0, 0)),
    Call("prctl", 157, 167, "parent-death signal, name", when=_one_of(0, 1, 15)),
)

NOT_THERE = (Call("clone3", 435, 435, "glibc then uses clone, whose flags can be seen"),)
"""Calls answered with ENOSYS instead of EPERM, so that libraries fall back."""
