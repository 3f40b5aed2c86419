"""The pauses of long tasks, on a clock that only the test moves."""

from types import SimpleNamespace

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.storage import pacing
from llmasos.kernel.storage.pacing import Pacing

pytestmark = pytest.mark.anyio
SHARE = 4.0


class Clock:
    """Monotonic seconds; sleeping moves them on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(pacing, "anyio", SimpleNamespace(sleep=self.sleep))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(limits, "SLICE_SHARE", SHARE)
    monkeypatch.setattr(limits, "INDEX_PAUSE_S", 1000.0)
    return Clock(monkeypatch)


async def began(paced: Pacing, clock: Clock, took_s: float, most_s: float = 1000.0) -> float:
    """When a piece that takes so long begins."""
    async with paced.piece(most_s):
        begun = clock.now
        clock.now += took_s
    return begun


async def test_a_task_pauses_in_proportion_to_its_pieces(clock: Clock) -> None:
    paced = Pacing()
    paced.computing = lambda: True
    first, second, third = [await began(paced, clock, took_s) for took_s in (2.0, 1.0, 1.0)]
    assert second - first == pytest.approx(2 + SHARE * 2)
    assert third - second == pytest.approx(1 + SHARE * 1)


async def test_two_tasks_at_once_take_one_share_together(clock: Clock) -> None:
    paced = Pacing()
    paced.computing = lambda: True
    begun = clock.now
    async with paced.piece(1000.0), paced.piece(1000.0):  # two tasks, for the same 2 seconds
        clock.now += 2
    assert await began(paced, clock, 1.0) - begun == pytest.approx(2 * (2 + SHARE * 2))


async def test_a_pause_has_a_limit(clock: Clock) -> None:
    paced = Pacing()
    paced.computing = lambda: True
    await began(paced, clock, 50.0)
    ended = clock.now
    assert await began(paced, clock, 1.0, most_s=0.5) - ended == pytest.approx(0.5)


async def test_without_other_work_there_is_no_pause(clock: Clock) -> None:
    paced = Pacing()
    await began(paced, clock, 50.0)
    ended = clock.now
    assert await began(paced, clock, 1.0) == ended
