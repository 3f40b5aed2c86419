"""Back pressure: the load of each user, and the limits on it.

Counted over all connections of a user: bytes of requests of calls in flight, calls in flight, and
bytes of replies that wait for a slow reader. A request over the limits gets an EAGAIN reply with
its id. A call does not start while its reply could not be read. It must not know syscalls.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from .abi import limits
from .abi.errors import Errno, SyscallError, TooBig
from .abi.wire import HEAD_BYTES, HEADER, FrameTooBig, ProtocolError, call_number


class ReplyReader(Protocol):
    """A connection as the reader of replies."""

    @property
    def is_writable(self) -> bool: ...
    @property
    def has_read_all(self) -> bool: ...
    def writable(self) -> Awaitable[None]: ...


class UserLoad:
    """The counts of one user."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.connections = 0
        self.calls = 0  # in flight
        self.requests = 0  # bytes of requests of calls that have not ended
        self.unread = 0  # bytes of replies on connections with a slow reader
        self._reads = asyncio.Semaphore(limits.USER_READS)
        self._waiting: list[Callable[[], object]] = []

    @property
    def full(self) -> bool:
        """Whether calls start only on connections that have read all their replies."""
        return self.unread >= limits.USER_REPLY_BYTES

    @property
    def overfull(self) -> bool:
        """Whether so much is unread that no further call of this user starts."""
        return self.unread >= 2 * limits.USER_REPLY_BYTES

    def check_request(self, size: int) -> SyscallError | None:
        """The error for one more request of `size` bytes, or None if it is within the limit."""
        if self.requests + size <= limits.USER_REQUEST_BYTES:
            return None
        message = (
            f"requests of {self.user} in flight have {self.requests} bytes; {size} more would "
            f"exceed the limit of {limits.USER_REQUEST_BYTES}"
        )
        return SyscallError(Errno.EAGAIN, message, "wait until some of them have ended")

    def check_calls(self) -> None:
        """EAGAIN when this user has too many calls in flight."""
        if self.calls >= limits.USER_CALLS:
            most = limits.USER_CALLS
            message = f"{self.calls} calls of {self.user} are in flight; at most {most} are allowed"
            raise SyscallError(Errno.EAGAIN, message, "wait until some of them have ended")

    def change_unread(self, bytes_: int) -> None:
        """Add to the unread bytes; negative: subtract."""
        self.unread += bytes_
        if bytes_ < 0 and not self.full:
            waiting, self._waiting = self._waiting, []
            for resume in waiting:
                resume()

    def when_read(self, resume: Callable[[], object]) -> None:
        """Call `resume` once, when the user is no longer over the limit of unread bytes."""
        self._waiting.append(resume)

    async def begin_read(self, reader: ReplyReader) -> None:
        """Wait until a call with a reply of any size may run. `end_read` must follow."""
        while True:
            await reader.writable()
            await self._reads.acquire()
            if reader.is_writable and self._takes_more(reader):
                return
            self._reads.release()
            if self.full:
                read = asyncio.Event()
                self.when_read(read.set)
                await read.wait()

    def _takes_more(self, reader: ReplyReader) -> bool:
        return not self.full or (reader.has_read_all and not self.overfull)

    def end_read(self) -> None:
        self._reads.release()


class UserLoads:
    """The loads of all connected users."""

    def __init__(self) -> None:
        self._loads: dict[str, UserLoad] = {}

    def enter(self, user: str) -> UserLoad:
        """Count one more connection of a user, and return the user's load."""
        load = self._loads.setdefault(user, UserLoad(user))
        load.connections += 1
        return load

    def leave(self, load: UserLoad) -> None:
        load.connections -= 1
        if not load.connections:
            self._loads.pop(load.user, None)


class Received(NamedTuple):
    """A frame of a client: its body, or the error of a frame that was discarded."""

    body: bytes
    counted: int = 0  # bytes counted in the user's load until the call has ended
    number: int = 0  # the call's id, of a discarded frame
    error: SyscallError | None = None


class Requests:
    """Splits the bytes of a client into frames. `load` is set by hello."""

    __slots__ = ("_buffer", "_counted", "_fresh", "_size", "_skip", "load", "taken")

    def __init__(self) -> None:
        self.load: UserLoad | None = None
        self.taken = 0  # frames so far
        self._fresh = b""  # received since the last `next` while the buffer was empty
        self._buffer: bytearray = bytearray()
        self._size = 0  # of the incomplete frame, with its header, once it was admitted
        self._counted = 0  # bytes of it that are counted in the load
        self._skip = 0  # bytes of a discarded frame that are not received yet

    @property
    def partial(self) -> bool:
        """Whether a frame is incomplete."""
        return bool(self._fresh or self._buffer) or self._skip > 0

    def add(self, data: bytes) -> None:
        """Add received bytes; those of a discarded frame are dropped."""
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        if self._buffer or self._fresh:
            self._buffer.extend(self._fresh)
            self._buffer.extend(data)
            self._fresh = b""
        else:
            self._fresh = data

    def next(self) -> Received | None:
        """The next complete or discarded frame. Raises a fatal ProtocolError."""
        buffer = self._buffer
        if self._fresh:
            fresh, self._fresh = self._fresh, b""
            if self.load is not None and _is_one_small_frame(fresh):  # the usual case
                self.taken += 1
                return Received(fresh[HEADER:])
            buffer.extend(fresh)
        if not self._size:
            if len(buffer) < HEADER:
                return None
            length = int.from_bytes(buffer[:HEADER], "big")
            error = self._check_length(length)
            if error is not None:
                return self._discard(length, error)
            self._size = HEADER + length
            self._count(length if length > limits.SMALL_BYTES else 0)
        if len(buffer) < self._size:
            return None
        received = Received(bytes(buffer[HEADER : self._size]), self._counted)
        del buffer[: self._size]
        self._size = self._counted = 0
        self.taken += 1
        return received

    def _count(self, size: int) -> None:
        if self.load is not None:
            self.load.requests += size
            self._counted = size

    def _check_length(self, length: int) -> SyscallError | None:
        if self.load is None and length > limits.HELLO_BYTES:
            most = limits.HELLO_BYTES
            message = f"a frame of {length} bytes before hello; at most {most} are allowed"
            raise FrameTooBig(message, hint="send hello first", fatal=True)
        if length > limits.SKIP_BYTES:
            message = f"a frame of {length} bytes; at most {limits.REQUEST_BYTES} are allowed"
            raise FrameTooBig(message, hint="send less in one call", fatal=True)
        if length > limits.REQUEST_BYTES:
            message = f"the call has {length} bytes; at most {limits.REQUEST_BYTES} are allowed"
            return TooBig(message, "send less in one call")
        if self.load is not None and length > limits.SMALL_BYTES:
            return self.load.check_request(length)
        return None

    def _discard(self, length: int, error: SyscallError) -> Received | None:
        """The error and the frame's id, which is in its first bytes. The rest is dropped."""
        buffer = self._buffer
        if len(buffer) < HEADER + HEAD_BYTES:  # a discarded frame is longer
            return None
        number = call_number(buffer[HEADER : HEADER + HEAD_BYTES])
        if not number:
            raise ProtocolError(f"{error.message}, and its id cannot be read", fatal=True)
        received = min(len(buffer), HEADER + length)
        self._skip = HEADER + length - received
        del buffer[:received]
        self.taken += 1
        return Received(b"", number=number, error=error)

    def close(self) -> None:
        """Drop the buffer, and uncount an incomplete frame."""
        if self.load is not None:
            self.load.requests -= self._counted
        self._counted = 0
        self._fresh = b""
        self._buffer.clear()


def _is_one_small_frame(data: bytes) -> bool:
    """Whether the data is one complete frame of at most SMALL_BYTES, which is not counted."""
    length = len(data) - HEADER
    return 0 <= length <= limits.SMALL_BYTES and int.from_bytes(data[:HEADER], "big") == length
