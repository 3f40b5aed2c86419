"""A device that dies, or does not start, is tried again for ever: after pauses, when it is needed,
on request."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import anyio
import pytest

from llmasos.drivers import restart
from llmasos.drivers.restart import Backoff, Restarter
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.driver import Cause, Death

pytestmark = pytest.mark.anyio
DEADLINE_S = 20


class Life:
    """One life of a device without a process."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    async def close(self, reason: str = "") -> None:
        self.ended.set_result(Death(reason, Cause.OUTSIDE))


class Log:
    """What a listener is told, in order."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.downs: list[Death] = []
        self.news = anyio.Event()

    def up(self, life: Life) -> None:
        self.lives.append(life)
        self.news.set()

    def down(self, death: Death) -> None:
        self.downs.append(death)
        self.news.set()

    async def until(self, lives: int, downs: int) -> None:
        with anyio.fail_after(DEADLINE_S):
            while (len(self.lives), len(self.downs)) != (lives, downs):
                self.news = anyio.Event()
                await self.news.wait()

    def die(self) -> None:
        self.lives[-1].ended.set_result(Death("it crashed"))


async def begin(launch: Callable[[], Awaitable[Life]]) -> tuple[Restarter[Life], Log]:
    log = Log()
    device = Restarter("the device", launch)
    await device.start(log.up, log.down)
    return device, log


async def life() -> Life:
    return Life()


def test_pauses_double_up_to_a_bound_and_begin_anew_after_a_steady_run() -> None:
    backoff = Backoff()
    pauses: list[float] = []
    for _ in range(100):
        backoff.died(1.0)
        pauses.append(backoff.pause_s)
        assert backoff.failed == (len(pauses) > 5)
    assert pauses[0] == 0.5
    assert all(later == min(300.0, 2 * earlier) for earlier, later in pairwise(pauses))
    assert pauses[-1] == 300.0
    backoff.died(60.0)
    assert (backoff.pause_s, backoff.failed) == (0.5, False)


async def test_it_is_started_again_however_often_it_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESTART_FIRST_S", 0.001)
    monkeypatch.setattr(limits, "RESTART_LAST_S", 0.002)
    device, log = await begin(life)
    for count in range(1, 13):
        log.die()
        await log.until(count + 1, count)
        assert device.running is log.lives[-1]
    assert [death.failed for death in log.downs] == [False] * 5 + [True] * 7
    assert [death.deaths for death in log.downs] == list(range(1, 13))
    await device.stop()


async def test_one_that_has_failed_is_started_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CRASHES", 0)
    monkeypatch.setattr(limits, "RESTART_FIRST_S", 3600.0)
    device, log = await begin(life)
    log.die()
    await log.until(1, 1)
    assert (log.downs[0].failed, log.downs[0].retry_s) == (True, limits.RESTART_LAST_S)
    with pytest.raises(DeviceFault, match="the device is down"):
        _ = device.running
    device.retry()
    await log.until(2, 1)
    await device.stop()


async def test_a_restart_forgets_earlier_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESTART_FIRST_S", 0.001)
    device, log = await begin(life)
    for count in range(1, 7):
        log.die()
        await log.until(count + 1, count)
    assert log.downs[-1].failed
    await device.restart()
    await log.until(8, 7)
    assert log.downs[-1] == Death(restart.REQUESTED, Cause.OUTSIDE)
    log.die()
    await log.until(9, 8)
    assert (log.downs[-1].failed, log.downs[-1].deaths) == (False, 1)
    await device.stop()


async def test_a_restart_does_not_wait_for_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESTART_FIRST_S", 300.0)
    device, log = await begin(life)
    log.die()
    await log.until(1, 1)
    await device.restart()
    await log.until(2, 1)
    assert log.downs[-1].cause is not Cause.OUTSIDE  # it was down: nothing had to be ended
    await device.stop()


@pytest.mark.parametrize(
    "error", [DeviceFault("no"), OSError(24, "Too many open files"), ValueError("a broken header")]
)
async def test_a_start_that_fails_is_tried_again_whatever_failed(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(limits, "RESTART_FIRST_S", 0.001)
    left = 0

    async def launch() -> Life:
        nonlocal left
        if left:
            left -= 1
            raise error
        return Life()

    device, log = await begin(launch)
    left = 7
    log.die()
    await log.until(2, 8)
    assert [death.failed for death in log.downs] == [False] * 5 + [True] * 3
    await device.stop()


async def test_a_listener_that_fails_does_not_keep_it_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "RESTART_FIRST_S", 0.001)
    log = Log()

    def down(death: Death) -> None:
        log.down(death)
        raise KeyError("a listener's mistake")

    device = Restarter("the device", life)
    await device.start(log.up, down)
    log.die()
    await log.until(2, 1)
    assert "a listener's mistake" in caplog.text
    await device.stop()


async def test_a_first_start_that_fails_is_told_and_not_repeated() -> None:
    async def launch() -> Life:
        raise DeviceFault("no such file")

    with pytest.raises(DeviceFault, match="no such file"):
        await begin(launch)
