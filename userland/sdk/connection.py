"""One connection with many concurrent calls: one task writes frames, another reads them.

`begin` never waits. The kernel accepts CALLS_IN_FLIGHT calls per connection, so bounded calls wait
here in one of two queues instead of being refused: one for `LONG` calls, which wait for an engine,
one for the others. Calls in `ENDLESS` (wait, watch, attach, recv) are not queued.
"""

import copy
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import ByteStream

from llmasos.kernel.abi import limits, wire
from llmasos.kernel.abi.errors import Busy, Errno, SyscallError
from llmasos.kernel.abi.values import Hello, Welcome
from llmasos.userland.client import error_from_frame

from . import fork

Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T")

LONG = frozenset({"spawn", "generate", "tokenize", "mount", "mmap", "forget", "fsck"})
ENDLESS = frozenset({"wait", "watch", "attach", "recv"})
RECONNECT = "connect again; `llmasos ps` lists the processes that still exist, with their pages"


class CallQueue:
    """Permits for calls of one kind, and the calls that wait for one."""

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self.waiting: deque[PendingCall] = deque()


class PendingCall:
    """One call, with the frames that have arrived and were not read."""

    def __init__(self, number: int, name: str, frame: bytes, queue: CallQueue | None) -> None:
        self.number = number
        self.name = name
        self.frame = frame  # the encoded CALL frame
        self.queue = queue
        self.frames: deque[tuple[int, dict[str, Any]]] = deque()
        self.error: SyscallError | None = None  # raised after the frames
        self.over = False  # no more frames will arrive
        self.abandoned = False  # the caller was cancelled
        self.undo: Callable[[dict[str, Any]], None] | None = None  # of an abandoned call's reply
        self.ready = anyio.Event()
        self.finished = anyio.Event()  # the kernel has ended it

    def put(self, kind: int, fields: dict[str, Any]) -> None:
        if kind == wire.ERROR:
            self.end(error_from_frame(fields, self.name))
        else:
            self.frames.append((kind, fields))
            self.over = self.over or kind == wire.REPLY
            self.ready.set()
            self.undo_reply()

    def end(self, error: SyscallError) -> None:
        self.error, self.over = self.error or error, True
        self.ready.set()

    def abandon(self, error: SyscallError) -> None:
        self.abandoned = True
        self.end(error)
        self.undo_reply()

    def undo_reply(self) -> None:
        """Undo the effect of an abandoned call whose reply arrives."""
        undo = self.undo
        if self.abandoned and undo is not None and self.frames and self.frames[-1][0] == wire.REPLY:
            self.undo = None
            undo(self.frames[-1][1])

    async def next(self) -> tuple[int, dict[str, Any]]:
        """The next frame. Raises SyscallError when the call failed. May wait."""
        while not self.frames:
            if self.error is not None:
                raise self.error
            self.ready = anyio.Event()
            await self.ready.wait()
        return self.frames.popleft()


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
            kind, fields = await self._call.next()
        except BaseException:
            await self.aclose()
            raise
        if kind == wire.REPLY:
            self.reply = wire.build(self._kind, fields)
            raise StopAsyncIteration
        return wire.build(self._item, fields)

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

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.aclose()


class ClientConnection:
    """The calls of one connection. `run` must be running in a task."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._pid = os.getpid()
        self._frames = wire.Frames()
        self._in_flight: dict[int, PendingCall] = {}  # sent, last frame not received
        self._last = 0  # call number
        self._queues = (
            CallQueue(limits.CALLS_IN_FLIGHT // 2),
            CallQueue(limits.CALLS_IN_FLIGHT // 4),
        )
        self._outbox: list[bytes] = []
        self._filled = anyio.Event()
        self._lost: SyscallError | None = None

    @property
    def alive(self) -> bool:
        """Whether the connection is open and usable in this process."""
        return self._lost is None and not self.forked

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that connected."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise ForkError in a child of the process that connected."""
        fork.check(self._pid)

    async def handshake(self, hello: Hello) -> Welcome:
        """Make the `hello` syscall, before `run`. Raises SyscallError when it is refused."""
        try:
            with anyio.fail_after(limits.START_S):
                with suppress(anyio.BrokenResourceError):  # closed, after it sent an ERROR frame
                    await self._stream.send(wire.pack([wire.CALL, 0x7FFF, "hello", hello]))
                while True:
                    for body in self._frames.feed(await self._stream.receive()):
                        kind, _number, fields = wire.unpack_reply(body)
                        if kind == wire.ERROR:
                            raise error_from_frame(fields, "hello")
                        return wire.build(Welcome, fields)
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise _lost("the daemon closed the connection") from error
        except TimeoutError as error:
            raise _lost(f"no answer from the daemon within {limits.START_S:g} s") from error

    async def run(self) -> None:
        """Transfer frames until the connection ends. Every call in flight then ends with EPIPE."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._write)
                await self._read()
                group.cancel_scope.cancel()
        finally:
            self._disconnected(_lost("the connection was closed"))

    async def _read(self) -> None:
        try:
            while True:
                for body in self._frames.feed(await self._stream.receive()):
                    self._deliver(wire.unpack_reply(body))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._disconnected(_lost("the daemon closed the connection"))
        except SyscallError as error:  # a malformed frame, of either side
            self._disconnected(error)

    async def _write(self) -> None:
        while True:
            while not self._outbox:
                self._filled = anyio.Event()
                await self._filled.wait()
            frames, self._outbox = self._outbox, []
            try:
                await self._stream.send(b"".join(frames))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # the reader reports the reason

    def _post(self, frame: bytes) -> None:
        self._outbox.append(frame)
        self._filled.set()

    def _disconnected(self, error: SyscallError) -> None:
        """End every call: no more frames will arrive."""
        self._lost = self._lost or error
        waiting = [call for queue in self._queues for call in queue.waiting]
        for call in [*self._in_flight.values(), *waiting]:
            call.end(_copied(self._lost))
            call.finished.set()
        self._in_flight.clear()

    # --- calls ------------------------------------------------------------------------------------
    def begin(self, name: str, request: object, *, soon: bool = False) -> PendingCall:
        """Send a call, or queue it. Never waits. E2BIG; ForkError in a child of fork.

        `soon`: this call of an ENDLESS syscall ends soon, so it takes a permit.
        """
        self.check_process()
        if self._lost is not None:
            raise _copied(self._lost)
        self._last += 1
        queue = None
        if soon or name not in ENDLESS:
            queue = self._queues[0 if name in LONG else 1]
        frame = wire.call(self._last, name, request)
        call = PendingCall(self._last, name, frame, queue)
        if queue is not None and not queue.permits:
            queue.waiting.append(call)
        else:
            self._send(call)
        return call

    def _send(self, call: PendingCall) -> None:
        if call.queue is not None:
            call.queue.permits -= 1
        self._in_flight[call.number] = call
        self._post(call.frame)

    def _deliver(self, frame: list[Any]) -> None:
        kind, number, fields = frame
        if number == 0:
            raise error_from_frame(fields, "")
        call = self._in_flight.get(number)
        if call is None:
            return
        call.put(kind, fields)
        if kind != wire.ITEM:
            self._finished(call)
        elif call.name in ENDLESS and len(call.frames) > limits.WATCH_EVENTS:
            message = f"the reader of {call.name} is {len(call.frames)} frames behind"
            call.end(Busy(Errno.EAGAIN, message, "read faster, or set interval_s"))
            self._post(wire.pack([wire.CANCEL, number]))

    def _finished(self, call: PendingCall) -> None:
        del self._in_flight[call.number]
        call.finished.set()
        queue = call.queue
        if queue is not None:
            queue.permits += 1
            if queue.waiting:
                self._send(queue.waiting.popleft())

    def abandon(self, call: PendingCall) -> None:
        """Cancel a call whose caller was cancelled. Never waits."""
        if call.number in self._in_flight and not call.over:
            self._post(wire.pack([wire.CANCEL, call.number]))
        elif call.queue is not None and call in call.queue.waiting:
            call.queue.waiting.remove(call)
            call.finished.set()
        call.abandon(SyscallError(Errno.ECANCELED, f"{call.name} was cancelled by its caller"))

    async def call(self, name: str, request: object, reply: type[T], *, soon: bool = False) -> T:
        """One syscall that does not stream. Raises SyscallError. Cancellation cancels the call in
        the kernel."""
        return await self.finish(self.begin(name, request, soon=soon), reply)

    async def finish(self, call: PendingCall, reply: type[T]) -> T:
        """The reply of a started call. Cancellation cancels the call in the kernel."""
        try:
            return await self.reply(call, reply)
        except BaseException:
            self.abandon(call)
            raise

    async def reply(self, call: PendingCall, reply: type[T]) -> T:
        """The reply of a started call. Cancellation does not cancel the call in the kernel."""
        kind, fields = await call.next()
        while kind == wire.ITEM:  # progress, not used here
            kind, fields = await call.next()
        return wire.build(reply, fields)


def _lost(message: str) -> SyscallError:
    return SyscallError(Errno.EPIPE, message, RECONNECT)


def _copied(error: SyscallError) -> SyscallError:
    """A copy for each caller: an exception collects the traceback of each raise."""
    return copy.copy(error)
