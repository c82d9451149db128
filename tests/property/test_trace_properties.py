"""Any trace comes back as it was written; a flipped bit is an error or harms nothing."""

import string
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.errors import TraceError
from emulator.records import EVENT_KINDS
from emulator.trace import Event, ImageFile, Slice, TraceReader, TraceWriter

u64 = st.integers(0, (1 << 64) - 1).map(lambda v: f"0x{v:016x}")
text = st.text(alphabet=string.printable[:95], max_size=40)
tick = st.integers(0, 1 << 50)
cpu = st.integers(0, 15)
events = st.builds(
    Event,
    tick=tick,
    cpu=st.none() | cpu,
    kind=st.sampled_from(EVENT_KINDS),
    addr=st.none() | u64,
    size=st.none() | st.integers(0, 1 << 40),
    value=st.none() | u64,
    nip=st.none() | u64,
    symbol=text,
    text=text,
)


@st.composite
def slices(draw: st.DrawFn) -> list[Slice]:
    at, made = 0, []
    for ticks in draw(st.lists(st.integers(1, 1 << 30), max_size=20)):
        made.append(Slice(at, draw(cpu), ticks, draw(u64), "head", draw(text)))
        at += ticks + draw(st.integers(0, 3))
    return made


def write(path: Path, slices: list[Slice], events: list[Event], console: list[bytes]) -> str:
    writer = TraceWriter(path)
    writer.start({"mode": "load"}, [ImageFile("kernel", "k", b"kernel" * 99)])
    for item in slices:
        writer.apply({"t": "slice", **item._asdict()})
    for event in events:
        writer.apply({"t": "event", **event._asdict()})
    for data in console:
        writer.apply({"t": "console", "tick": 0, "cpu": 0, "data": data.hex()})
    writer.apply({"t": "end", "reason": "limit", "tick": 9, "ok": False})
    return writer.finish()


def read_all(path: Path) -> tuple[object, ...]:
    with TraceReader(path) as trace:
        return (
            trace.status,
            trace.spec,
            trace.end,
            list(trace.slices()),
            list(trace.events()),
            trace.console(),
            trace.images(),
            trace.checkpoints(),
            trace.check(),
        )


@settings(max_examples=30, deadline=None)
@given(slices(), st.lists(events, max_size=20), st.lists(st.binary(min_size=1), max_size=5))
def test_round_trip(slices: list[Slice], events: list[Event], console: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        digest = write(path, slices, events, console)
        _, _, _, read_slices, read_events, read_console, *_, read_digest = read_all(path)
    assert read_slices == slices
    assert read_events == sorted(events, key=lambda e: e.tick)
    assert read_console == b"".join(console)
    assert read_digest == digest


def _sample() -> tuple[bytes, tuple[object, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        event = Event(3, 0, "low-write", "0x" + "0" * 16, 8, "0x12", None, "memcpy+0x4/0x80", "")
        write(path, [Slice(0, 0, 5, "0x" + "f" * 16, "copy", "x")] * 1, [event], [b"hello"])
        return path.read_bytes(), read_all(path)


SAMPLE, CONTENT = _sample()


@settings(max_examples=250, deadline=None)
@given(st.integers(0, len(SAMPLE) * 8 - 1))
def test_flipped_bit_is_an_error_or_harmless(bit: int) -> None:
    broken = bytearray(SAMPLE)
    broken[bit // 8] ^= 1 << (bit % 8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(broken)
        try:
            content = read_all(path)
        except TraceError:
            return
    assert content == CONTENT


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4096), st.integers(0, len(SAMPLE)))
def test_overwritten_bytes_never_crash_the_reader(data: bytes, at: int) -> None:
    broken = SAMPLE[:at] + data + SAMPLE[at + len(data) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(broken)
        try:
            read_all(path)
        except TraceError:
            return
