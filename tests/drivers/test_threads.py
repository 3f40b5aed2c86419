"""Threads follow what other programs take of the cores."""

import pytest

from llmasos.drivers.local.threads import Threads, wanted


@pytest.mark.parametrize(
    ("cores", "foreign", "threads"),
    [
        (2, 0.0, 2), (2, 0.3, 2), (2, 0.7, 1), (2, 1.0, 1), (2, 2.0, 1), (1, 0.9, 1),
        (8, 0.5, 8), (8, 1.1, 7), (8, 3.8, 4), (8, 9.0, 1),
    ],
)  # fmt: skip
def test_a_core_that_somebody_uses_is_left_to_them(
    cores: int, foreign: float, threads: int
) -> None:
    assert wanted(cores, foreign) == threads


def test_threads_change_seldom_and_stay_in_their_bounds() -> None:
    threads = Threads(1)
    assert [threads.choose() for _ in range(5)] == [1] * 5
