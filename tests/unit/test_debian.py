"""The fetch command, on a made-up machine whose apt is a script of ours; nothing is downloaded."""

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from app import debian
from app.cli import main
from app.debian import (
    FetchError,
    default_cache_dir,
    fetch_debian,
    fetch_debug_kernel,
    find_debian_pair,
)

KERNEL = "linux-image-6.1.0-99-powerpc64le"
APT_GET = """
words = sys.argv[1:]
log.write(" ".join(["apt-get", *words]) + "\\n")
if words[-1] == "update":
    sys.exit(0)
name = words[-1].split("=")[0]
if os.environ.get("NO_NETWORK"):
    sys.exit("E: Failed to fetch " + name)
pathlib.Path(name + "_1_ppc64el.deb").write_text(name)
"""
APT_CACHE = """
print("linux-image-powerpc64le\\n  Depends: KERNEL" if not os.environ.get("NO_PACKAGE") else "")
"""
DPKG_DEB = """
package = pathlib.Path(sys.argv[-1]).read_text()
if sys.argv[1] == "--show":
    print(package + " 1-2", end="")
else:
    sys.stdout.buffer.write(pathlib.Path(os.environ["TARS"], package + ".tar").read_bytes())
"""


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put apt-get, apt-cache and dpkg-deb of our own before those of the machine."""
    tools = tmp_path / "bin"
    tools.mkdir()
    log = tmp_path / "log"
    for name, body in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-deb", DPKG_DEB)):
        head = f"#!{sys.executable}\nimport os, pathlib, sys\nlog = open({str(log)!r}, 'a')\n"
        (tools / name).write_text(head + body.replace("KERNEL", KERNEL))
        (tools / name).chmod(0o755)
    write_tar(
        tmp_path / f"{KERNEL}.tar",
        {"./boot/config-6.1": b"no", "./boot/vmlinux-6.1": b"a kernel", "./lib/more": b"x" * 99},
    )
    write_tar(tmp_path / "kexec-tools.tar", {"./sbin/kexec": b"a kexec"})
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("TARS", str(tmp_path))
    return tmp_path


def test_debug_symbols_are_those_of_the_same_version(fake_apt: Path) -> None:
    write_tar(
        fake_apt / f"{KERNEL}-dbg.tar",
        {"./usr/lib/debug/boot/vmlinux-6.1": b"a kernel with DWARF", "./usr/lib/more": b"x"},
    )
    cache = fake_apt / "cache"
    pair = fetch_debian(cache)
    said: list[str] = []
    path = fetch_debug_kernel(pair, cache, say=said.append)
    assert path.read_bytes() == b"a kernel with DWARF"
    assert path.name == pair.vmlinux.name
    assert f"download {KERNEL}-dbg=1-2\n" in (fake_apt / "log").read_text()
    assert len(said) == 2
    before = (fake_apt / "log").read_text()
    assert fetch_debug_kernel(pair, cache) == path
    assert (fake_apt / "log").read_text() == before
    assert find_debian_pair(cache) == pair


def test_debug_symbols_come_on_request_only(
    fake_apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOTFLOW_CACHE", str(fake_apt / "cache"))
    shown = CliRunner().invoke(main, ["fetch-debian", "--json"])
    assert set(json.loads(shown.stdout)) == {"vmlinux", "kexec"}
    assert "-dbg" not in (fake_apt / "log").read_text()
    write_tar(fake_apt / f"{KERNEL}-dbg.tar", {"./usr/lib/debug/boot/vmlinux-6.1": b"DWARF"})
    shown = CliRunner().invoke(main, ["fetch-debian", "--debug-symbols"])
    assert shown.exit_code == 0
    found = re.search(r"^debug vmlinux: (\S+) \((.*)\)$", shown.stdout, re.M)
    assert found is not None
    assert Path(found[1]).read_bytes() == b"DWARF"
    assert found[2] == f"{KERNEL}-dbg 1-2"


def test_fetches_once_and_remembers_versions(fake_apt: Path) -> None:
    cache = fake_apt / "cache"
    assert find_debian_pair(cache) is None
    said: list[str] = []
    pair = fetch_debian(cache, say=said.append)
    assert pair.vmlinux.read_bytes() == b"a kernel"
    assert pair.kexec.read_bytes() == b"a kexec"
    assert pair.kernel_package == f"{KERNEL} 1-2"
    assert pair.kexec_package == "kexec-tools 1-2"
    assert pair.initrd is None
    assert [line.split()[-1] for line in said] == ["ppc64el", KERNEL, "kexec-tools"]
    calls = (fake_apt / "log").read_text()
    assert "-oDir::State::status=/dev/null" in calls
    assert "-oAPT::Architecture=ppc64el" in calls
    assert " install " not in calls
    assert fetch_debian(cache) == find_debian_pair(cache) == pair
    assert (fake_apt / "log").read_text() == calls, "the second time asks nobody"
    assert sorted(path.name for path in cache.iterdir()) == ["debian-ppc64el"]


def test_damaged_cache_is_fetched_again(fake_apt: Path) -> None:
    cache = fake_apt / "cache"
    pair = fetch_debian(cache)
    pair.vmlinux.write_bytes(b"cut")
    assert find_debian_pair(cache) is None
    assert fetch_debian(cache).vmlinux.read_bytes() == b"a kernel"
    (cache / "debian-ppc64el" / "manifest.json").write_text("[]")
    assert find_debian_pair(cache) is None


@pytest.mark.parametrize(
    ("variable", "words"),
    [("NO_PACKAGE", "apt knows no linux-image-powerpc64le"), ("NO_NETWORK", "Failed to fetch")],
)
def test_failure_says_why_and_leaves_nothing(
    fake_apt: Path, monkeypatch: pytest.MonkeyPatch, variable: str, words: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(FetchError, match=words) as caught:
        fetch_debian(fake_apt / "cache")
    assert "network" in caught.value.hint
    assert list((fake_apt / "cache").iterdir()) == []


def test_package_without_the_file_is_an_error(fake_apt: Path) -> None:
    write_tar(fake_apt / "kexec-tools.tar", {"./sbin/kexec/../../etc/passwd": b"no"})
    with pytest.raises(FetchError, match="holds no file"):
        fetch_debian(fake_apt / "cache")


def test_machine_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="apt-get is not on this machine"):
        fetch_debian(tmp_path / "cache")


def test_folder_that_cannot_be_written_is_told_so(fake_apt: Path) -> None:
    (fake_apt / "file").write_text("")
    with pytest.raises(FetchError, match="file") as caught:
        fetch_debian(fake_apt / "file" / "cache")
    assert "BOOTFLOW_CACHE" in caught.value.hint


def test_answer_that_does_not_come_is_an_error(
    fake_apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake_apt / "bin" / "apt-get").write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(debian, "UPDATE_SECONDS", 0.2)
    monkeypatch.setenv("PATH", "/bin", prepend=os.pathsep)
    monkeypatch.setenv("PATH", str(fake_apt / "bin"), prepend=os.pathsep)
    with pytest.raises(FetchError, match="gave no answer"):
        fetch_debian(fake_apt / "cache")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOOTFLOW_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == Path("/x/bootflow")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert default_cache_dir() == Path("/h/.cache/bootflow")
    monkeypatch.setenv("BOOTFLOW_CACHE", "/b")
    assert default_cache_dir() == Path("/b")


@pytest.mark.real
def test_real_pair_is_what_it_says(debian_pair: debian.DebianPair) -> None:
    manifest = json.loads((debian_pair.vmlinux.parent / "manifest.json").read_text())
    assert debian_pair.vmlinux.read_bytes()[:6] == b"\x7fELF\x02\x01"
    assert debian_pair.kexec.read_bytes()[:6] == b"\x7fELF\x02\x01"
    assert debian_pair.kernel_package.startswith("linux-image-")
    assert manifest["vmlinux"]["sha256"] == debian._sha256(debian_pair.vmlinux)
    assert manifest["kexec"]["sha256"] == debian._sha256(debian_pair.kexec)
