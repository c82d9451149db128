"""Debian's own ppc64el kernel and kexec, fetched with apt into a cache: the real pair.

What it is: `bootflow fetch-debian`, the only command that downloads anything. apt reads this
machine's sources and keys, but keeps its lists and downloads in the cache; nothing is installed
and the system's package state is not touched. apt checks every signature and checksum. On request
the same kernel with its DWARF comes too, out of a package of 700 MB.
What it is not: a pin. The archive moves on, so the manifest records which versions were found.
Source: apt-get(8), apt-cache(8), dpkg-deb(1); the kernel's package is a dependency of
linux-image-powerpc64le.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emulator.errors import BootflowError

ARCHITECTURE = "ppc64el"
KERNEL_META = "linux-image-powerpc64le"
KEXEC_PACKAGE = "kexec-tools"
MANIFEST = "manifest.json"
UPDATE_SECONDS = 300
DOWNLOAD_SECONDS = 600
DEBUG_SECONDS = 3600


class FetchError(BootflowError):
    """The Debian pair could not be fetched."""

    slug = "fetch"


@dataclass(frozen=True)
class DebianPair:
    """The files of the pair and where they come from."""

    vmlinux: Path
    """The kernel: an ELF vmlinux, not stripped."""
    kexec: Path
    """The kexec binary that carries its purgatory."""
    kernel_package: str
    """Name and version of the kernel's package."""
    kexec_package: str
    """Name and version of the package with kexec."""
    initrd: None = None
    """Debian's packages hold none: it is made where a kernel is installed."""


def default_cache_dir() -> Path:
    """Return where the pair is kept: BOOTFLOW_CACHE, else the user's cache folder (XDG)."""
    chosen = os.environ.get("BOOTFLOW_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bootflow"


def find_debian_pair(cache_dir: Path | None = None) -> DebianPair | None:
    """Return the pair if it lies in the cache, whole; nothing is downloaded."""
    folder = _pair_dir(cache_dir)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        vmlinux = folder / manifest["vmlinux"]["name"]
        kexec = folder / manifest["kexec"]["name"]
        whole = all(
            path.stat().st_size == manifest[role]["size_bytes"]
            for role, path in (("vmlinux", vmlinux), ("kexec", kexec))
        )
        packages = manifest["kernel_package"], manifest["kexec_package"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return DebianPair(vmlinux, kexec, *packages) if whole else None


def fetch_debian(
    cache_dir: Path | None = None, *, say: Callable[[str], None] = lambda line: None
) -> DebianPair:
    """Return the pair, downloading it first if the cache does not have it (50 MB).

    Args:
        cache_dir: the cache folder; default_cache_dir() if None.
        say: told each step, one line each.

    Raises:
        FetchError: apt is missing, no source has the packages, or the network does not answer.
    """
    found = find_debian_pair(cache_dir)
    if found is not None:
        return found
    for command in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(command) is None:
            raise FetchError(
                f"{command} is not on this machine, and the pair comes from Debian by apt",
                hint="Run this on Debian, or give bootflow a vmlinux and a kexec of your own.",
            )
    folder = _pair_dir(cache_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
            _fetch_into(Path(name), folder, say)
    except OSError as exc:
        raise FetchError(
            f"{folder.parent}: {exc.strerror or exc}",
            hint="Set BOOTFLOW_CACHE to a folder that can be written and has 150 MB free.",
        ) from exc
    found = find_debian_pair(cache_dir)
    if found is None:
        raise FetchError(f"{folder} is not whole after the download", hint="Remove it; try again.")
    return found


def debug_kernel_path(pair: DebianPair, cache_dir: Path | None = None) -> Path:
    """Return where the pair's kernel with its DWARF lies once it was fetched."""
    folder = _pair_dir(cache_dir).parent / f"debian-{ARCHITECTURE}-debug"
    return folder / pair.kernel_package.replace(" ", "_") / pair.vmlinux.name


def fetch_debug_kernel(
    pair: DebianPair,
    cache_dir: Path | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the pair's kernel with its DWARF, downloading it first if it is not there (720 MB).

    Args:
        pair: what `fetch_debian` returned; the debug symbols are those of exactly its version.
        cache_dir: the cache folder; default_cache_dir() if None.
        say: told each step, one line each.

    Raises:
        FetchError: the archive has no debug symbols of that version, or it cannot be reached.
    """
    path = debug_kernel_path(pair, cache_dir)
    if path.is_file():
        return path
    package, _, version = pair.kernel_package.partition(" ")
    folder = path.parent.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
            work = Path(name)
            options = _apt_options(work)
            say(f"apt: reading the lists for {ARCHITECTURE}")
            _run(["apt-get", *options, "update"], work, UPDATE_SECONDS)
            say(f"apt: downloading {package}-dbg, 700 MB")
            archive = _download(f"{package}-dbg={version}", options, work, DEBUG_SECONDS)
            ready = work / "ready"
            ready.mkdir()
            _unpack(archive, r"(\./)?usr/lib/debug/boot/vmlinux-[^/]+\Z", ready)
            if path.parent.exists():
                shutil.rmtree(path.parent)
            ready.rename(path.parent)
    except OSError as exc:
        raise FetchError(
            f"{folder}: {exc.strerror or exc}",
            hint="Set BOOTFLOW_CACHE to a folder that can be written and has 1.2 GB free.",
        ) from exc
    return path


def fetched(debug_symbols: bool, *, say: Callable[[str], None]) -> list[tuple[str, Path, str]]:
    """Fetch what is asked for: (what it is, where, package and version) of each file."""
    pair = fetch_debian(say=say)
    made = [
        ("vmlinux", pair.vmlinux, pair.kernel_package), ("kexec", pair.kexec, pair.kexec_package)
    ]  # fmt: skip
    if debug_symbols:
        path = fetch_debug_kernel(pair, say=say)
        made.append(("debug vmlinux", path, "-dbg ".join(pair.kernel_package.split(" ", 1))))
    return made


def _pair_dir(cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / f"debian-{ARCHITECTURE}"


def _fetch_into(work: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Download and unpack in `work`, then put the finished folder in place in one step."""
    options = _apt_options(work)
    say(f"apt: reading the lists for {ARCHITECTURE}")
    update = _run(["apt-get", *options, "update"], work, UPDATE_SECONDS)
    # One source of many may fail; what counts is whether the packages are known now.
    depends = _run(["apt-cache", *options, "depends", KERNEL_META], work, UPDATE_SECONDS)
    kernel = _kernel_package(depends.stdout)
    if kernel is None:
        raise FetchError(
            f"apt knows no {KERNEL_META} for {ARCHITECTURE}: {_last_line(update.stderr)}",
            hint="Is the network up, and is a Debian archive among this machine's apt sources?",
        )
    ready = work / "pair"
    ready.mkdir()
    manifest: dict[str, object] = {}
    for role, package, pattern in (
        ("vmlinux", kernel, r"(\./)?boot/vmlinux-[^/]+\Z"),
        ("kexec", KEXEC_PACKAGE, r"(\./)?(usr/)?sbin/kexec\Z"),
    ):
        say(f"apt: downloading {package}")
        archive = _download(package, options, work)
        path = _unpack(archive, pattern, ready)
        manifest[role] = {
            "name": path.name,
            "size_bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        manifest["kernel_package" if role == "vmlinux" else "kexec_package"] = _version(archive)
        archive.unlink()
    (ready / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    ready.rename(folder)


def _apt_options(work: Path) -> list[str]:
    """Return the options that make apt look at another architecture and leave the system alone."""
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    settings = {
        "APT::Architecture": ARCHITECTURE,
        "APT::Architectures": ARCHITECTURE,
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    if os.geteuid() == 0:  # apt's own user could not write into a cache below /root
        settings["APT::Sandbox::User"] = "root"
    return ["-q", *(f"-o{name}={value}" for name, value in settings.items())]


def _kernel_package(depends: str) -> str | None:
    """Return the kernel's package from what `apt-cache depends` printed."""
    match = re.search(r"Depends: (linux-image-[0-9][\w.+~-]*powerpc64le)\s*$", depends, re.M)
    return match[1] if match else None


def _download(
    package: str, options: list[str], work: Path, seconds: int = DOWNLOAD_SECONDS
) -> Path:
    before = set(work.glob("*.deb"))
    done = _run(["apt-get", *options, "download", package], work, seconds)
    new = sorted(set(work.glob("*.deb")) - before)
    if done.returncode != 0 or len(new) != 1:
        raise FetchError(
            f"apt could not download {package}: {_last_line(done.stderr)}",
            hint="Is the network up? What was fetched is kept only when all of it is there.",
        )
    return new[0]


def _unpack(archive: Path, pattern: str, into: Path) -> Path:
    """Write the one file of a Debian package whose path matches; nothing else is unpacked."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - fixed command
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            path = _write_member(tar, pattern, into)
        process.kill()  # the rest of the package is not needed
    if path is None:
        raise FetchError(
            f"{archive.name} holds no file that matches {pattern}",
            hint="Debian has moved it; please report this.",
        )
    return path


def _write_member(tar: tarfile.TarFile, pattern: str, into: Path) -> Path | None:
    for member in tar:
        if member.isfile() and re.match(pattern, member.name):
            source = tar.extractfile(member)
            if source is None:
                return None
            path = into / Path(member.name).name
            with source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            return path
    return None


def _version(archive: Path) -> str:
    """Return "name version" of a Debian package file."""
    done = _run(
        ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(archive)],
        archive.parent,
        60,
    )
    return done.stdout.strip()


def _run(command: list[str], where: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - fixed commands, no shell
            command,
            cwd=where,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise FetchError(
            f"{command[0]} gave no answer in {seconds} seconds",
            hint="Is the network up? Try again later.",
        ) from exc


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message from apt"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
