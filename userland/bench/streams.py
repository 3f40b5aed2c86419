"""Many concurrent generations through the SDK, each timed by its caller.

A crowd opens as many connections as it needs before the clock starts. The generations run in the
background, so that another request can arrive meanwhile.
"""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from llmasos import AsyncLLMasOS
from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.userland.sdk.process import AsyncProcess
from llmasos.userland.sdk.prompt import Options, Prompt

from .answers import TimedAnswer
from .rig import MODEL, READY_S, RigError

Side = TypeVar("Side")
CALLS = limits.CALLS_IN_FLIGHT // 2  # generations of one connection of the SDK


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt and its process. Without `process` one is spawned."""

    prompt: Prompt
    options: Options
    system: str = ""
    nice: int = 0
    process: AsyncProcess | None = None


def greedy(new: int) -> Options:
    """Greedy sampling of exactly `new` tokens."""
    return {"temperature": 0, "ignore_eos": True, "max_tokens": new}


def raw(text: str, options: Options) -> Ask:
    """A prompt without a chat template."""
    return Ask(text, {**options, "raw": True})


class Crowd:
    """Connections and the generations that run on them."""

    def __init__(self, clients: Sequence[AsyncLLMasOS], group: TaskGroup) -> None:
        self.client = clients[0]
        self._clients = cycle(clients)
        self._group = group

    def begin(self, ask: Ask) -> TimedAnswer:
        """Start one; its answer is filled in the background."""
        answer = TimedAnswer(time.perf_counter())
        self._group.start_soon(_run, next(self._clients), ask, answer)
        return answer

    async def all(self, asks: Iterable[Ask]) -> list[TimedAnswer]:
        """Start them at once and wait for all."""
        answers = [self.begin(ask) for ask in asks]
        await finished(answers)
        return answers


@asynccontextmanager
async def crowd(path: Path, calls: int) -> AsyncGenerator[Crowd]:
    """Connections for so many concurrent calls. Calls in flight at the end are cancelled."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncLLMasOS(socket=path, profile=v.Profile.OPERATOR))
            for _ in range(-(-calls // CALLS))
        ]
        try:
            async with anyio.create_task_group() as group:
                yield Crowd(clients, group)
                group.cancel_scope.cancel()
        except ExceptionGroup as failed:  # one failed, the others were cancelled
            raise RigError(str(failed.exceptions[0])) from failed


async def _run(client: AsyncLLMasOS, ask: Ask, answer: TimedAnswer) -> None:
    process = ask.process or await client.spawn(
        MODEL, app="bench", keep=False, system=ask.system, nice=ask.nice
    )
    texts = list[str]()
    async with client.generate(process.pid, ask.prompt, **ask.options) as stream:
        async for delta in stream:
            answer.arrived(time.perf_counter(), delta.tokens)
            texts.append(delta.text)
            answer.logprobs += delta.logprobs
    answer.ended = time.perf_counter()
    if stream.reply is not None:
        answer.tokens = stream.reply.usage.completion_tokens
        answer.prompt_tokens = stream.reply.usage.prompt_tokens
        answer.cached_tokens = stream.reply.usage.cached_tokens
        answer.drafted_tokens = stream.reply.usage.drafted_tokens
        answer.accepted_tokens = stream.reply.usage.accepted_tokens
        answer.whole = stream.reply.finish is v.Finish.LENGTH
    answer.text = "".join(texts)
    answer.done.set()


async def finished(answers: Iterable[TimedAnswer]) -> None:
    for answer in answers:
        await answer.done.wait()


async def speaking(answers: Iterable[TimedAnswer]) -> None:
    """Wait until each has its first token. RigError when that takes too long."""
    with anyio.move_on_after(READY_S) as scope:
        for answer in answers:
            await answer.first.wait()
    if scope.cancelled_caught:
        raise RigError(f"no first token within {READY_S:g} s")


def together(path: Path, asks: Sequence[Ask]) -> list[TimedAnswer]:
    """Run all at once, from spawn to last token, on as few connections as possible."""

    async def run() -> list[TimedAnswer]:
        async with crowd(path, len(asks)) as people:
            return await people.all(asks)

    return anyio.run(run)


def in_turn(repeat: int, sides: Sequence[Side]) -> Sequence[Side]:
    """Alternate the order of the sides, so that a machine that slows down favours none."""
    return sides if repeat % 2 == 0 else sides[::-1]
