"""One connection, many calls at once: frames out in one task, frames in in another.

A call never waits to be sent. The kernel takes CALLS_IN_FLIGHT calls of a connection, so calls that
end by themselves stand in one of two short lines here instead of being refused: `LONG` ones wait
for an engine, the others do not wait for those. Calls without an end (wait, watch, attach) pass.
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

from llmasos.kernel import limits, wire
from llmasos.kernel.errors import Busy, Errno, SyscallError
from llmasos.kernel.values import Hello, Welcome
from llmasos.userland.line import failure

from . import fork

Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T")

LONG = frozenset({"spawn", "generate", "tokenize", "mount", "mmap", "forget", "fsck"})
ENDLESS = frozenset({"wait", "watch", "attach", "recv"})
LOST = "connect again; `llmasos ps` lists the processes that are still there, with their pages"


class Lane:
    """How many calls of a kind are in flight, and who stands in line."""

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self.waiting: deque[Flight] = deque()


class Flight:
    """One call: its frames as they arrive."""

    def __init__(self, number: int, name: str, frame: bytes, lane: Lane | None) -> None:
        self.number = number
        self.name = name
        self.frame = frame  # its call, as it is sent
        self.lane = lane
        self.frames: deque[tuple[int, dict[str, Any]]] = deque()
        self.error: SyscallError | None = None  # after the frames
        self.over = False  # its last frame is here, or never will be
        self.abandoned = False  # nobody waits for it any more
        self.undo: Callable[[dict[str, Any]], None] | None = None  # a reply that nobody wants
        self.ready = anyio.Event()
        self.landed = anyio.Event()  # the kernel has done with it

    def put(self, kind: int, fields: dict[str, Any]) -> None:
        if kind == wire.ERROR:
            self.end(failure(fields, self.name))
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
        """What the call has made, where its caller left before the reply was read, is ended."""
        undo = self.undo
        if self.abandoned and undo is not None and self.frames and self.frames[-1][0] == wire.REPLY:
            self.undo = None
            undo(self.frames[-1][1])

    async def next(self) -> tuple[int, dict[str, Any]]:
        """The next frame. Raises SyscallError when the call failed. Cancel point."""
        while not self.frames:
            if self.error is not None:
                raise self.error
            self.ready = anyio.Event()
            await self.ready.wait()
        return self.frames.popleft()


class Stream(Generic[Item, R]):
    """A streaming syscall: `async for` its items, then read `reply`.

    Leaving the loop early leaves the call running: use `async with`, or `aclose()`, to end it.
    """

    def __init__(self, link: "Link", flight: Flight, item: type[Item], kind: type[R]) -> None:
        self._link = link
        self._flight = flight
        self._item = item
        self._kind = kind
        self.reply: R | None = None

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        if self.reply is not None:
            raise StopAsyncIteration
        self._link.check_process()
        try:
            kind, fields = await self._flight.next()
        except BaseException:
            await self.aclose()
            raise
        if kind == wire.REPLY:
            self.reply = wire.build(self._kind, fields)
            raise StopAsyncIteration
        return wire.build(self._item, fields)

    async def aclose(self) -> None:
        """End the call if it is still running, and wait until the kernel has done with it.

        So a process is free for the next call when a cancelled one has come back. In a child of
        fork it is the parent's call.
        """
        if self._link.forked:
            return
        self._link.abandon(self._flight)
        with anyio.move_on_after(limits.BODY_S, shield=True):
            await self._flight.landed.wait()

    async def __aenter__(self) -> "Stream[Item, R]":
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.aclose()


class Link:
    """A connection's calls. `run` has to be running in some task."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._pid = os.getpid()
        self._frames = wire.Frames()
        self._flights: dict[int, Flight] = {}  # sent, last frame not here yet
        self._last = 0
        self._lanes = (Lane(limits.CALLS_IN_FLIGHT // 2), Lane(limits.CALLS_IN_FLIGHT // 4))
        self._outbox: list[bytes] = []
        self._filled = anyio.Event()
        self._lost: SyscallError | None = None

    @property
    def alive(self) -> bool:
        """Whether a call would be sent."""
        return self._lost is None and not self.forked

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that connected."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """ForkError in a child of the process that connected."""
        fork.check(self._pid)

    async def greet(self, hello: Hello) -> Welcome:
        """Say hello, before `run`. Raises SyscallError when the kernel does not want us."""
        try:
            with anyio.fail_after(limits.START_S):
                with suppress(anyio.BrokenResourceError):  # it has hung up, and said why before
                    await self._stream.send(wire.pack([wire.CALL, 0x7FFF, "hello", hello]))
                while True:
                    for body in self._frames.feed(await self._stream.receive()):
                        kind, _number, fields = wire.unpack_reply(body)
                        if kind == wire.ERROR:
                            raise failure(fields, "hello")
                        return wire.build(Welcome, fields)
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise _gone("the daemon closed the connection") from error
        except TimeoutError as error:
            raise _gone(f"the daemon said nothing for {limits.START_S:g} s") from error

    async def run(self) -> None:
        """Move frames until the connection ends; then every call in flight ends with EPIPE."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._write)
                await self._read()
                group.cancel_scope.cancel()
        finally:
            self._lose(_gone("the connection was closed"))

    async def _read(self) -> None:
        try:
            while True:
                for body in self._frames.feed(await self._stream.receive()):
                    self._deliver(wire.unpack_reply(body))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._lose(_gone("the daemon closed the connection"))
        except SyscallError as error:  # what it sent makes no sense, or ours did not
            self._lose(error)

    async def _write(self) -> None:
        while True:
            while not self._outbox:
                self._filled = anyio.Event()
                await self._filled.wait()
            frames, self._outbox = self._outbox, []
            try:
                await self._stream.send(b"".join(frames))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # the reader finds out why

    def _post(self, frame: bytes) -> None:
        self._outbox.append(frame)
        self._filled.set()

    def _lose(self, error: SyscallError) -> None:
        """The connection is gone: no call will get another frame."""
        self._lost = self._lost or error
        waiting = [flight for lane in self._lanes for flight in lane.waiting]
        for flight in [*self._flights.values(), *waiting]:
            flight.end(_again(self._lost))
            flight.landed.set()
        self._flights.clear()

    # --- calls ------------------------------------------------------------------------------------
    def begin(self, name: str, request: object, *, soon: bool = False) -> Flight:
        """Send a call, or put it in line. E2BIG; ForkError in a child of fork.

        `soon`: a call that may be endless, but will not be.
        """
        self.check_process()
        if self._lost is not None:
            raise _again(self._lost)
        self._last += 1
        lane = None
        if soon or name not in ENDLESS:
            lane = self._lanes[0 if name in LONG else 1]
        frame = wire.call(self._last, name, request)
        flight = Flight(self._last, name, frame, lane)
        if lane is not None and not lane.permits:
            lane.waiting.append(flight)
        else:
            self._take_off(flight)
        return flight

    def _take_off(self, flight: Flight) -> None:
        if flight.lane is not None:
            flight.lane.permits -= 1
        self._flights[flight.number] = flight
        self._post(flight.frame)

    def _deliver(self, frame: list[Any]) -> None:
        kind, number, fields = frame
        if number == 0:
            raise failure(fields, "")
        flight = self._flights.get(number)
        if flight is None:
            return
        flight.put(kind, fields)
        if kind != wire.ITEM:
            self._land(flight)
        elif flight.name in ENDLESS and len(flight.frames) > limits.WATCH_EVENTS:
            words = f"the reader of {flight.name} is {len(flight.frames)} frames behind"
            flight.end(Busy(Errno.EAGAIN, words, "read faster, or give interval_s"))
            self._post(wire.pack([wire.CANCEL, number]))

    def _land(self, flight: Flight) -> None:
        del self._flights[flight.number]
        flight.landed.set()
        lane = flight.lane
        if lane is not None:
            lane.permits += 1
            if lane.waiting:
                self._take_off(lane.waiting.popleft())

    def abandon(self, flight: Flight) -> None:
        """Nobody wants the call any more: cancel it. Never waits."""
        if flight.number in self._flights and not flight.over:
            self._post(wire.pack([wire.CANCEL, flight.number]))
        elif flight.lane is not None and flight in flight.lane.waiting:
            flight.lane.waiting.remove(flight)
            flight.landed.set()
        flight.abandon(SyscallError(Errno.ECANCELED, f"{flight.name} was given up"))

    async def call(self, name: str, request: object, reply: type[T], *, soon: bool = False) -> T:
        """One syscall that does not stream. Raises SyscallError; a cancel reaches the kernel."""
        return await self.finish(self.begin(name, request, soon=soon), reply)

    async def finish(self, flight: Flight, reply: type[T]) -> T:
        """The reply of a call that was begun; one that is cancelled here is cancelled there."""
        try:
            return await self.reply(flight, reply)
        except BaseException:
            self.abandon(flight)
            raise

    async def reply(self, flight: Flight, reply: type[T]) -> T:
        """The reply of a call that goes on, whoever is cancelled here."""
        kind, fields = await flight.next()
        while kind == wire.ITEM:  # progress that nobody asked for
            kind, fields = await flight.next()
        return wire.build(reply, fields)


def _gone(words: str) -> SyscallError:
    return SyscallError(Errno.EPIPE, words, LOST)


def _again(error: SyscallError) -> SyscallError:
    """The same for another caller: an exception collects the tracebacks of whoever raises it."""
    return copy.copy(error)
