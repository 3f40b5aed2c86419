"""The thread of a client for programs that do not await, and how they wait for what happens there.

It is a daemon thread: a program that ends without closing its client is not kept from it, and a
child of fork(), which has no such thread, has nothing to wait for.
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

from llmasos.kernel import limits

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
        """Disconnect and wait for that. Nothing happens in a child of fork, or the second time."""
        if os.getpid() == self.pid and self._thread.is_alive():
            self._running.stop()
            self._thread.join(limits.CLOSE_S)

    def run(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call there, wait here. ForkError in a child of fork.

        What interrupts the wait cancels the call, and goes on when that has ended, CLOSE_S seconds
        later at most. What the call has opened nevertheless, as a process, is closed.
        """
        fork.check(self.pid)
        waited = _Waited[T]()
        try:
            self._running.portal.start_task_soon(waited.there, lambda: call(*args, **kwargs))
            return waited.future.result()
        except BaseException:
            if waited.taken.acquire(blocking=False):
                self._running.soon(waited.cancel)
                waited.ended.wait(limits.CLOSE_S)
            elif waited.results:  # it came in the same moment
                self._running.soon(self._running.group.start_soon, _discard, waited.results[0])
            raise

    def now(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call there what never waits."""

        async def there() -> T:
            return call(*args, **kwargs)

        return self.run(there)

    def end(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close something there. In a child of fork it is the parent's: nothing happens."""
        if os.getpid() == self.pid:
            self.run(close)

    def end_soon(self, close: Callable[[], Awaitable[None]]) -> None:
        """The same without waiting: for what nobody refers to any more."""
        if os.getpid() == self.pid and self._thread.is_alive():
            self._running.soon(self._running.group.start_soon, close)


@dataclass(frozen=True, slots=True)
class _Running:
    """The event loop of the thread, seen from others."""

    portal: BlockingPortal
    group: TaskGroup
    loop: asyncio.AbstractEventLoop

    def soon(self, call: Callable[..., object], *args: Any) -> None:
        """Never waits: it may be called while an object is deleted, in any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(call, *args)

    def stop(self) -> None:
        self.soon(self.group.cancel_scope.cancel)


class _Waited(Generic[T]):
    """A call that somebody waits for in another thread."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()
        self.taken = threading.Lock()  # by who goes away, or by the end of the call
        self.ended = threading.Event()
        self.results: list[T] = []
        self._scope: anyio.CancelScope | None = None

    async def there(self, call: Callable[[], Awaitable[T]]) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if not self.taken.locked():
                    self.results.append(await call())
            if not self.taken.acquire(blocking=False):
                for result in self.results:
                    await _discard(result)
            elif self.results:
                self.future.set_result(self.results[0])
        except BaseException as error:
            if self.taken.acquire(blocking=False):
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
    """End what a call has opened for somebody who no longer waits for it."""
    several: Any = result if issubclass(type(result), list) else [result]
    for one in several:
        if isinstance(one, _Closable):
            await one.close()
        elif isinstance(one, _Stream):
            await one.aclose()
