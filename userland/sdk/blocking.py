"""LLMasOS: the blocking client.

The async client runs in a thread of its own, and each method here waits for one method of it:
client.py and process.py document them. Threads may share a client. Ctrl-C in the calling thread
cancels the call.
"""

import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import wraps
from os import PathLike
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

from llmasos.kernel.abi import paths
from llmasos.kernel.abi import values as v
from llmasos.userland import start

from .answer import AsyncAnswer, Reply
from .client import AsyncLLMasOS
from .connection import ReplyStream
from .dial import ConnectOptions, target
from .memory import SearchOptions, WriteOptions
from .process import AsyncModel, AsyncProcess, ForkOptions, SpawnOptions, description
from .prompt import ModelOptions, Options, Prompt
from .thread import ClientThread
from .tools import DEFAULT_TOOLS, MemoryTools

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")
R = TypeVar("R")


def _blocking(
    method: Callable[Concatenate[AsyncLLMasOS, P], Awaitable[T]],
) -> Callable[Concatenate["LLMasOS", P], T]:
    """The blocking version of an async method of the client."""

    @wraps(method)
    def call(self: "LLMasOS", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.thread.run(method, self.core, *args, **kwargs)

    return call


def _blocking_stream(
    method: Callable[Concatenate[AsyncLLMasOS, P], ReplyStream[Item, R]],
) -> Callable[Concatenate["LLMasOS", P], "BlockingReplyStream[Item, R]"]:
    """The blocking version of a streaming syscall."""

    @wraps(method)
    def call(
        self: "LLMasOS", /, *args: P.args, **kwargs: P.kwargs
    ) -> "BlockingReplyStream[Item, R]":
        stream = self.thread.call_sync(method, self.core, *args, **kwargs)
        return BlockingReplyStream(self.thread, stream)

    return call


class BlockingReplyStream(Generic[Item, R]):
    """A streaming syscall: iterate its items, then read `reply`. `with` ends the call."""

    def __init__(self, thread: ClientThread, core: ReplyStream[Item, R]) -> None:
        self._thread = thread
        self._core = core

    @property
    def reply(self) -> R | None:
        """None until the last item has been read."""
        return self._core.reply

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return self._thread.run(self._core.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Cancel the call if it is still running."""
        self._thread.end(self._core.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Answer:
    """An answer that is streamed: iterate its pieces of text, then read `reply`.

    The end of its `with`, or its garbage collection, cancels the call.
    """

    def __init__(self, client: "LLMasOS", core: AsyncAnswer) -> None:
        self._client = client
        self._core = core

    @property
    def text(self) -> str:
        """The text received so far."""
        return self._core.text

    @property
    def reply(self) -> Reply:
        """The complete answer. Raises RuntimeError before the last piece has been read."""
        return self._core.reply

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return self._client.thread.run(self._core.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None
        except KeyboardInterrupt:  # also when it arrives after the call has returned
            self.close()
            raise

    def __del__(self) -> None:
        """Cancel the call when a loop was left early without `with`."""
        self._client.thread.end_soon(self._core.close)

    def close(self) -> None:
        """Cancel the call if it is still running. The process keeps the text generated so far."""
        self._client.thread.end(self._core.close)

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
        self.spawned = core.spawned  # model and window; None for an existing process
        self.keep = core.keep  # True: it outlives its block and its connection

    def __repr__(self) -> str:
        return f"Process({description(self.pid, self.spawned, keep=self.keep)})"

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Reply:
        """Send a prompt and wait for the complete answer.

        Raises NotFound when the process has ended, Busy while it is in another call, TooBig for a
        prompt that exceeds its window, Timeout after `timeout_s` seconds, EngineFailed, Denied.
        """
        return self._client.thread.run(self._core.generate, prompt, **options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """Send a prompt and stream the answer."""
        return Answer(self._client, self._core.stream(prompt, **options))

    def fork(self, count: int = 1, **options: Unpack[ForkOptions]) -> "list[Process]":
        """Create `count` children with its context. NotFound, Busy, EngineFailed."""
        cores = self._client.thread.run(self._core.fork, count, **options)
        return [Process(self._client, core) for core in cores]

    def read_mem(self) -> list[v.Page]:
        """All its pages, in order. NotFound."""
        return self._client.thread.run(self._core.read_mem)

    def write_mem(self, text: str, **options: Unpack[WriteOptions]) -> list[int]:
        """Write a text as pages and return their numbers. NotFound, Denied, TooBig."""
        return self._client.write_mem(self.pid, text, **options)

    def search_mem(self, question: str, **options: Unpack[SearchOptions]) -> v.Hits:
        """Its pages that match the question best, by words and meaning. NotFound."""
        return self._client.search_mem(self.pid, question, **options)

    def pin(self, first: int, count: int = 1, *, pinned: bool = True) -> None:
        """Pin pages in the window; `pinned=False` unpins them. NotFound, TooBig."""
        self._client.pin(self.pid, first, count, pinned=pinned)

    def evict(self, first: int, count: int = 1) -> None:
        """Evict pages from the window. NotFound; Busy for a pinned page."""
        self._client.evict(self.pid, first, count)

    def mmap(
        self, source: str | PathLike[str], *, first: int = 0, count: int = 0, writable: bool = True
    ) -> v.Mapped:
        """Map a file or folder (a Path, or "/files/PATH"), or pages of "/proc/PID/mem".

        NotFound, Denied, TooBig; EINVAL for a file that is not text.
        """
        return self._client.mmap(self.pid, source, first=first, count=count, writable=writable)

    def munmap(self, first: int) -> None:
        """Remove the mapping that contains the page `first`. NotFound."""
        self._client.munmap(self.pid, first)

    def share(self, to: int, first: int, count: int = 1, *, writable: bool = False) -> v.Mapped:
        """Share pages, in their current state, with the process `to`. NotFound, Denied."""
        return self._client.share(self.pid, to, first, count, writable=writable)

    def forget(self, first: int = 0, count: int = 1, *, key: str = "") -> v.Forgotten:
        """Erase pages by number or key, in every process that has them. NotFound."""
        return self._client.forget(self.pid, first, count, key=key)

    def trace_mem(self, page: int) -> v.Trace:
        """When a page was in the window, why it was evicted and what brought it back. NotFound."""
        return self._client.trace_mem(self.pid, page)

    def send(self, to: int, body: str) -> v.Sent:
        """Send a message from this process to another. Busy when its mailbox is full."""
        return self._client.send(to, body, sender=self.pid)

    def recv(self, timeout_s: float | None = None) -> v.Mail:
        """Wait for the oldest message to this process. Timeout after `timeout_s` seconds."""
        return self._client.recv(self.pid, timeout_s)

    def memory_tools(self, names: Sequence[str] = DEFAULT_TOOLS) -> MemoryTools:
        """Its memory as tools for its own model. EINVAL for an unknown name."""
        return MemoryTools(self._client.thread, self._core.memory_tools(names))

    def kill(self, signal: str = v.Signal.TERM) -> None:
        """Send a signal: TERM, KILL, INT, STOP or CONT. NotFound when it has ended."""
        self._client.thread.run(self._core.kill, signal)

    def nice(self, nice: int) -> None:
        """Set its nice value: -20 (largest share) to 19 (smallest)."""
        self._client.thread.run(self._core.nice, nice)

    def wait(self, timeout_s: float | None = None) -> v.Exit:
        """Wait until it exits, then remove it. Timeout after `timeout_s` seconds."""
        return self._client.thread.run(self._core.wait, timeout_s)

    def close(self) -> None:
        """End the process and remove its pages. Does nothing when it has ended."""
        self._client.thread.end(self._core.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.keep:
            self.close()


class Model:
    """A model by name. `info` describes its image and driver."""

    def __init__(self, client: "LLMasOS", core: AsyncModel) -> None:
        self._client = client
        self._core = core
        self.name = core.name
        self.info = core.info

    def __repr__(self) -> str:
        return repr(self._core).removeprefix("Async")

    def generate(self, prompt: Prompt, **options: Unpack[ModelOptions]) -> Reply:
        """The complete answer to one prompt, from a process that exists for this call only.

        Raises as `Process.generate` does, and Busy when the process table is full.
        """
        return self._client.thread.run(self._core.generate, prompt, **options)

    def generate_text(self, prompt: Prompt, **options: Unpack[ModelOptions]) -> str:
        """The text of the answer to one prompt. Raises as `generate` does."""
        return self._client.thread.run(self._core.generate_text, prompt, **options)

    def chat(self, messages: Prompt, **options: Unpack[ModelOptions]) -> str:
        """The text of the answer to a text or a list of messages. Raises as `generate` does."""
        return self._client.thread.run(self._core.chat, messages, **options)

    def stream(self, prompt: Prompt, **options: Unpack[ModelOptions]) -> Answer:
        """Stream the answer, from a process that exists for this call only."""
        return Answer(self._client, self._core.stream(prompt, **options))


class LLMasOS:
    """A connection to a kernel; see AsyncLLMasOS for the arguments and what they raise.

    It disconnects at the end of its `with`, by `close()`, or at the end of the program.
    """

    def __init__(self, api_key: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        where = paths.find()
        local = target(options.get("host"), options.get("socket")) is None
        autostart = options.get("autostart", True) and start.allowed()
        if local and autostart and not start.answers(where):
            # In this thread: a helper thread of the event loop would outlive the program.
            start.ensure(where, "--private")
        options["autostart"] = False
        self.core = AsyncLLMasOS(api_key, **options)
        self.thread = ClientThread(self.core)
        self._close = weakref.finalize(self, self.thread.close)

    def __repr__(self) -> str:
        return repr(self.core).removeprefix("Async")

    @property
    def welcome(self) -> v.Welcome | None:
        """The kernel's answer to hello."""
        return self.core.welcome

    def get_model(self, name: str) -> Model:
        """A model by its name or alias. NotFound lists the installed models."""
        return Model(self, self.thread.run(self.core.get_model, name))

    def process(self, pid: int) -> Process:
        """An existing process; `with` does not end it.

        The first call on it raises NotFound when it does not exist.
        """
        return Process(self, self.core.process(pid))

    def spawn(self, model: str, **options: Unpack[SpawnOptions]) -> Process:
        """Start a process on a model, and mount the model if needed.

        The process ends with its `with` or with this connection, unless `keep=True`. Raises
        NotFound for an unknown model, Busy when the process table is full, TooBig for a system
        prompt that exceeds the window, EngineFailed.
        """
        return Process(self, self.thread.run(self.core.spawn, model, **options))

    def fork(self, pid: int, count: int = 1, **options: Unpack[ForkOptions]) -> list[Process]:
        """Create `count` children with the parent's context. NotFound, Busy, EngineFailed."""
        return [
            Process(self, core) for core in self.thread.run(self.core.fork, pid, count, **options)
        ]

    generate = _blocking_stream(AsyncLLMasOS.generate)
    tokenize = _blocking(AsyncLLMasOS.tokenize)
    embed = _blocking(AsyncLLMasOS.embed)
    read_mem = _blocking(AsyncLLMasOS.read_mem)
    write_mem = _blocking(AsyncLLMasOS.write_mem)
    search_mem = _blocking(AsyncLLMasOS.search_mem)
    pin = _blocking(AsyncLLMasOS.pin)
    evict = _blocking(AsyncLLMasOS.evict)
    mmap = _blocking(AsyncLLMasOS.mmap)
    munmap = _blocking(AsyncLLMasOS.munmap)
    share = _blocking(AsyncLLMasOS.share)
    forget = _blocking(AsyncLLMasOS.forget)
    trace_mem = _blocking(AsyncLLMasOS.trace_mem)
    fsck = _blocking(AsyncLLMasOS.fsck)
    send = _blocking(AsyncLLMasOS.send)
    recv = _blocking(AsyncLLMasOS.recv)
    wait = _blocking(AsyncLLMasOS.wait)
    kill = _blocking(AsyncLLMasOS.kill)
    nice = _blocking(AsyncLLMasOS.nice)
    ps = _blocking(AsyncLLMasOS.ps)
    stat = _blocking(AsyncLLMasOS.stat)
    settings = _blocking(AsyncLLMasOS.settings)
    watch = _blocking_stream(AsyncLLMasOS.watch)
    attach = _blocking_stream(AsyncLLMasOS.attach)
    images = _blocking(AsyncLLMasOS.images)
    image_add = _blocking(AsyncLLMasOS.image_add)
    image_probe = _blocking(AsyncLLMasOS.image_probe)
    image_tune = _blocking_stream(AsyncLLMasOS.image_tune)
    image_remove = _blocking(AsyncLLMasOS.image_remove)
    devices = _blocking(AsyncLLMasOS.devices)
    mount = _blocking(AsyncLLMasOS.mount)
    unmount = _blocking(AsyncLLMasOS.unmount)
    user_add = _blocking(AsyncLLMasOS.user_add)
    user_list = _blocking(AsyncLLMasOS.user_list)
    user_remove = _blocking(AsyncLLMasOS.user_remove)
    user_role = _blocking(AsyncLLMasOS.user_role)
    key_create = _blocking(AsyncLLMasOS.key_create)
    key_list = _blocking(AsyncLLMasOS.key_list)
    key_revoke = _blocking(AsyncLLMasOS.key_revoke)
    policy_list = _blocking(AsyncLLMasOS.policy_list)
    policy_edit = _blocking(AsyncLLMasOS.policy_edit)
    policy_check = _blocking(AsyncLLMasOS.policy_check)
    policy_simulate = _blocking(AsyncLLMasOS.policy_simulate)
    policy_learn = _blocking(AsyncLLMasOS.policy_learn)
    restart = _blocking(AsyncLLMasOS.restart)
    poison_list = _blocking(AsyncLLMasOS.poison_list)
    poison_lift = _blocking(AsyncLLMasOS.poison_lift)
    shutdown = _blocking(AsyncLLMasOS.shutdown)

    def close(self) -> None:
        """Disconnect. Processes that were not spawned with keep=True end."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
