"""The schedule is a pure function of quantum, seed and slice number."""

from __future__ import annotations

import pytest

from emulator.errors import LimitError
from emulator.schedule import SOLO_TICKS, Schedule, mix


def test_known_numbers() -> None:
    # first outputs of SplitMix64 for seed 0, as published with the algorithm
    assert [mix(0, n) for n in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize("quantum", [1, 2, 3, 1000])
def test_lengths_stay_in_bounds(quantum: int) -> None:
    lengths = {Schedule(quantum, 7).length(n, 2) for n in range(500)}
    assert min(lengths) >= max(1, quantum // 2)
    assert max(lengths) <= quantum // 2 + quantum
    assert len(lengths) > 1 or quantum == 1


def test_seeds_differ_and_repeat() -> None:
    one, other = Schedule(1000, 1), Schedule(1000, 2)
    assert [one.length(n, 2) for n in range(9)] == [
        Schedule(1000, 1).length(n, 2) for n in range(9)
    ]
    assert [one.length(n, 2) for n in range(9)] != [other.length(n, 2) for n in range(9)]


def test_alone_means_long() -> None:
    assert Schedule(10, 0).length(3, 1) == SOLO_TICKS


def test_round_robin() -> None:
    assert [Schedule.next_cpu(last, [0, 2, 3]) for last in range(4)] == [2, 2, 3, 0]


@pytest.mark.parametrize("quantum", [0, -1, 10**9])
def test_silly_quantum_is_refused(quantum: int) -> None:
    with pytest.raises(LimitError, match="quantum"):
        Schedule(quantum, 0)
