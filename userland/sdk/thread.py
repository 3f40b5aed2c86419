"""The event loop thread of the blocking client, and how other threads wait for its calls.

It is a daemon thread: an open client does not keep a program from exiting. A child of fork() has no
such thread and nothing to wait for.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, runtime_checkable

import anyio
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal

from llmasos.kernel.abi import limits

from . import fork

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class _Closable(Protocol):
    async def close(self) -> None: ...


@runtime_checkable
class _Stream(Protocol):
    async def aclose(self) -> None: ...


class ClientThread:
    """Runs an async client from its start to `close`. Raises what entering the client raises."""

    def __init__(self, client: AbstractAsyncContextManager[object]) -> None:
        self.pid = os.getpid()
        ready: Future[_Running] = Future()
        self._thread = threading.Thread(
            target=anyio.run, args=(_serve, client, ready), name="llmasos client", daemon=True
        )
        self._thread.start()
        try:
            self._running = ready.result()
        except BaseException:
            ready.add_done_callback(_stop)  # ctrl-C while it connects
            raise

    def close(self) -> None:
        """Disconnect, and wait for it. Does nothing in a child of fork, or the second time."""
        if os.getpid() == self.pid and self._thread.is_alive():
            self._running.stop()
            self._thread.join(limits.CLOSE_S)

    def run(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the call in the thread and wait for its result. ForkError in a child of fork.

        An exception that interrupts the wait, such as ctrl-C, cancels the call and is raised when
        the call has ended, after CLOSE_S seconds at most. An object that the call has opened
        nevertheless, such as a process, is closed.
        """
        fork.check(self.pid)
        pending = _BlockingCall[T]()
        try:
            self._running.portal.start_task_soon(pending.run, lambda: call(*args, **kwargs))
            return pending.future.result()
        except BaseException:
            if pending.settled.acquire(blocking=False):
                self._running.soon(pending.cancel)
                pending.ended.wait(limits.CLOSE_S)
            elif pending.results:  # it ended at the same moment
                self._running.soon(self._running.group.start_soon, _discard, pending.results[0])
            raise

    def call_sync(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that never waits in the thread."""

        async def run() -> T:
            return call(*args, **kwargs)

        return self.run(run)

    def end(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close an object in the thread. Does nothing in a child of fork: it is the parent's."""
        if os.getpid() == self.pid:
            self.run(close)

    def end_soon(self, close: Callable[[], Awaitable[None]]) -> None:
        """The same without waiting: for objects that are garbage collected."""
        if os.getpid() == self.pid and self._thread.is_alive():
            self._running.soon(self._running.group.start_soon, close)


@dataclass(frozen=True, slots=True)
class _Running:
    """The event loop of the thread, used by other threads."""

    portal: BlockingPortal
    group: TaskGroup
    loop: asyncio.AbstractEventLoop

    def soon(self, call: Callable[..., object], *args: Any) -> None:
        """Schedule a call. Never waits: finalizers call it, in any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(call, *args)

    def stop(self) -> None:
        self.soon(self.group.cancel_scope.cancel)


class _BlockingCall(Generic[T]):
    """A call that another thread waits for."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()
        self.settled = threading.Lock()  # held by the first: the interrupted waiter, or the result
        self.ended = threading.Event()
        self.results: list[T] = []
        self._scope: anyio.CancelScope | None = None

    async def run(self, call: Callable[[], Awaitable[T]]) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if not self.settled.locked():
                    self.results.append(await call())
            if not self.settled.acquire(blocking=False):
                for result in self.results:
                    await _discard(result)
            elif self.results:
                self.future.set_result(self.results[0])
        except BaseException as error:
            if self.settled.acquire(blocking=False):
                self.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self.ended.set()

    def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


async def _serve(client: AbstractAsyncContextManager[object], ready: "Future[_Running]") -> None:
    try:
        async with client, anyio.create_task_group() as group, BlockingPortal() as portal:
            ready.set_result(_Running(portal, group, asyncio.get_running_loop()))
            await portal.sleep_until_stopped()
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)


def _stop(ready: "Future[_Running]") -> None:
    if ready.exception() is None:
        ready.result().stop()


async def _discard(result: object) -> None:
    """Close the objects that a call has opened after its caller was interrupted."""
    opened: Any = result if issubclass(type(result), list) else [result]
    for one in opened:
        if isinstance(one, _Closable):
            await one.close()
        elif isinstance(one, _Stream):
            await one.aclose()
