"""The stream of a call: delivered by the step itself, and by its task to a slow caller."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from llmasos.drivers import echo
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Delta, Finish, Sampling
from llmasos.kernel.driver import Facts, Prompt, Step
from llmasos.kernel.process.table import Process
from llmasos.kernel.scheduling.device import Device
from llmasos.kernel.scheduling.quarantine import Quarantine
from llmasos.kernel.scheduling.scheduler import Claim
from llmasos.kernel.scheduling.work import Mounting, Work
from llmasos.kernel.storage.store import Store
from llmasos.kernel.syscalls.relay import Relay, Stream

pytestmark = pytest.mark.anyio
CALL = 7
DEADLINE_S = 20.0


class Caller:
    """A caller that may be slow, and may refuse an item."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.refuses = ""
        self.reads = asyncio.Event()
        self.reads.set()
        self.waited = asyncio.Event()

    @property
    def stream(self) -> Stream:
        return Stream(self.send, self.keeps_up, self.writable)

    def send(self, item: object) -> None:
        assert isinstance(item, Delta)
        if item.text == self.refuses:
            raise SyscallError(Errno.E2BIG, "too long")
        self.texts.append(item.text)

    def keeps_up(self) -> bool:
        return self.reads.is_set()

    async def writable(self) -> None:
        if not self.reads.is_set():
            self.waited.set()
        await self.reads.wait()


def ignore(device: Device, state: str, reason: str) -> None:
    return


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[Device]:
    """A device that is up; the tests make its steps."""
    store = Store(tmp_path)
    engine = echo.engine(Path(), {}, Path())
    device = Device(Mounting("echo", "echo", "m"), engine, Quarantine(store), ignore)
    device.up(Facts(2, 2, 1000, 2000, 0, "", frozenset()))
    yield device
    store.close()


def submitted(device: Device) -> Work:
    process = Process(3, 0, "ann", "app", "echo", 0.0, True, ())
    claim = Claim(CALL, 3, 1.0, 5, 100)
    work = Work(claim, process, Prompt((1, 2, 3, 4, 5), ()), Sampling(), 0.0, 0.0)
    device.submit(work)
    return work


def step(device: Device, text: str, finish: Finish | None = None) -> None:
    device.stepped([Step(CALL, text=text, tokens=1, finish=finish)])


async def test_a_step_delivers_its_text_without_waking_the_task(device: Device) -> None:
    caller, work = Caller(), submitted(device)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Relay(caller.stream, device, work).run)
        await anyio.wait_all_tasks_blocked()
        step(device, "a")
        step(device, "b")
        assert caller.texts == ["a", "b"]
        assert not work.ready.is_set()
        step(device, "c", Finish.STOP)  # the task sends the last text and returns
    assert caller.texts == ["a", "b", "c"]
    assert work.unread == 0


async def test_a_slow_caller_gets_everything_in_order(device: Device) -> None:
    caller, work = Caller(), submitted(device)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Relay(caller.stream, device, work).run)
        await anyio.wait_all_tasks_blocked()
        caller.reads.clear()
        step(device, "a")
        assert caller.texts == []
        with anyio.fail_after(DEADLINE_S):
            await caller.waited.wait()
        for text in "bcd":
            step(device, text)
        assert caller.texts == ["a"]  # one item, then it waits
        caller.reads.set()
        step(device, "e")
        step(device, "f", Finish.LENGTH)
    assert "".join(caller.texts) == "abcdef"


async def test_an_item_that_cannot_be_sent_ends_the_call(device: Device) -> None:
    caller, work = Caller(), submitted(device)
    caller.refuses = "b"
    failures: list[SyscallError] = []

    async def run() -> None:
        try:
            await Relay(caller.stream, device, work).run()
        except SyscallError as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        step(device, "a")
        step(device, "b")
        step(device, "c")
    assert [error.errno for error in failures] == [Errno.E2BIG]
    assert caller.texts[0] == "a"
