"""Models and processes as objects.

A process is a conversation: it keeps its pages between calls. `generate`, `chat` and `stream` of a
model are one syscall: the kernel runs it on a process that exists for this call only.
"""

from abc import abstractmethod
from collections.abc import Sequence
from os import PathLike
from typing import Self, TypedDict, Unpack

import anyio

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, NotFound, SyscallError

from .answer import AsyncAnswer, Reply
from .connection import ReplyStream
from .memory import MemoryCalls, SearchOptions, WriteOptions
from .prompt import ModelOptions, Options, Prompt
from .schema import parser
from .tools import DEFAULT_TOOLS, AsyncMemoryTools


class SpawnOptions(TypedDict, total=False):
    """Options of a new process."""

    app: str  # its application in `ps` and in rules; default: this application
    system: str  # system prompt; becomes its first page
    nice: int  # -20 (largest share) to 19 (smallest)
    keep: bool  # True: it outlives its `with` and this connection; default: False
    parent: int  # pid
    profile: v.Profile | None  # a further bound of its permissions


class ForkOptions(TypedDict, total=False):
    """Options of children that differ from their parent's."""

    app: str
    nice: int | None  # None: the parent's
    keep: bool  # True: they outlive their `with` and this connection; default: False


class ProcessCalls(MemoryCalls):
    """The syscalls that models and processes make; AsyncLLMasOS implements them."""

    @property
    @abstractmethod
    def forked(self) -> bool: ...
    @abstractmethod
    def generate(
        self, pid: int, prompt: Prompt, *, model: str = "", **options: Unpack[ModelOptions]
    ) -> ReplyStream[v.Delta, v.Generated]: ...
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
    """A conversation with a pid. Leaving its `async with` ends it, unless `keep` is set."""

    def __init__(
        self,
        client: ProcessCalls,
        pid: int,
        spawned: v.Spawned | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._client = client
        self.pid = pid
        self.spawned = spawned  # model and window; None for an existing process
        self.keep = keep  # True: it outlives its `async with` and its connection

    def __repr__(self) -> str:
        return f"AsyncProcess({description(self.pid, self.spawned, keep=self.keep)})"

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """Send a prompt and wait for the complete answer.

        Raises NotFound when the process has ended, Busy while it is in another call, TooBig for a
        prompt that exceeds its window, Timeout after `timeout_s` seconds, EngineFailed, Denied.
        """
        return await self.stream(prompt, **options).whole()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncAnswer:
        """Send a prompt and stream the answer."""

        def begin() -> ReplyStream[v.Delta, v.Generated]:
            return self._client.generate(self.pid, prompt, **options)

        return AsyncAnswer(begin, parse=parser(options.get("schema")))

    async def fork(self, count: int = 1, **options: Unpack[ForkOptions]) -> list["AsyncProcess"]:
        """Create `count` children with its context. NotFound, Busy, EngineFailed."""
        return await self._client.fork(self.pid, count, **options)

    async def read_mem(self) -> list[v.Page]:
        """All its pages, in order. NotFound."""
        reply = await self._client.read_mem(self.pid)
        pages = reply.pages
        while reply.next is not None:
            reply = await self._client.read_mem(self.pid, first=reply.next)
            pages += reply.pages
        return pages

    async def write_mem(self, text: str, **options: Unpack[WriteOptions]) -> list[int]:
        """Write a text as pages and return their numbers. NotFound, Denied, TooBig."""
        return await self._client.write_mem(self.pid, text, **options)

    async def search_mem(self, question: str, **options: Unpack[SearchOptions]) -> v.Hits:
        """Its pages that match the question best, by words and meaning. NotFound."""
        return await self._client.search_mem(self.pid, question, **options)

    async def pin(self, first: int, count: int = 1, *, pinned: bool = True) -> None:
        """Pin pages in the window; `pinned=False` unpins them. NotFound, TooBig."""
        await self._client.pin(self.pid, first, count, pinned=pinned)

    async def evict(self, first: int, count: int = 1) -> None:
        """Evict pages from the window. NotFound; Busy for a pinned page."""
        await self._client.evict(self.pid, first, count)

    async def mmap(
        self, source: str | PathLike[str], *, first: int = 0, count: int = 0, writable: bool = True
    ) -> v.Mapped:
        """Map a file or folder (a Path, or "/files/PATH"), or pages of "/proc/PID/mem".

        NotFound, Denied, TooBig; EINVAL for a file that is not text.
        """
        return await self._client.mmap(
            self.pid, source, first=first, count=count, writable=writable
        )

    async def munmap(self, first: int) -> None:
        """Remove the mapping that contains the page `first`. NotFound."""
        await self._client.munmap(self.pid, first)

    async def share(
        self, to: int, first: int, count: int = 1, *, writable: bool = False
    ) -> v.Mapped:
        """Share pages, in their current state, with the process `to`. NotFound, Denied."""
        return await self._client.share(self.pid, to, first, count, writable=writable)

    async def forget(self, first: int = 0, count: int = 1, *, key: str = "") -> v.Forgotten:
        """Erase pages by number or key, in every process that has them. NotFound."""
        return await self._client.forget(self.pid, first, count, key=key)

    async def trace_mem(self, page: int) -> v.Trace:
        """When a page was in the window, why it was evicted and what brought it back. NotFound."""
        return await self._client.trace_mem(self.pid, page)

    async def send(self, to: int, body: str) -> v.Sent:
        """Send a message from this process to another. Busy when its mailbox is full."""
        return await self._client.send(to, body, sender=self.pid)

    async def recv(self, timeout_s: float | None = None) -> v.Mail:
        """Wait for the oldest message to this process. Timeout after `timeout_s` seconds."""
        return await self._client.recv(self.pid, timeout_s)

    def memory_tools(self, names: Sequence[str] = DEFAULT_TOOLS) -> AsyncMemoryTools:
        """Its memory as tools for its own model. EINVAL for an unknown name."""
        return AsyncMemoryTools(self._client, self.pid, names)

    async def kill(self, signal: str = v.Signal.TERM) -> None:
        """Send a signal: TERM, KILL, INT, STOP or CONT. NotFound when it has ended."""
        await self._client.kill(self.pid, signal)

    async def nice(self, nice: int) -> None:
        """Set its nice value: -20 (largest share) to 19 (smallest)."""
        await self._client.nice(self.pid, nice)

    async def wait(self, timeout_s: float | None = None) -> v.Exit:
        """Wait until it exits, then remove it. Timeout after `timeout_s` seconds."""
        return await self._client.wait(self.pid, timeout_s)

    async def close(self) -> None:
        """End the process and remove its pages. Does nothing when it has ended.

        Also works in a cancelled task; it then takes CLOSE_S seconds at most. Does nothing in a
        child of fork: the process is the parent's.
        """
        if self._client.forked:
            return
        with anyio.move_on_after(limits.CLOSE_S, shield=True):
            try:
                await self._client.reap(self.pid)
            except NotFound:
                return
            except SyscallError as error:
                if error.errno is not Errno.EPIPE:
                    raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.keep:
            await self.close()


def description(pid: int, spawned: v.Spawned | None, *, keep: bool) -> str:
    """The fields of a process in its repr."""
    model = f", model={spawned.model!r}, window={spawned.window}" if spawned is not None else ""
    return f"pid={pid}{model}, keep={keep}"


class AsyncModel:
    """A model by name. `info` describes its image and driver."""

    def __init__(self, client: ProcessCalls, name: str, info: v.ImageInfo) -> None:
        self._client = client
        self.name = name
        self.info = info

    def __repr__(self) -> str:
        return f"AsyncModel({self.name!r}, image={self.info.name!r}, driver={self.info.driver!r})"

    async def generate(self, prompt: Prompt, **options: Unpack[ModelOptions]) -> Reply:
        """The complete answer to one prompt, from a process that exists for this call only.

        Raises as `generate` of a process does, and Busy when the process table is full.
        """
        return await self.stream(prompt, **options).whole()

    async def generate_text(self, prompt: Prompt, **options: Unpack[ModelOptions]) -> str:
        """The text of the answer to one prompt. Raises as `generate` does."""
        return (await self.generate(prompt, **options)).text

    async def chat(self, messages: Prompt, **options: Unpack[ModelOptions]) -> str:
        """The text of the answer to a text or a list of messages. Raises as `generate` does."""
        return await self.generate_text(messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[ModelOptions]) -> AsyncAnswer:
        """Stream the answer, from a process that exists for this call only."""

        def begin() -> ReplyStream[v.Delta, v.Generated]:
            return self._client.generate(0, prompt, model=self.info.name, **options)

        return AsyncAnswer(begin, parse=parser(options.get("schema")))
