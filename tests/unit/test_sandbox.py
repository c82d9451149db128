"""Each denial of the sandbox, proved in a child process that tries; and what must still work."""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from app.sandbox import build_filter
from app.syscalls import CALLS, NOT_THERE

PRELUDE = """
import ctypes, mmap, os, resource, select, signal, socket, struct, sys, threading, time, errno
from app.sandbox import Limits, lock_down
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, result):
    if result >= 0:
        sys.exit(f"not refused: {name}: {result}")
    print(name, errno.errorcode[ctypes.get_errno()], sep="=")
confinement = lock_down(Limits(cpu_seconds=20, processes=24))
"""


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    source = PRELUDE + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", source, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


DENIED = {
    "open for writing": "os.open(sys.argv[1] + '/new', os.O_CREAT | os.O_WRONLY)",
    "open for reading": "os.open('/etc/passwd', os.O_RDONLY)",
    "open itself": "open('/proc/self/mem', 'r+b')",
    "mkdir": "os.mkdir(sys.argv[1] + '/dir')",
    "unlink": "os.unlink(sys.argv[1] + '/old')",
    "rename": "os.rename(sys.argv[1] + '/old', sys.argv[1] + '/other')",
    "stat by name": "os.stat(sys.argv[1] + '/old')",
    "chdir": "os.chdir('/')",
    "internet socket": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "UNIX socket": "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
    "netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "datagram pair": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "execve": "os.execv('/bin/true', ['true'])",
    "kill the parent": "os.kill(os.getppid(), 0)",
    "kill init": "os.kill(1, signal.SIGKILL)",
    "kill everyone": "os.kill(-1, 0)",
    "kill the group": "os.killpg(0, 0)",
    "limits of the parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
    "a new session": "os.setsid()",
    "priority": "os.nice(-1)",
    "become root": "os.setuid(0)",
    "memory file": "os.memfd_create('x')",
    "process handle": "os.pidfd_open(os.getppid())",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))",
}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each attempt, made by one locked child."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "old").write_text("old")
    folder.chmod(0o777)
    folder.parent.chmod(0o755)
    lines = []
    for name, attempt in DENIED.items():
        lines += ["try:", f"    {attempt}", "except (OSError, ValueError) as exc:"]
        lines += [f"    print({name!r}, 'refused', sep='=')", "else:"]
        lines += [f"    print({name!r}, 'NOT REFUSED', sep='=')"]
    done = run("\n".join(lines), str(folder))
    assert done.returncode == 0, done.stderr
    assert [p.name for p in folder.iterdir()] == ["old"]
    assert (folder / "old").read_text() == "old"
    return dict(line.split("=") for line in done.stdout.splitlines())


@pytest.mark.parametrize("what", DENIED)
def test_denied(attempts: dict[str, str], what: str) -> None:
    assert attempts[what] == "refused"


RAW_DENIED = {
    "ptrace attach": "libc.ptrace(16, os.getppid(), 0, 0)",
    "ptrace traceme": "libc.ptrace(0, 0, 0, 0)",
    "connect": "libc.connect(socket.socketpair()[0].fileno(), bytes(16), 16)",
    "bind": "libc.bind(0, bytes(16), 16)",
    "unshare": "libc.unshare(0x10000000)",
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "read another process": "libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)",
    "bpf": "libc.syscall(321, 0, 0, 0)",
    "perf_event_open": "libc.syscall(298, 0, 0, 0, 0, 0)",
    "io_uring_setup": "libc.syscall(425, 1, 0)",
    "keyctl": "libc.syscall(250, 0, 0)",
    "userfaultfd": "libc.syscall(323, 0)",
    "clone3": "libc.syscall(435, 0, 0)",
    "clone into a new user namespace": "libc.syscall(56, 0x10000000, 0, 0, 0, 0)",
    "tgkill of the parent": "libc.syscall(234, os.getppid(), os.getppid(), 0)",
    "dumpable again": "libc.prctl(4, 1, 0, 0, 0)",
    "terminal injection": "libc.ioctl(0, 0x5412, b'x')",
    "signal by descriptor owner": "libc.fcntl(0, 8, os.getppid())",
}


X86_64 = platform.machine() == "x86_64"


@pytest.fixture(scope="module")
def raw_attempts() -> dict[str, str]:
    """The error of each raw call, made by one locked child."""
    lines = [f"refused({name!r}, {attempt})" for name, attempt in RAW_DENIED.items()]
    done = run("\n".join(lines))
    assert done.returncode == 0, done.stderr
    return dict(line.split("=") for line in done.stdout.splitlines())


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
@pytest.mark.parametrize("what", RAW_DENIED)
def test_denied_raw(raw_attempts: dict[str, str], what: str) -> None:
    assert raw_attempts[what] in ("EPERM", "ENOSYS")


@pytest.mark.skipif(not X86_64, reason="the numbers are those of x86_64")
def test_other_numbers_for_the_same_calls_kill() -> None:
    done = run("libc.syscall(0x40000000 | 2, b'/etc/passwd', 0)")
    assert done.returncode == -31  # SIGSYS


def test_writing_to_an_inherited_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        code = PRELUDE + "os.write(1, b'leak')"
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode != 0
    assert (tmp_path / "out").read_text() == ""


ALLOWED = {
    "fork and wait": """
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    """,
    "descriptors over a pair": """
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        r, w = os.pipe()
        socket.send_fds(a, [b"x"], [w])
        data, fds, _, _ = socket.recv_fds(b, 10, 1)
        os.write(fds[0], b"hello")
        assert os.read(r, 5) == b"hello"
        a.settimeout(0.1); a.setblocking(False)
        assert select.select([b], [], [], 0.01)[0] == []
    """,
    "threads and clocks": """
        done = []
        t = threading.Thread(target=lambda: done.append(time.monotonic())); t.start(); t.join()
        time.sleep(0.01); os.urandom(8); assert done
    """,
    "code in memory": """
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("b82a000000c3"))
        at = ctypes.addressof(ctypes.c_char.from_buffer(code))
        if os.uname().machine == "x86_64":
            assert ctypes.CFUNCTYPE(ctypes.c_int)(at)() == 42
    """,
    "nobody, and confined": """
        assert os.getuid() != 0
        assert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (208, 208)
    """,
    "a time limit of its own": """
        signal.signal(signal.SIGPROF, lambda *_: done.append(1))
        done = []
        signal.setitimer(signal.ITIMER_PROF, 0.01)
        until = time.monotonic() + 5
        while not done and time.monotonic() < until:
            pass
        assert done
    """,
}


@pytest.mark.parametrize("what", ALLOWED)
def test_allowed(what: str) -> None:
    done = run(ALLOWED[what])
    assert done.returncode == 0, done.stderr


def test_an_engine_runs_after_the_lock() -> None:
    code = """
    uc = unicorn.Uc(unicorn.UC_ARCH_PPC, unicorn.UC_MODE_PPC64 | unicorn.UC_MODE_BIG_ENDIAN)
    uc.ctl_set_tlb_mode(1)
    uc.hook_add(unicorn.UC_HOOK_TLB_FILL, lambda u, a, t, r, d: False)
    print("engine")
    """
    source = "import unicorn\n" + PRELUDE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert done.stdout == "engine\n", done.stderr


def test_forks_are_bounded_where_they_can_be_counted() -> None:
    code = """
    if not confinement.namespaces:
        print("bounded"); sys.exit()
    for n in range(100):
        try:
            if os.fork() == 0:
                time.sleep(0.5); os._exit(0)
        except BlockingIOError:
            print("bounded"); break
    """
    assert run(code).stdout == "bounded\n"


def test_memory_is_bounded() -> None:
    assert "MemoryError" in run("bytearray(65 << 30)").stderr


def test_cpu_time_is_bounded() -> None:
    code = PRELUDE.replace("cpu_seconds=20", "cpu_seconds=1") + "\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert done.returncode in (-9, -24)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_is_well_formed(machine: str) -> None:
    program = build_filter(machine)
    assert len(program) < 4096
    for at, (code, yes, no, operand) in enumerate(program):
        assert 0 <= operand < 1 << 32
        assert at + max(yes, no) + 1 < len(program) or code == 0x06
    assert program[-1][0] == 0x06


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_are_those_of_the_kernel_headers(machine: str) -> None:
    header = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }[machine]
    if not header.exists():
        pytest.skip("kernel headers are not installed")
    numbers = {}
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "#define" and words[2].isdigit():
            name = words[1].removeprefix("__NR_").removeprefix("__NR3264_")
            numbers[name] = int(words[2])
    for call in (*CALLS, *NOT_THERE):
        number = getattr(call, machine)
        name = call.name
        if number is not None:
            found = {numbers.get(name), numbers.get("fstatat" if name == "newfstatat" else name)}
            assert number in found, call
