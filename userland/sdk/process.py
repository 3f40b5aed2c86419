"""Models and processes as objects, and an answer on its way.

A process is a conversation: it keeps its pages between calls. A model's own `generate_text`, `chat`
and `stream` take a process for one answer and end it.
"""

import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, cast

import anyio

from llmasos.kernel import limits
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError

from .link import Stream
from .memory import MemoryCalls, SearchOptions, WriteOptions
from .tools import USUAL, AsyncMemoryTools

# A text is one message of the user; a message may be a {"role": ..., "content": ...}.
Prompt = str | Sequence[v.Message | Mapping[str, str]]


class Options(TypedDict, total=False):
    """How an answer is made. What is left out has the kernel's default (kernel/values.py)."""

    max_tokens: int | None
    temperature: float  # 0: always the likeliest token
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None  # None: drawn, and told in the reply
    stop: list[str]
    ignore_eos: bool
    grammar: str | None  # GBNF
    schema: str | Mapping[str, Any] | None  # JSON schema
    bias: Mapping[int, float]  # token id: what is added to its score
    logprobs: int | None  # so many likeliest tokens are told beside each
    deterministic: bool  # EINVAL unless the model is mounted so
    recall: bool  # False: bring no earlier page back
    overflow: str  # "error": E2BIG instead of paging
    raw: bool  # no chat template: the texts as they are
    timeout_s: float | None


_OF_THE_CALL = (
    "raw",
    "timeout_s",
    "deterministic",
    "recall",
    "overflow",
)  # the rest is of the sampling


class ForkOptions(TypedDict, total=False):
    """What children may be given that their parent has not."""

    app: str
    nice: int | None
    keep: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    finish: v.Finish
    usage: v.Usage
    seed: int
    pages: list[int]  # numbers of the pages that this turn wrote
    call: int  # the journal's number
    window: list[int]  # pages that the model saw
    faults: list[v.Fault]  # those that came back for it
    evicted: list[int]  # those that left
    notices: list[str]
    logprobs: list[v.Logprob]  # one a token, when asked for


def request(pid: int, prompt: Prompt, options: Options) -> v.Generate:
    """A prompt and its options as the syscall wants them. EINVAL; TypeError: no such option."""
    rest = cast("dict[str, Any]", dict(options))
    own = {name: rest.pop(name) for name in _OF_THE_CALL if name in rest}
    if "overflow" in own:
        own["overflow"] = _overflow(own["overflow"])
    if "bias" in rest:
        rest["bias"] = v.pack_bias(rest["bias"])
    if isinstance(rest.get("schema"), Mapping):
        rest["schema"] = json.dumps(rest["schema"])
    return v.Generate(pid, messages(prompt), sampling=v.Sampling(**rest), **own)


def _overflow(said: str) -> v.Overflow:
    try:
        return v.Overflow(said)
    except ValueError as error:
        ways = " or ".join(v.Overflow)
        raise SyscallError(Errno.EINVAL, f"overflow={said!r}: it is {ways}") from error


def messages(prompt: Prompt) -> list[v.Message]:
    """A prompt as the messages of a request. EINVAL for a role that does not exist."""
    if isinstance(prompt, str):
        return [v.Message(v.Role.USER, prompt)]
    return [one if isinstance(one, v.Message) else _message(one) for one in prompt]


def _message(fields: Mapping[str, str]) -> v.Message:
    try:
        return v.Message(v.Role(fields["role"]), fields["content"])
    except (KeyError, ValueError) as error:
        roles = ", ".join(v.Role)
        raise SyscallError(
            Errno.EINVAL, f"not a message: {sorted(fields)} with {error}",
            f'a message is {{"role": one of {roles}, "content": text}}',
        ) from error  # fmt: skip


class AsyncAnswer:
    """An answer on its way: `async for` its pieces of text, then read `reply`.

    It begins with the first piece. Leaving the loop early leaves it running: use `async with`, or
    `await answer.close()`, to end it.
    """

    def __init__(
        self,
        begin: Callable[[], Awaitable[Stream[v.Delta, v.Generated]]],
        end: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._begin = begin
        self._end = end
        self._stream: Stream[v.Delta, v.Generated] | None = None
        self._texts: list[str] = []
        self._logprobs: list[v.Logprob] = []

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            if self._stream is None:
                self._stream = await self._begin()
            delta = await self._stream.__anext__()
        except StopAsyncIteration:
            await self._finish()
            raise
        except BaseException:
            with anyio.move_on_after(limits.BODY_S, shield=True):
                await self.close()
            raise
        self._texts.append(delta.text)
        self._logprobs += delta.logprobs
        return delta.text

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(self._texts)

    @property
    def reply(self) -> Reply:
        """The whole answer. RuntimeError while it is on its way."""
        done = self._stream.reply if self._stream is not None else None
        if done is None:
            raise RuntimeError("the answer is not complete: iterate to its end first")
        return Reply(
            self.text, done.finish, done.usage, done.seed, done.pages, done.call, done.window,
            done.faults, done.evicted, done.notices, self._logprobs,
        )  # fmt: skip

    async def whole(self) -> Reply:
        """Wait for the end. Raises SyscallError as `generate` does."""
        async for _ in self:
            pass
        return self.reply

    async def close(self) -> None:
        """End it, if it is still on its way; what was said so far is kept in its process."""
        if self._stream is not None:
            await self._stream.aclose()
        await self._finish()

    async def _finish(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            await end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.close()


class Calls(MemoryCalls):
    """The syscalls that models and processes make; AsyncLLMasOS has them."""

    @abstractmethod
    def generate(
        self, pid: int, prompt: Prompt, **options: Unpack[Options]
    ) -> Stream[v.Delta, v.Generated]: ...
    @abstractmethod
    async def fork(
        self, pid: int, count: int = 1, **options: Unpack[ForkOptions]
    ) -> list["AsyncProcess"]: ...
    @abstractmethod
    async def kill(self, pid: int, signal: str = v.Signal.TERM) -> v.Nothing: ...
    @abstractmethod
    async def nice(self, pid: int, nice: int) -> v.Nothing: ...
    @abstractmethod
    async def wait(self, pid: int, timeout_s: float | None = None) -> v.Exit: ...
    @abstractmethod
    async def reap(self, pid: int) -> v.Exit: ...


class AsyncProcess:
    """A conversation with a pid. Leaving its `async with` ends it."""

    def __init__(self, client: Calls, pid: int, spawned: v.Spawned | None = None) -> None:
        self._client = client
        self.pid = pid
        self.spawned = spawned  # model and window; None when it was there before us

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """Say something and wait for the whole answer. Raises SyscallError as the syscall does."""
        return await self.stream(prompt, **options).whole()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncAnswer:
        """Say something and read the answer as it comes."""

        async def begin() -> Stream[v.Delta, v.Generated]:
            return self._client.generate(self.pid, prompt, **options)

        return AsyncAnswer(begin)

    async def fork(self, count: int = 1, **options: Unpack[ForkOptions]) -> list["AsyncProcess"]:
        """Children that go on from what it has read and said so far. ESRCH, EAGAIN, EIO."""
        return await self._client.fork(self.pid, count, **options)

    async def read_mem(self) -> list[v.Page]:
        """All its pages, in order. ESRCH."""
        reply = await self._client.read_mem(self.pid)
        pages = reply.pages
        while reply.next is not None:
            reply = await self._client.read_mem(self.pid, first=reply.next)
            pages += reply.pages
        return pages

    async def write_mem(self, text: str, **options: Unpack[WriteOptions]) -> list[int]:
        """Write a text as pages; their numbers. ENOENT, EACCES, E2BIG."""
        return await self._client.write_mem(self.pid, text, **options)

    async def search_mem(self, question: str, **options: Unpack[SearchOptions]) -> v.Hits:
        """Its pages that answer best, by words and meaning."""
        return await self._client.search_mem(self.pid, question, **options)

    async def mmap(self, source: str, *, writable: bool = True) -> v.Mapped:
        """Map /files/PATH or /proc/PID/mem. ENOENT, EACCES, EINVAL, E2BIG."""
        return await self._client.mmap(self.pid, source, writable=writable)

    async def send(self, to: int, body: str) -> v.Sent:
        """Send a message from this process to another one. EAGAIN when its mailbox is full."""
        return await self._client.send(to, body, sender=self.pid)

    async def recv(self, timeout_s: float | None = None) -> v.Mail:
        """The oldest message to this process; waits for one. ETIMEDOUT."""
        return await self._client.recv(self.pid, timeout_s)

    def memory_tools(self, names: Sequence[str] = USUAL) -> AsyncMemoryTools:
        """Its memory as tools for its own model. EINVAL for a name that is none."""
        return AsyncMemoryTools(self._client, self.pid, names)

    async def kill(self, signal: str = v.Signal.TERM) -> None:
        """Send a signal: TERM, KILL, INT, STOP or CONT. ESRCH when it has ended."""
        await self._client.kill(self.pid, signal)

    async def nice(self, nice: int) -> None:
        """Change its share: -20 (large) to 19 (small)."""
        await self._client.nice(self.pid, nice)

    async def wait(self, timeout_s: float | None = None) -> v.Exit:
        """Wait for its end, then remove it. ETIMEDOUT."""
        return await self._client.wait(self.pid, timeout_s)

    async def close(self) -> None:
        """End it and its pages. Nothing happens when it is gone already."""
        try:
            await self._client.reap(self.pid)
        except SyscallError as error:
            if error.errno not in (Errno.ESRCH, Errno.EPIPE):
                raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.close()


# Starts a process on a model for one answer.
Begin = Callable[[str], Awaitable[AsyncProcess]]


class AsyncModel:
    """A model by name. `info` says what stands behind it."""

    def __init__(self, client: Calls, begin: Begin, name: str, info: v.ImageInfo) -> None:
        self._client = client
        self._begin = begin
        self.name = name
        self.info = info

    async def generate_text(self, prompt: Prompt, **options: Unpack[Options]) -> str:
        """The answer to one prompt, by a process of its own. Raises SyscallError."""
        return (await self.stream(prompt, **options).whole()).text

    async def chat(self, messages: Prompt, **options: Unpack[Options]) -> str:
        """The answer to a text or a list of messages; nothing is kept. Raises SyscallError."""
        return await self.generate_text(messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncAnswer:
        """The answer as it comes, by a process of its own that ends with it."""
        taken: list[AsyncProcess] = []

        async def begin() -> Stream[v.Delta, v.Generated]:
            taken.append(await self._begin(self.info.name))
            return self._client.generate(taken[0].pid, prompt, **options)

        async def end() -> None:
            for process in taken:
                await process.close()

        return AsyncAnswer(begin, end)
