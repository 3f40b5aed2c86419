"""What is left of a process in whatever way its block, call or connection is left: nothing."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest

from llmasos import AsyncLLMasOS, AsyncProcess, LLMasOS, NotFound
from tests.conftest import Machine

pytestmark = pytest.mark.anyio
GUARD_S = 40
LONG = "word " * 500


@pytest.fixture(scope="module")
def slow_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose echo takes its time."""
    machine = Machine(tmp_path_factory.mktemp("slow"))
    machine.start("--mount", "false")
    machine.llmasos("mount", "echo", "--set", "rate=20", "--set", "slots=4")
    yield machine
    machine.down()


@pytest.fixture
async def slow(slow_machine: Machine) -> AsyncIterator[AsyncLLMasOS]:
    with anyio.fail_after(GUARD_S):
        async with AsyncLLMasOS(socket=slow_machine.paths.socket, profile="operator") as client:
            yield client


async def pids(client: AsyncLLMasOS) -> set[int]:
    """All that the kernel has, ended ones too."""
    return {info.pid for info in (await client.ps(ended=True)).processes}


@pytest.fixture(scope="module")
def own_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which there are no processes but those of these tests."""
    machine = Machine(tmp_path_factory.mktemp("own"))
    machine.start("--mount", "false")
    yield machine
    machine.down()


@pytest.fixture
async def client(own_machine: Machine) -> AsyncIterator[AsyncLLMasOS]:
    with anyio.fail_after(GUARD_S):
        async with AsyncLLMasOS(socket=own_machine.paths.socket, profile="operator") as client:
            yield client


Leave = Callable[[AsyncLLMasOS], Awaitable[None]]


async def by_cancellation(client: AsyncLLMasOS) -> None:
    with anyio.CancelScope() as scope:
        async with await client.spawn("echo"):
            scope.cancel()
            await anyio.sleep_forever()


async def in_the_midst_of_an_answer(client: AsyncLLMasOS) -> None:
    with anyio.CancelScope() as scope:
        async with await client.spawn("echo") as process:
            async for _piece in process.stream(LONG, temperature=0):
                scope.cancel()


async def by_a_timeout_of_asyncio(client: AsyncLLMasOS) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), await client.spawn("echo") as process:
            await process.generate(LONG, temperature=0)


async def by_cancelling_its_task_again_and_again(client: AsyncLLMasOS) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with await client.spawn("echo"):
            inside.set()
            await anyio.sleep_forever()

    task = asyncio.create_task(work())
    await inside.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await task
    # Both calls that end it are on their way: the next one is answered after them.
    await client.stat()


async def from_a_fork(client: AsyncLLMasOS) -> None:
    with anyio.CancelScope() as scope:
        async with await client.spawn("echo") as parent:
            [one, two] = await parent.fork(2)
            async with one, two:
                scope.cancel()
                await anyio.sleep_forever()


async def from_an_answer_of_a_model(client: AsyncLLMasOS) -> None:
    model = await client.get_model("echo")
    with anyio.move_on_after(0.1):
        await model.generate(LONG, temperature=0)


async def with_an_error(client: AsyncLLMasOS) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await client.spawn("echo"):
            raise ZeroDivisionError


@pytest.mark.parametrize(
    "leave",
    [
        by_cancellation, in_the_midst_of_an_answer, by_a_timeout_of_asyncio,
        by_cancelling_its_task_again_and_again, from_a_fork, from_an_answer_of_a_model,
        with_an_error,
    ],
)  # fmt: skip
async def test_a_block_that_is_left_leaves_no_process(slow: AsyncLLMasOS, leave: Leave) -> None:
    await leave(slow)
    await _gone(slow)


@pytest.mark.parametrize("name", ["spawn", "fork"])
async def test_a_process_whose_maker_was_cancelled_is_ended(
    client: AsyncLLMasOS, name: str
) -> None:
    """Cancelled after so many turns of the loop: before the call is sent, and after its reply."""
    parent = await client.spawn("echo")
    for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55):
        made: list[AsyncProcess] = []
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_make, parent, client, name, made)
                for _ in range(turns):
                    await asyncio.sleep(0)
                scope.cancel()
        for process in made:  # it was not cancelled any more
            await process.close()
    await (await client.spawn("echo")).close()  # those that were asked for before are there
    await parent.close()
    await _gone(client)


async def _gone(client: AsyncLLMasOS) -> None:
    """Wait until no process is left. One that nothing ends is a Timeout."""
    while left := await pids(client):
        for pid in left:
            with suppress(NotFound):
                await client.wait(pid, timeout_s=10)


async def _make(
    parent: AsyncProcess, client: AsyncLLMasOS, name: str, made: list[AsyncProcess]
) -> None:
    if name == "spawn":
        made.append(await client.spawn("echo", system="be kind", keep=True))
    else:
        made += await parent.fork(3, keep=True)


async def test_what_is_kept_outlives_its_block_and_its_connection(own_machine: Machine) -> None:
    path = own_machine.paths.socket
    async with AsyncLLMasOS(socket=path, profile="operator") as other:
        async with AsyncLLMasOS(socket=path) as client:
            async with await client.spawn("echo", keep=True) as kept:
                [child] = await kept.fork(keep=True)
            bound = await client.spawn("echo")
            [twin] = await bound.fork()
            assert (kept.keep, bound.keep, twin.keep) == (True, False, False)
        for ended in (bound, twin):
            with suppress(NotFound):
                assert (await other.wait(ended.pid, timeout_s=20)).code == 129
        left = await pids(other)
        assert {kept.pid, child.pid} <= left
        assert not {bound.pid, twin.pid} & left
        async with other.process(kept.pid):
            pass  # somebody else's block does not end it
        for process in (kept, child):
            await other.process(process.pid).close()


PROGRAM = """
import sys
from llmasos import LLMasOS, NotFound
client = LLMasOS(socket=sys.argv[1], profile="operator")
def work():
    if sys.argv[2] == "block":
        with client.spawn("echo") as process:
            for piece in process.stream("word " * 500, temperature=0):
                print("said", flush=True)
    else:
        for piece in client.get_model("echo").stream("word " * 500, temperature=0):
            print("said", flush=True)
try:
    work()
    print("no KeyboardInterrupt")
except KeyboardInterrupt:
    pass
while left := client.ps(ended=True).processes:
    for info in left:
        try:
            client.wait(info.pid, timeout_s=10)
        except NotFound:
            pass
print("nothing is left")
"""


@pytest.mark.parametrize("way", ["block", "model"])
def test_ctrl_c_leaves_no_process(slow_machine: Machine, way: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(slow_machine.paths.socket), way],
        env=slow_machine.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == "said\n"
        program.send_signal(signal.SIGINT)
        assert program.stdout.read().splitlines()[-1] == "nothing is left"
    assert program.returncode == 0


def test_a_result_that_nobody_waits_for_any_more_is_ended(own_machine: Machine) -> None:
    """Ctrl-C in the moment in which a process was made."""
    with LLMasOS(socket=own_machine.paths.socket, profile="operator") as client:
        spawned: list[int] = []

        async def interrupted() -> Any:
            process = await client.core.spawn("echo", keep=True)
            spawned.append(process.pid)
            signal.raise_signal(signal.SIGINT)  # the main thread waits for this result
            await asyncio.sleep(0)
            return process

        with pytest.raises(KeyboardInterrupt):
            client.thread.run(interrupted)
        with suppress(NotFound):
            client.wait(spawned[0], timeout_s=20)
        assert spawned[0] not in {info.pid for info in client.ps(ended=True).processes}
