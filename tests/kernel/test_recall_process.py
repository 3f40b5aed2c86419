"""The recall process while it does not start, or does not come back."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, SyscallError
from llmasos.kernel.driver import Death
from llmasos.kernel.memory.recall_process import RecallProcess
from llmasos.kernel.recall_driver import Recall, RecallFacts, RecallListener
from llmasos.kernel.supervisor import Supervisor

pytestmark = pytest.mark.anyio
GUARD_S = 20


class Starts:
    """A device that is only started: the first times without success."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.retries, self.restarts = failures, 0, 0

    async def start(self, listener: RecallListener) -> None:
        self._listener = listener
        if self.failures:
            self.failures -= 1
            raise DeviceFault("no memory")

    async def stop(self) -> None:
        return

    def retry(self) -> None:
        self.retries += 1

    async def restart(self) -> None:
        self.restarts += 1
        self._listener.down(Death("it was stopped"))


class Listens:
    """Passes on what the device reports."""

    process: RecallProcess

    def up(self, facts: RecallFacts) -> None:
        self.process.up()

    def down(self, death: Death) -> None:
        self.process.down(death)


@pytest.fixture
async def jobs() -> AsyncIterator[Supervisor]:
    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as tasks:
            yield Supervisor(tasks)
            tasks.cancel_scope.cancel()


def made(device: Starts, jobs: Supervisor) -> RecallProcess:
    listener = Listens()
    listener.process = process = RecallProcess(cast("Recall", device), listener, jobs)
    return process


async def test_a_first_start_that_fails_is_tried_again_at_once_on_request(jobs: Supervisor) -> None:
    process = made(device := Starts(failures=1), jobs)
    assert process.request_start()
    await anyio.wait_all_tasks_blocked()
    told = process.info(0, "")
    assert (told.state, told.note, told.restarts) == ("restarting", "no memory", 1)
    assert told.retry_s > 0
    restart = asyncio.create_task(process.restart())
    await anyio.wait_all_tasks_blocked()
    process.up()
    await restart
    assert (process.info(0, "").state, device.restarts) == ("up", 0)


async def test_a_restart_that_fails_raises_the_reason(jobs: Supervisor) -> None:
    process = made(device := Starts(), jobs)
    process.request_start()
    await anyio.wait_all_tasks_blocked()
    process.up()
    restart = asyncio.create_task(process.restart())
    await anyio.wait_all_tasks_blocked()
    process.down(Death("no memory", failed=True, deaths=3, retry_s=60))
    with pytest.raises(SyscallError, match="the recall process is down: no memory"):
        await restart
    assert device.restarts == 1


async def test_a_failed_process_is_started_by_a_search_once_after_a_pause(
    jobs: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = made(device := Starts(), jobs)
    process.request_start()
    await anyio.wait_all_tasks_blocked()
    process.up()
    process.down(Death("it crashed", failed=True, deaths=3, retry_s=60))
    process.request_start()
    assert device.retries == 0  # it failed a moment ago
    monkeypatch.setattr(limits, "DEMAND_S", 0.0)
    process.request_start()
    process.request_start()
    assert device.retries == 1
    assert process.info(0, "").state == "failed"
