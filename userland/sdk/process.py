"""Models and processes as objects.

A process is a conversation: it keeps its pages between calls. A model's own `generate`, `chat` and
`stream` take a process for one answer and end it.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from os import PathLike
from types import TracebackType
from typing import Self, TypedDict, Unpack

import anyio

from llmasos.kernel import limits
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, NotFound, SyscallError

from .answer import AsyncAnswer, Reply
from .link import Stream
from .memory import MemoryCalls, SearchOptions, WriteOptions
from .prompt import Options, Prompt
from .schema import parser
from .tools import USUAL, AsyncMemoryTools


class SpawnOptions(TypedDict, total=False):
    """What a new process may be given."""

    app: str  # what it is called in `ps` and in rules; without it, as this application
    system: str  # system prompt; becomes its first page
    nice: int  # -20 (large share) to 19 (small share)
    keep: bool  # True: it outlives its block and this connection; without it, it does not
    parent: int  # pid
    profile: v.Profile | None  # a further bound of what it may do


class ForkOptions(TypedDict, total=False):
    """What children may be given that their parent has not."""

    app: str
    nice: int | None  # None: the parent's
    keep: bool  # True: they outlive their block and this connection; without it, they do not


class Calls(MemoryCalls):
    """The syscalls that models and processes make; AsyncLLMasOS has them."""

    @property
    @abstractmethod
    def forked(self) -> bool: ...
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
    """A conversation with a pid. Leaving its `async with` ends it, unless `keep` is set."""

    def __init__(
        self, client: Calls, pid: int, spawned: v.Spawned | None = None, *, keep: bool = False
    ) -> None:
        self._client = client
        self.pid = pid
        self.spawned = spawned  # model and window; None when it was there before us
        self.keep = keep  # True: it outlives its block and its connection

    def __repr__(self) -> str:
        return f"AsyncProcess({described(self.pid, self.spawned, keep=self.keep)})"

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """Say something and wait for the whole answer.

        Raises NotFound when the process has ended, Busy while it is in another call, TooBig for
        what cannot fit its window, Timeout after `timeout_s` seconds, EngineFailed, Denied.
        """
        return await self.stream(prompt, **options).whole()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncAnswer:
        """Say something and read the answer as it comes."""

        async def begin() -> Stream[v.Delta, v.Generated]:
            return self._client.generate(self.pid, prompt, **options)

        return AsyncAnswer(begin, parse=parser(options.get("schema")))

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

    async def pin(self, first: int, count: int = 1, *, pinned: bool = True) -> None:
        """Keep pages in the window, or let them leave again. NotFound, TooBig."""
        await self._client.pin(self.pid, first, count, pinned=pinned)

    async def evict(self, first: int, count: int = 1) -> None:
        """Take pages out of the window now. NotFound; Busy for one that is pinned."""
        await self._client.evict(self.pid, first, count)

    async def mmap(
        self, source: str | PathLike[str], *, first: int = 0, count: int = 0, writable: bool = True
    ) -> v.Mapped:
        """Map a file or folder (a Path, or "/files/PATH"), or pages of "/proc/PID/mem".

        NotFound, Denied, TooBig; EINVAL for what is no text.
        """
        return await self._client.mmap(
            self.pid, source, first=first, count=count, writable=writable
        )

    async def munmap(self, first: int) -> None:
        """Take the mapping away that this page is of. NotFound."""
        await self._client.munmap(self.pid, first)

    async def share(
        self, to: int, first: int, count: int = 1, *, writable: bool = False
    ) -> v.Mapped:
        """Give pages to the process `to`, which sees them as they are now. NotFound, Denied."""
        return await self._client.share(self.pid, to, first, count, writable=writable)

    async def forget(self, first: int = 0, count: int = 1, *, key: str = "") -> v.Forgotten:
        """Erase pages for everybody who has them, by number or key. NotFound."""
        return await self._client.forget(self.pid, first, count, key=key)

    async def trace_mem(self, page: int) -> v.Trace:
        """When a page was in the window, why it left, and what brought it back. NotFound."""
        return await self._client.trace_mem(self.pid, page)

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
        """End it and its pages. Nothing happens when it is gone already.

        It is ended, too, by who was cancelled; that takes CLOSE_S seconds at most. In a child of
        fork it is the parent's.
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

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if not self.keep:
            await self.close()


def described(pid: int, spawned: v.Spawned | None, *, keep: bool) -> str:
    """A process in a repr."""
    model = f", model={spawned.model!r}, window={spawned.window}" if spawned is not None else ""
    return f"pid={pid}{model}, keep={keep}"


# Starts a process on a model for one answer.
Begin = Callable[[str], Awaitable[AsyncProcess]]


class AsyncModel:
    """A model by name. `info` says what stands behind it."""

    def __init__(self, client: Calls, begin: Begin, name: str, info: v.ImageInfo) -> None:
        self._client = client
        self._begin = begin
        self.name = name
        self.info = info

    def __repr__(self) -> str:
        return f"AsyncModel({self.name!r}, image={self.info.name!r}, driver={self.info.driver!r})"

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """The whole answer to one prompt, by a process of its own that ends with it.

        Raises as `AsyncProcess.generate` does, and Busy when the process table is full.
        """
        return await self.stream(prompt, **options).whole()

    async def generate_text(self, prompt: Prompt, **options: Unpack[Options]) -> str:
        """The answer to one prompt, by a process of its own. Raises SyscallError."""
        return (await self.generate(prompt, **options)).text

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

        return AsyncAnswer(begin, end, parser(options.get("schema")))
