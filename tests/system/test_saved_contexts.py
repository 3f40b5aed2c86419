"""P-04: a process whose slot was taken returns to its context, and equal beginnings are shared."""

import anyio
import pytest

from llmasos import AsyncLLMasOS
from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_life import spawn, turn

TEXT = "a text that is long enough to be worth a copy, and not a computation, " * 3
DEADLINE_S = 90.0  # a guard against hangs, never a timing
SHORT = v.Sampling(temperature=0, max_tokens=8)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def alternating(line: BlockingClient, model: str) -> list[int]:
    """Cached tokens of two processes that take the only slot from each other."""
    pids = [spawn(line, model) for _ in range(2)]
    cached: list[int] = []
    for text in (TEXT, "and on", "and on"):
        for pid in pids:
            _, reply = turn(line, pid, text, SHORT)
            cached.append(reply.usage.cached_tokens)
    return cached


@pytest.mark.parametrize("room", [0, 10**6])
def test_contexts_are_saved_within_their_limit(machine: Machine, room: int) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        line.call("mount", v.Mount("echo", {"slots": 1, "kept_bytes": room}), v.DeviceInfo)
        first, second, *later = alternating(line, "echo")
        assert first == second == 0
        assert [cached > limits.SHARE_TOKENS for cached in later] == [bool(room)] * 4
        assert later == sorted(later)


def test_contexts_of_a_real_model_are_saved(machine: Machine) -> None:
    machine.both_engines()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        line.call("mount", v.Mount("smollm2", {"slots": 1, "window": 512}), v.DeviceInfo)
        *_, third, fourth = alternating(line, "smollm2")
        assert min(third, fourth) > limits.SHARE_TOKENS


@pytest.mark.anyio
async def test_agents_with_one_system_prompt_compute_it_once_beside_short_calls(
    machine: Machine,
) -> None:
    """P-03: a long prompt that others wait for is itself ordered behind short calls."""
    machine.both_engines()
    machine.start("--mount", "false")
    system = "You are careful. " * 80
    replies: list[v.Generated] = []
    shorts: list[v.Generated] = []
    async with AsyncLLMasOS(socket=machine.paths.socket, profile="operator") as client:
        await client.mount("smollm2", slots=8, window=512, threads=1)

        async def ask(pid: int, text: str, replies: list[v.Generated]) -> None:
            stream = client.generate(pid, text, temperature=0, max_tokens=8)
            async for _ in stream:
                pass
            assert stream.reply is not None
            replies.append(stream.reply)

        async def short_calls(end: anyio.Event) -> None:
            pid = (await client.spawn("smollm2", keep=False)).pid
            await ask(pid, "Hi", shorts)
            while not end.is_set():
                await ask(pid, "Hi", shorts)

        agents = [await client.spawn("smollm2", system=system, keep=False) for _ in range(6)]
        end = anyio.Event()
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as others:
                for _ in range(2):
                    others.start_soon(short_calls, end)
                async with anyio.create_task_group() as tasks:
                    for number, agent in enumerate(agents):
                        tasks.start_soon(ask, agent.pid, f"I am {number}", replies)
                end.set()
    computed = [reply.usage.prompt_tokens - reply.usage.cached_tokens for reply in replies]
    [first, *rest] = sorted(computed, reverse=True)
    assert first > limits.LONG_TOKENS
    assert max(rest) < limits.LONG_TOKENS
    assert len(shorts) >= 2
