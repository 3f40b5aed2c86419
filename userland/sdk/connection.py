"""One connection with many concurrent calls: one task writes frames, another reads them.

protocol.py has the protocol and the queues of calls. `begin` never waits.
"""

import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import ByteStream

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Busy, Errno, SyscallError
from llmasos.kernel.abi.values import Hello, Welcome
from llmasos.userland.protocol import (
    ENDLESS,
    HELLO,
    CallEvent,
    CallFailed,
    ClientProtocol,
    ItemReceived,
    ReplyReceived,
    value_from_frame,
)

from . import fork

Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T")


class PendingCall:
    """One call, with the events that have arrived and were not read."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.events: deque[ItemReceived | ReplyReceived] = deque()
        self.error: SyscallError | None = None  # raised after the events
        self.abandoned = False  # the caller was cancelled
        self.undo: Callable[[dict[str, Any]], None] | None = None  # of an abandoned call's reply
        self.ready = anyio.Event()
        self.finished = anyio.Event()  # the kernel has ended it

    def put(self, event: CallEvent) -> None:
        if isinstance(event, CallFailed):
            self.end(event.error)
        else:
            self.events.append(event)
            self.ready.set()
        if not isinstance(event, ItemReceived):
            self.finished.set()
            self.undo_reply()

    def end(self, error: SyscallError) -> None:
        self.error = self.error or error
        self.ready.set()

    def undo_reply(self) -> None:
        """Undo the effect of an abandoned call that has a reply nobody has read."""
        undo, last = self.undo, self.events[-1] if self.events else None
        if self.abandoned and undo is not None and isinstance(last, ReplyReceived):
            self.undo = None
            undo(last.fields)

    async def next(self) -> ItemReceived | ReplyReceived:
        """The next event. Raises SyscallError when the call failed. May wait."""
        while not self.events:
            if self.error is not None:
                raise self.error
            self.ready = anyio.Event()
            await self.ready.wait()
        return self.events.popleft()


class ReplyStream(Generic[Item, R]):
    """A streaming syscall: `async for` its items, then read `reply`.

    Leaving the loop early does not end the call: use `async with`, or `aclose()`.
    """

    def __init__(
        self, connection: "ClientConnection", call: PendingCall, item: type[Item], kind: type[R]
    ) -> None:
        self._connection = connection
        self._call = call
        self._item = item
        self._kind = kind
        self.reply: R | None = None

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        if self.reply is not None:
            raise StopAsyncIteration
        self._connection.check_process()
        try:
            event = await self._call.next()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(event, ReplyReceived):
            self.reply = value_from_frame(event.fields, self._kind)
            raise StopAsyncIteration
        return value_from_frame(event.fields, self._item)

    async def aclose(self) -> None:
        """Cancel the call if it is still running, and wait until the kernel has ended it.

        The process then accepts the next call. Does nothing in a child of fork: the call is the
        parent's.
        """
        if self._connection.forked:
            return
        self._connection.abandon(self._call)
        with anyio.move_on_after(limits.BODY_S, shield=True):
            await self._call.finished.wait()

    async def __aenter__(self) -> "ReplyStream[Item, R]":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class ClientConnection:
    """The calls of one connection. `run` must be running in a task."""

    def __init__(self, stream: ByteStream, hello: Hello) -> None:
        self._stream = stream
        self._pid = os.getpid()
        self._protocol = ClientProtocol(hello)
        self._calls = {HELLO: PendingCall(HELLO, "hello")}  # that have not ended
        self._filled = anyio.Event()

    @property
    def alive(self) -> bool:
        """Whether the connection is open and usable in this process."""
        return self._protocol.error is None and not self.forked

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that connected."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise ForkError in a child of the process that connected."""
        fork.check(self._pid)

    async def handshake(self) -> Welcome:
        """Make the `hello` syscall, before `run`. Raises SyscallError when it is refused."""
        hello = self._calls[HELLO]
        with anyio.move_on_after(limits.START_S) as scope:
            await self._flush()
            while not hello.finished.is_set():
                await self._receive()
        if scope.cancelled_caught:
            reason = f"no answer from the daemon within {limits.START_S:g} s"
            self._hand_out(self._protocol.end(reason))
        return await self.reply(hello, Welcome)

    async def run(self) -> None:
        """Transfer frames until the connection ends. Every open call then fails."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._write)
                while self._protocol.error is None:
                    await self._receive()
                group.cancel_scope.cancel()
        finally:
            self._hand_out(self._protocol.end("the connection was closed"))

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            data = b""
        self._hand_out(self._protocol.receive(data))

    def _hand_out(self, events: list[CallEvent]) -> None:
        for event in events:
            call = self._calls[event.number]
            call.put(event)
            if not isinstance(event, ItemReceived):
                del self._calls[event.number]
            elif call.name in ENDLESS and len(call.events) > limits.WATCH_EVENTS:
                message = f"the reader of {call.name} is {len(call.events)} frames behind"
                call.end(Busy(Errno.EAGAIN, message, "read faster, or set interval_s"))
                self._protocol.cancel(call.number)
        self._wake_writer()  # a call may have waited for the end of another

    async def _write(self) -> None:
        while True:
            await self._flush()
            self._filled = anyio.Event()
            await self._filled.wait()

    async def _flush(self) -> None:
        while self._protocol.has_output:
            try:
                await self._stream.send(self._protocol.take_output())
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # the next read has the reason: the kernel may have sent it

    def _wake_writer(self) -> None:
        if self._protocol.has_output:
            self._filled.set()

    # --- calls ------------------------------------------------------------------------------------
    def begin(self, name: str, request: object, *, soon: bool = False) -> PendingCall:
        """Send a call, or queue it. Never waits. E2BIG; ForkError in a child of fork.

        `soon`: this call of an ENDLESS syscall ends soon.
        """
        self.check_process()
        call = PendingCall(self._protocol.call(name, request, soon=soon), name)
        self._calls[call.number] = call
        self._wake_writer()
        return call

    def stream(
        self, name: str, request: object, item: type[Item], reply: type[R]
    ) -> ReplyStream[Item, R]:
        """Start a streaming syscall. Never waits; raises as `begin` does."""
        return ReplyStream(self, self.begin(name, request), item, reply)

    def abandon(self, call: PendingCall) -> None:
        """Cancel a call whose caller was cancelled. Never waits."""
        self._hand_out(self._protocol.cancel(call.number))
        call.abandoned = True
        call.end(SyscallError(Errno.ECANCELED, f"{call.name} was cancelled by its caller"))
        call.undo_reply()

    async def call(self, name: str, request: object, reply: type[T]) -> T:
        """One syscall that does not stream. Raises SyscallError. Cancellation cancels the call in
        the kernel."""
        return await self.finish(self.begin(name, request), reply)

    async def finish(self, call: PendingCall, reply: type[T]) -> T:
        """The reply of a started call. Cancellation cancels the call in the kernel."""
        try:
            return await self.reply(call, reply)
        except BaseException:
            self.abandon(call)
            raise

    async def reply(self, call: PendingCall, reply: type[T]) -> T:
        """The reply of a started call. Cancellation does not cancel the call in the kernel."""
        while isinstance(event := await call.next(), ItemReceived):
            pass  # progress, not used here
        return value_from_frame(event.fields, reply)
