"""A device between its engine and its calls: what is refused, ended or ignored."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from llmasos.drivers import echo
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Finish, Sampling
from llmasos.kernel.driver import Cause, Death, Facts, Prompt, Step
from llmasos.kernel.process.table import Process
from llmasos.kernel.scheduling.device import Device
from llmasos.kernel.scheduling.quarantine import Quarantine, SuspectCall
from llmasos.kernel.scheduling.scheduler import Claim
from llmasos.kernel.scheduling.work import Mounting, Work
from llmasos.kernel.storage.store import Store

pytestmark = pytest.mark.anyio
GUARD_S = 20
FACTS = Facts(1, 1, 1000, 1000, 0, "", frozenset())  # one slot
MOUNTING = Mounting("echo", "echo", "m")


def ignore(device: Device, state: str, reason: str) -> None:
    return


@pytest.fixture
async def quarantine(tmp_path: Path) -> AsyncIterator[Quarantine]:
    store = Store(tmp_path)
    yield Quarantine(store)
    store.close()


@pytest.fixture
def device(quarantine: Quarantine) -> Device:
    """A device that is up; the tests make its steps."""
    device = Device(MOUNTING, echo.engine(Path(), {}, Path()), quarantine, ignore)
    device.up(FACTS)
    return device


def work(call: int, prompt: tuple[int, ...] = (1, 2), cells: int = 100) -> Work:
    process = Process(call, 0, "ann", "app", "echo", 0.0, True, ())
    claim = Claim(call, call, 1.0, len(prompt), cells)
    return Work(claim, process, Prompt(prompt, ()), Sampling(), 0.0, 0.0)


def submitted(device: Device, *works: Work) -> None:
    for one in works:
        device.submit(one)


async def test_a_step_of_a_call_that_has_ended_changes_nothing(device: Device) -> None:
    running = work(1)
    submitted(device, running)
    device.stepped([Step(9, text="late", tokens=1), Step(1, text="word", tokens=1)])
    assert (running.texts, running.tokens) == (["word"], 1)


async def test_a_device_that_was_unmounted_does_not_die(device: Device) -> None:
    device.close("echo was unmounted", "unmounted")
    device.down(Death("it was stopped", Cause.OUTSIDE))
    device.up(FACTS)
    assert (device.state, device.note, device.restarts) == ("unmounted", "echo was unmounted", 0)


async def test_all_its_calls_end_when_it_is_unmounted(device: Device) -> None:
    running, waiting = work(1), work(2)
    submitted(device, running, waiting)
    device.close("echo was unmounted", "unmounted")
    for one in (running, waiting):
        assert one.error is not None
        assert one.error.message == "echo was unmounted"
    with pytest.raises(SyscallError, match="echo was unmounted"):
        device.submit(work(3))


async def test_a_call_that_can_never_fit_is_refused(device: Device) -> None:
    device.submit(work(1, cells=FACTS.cells))
    with pytest.raises(SyscallError, match="needs 1001 tokens, all slots of echo hold") as caught:
        device.submit(work(2, cells=FACTS.cells + 1))
    assert caught.value.errno is Errno.E2BIG


async def test_a_waiting_call_that_is_poison_ends_and_the_running_one_goes_on(
    device: Device, quarantine: Quarantine
) -> None:
    running, waiting, harmless = work(1), work(2, (3, 4)), work(3, (5, 6))
    submitted(device, running, waiting, harmless)
    for _ in range(2):  # it was alone in another engine that died, twice
        quarantine.died([SuspectCall(waiting.hash, "m", "ann")], [], Death("it crashed"))
    device.apply_quarantine()
    assert waiting.error is not None
    assert waiting.error.errno is Errno.EPOISON
    assert not running.done
    assert not harmless.done


async def test_a_waiting_call_is_cancelled_at_once_and_an_ended_one_is_not(device: Device) -> None:
    running, waiting = work(1), work(2)
    submitted(device, running, waiting)
    device.cancel(2)
    assert waiting.finish is Finish.CANCELLED
    device.cancel(2)
    device.cancel(9)
    assert not running.done


async def test_another_share_is_for_the_calls_of_that_process(device: Device) -> None:
    first, second = work(1), work(2)
    submitted(device, first, second)
    second.process.nice = 5
    device.renice(second.process)
    assert first.claim.weight == 1.0
    assert second.claim.weight == second.process.weight < 1.0


async def test_a_slow_reader_gets_more_after_it_has_read(device: Device) -> None:
    running = work(1)
    submitted(device, running)
    device.stepped([Step(1, text="words", tokens=limits.STREAM_TOKENS)])
    assert running.claim.slow_reader
    delta = device.take(running)
    assert delta is not None
    assert (delta.text, running.claim.slow_reader) == ("words", False)
    assert device.take(running) is None


async def test_a_device_that_is_loading_is_not_restarted(quarantine: Quarantine) -> None:
    device = Device(MOUNTING, echo.engine(Path(), {}, Path()), quarantine, ignore)
    with pytest.raises(SyscallError, match="echo is loading") as caught:
        await device.restart()
    assert caught.value.errno is Errno.EBUSY


class Restarting(echo.EchoEngine):
    """An engine that is down for a while after a restart, as one with a process is."""

    asked = 0

    async def restart(self) -> None:
        self.asked += 1


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_restart_ends_when_the_engine_is_up_or_has_died_again(
    quarantine: Quarantine, comes_back: bool
) -> None:
    engine = Restarting({})
    device = Device(MOUNTING, engine, quarantine, ignore)
    device.up(FACTS)
    restart = asyncio.create_task(device.restart())
    await anyio.wait_all_tasks_blocked()
    device.down(Death("restart", Cause.OUTSIDE))
    await anyio.wait_all_tasks_blocked()
    assert not restart.done()
    with anyio.fail_after(GUARD_S):
        if comes_back:
            device.up(FACTS)
            await restart
        else:
            device.down(Death("it crashed"))
            with pytest.raises(SyscallError, match="it crashed"):
                await restart
    assert engine.asked == 1
