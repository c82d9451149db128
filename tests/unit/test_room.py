"""Which sessions end for which budget: made-up sessions with given sizes."""

import pytest

from app.room import BUDGET_VARIABLE, Seat, budget_bytes, memory_total, surplus

MIB = 1 << 20


def seat(key: str, mib: int, used_at: float, *, idle: bool = True, recording: bool = False) -> Seat:
    return Seat(key, mib * MIB, used_at, idle and not recording, recording)


SMALL = [seat(f"s{n}", 100, float(n)) for n in range(10)]


def test_ten_small_sessions_stay_where_three_large_ones_would() -> None:
    assert surplus(SMALL, 1536 * MIB, 24, 20.0) == ([], True)
    large = [seat(f"l{n}", 512, float(n)) for n in range(4)]
    assert surplus(large, 1536 * MIB, 24, 20.0) == (["l0"], True)


def test_number_is_a_back_stop() -> None:
    assert surplus(SMALL, 1 << 50, 8, 20.0) == (["s0", "s1"], True)
    assert surplus(SMALL, 1 << 50, 8, 20.0, coming_bytes=0) == (["s0", "s1", "s2"], True)


def test_that_one_ends_that_gives_most_back_for_its_age() -> None:
    seats = [seat("old", 100, 0.0), seat("large", 500, 10.0), seat("new", 500, 19.0)]
    assert surplus(seats, 1000 * MIB, 24, 20.0) == (["large"], True)
    assert surplus(seats, 400 * MIB, 24, 20.0)[0] == ["large", "old", "new"]


def test_busy_sessions_and_recordings_stay() -> None:
    seats = [
        seat("busy", 600, 0.0, idle=False),
        seat("recording", 600, 0.0, recording=True),
        seat("idle", 600, 9.0),
    ]
    assert surplus(seats, 1300 * MIB, 24, 10.0) == (["idle"], True)
    assert surplus(seats, 1300 * MIB, 24, 10.0, coming_bytes=200 * MIB) == (["idle"], False)


def test_one_session_may_always_be() -> None:
    only = [seat("recording", 600, 0.0, recording=True)]
    assert surplus(only, 100 * MIB, 1, 1.0, coming_bytes=500 * MIB) == ([], True)
    assert surplus([], 100 * MIB, 1, 1.0, coming_bytes=500 * MIB) == ([], True)
    busy = [seat("busy", 600, 0.0, idle=False)]
    assert surplus(busy, 100 * MIB, 1, 1.0, coming_bytes=500 * MIB) == ([], False)


def test_budget_is_a_share_of_the_machine_or_what_its_owner_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert memory_total("MemFree: 1 kB\nMemTotal:       8388608 kB\n") == 8 << 30
    assert memory_total("nonsense") == 4 << 30
    monkeypatch.delenv(BUDGET_VARIABLE, raising=False)
    assert 64 * MIB < budget_bytes() < 1 << 50
    monkeypatch.setenv(BUDGET_VARIABLE, "700")
    assert budget_bytes() == 700 * MIB
