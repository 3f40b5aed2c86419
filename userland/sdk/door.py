"""LLMasOS: the same client for programs that do not await.

The async client runs in a thread of its own; each call here waits for one call there, so this file
is only a door: what a method does stands in client.py and process.py. Threads may share a client.
Ctrl-C in the calling thread cancels the call.
"""

import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import wraps
from os import PathLike
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

from llmasos.kernel import paths
from llmasos.kernel import values as v
from llmasos.userland import start

from .answer import AsyncAnswer, Reply
from .client import AsyncLLMasOS
from .dial import ConnectOptions, target
from .link import Stream
from .memory import SearchOptions, WriteOptions
from .process import AsyncModel, AsyncProcess, ForkOptions, SpawnOptions, described
from .prompt import Options, Prompt
from .thread import ClientThread
from .tools import USUAL, MemoryTools

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
R = TypeVar("R")


def _door(
    method: Callable[Concatenate[AsyncLLMasOS, P], Awaitable[T]],
) -> Callable[Concatenate["LLMasOS", P], T]:
    """An async method of the client as one that waits."""

    @wraps(method)
    def call(self: "LLMasOS", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.there.run(method, self.core, *args, **kwargs)

    return call


def _stream_door(
    method: Callable[Concatenate[AsyncLLMasOS, P], Stream[Item, R]],
) -> Callable[Concatenate["LLMasOS", P], "Following[Item, R]"]:
    """A streaming syscall as something to iterate."""

    @wraps(method)
    def call(self: "LLMasOS", /, *args: P.args, **kwargs: P.kwargs) -> "Following[Item, R]":
        return Following(self.there, self.there.now(method, self.core, *args, **kwargs))

    return call


class Following(Generic[Item, R]):
    """A streaming syscall: iterate its items, then read `reply`. Leave its `with` to end it."""

    def __init__(self, there: ClientThread, core: Stream[Item, R]) -> None:
        self._there = there
        self._core = core

    @property
    def reply(self) -> R | None:
        """None until the last item has been read."""
        return self._core.reply

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return self._there.run(self._core.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the call if it is still running."""
        self._there.end(self._core.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Answer:
    """An answer on its way: iterate its pieces of text, then read `reply`. `with` ends it, and so
    does dropping it."""

    def __init__(self, client: "LLMasOS", core: AsyncAnswer) -> None:
        self._client = client
        self._core = core

    @property
    def text(self) -> str:
        """What has been said so far."""
        return self._core.text

    @property
    def reply(self) -> Reply:
        """The whole answer. RuntimeError while it is on its way."""
        return self._core.reply

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return self._client.there.run(self._core.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None
        except KeyboardInterrupt:  # it may have come after the piece was here
            self.close()
            raise

    def __del__(self) -> None:
        """A loop was left early, without `with`."""
        self._client.there.end_soon(self._core.close)

    def close(self) -> None:
        """End it, if it is still on its way; what was said so far is kept in its process."""
        self._client.there.end(self._core.close)

    def __repr__(self) -> str:
        return repr(self._core).removeprefix("Async")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Process:
    """A conversation with a pid; see AsyncProcess. Leaving its `with` ends it, unless `keep`."""

    def __init__(self, client: "LLMasOS", core: AsyncProcess) -> None:
        self._client = client
        self._core = core
        self.pid = core.pid
        self.spawned = core.spawned  # model and window; None when it was there before us
        self.keep = core.keep  # True: it outlives its block and its connection

    def __repr__(self) -> str:
        return f"Process({described(self.pid, self.spawned, keep=self.keep)})"

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """Say something and wait for the whole answer.

        Raises NotFound when the process has ended, Busy while it is in another call, TooBig for
        what cannot fit its window, Timeout after `timeout_s` seconds, EngineFailed, Denied.
        """
        return self._client.there.run(self._core.generate, prompt, **options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """Say something and read the answer as it comes."""
        return Answer(self._client, self._core.stream(prompt, **options))

    def fork(self, count: int = 1, **options: Unpack[ForkOptions]) -> "list[Process]":
        """Children that go on from what it has read and said so far. ESRCH, EAGAIN, EIO."""
        cores = self._client.there.run(self._core.fork, count, **options)
        return [Process(self._client, core) for core in cores]

    def read_mem(self) -> list[v.Page]:
        """All its pages, in order. ESRCH."""
        return self._client.there.run(self._core.read_mem)

    def write_mem(self, text: str, **options: Unpack[WriteOptions]) -> list[int]:
        """Write a text as pages; their numbers. ENOENT, EACCES, E2BIG."""
        return self._client.write_mem(self.pid, text, **options)

    def search_mem(self, question: str, **options: Unpack[SearchOptions]) -> v.Hits:
        """Its pages that answer best, by words and meaning."""
        return self._client.search_mem(self.pid, question, **options)

    def pin(self, first: int, count: int = 1, *, pinned: bool = True) -> None:
        """Keep pages in the window, or let them leave again. NotFound, TooBig."""
        self._client.pin(self.pid, first, count, pinned=pinned)

    def evict(self, first: int, count: int = 1) -> None:
        """Take pages out of the window now. NotFound; Busy for one that is pinned."""
        self._client.evict(self.pid, first, count)

    def mmap(
        self, source: str | PathLike[str], *, first: int = 0, count: int = 0, writable: bool = True
    ) -> v.Mapped:
        """Map a file or folder (a Path, or "/files/PATH"), or pages of "/proc/PID/mem".

        NotFound, Denied, TooBig; EINVAL for what is no text.
        """
        return self._client.mmap(self.pid, source, first=first, count=count, writable=writable)

    def munmap(self, first: int) -> None:
        """Take the mapping away that this page is of. NotFound."""
        self._client.munmap(self.pid, first)

    def share(self, to: int, first: int, count: int = 1, *, writable: bool = False) -> v.Mapped:
        """Give pages to the process `to`, which sees them as they are now. NotFound, Denied."""
        return self._client.share(self.pid, to, first, count, writable=writable)

    def forget(self, first: int = 0, count: int = 1, *, key: str = "") -> v.Forgotten:
        """Erase pages for everybody who has them, by number or key. NotFound."""
        return self._client.forget(self.pid, first, count, key=key)

    def trace_mem(self, page: int) -> v.Trace:
        """When a page was in the window, why it left, and what brought it back. NotFound."""
        return self._client.trace_mem(self.pid, page)

    def send(self, to: int, body: str) -> v.Sent:
        """Send a message from this process to another one. EAGAIN when its mailbox is full."""
        return self._client.send(to, body, sender=self.pid)

    def recv(self, timeout_s: float | None = None) -> v.Mail:
        """The oldest message to this process; waits for one. ETIMEDOUT."""
        return self._client.recv(self.pid, timeout_s)

    def memory_tools(self, names: Sequence[str] = USUAL) -> MemoryTools:
        """Its memory as tools for its own model. EINVAL for a name that is none."""
        return MemoryTools(self._client.there, self._core.memory_tools(names))

    def kill(self, signal: str = v.Signal.TERM) -> None:
        """Send a signal: TERM, KILL, INT, STOP or CONT. ESRCH when it has ended."""
        self._client.there.run(self._core.kill, signal)

    def nice(self, nice: int) -> None:
        """Change its share: -20 (large) to 19 (small)."""
        self._client.there.run(self._core.nice, nice)

    def wait(self, timeout_s: float | None = None) -> v.Exit:
        """Wait for its end, then remove it. ETIMEDOUT."""
        return self._client.there.run(self._core.wait, timeout_s)

    def close(self) -> None:
        """End it and its pages. Nothing happens when it is gone already."""
        self._client.there.end(self._core.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.keep:
            self.close()


class Model:
    """A model by name. `info` says what stands behind it."""

    def __init__(self, client: "LLMasOS", core: AsyncModel) -> None:
        self._client = client
        self._core = core
        self.name = core.name
        self.info = core.info

    def __repr__(self) -> str:
        return repr(self._core).removeprefix("Async")

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """The whole answer to one prompt, by a process of its own that ends with it.

        Raises as `Process.generate` does, and Busy when the process table is full.
        """
        return self._client.there.run(self._core.generate, prompt, **options)

    def generate_text(self, prompt: Prompt, **options: Unpack[Options]) -> str:
        """The answer to one prompt, by a process of its own. Raises SyscallError."""
        return self._client.there.run(self._core.generate_text, prompt, **options)

    def chat(self, messages: Prompt, **options: Unpack[Options]) -> str:
        """The answer to a text or a list of messages; nothing is kept. Raises SyscallError."""
        return self._client.there.run(self._core.chat, messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """The answer as it comes, by a process of its own that ends with it."""
        return Answer(self._client, self._core.stream(prompt, **options))


class LLMasOS:
    """A connection to a kernel; see AsyncLLMasOS for the arguments and what they raise.

    It closes at the end of its `with`, by `close()`, or at the end of the program.
    """

    def __init__(self, api_key: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        where = paths.find()
        near = target(options.get("host"), options.get("socket")) is None
        if near and options.get("autostart", True) and start.allowed() and not start.answers(where):
            # Here and not in the other thread: a helper thread of its would outlive the program.
            start.ensure(where, "--private")
        options["autostart"] = False
        self.core = AsyncLLMasOS(api_key, **options)
        self.there = ClientThread(self.core)
        self._close = weakref.finalize(self, self.there.close)

    def __repr__(self) -> str:
        return repr(self.core).removeprefix("Async")

    @property
    def welcome(self) -> v.Welcome | None:
        """The kernel's answer to hello."""
        return self.core.welcome

    def get_model(self, name: str) -> Model:
        """A model by its name or alias. ENOENT lists what there is and how to make an alias."""
        return Model(self, self.there.run(self.core.get_model, name))

    def process(self, pid: int) -> Process:
        """A process that exists already; `with` does not end it.

        Its first call raises NotFound when it does not exist.
        """
        return Process(self, self.core.process(pid))

    def spawn(self, model: str, **options: Unpack[SpawnOptions]) -> Process:
        """Start a process on a model, which is mounted if need be.

        It ends with its `with` or with this connection, unless `keep=True`. Raises NotFound for a
        model that is not there, Busy when the table is full, TooBig, EngineFailed.
        """
        return Process(self, self.there.run(self.core.spawn, model, **options))

    def fork(self, pid: int, count: int = 1, **options: Unpack[ForkOptions]) -> list[Process]:
        """Children that go on from what a process has read and said. NotFound, Busy."""
        return [
            Process(self, core) for core in self.there.run(self.core.fork, pid, count, **options)
        ]

    generate = _stream_door(AsyncLLMasOS.generate)
    tokenize = _door(AsyncLLMasOS.tokenize)
    embed = _door(AsyncLLMasOS.embed)
    read_mem = _door(AsyncLLMasOS.read_mem)
    write_mem = _door(AsyncLLMasOS.write_mem)
    search_mem = _door(AsyncLLMasOS.search_mem)
    pin = _door(AsyncLLMasOS.pin)
    evict = _door(AsyncLLMasOS.evict)
    mmap = _door(AsyncLLMasOS.mmap)
    munmap = _door(AsyncLLMasOS.munmap)
    share = _door(AsyncLLMasOS.share)
    forget = _door(AsyncLLMasOS.forget)
    trace_mem = _door(AsyncLLMasOS.trace_mem)
    fsck = _door(AsyncLLMasOS.fsck)
    send = _door(AsyncLLMasOS.send)
    recv = _door(AsyncLLMasOS.recv)
    wait = _door(AsyncLLMasOS.wait)
    kill = _door(AsyncLLMasOS.kill)
    nice = _door(AsyncLLMasOS.nice)
    ps = _door(AsyncLLMasOS.ps)
    stat = _door(AsyncLLMasOS.stat)
    settings = _door(AsyncLLMasOS.settings)
    watch = _stream_door(AsyncLLMasOS.watch)
    attach = _stream_door(AsyncLLMasOS.attach)
    images = _door(AsyncLLMasOS.images)
    image_add = _door(AsyncLLMasOS.image_add)
    image_probe = _door(AsyncLLMasOS.image_probe)
    image_tune = _stream_door(AsyncLLMasOS.image_tune)
    image_remove = _door(AsyncLLMasOS.image_remove)
    devices = _door(AsyncLLMasOS.devices)
    mount = _door(AsyncLLMasOS.mount)
    unmount = _door(AsyncLLMasOS.unmount)
    user_add = _door(AsyncLLMasOS.user_add)
    user_list = _door(AsyncLLMasOS.user_list)
    user_remove = _door(AsyncLLMasOS.user_remove)
    user_role = _door(AsyncLLMasOS.user_role)
    key_create = _door(AsyncLLMasOS.key_create)
    key_list = _door(AsyncLLMasOS.key_list)
    key_revoke = _door(AsyncLLMasOS.key_revoke)
    policy_list = _door(AsyncLLMasOS.policy_list)
    policy_edit = _door(AsyncLLMasOS.policy_edit)
    policy_check = _door(AsyncLLMasOS.policy_check)
    policy_simulate = _door(AsyncLLMasOS.policy_simulate)
    policy_learn = _door(AsyncLLMasOS.policy_learn)
    restart = _door(AsyncLLMasOS.restart)
    poison_list = _door(AsyncLLMasOS.poison_list)
    poison_lift = _door(AsyncLLMasOS.poison_lift)
    shutdown = _door(AsyncLLMasOS.shutdown)

    def close(self) -> None:
        """Disconnect. Processes end that were not spawned with keep=True."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
