"""LLMasOS: the blocking client.

The async client runs in a thread of its own. Each method here waits for one async method and has
its signature and its docstring, which are written once, in the file of the async method. Threads
may share a client. Ctrl-C in the calling thread cancels the call.
"""

import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import wraps
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

from llmasos.kernel.abi import paths
from llmasos.kernel.abi import values as v
from llmasos.userland import start

from .answer import AsyncAnswer, Reply
from .client import AsyncLLMasOS
from .connection import ReplyStream
from .dial import ConnectOptions, target
from .process import AsyncModel, AsyncProcess, ForkOptions, SpawnOptions, description
from .prompt import ModelOptions, Options, Prompt
from .thread import ClientThread
from .tools import DEFAULT_TOOLS, AsyncMemoryTools

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)
Item = TypeVar("Item")
R = TypeVar("R")
M = TypeVar("M", bound=Callable[..., object])


class _Wrapper(Generic[C_co]):
    """A blocking object: `core` is the async one that it wraps, whose methods run in `thread`."""

    core: C_co
    thread: ClientThread

    def __repr__(self) -> str:
        return repr(self.core).removeprefix("Async")


class _Part(_Wrapper[C_co]):
    """An object of a client, which stays connected as long as this object exists."""

    def __init__(self, client: "LLMasOS", core: C_co) -> None:
        self._client, self.core, self.thread = client, core, client.thread


class _Block:
    """The end of a `with` closes the object."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _blocking(
    method: Callable[Concatenate[C, P], Awaitable[T]],
) -> Callable[Concatenate[_Wrapper[C], P], T]:
    """The blocking version of an async method, with its signature and docstring."""

    @wraps(method)
    def call(self: _Wrapper[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.thread.run(method, self.core, *args, **kwargs)

    return call


def _blocking_stream(
    method: Callable[Concatenate[AsyncLLMasOS, P], ReplyStream[Item, R]],
) -> Callable[Concatenate["LLMasOS", P], "BlockingReplyStream[Item, R]"]:
    """The blocking version of a streaming syscall, with its signature and docstring."""

    @wraps(method)
    def call(
        self: "LLMasOS", /, *args: P.args, **kwargs: P.kwargs
    ) -> "BlockingReplyStream[Item, R]":
        stream = self.thread.call_sync(method, self.core, *args, **kwargs)
        return BlockingReplyStream(self, stream)

    return call


def _documented_as(original: object) -> Callable[[M], M]:
    """Give a method the docstring of an async method or property whose result it wraps."""

    def document(method: M) -> M:
        method.__doc__ = original.__doc__
        return method

    return document


class BlockingReplyStream(_Part[ReplyStream[Item, R]], _Block):
    """A streaming syscall: iterate its items, then read `reply`. `with` ends the call."""

    @property
    def reply(self) -> R | None:
        """None until the last item has been read."""
        return self.core.reply

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return self.thread.run(self.core.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Cancel the call if it is still running."""
        self.thread.end(self.core.aclose)


class Answer(_Part[AsyncAnswer], _Block):
    """An answer that is streamed: iterate its pieces of text, then read `reply`.

    The end of its `with`, or its garbage collection, cancels the call.
    """

    @property
    @_documented_as(AsyncAnswer.text)
    def text(self) -> str:
        return self.core.text

    @property
    @_documented_as(AsyncAnswer.reply)
    def reply(self) -> Reply:
        return self.core.reply

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return self.thread.run(self.core.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None
        except KeyboardInterrupt:  # also when it arrives after the call has returned
            self.close()
            raise

    def __del__(self) -> None:
        """Cancel the call when a loop was left early without `with`."""
        self.thread.end_soon(self.core.close)

    @_documented_as(AsyncAnswer.close)
    def close(self) -> None:
        self.thread.end(self.core.close)


class MemoryTools(_Part[AsyncMemoryTools]):
    """The blocking version of AsyncMemoryTools."""

    def __init__(self, client: "LLMasOS", core: AsyncMemoryTools) -> None:
        super().__init__(client, core)
        self.definitions = core.definitions  # in the form of OpenAI's `tools`
        self.schema = core.schema  # JSON schema of one call

    call = _blocking(AsyncMemoryTools.call)


class Process(_Part[AsyncProcess], _Block):
    """A conversation with a pid; see AsyncProcess. Leaving its `with` ends it, unless `keep`."""

    def __init__(self, client: "LLMasOS", core: AsyncProcess) -> None:
        super().__init__(client, core)
        self.pid = core.pid
        self.spawned = core.spawned  # model and window; None for an existing process
        self.keep = core.keep  # True: it outlives its block and its connection

    def __repr__(self) -> str:
        return f"Process({description(self.pid, self.spawned, keep=self.keep)})"

    generate = _blocking(AsyncProcess.generate)

    @_documented_as(AsyncProcess.stream)
    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        return Answer(self._client, self.core.stream(prompt, **options))

    @_documented_as(AsyncProcess.fork)
    def fork(self, count: int = 1, **options: Unpack[ForkOptions]) -> "list[Process]":
        cores = self.thread.run(self.core.fork, count, **options)
        return [Process(self._client, core) for core in cores]

    read_mem = _blocking(AsyncProcess.read_mem)
    write_mem = _blocking(AsyncProcess.write_mem)
    search_mem = _blocking(AsyncProcess.search_mem)
    pin = _blocking(AsyncProcess.pin)
    evict = _blocking(AsyncProcess.evict)
    mmap = _blocking(AsyncProcess.mmap)
    munmap = _blocking(AsyncProcess.munmap)
    share = _blocking(AsyncProcess.share)
    forget = _blocking(AsyncProcess.forget)
    trace_mem = _blocking(AsyncProcess.trace_mem)
    send = _blocking(AsyncProcess.send)
    recv = _blocking(AsyncProcess.recv)
    kill = _blocking(AsyncProcess.kill)
    nice = _blocking(AsyncProcess.nice)
    wait = _blocking(AsyncProcess.wait)

    @_documented_as(AsyncProcess.memory_tools)
    def memory_tools(self, names: Sequence[str] = DEFAULT_TOOLS) -> MemoryTools:
        return MemoryTools(self._client, self.core.memory_tools(names))

    def close(self) -> None:
        """End the process and remove its pages. Does nothing when it has ended, or after fork()."""
        self.thread.end(self.core.close)

    def __exit__(self, *_: object) -> None:
        if not self.keep:
            self.close()


class Model(_Part[AsyncModel]):
    """A model by name; see AsyncModel."""

    def __init__(self, client: "LLMasOS", core: AsyncModel) -> None:
        super().__init__(client, core)
        self.name = core.name
        self.info = core.info

    generate = _blocking(AsyncModel.generate)
    generate_text = _blocking(AsyncModel.generate_text)
    chat = _blocking(AsyncModel.chat)

    @_documented_as(AsyncModel.stream)
    def stream(self, prompt: Prompt, **options: Unpack[ModelOptions]) -> Answer:
        return Answer(self._client, self.core.stream(prompt, **options))


class LLMasOS(_Wrapper[AsyncLLMasOS], _Block):
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

    @property
    def welcome(self) -> v.Welcome | None:
        """The kernel's answer to hello."""
        return self.core.welcome

    @_documented_as(AsyncLLMasOS.get_model)
    def get_model(self, name: str) -> Model:
        return Model(self, self.thread.run(self.core.get_model, name))

    @_documented_as(AsyncLLMasOS.process)
    def process(self, pid: int) -> Process:
        return Process(self, self.core.process(pid))

    @_documented_as(AsyncLLMasOS.spawn)
    def spawn(self, model: str, **options: Unpack[SpawnOptions]) -> Process:
        return Process(self, self.thread.run(self.core.spawn, model, **options))

    @_documented_as(AsyncLLMasOS.fork)
    def fork(self, pid: int, count: int = 1, **options: Unpack[ForkOptions]) -> list[Process]:
        cores = self.thread.run(self.core.fork, pid, count, **options)
        return [Process(self, core) for core in cores]

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
