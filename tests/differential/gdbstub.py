"""A client of QEMU's debugger protocol (gdb remote serial protocol), as much as the tests need.

Registers come and go in the byte order that the CPU has at that moment; `registers` finds it out
from MSR[LE] itself.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

GPRS: Final = tuple(f"r{n}" for n in range(32))
CORE: Final = ("nip", "msr", "cr", "lr", "ctr", "xer")
NUMBERS: Final = dict(zip(CORE, (64, 65, 66, 67, 68, 69), strict=True)) | {
    name: n for n, name in enumerate(GPRS)
}
MACHINE: Final = "pseries,cap-hpt-max-page-size=16M"
"""Hash MMU with pages of 16 MiB, as bootflow's partition offers them."""
WRITE_BYTES: Final = 1024
STOP_SECONDS: Final = 120.0

State = dict[str, int]


class Qemu:
    """A stopped `qemu-system-ppc64 -M pseries` with one CPU.

    Args:
        folder: for its socket and the files that it loads.
        cpu: name of the CPU model.
        ram_bytes: size of RAM.
        blobs: address -> content, put into RAM before the CPU starts.
    """

    def __init__(self, folder: Path, cpu: str, ram_bytes: int, blobs: Mapping[int, bytes]) -> None:
        path = folder / "gdb"
        command = [
            "qemu-system-ppc64", "-M", MACHINE, "-accel", "tcg", "-cpu", cpu, "-smp", "1",
            "-m", f"{ram_bytes >> 20}M", "-nodefaults", "-display", "none", "-serial", "null",
            "-monitor", "none", "-S", "-gdb", f"unix:{path},server=on,wait=off",
        ]  # fmt: skip
        for addr, data in blobs.items():
            name = folder / f"{addr:x}"
            name.write_bytes(data)
            command += ["-device", f"loader,file={name},addr={addr:#x},force-raw=on"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(STOP_SECONDS)
        self._buffer = bytearray()
        end = time.monotonic() + 60
        while not path.exists() and self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        self._socket.connect(str(path))
        self.ask("QStartNoAckMode")
        self._socket.sendall(b"+")
        self._ack = False
        self.ask("?")
        self.ask("qXfer:features:read:target.xml:0,1000")  # else 'g' holds what 7.2 cannot answer
        self._ok("Qqemu.PhyMemMode:1")

    _ack = True

    def close(self) -> None:
        """End QEMU."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def ask(self, packet: str) -> str:
        """Send a packet and return its answer."""
        data = packet.encode()
        self._socket.sendall(b"$" + data + b"#%02x" % (sum(data) & 0xFF))
        while True:
            begin = self._buffer.find(b"$")
            end = self._buffer.find(b"#", begin + 1) if begin >= 0 else -1
            if end >= 0 and len(self._buffer) >= end + 3:
                break
            more = self._socket.recv(1 << 16)
            if not more:
                raise ConnectionError(f"QEMU has gone, asked for {packet[:40]}")
            self._buffer += more
        answer = self._buffer[begin + 1 : end].decode()
        del self._buffer[: end + 3]
        if self._ack:
            self._socket.sendall(b"+")
        return answer

    def _ok(self, packet: str) -> None:
        answer = self.ask(packet)
        assert answer == "OK", (packet[:40], answer)

    def registers(self) -> State:
        """Registers of the CPU now."""
        raw = bytes.fromhex(self.ask("g"))
        little = struct.unpack_from("<Q", raw, 33 * 8)[0] & 1
        values = struct.unpack_from(("<" if little else ">") + "32Q2QI2QI", raw)
        state = dict(zip(GPRS, values, strict=False))
        state |= dict(zip(CORE, values[32:], strict=True))
        return state

    def set_registers(self, state: Mapping[str, int]) -> None:
        """Write registers; MSR first, since the byte order hangs on it."""
        self._put("msr", state["msr"], bool(self.registers()["msr"] & 1))
        little = bool(state["msr"] & 1)
        for name, value in state.items():
            if name != "msr":
                self._put(name, value, little)

    def _put(self, name: str, value: int, little: bool) -> None:
        order: Any = "little" if little else "big"
        size = 4 if name in ("cr", "xer") else 8
        self._ok(f"P{NUMBERS[name]:x}={value.to_bytes(size, order).hex()}")

    def write(self, addr: int, data: bytes) -> None:
        """Write physical memory."""
        for at in range(0, len(data), WRITE_BYTES):
            piece = data[at : at + WRITE_BYTES]
            self._ok(f"M{addr + at:x},{len(piece):x}:{piece.hex()}")

    def read(self, addr: int, size: int) -> bytes:
        """Read physical memory."""
        pieces = [
            bytes.fromhex(self.ask(f"m{addr + at:x},{min(WRITE_BYTES, size - at):x}"))
            for at in range(0, size, WRITE_BYTES)
        ]
        return b"".join(pieces)

    def step(self) -> None:
        """Run one instruction (two, where QEMU leaves its loop on an SMT priority hint)."""
        answer = self.ask("s")
        assert answer.startswith(("T05", "S05")), answer

    def run_to(self, addr: int) -> None:
        """Run until NIP is `addr`."""
        self._ok(f"Z1,{addr:x},4")
        answer = self.ask("c")
        assert answer.startswith(("T05", "S05")), answer
        self._ok(f"z1,{addr:x},4")
