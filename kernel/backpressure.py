"""Back pressure: what the kernel holds for one user, and when it takes no more of it.

Counted over all connections of a user: the bytes of requests that have not ended, the calls in
flight, and the bytes of replies that wait for a reader that is behind. A request over the limits is
refused with EAGAIN by its id; a call whose reply nobody reads is not started. Knows no syscalls.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from . import limits
from .errors import Errno, SyscallError, TooBig
from .wire import HEAD_BYTES, HEADER, FrameTooBig, ProtocolError, call_number


class Reader(Protocol):
    """A connection, seen from what it has to read."""

    @property
    def is_writable(self) -> bool: ...
    @property
    def has_read_all(self) -> bool: ...
    def writable(self) -> Awaitable[None]: ...


class Load:
    """The counts of one user."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.connections = 0
        self.calls = 0  # in flight
        self.requests = 0  # bytes of requests that have not ended
        self.unread = 0  # bytes of replies on connections whose reader is behind
        self._reads = asyncio.Semaphore(limits.USER_READS)
        self._waiting: list[Callable[[], object]] = []

    @property
    def full(self) -> bool:
        """Whether so much is unread that a call of this user starts only where all is read."""
        return self.unread >= limits.USER_REPLY_BYTES

    @property
    def overfull(self) -> bool:
        """Whether so much is unread that no further call of this user starts at all."""
        return self.unread >= 2 * limits.USER_REPLY_BYTES

    def check_request(self, size: int) -> SyscallError | None:
        """The refusal of one more request of so many bytes, if there is no room for it."""
        if self.requests + size <= limits.USER_REQUEST_BYTES:
            return None
        words = (
            f"calls of {self.user} that have not ended hold {self.requests} bytes; with "
            f"{size} more they would exceed {limits.USER_REQUEST_BYTES}"
        )
        return SyscallError(Errno.EAGAIN, words, "wait until some of them have ended")

    def check_calls(self) -> None:
        """EAGAIN when this user has too many calls in flight."""
        if self.calls >= limits.USER_CALLS:
            words = f"{self.calls} calls of {self.user} are in flight; {limits.USER_CALLS} may be"
            raise SyscallError(Errno.EAGAIN, words, "wait until some of them have ended")

    def change_unread(self, bytes_: int) -> None:
        """So many more bytes are unread, or fewer."""
        self.unread += bytes_
        if bytes_ < 0 and not self.full:
            waiting, self._waiting = self._waiting, []
            for resume in waiting:
                resume()

    def when_read(self, resume: Callable[[], object]) -> None:
        """Call this once, when the user is no longer over the limit of unread bytes."""
        self._waiting.append(resume)

    async def begin_read(self, reader: Reader) -> None:
        """Wait until a call that makes a reply of any size may run; `end_read` follows it."""
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

    def _takes_more(self, reader: Reader) -> bool:
        return not self.full or (reader.has_read_all and not self.overfull)

    def end_read(self) -> None:
        self._reads.release()


class Loads:
    """The loads of the users that are connected."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def enter(self, user: str) -> Load:
        """The load of a user who has one more connection now."""
        load = self._loads.setdefault(user, Load(user))
        load.connections += 1
        return load

    def leave(self, load: Load) -> None:
        load.connections -= 1
        if not load.connections:
            self._loads.pop(load.user, None)


@dataclass(frozen=True, slots=True)
class Received:
    """A frame of a client: its body, or why it was refused without being read."""

    body: bytes
    counted: int = 0  # bytes that its user's load holds until the call has ended
    number: int = 0  # the call's id, of a refused frame
    error: SyscallError | None = None


class Requests:
    """A client's frames, cut one at a time from what has arrived. `load` is set by hello."""

    __slots__ = ("_buffer", "_counted", "_fresh", "_size", "_skip", "cut", "load")

    def __init__(self) -> None:
        self.load: Load | None = None
        self.cut = 0  # frames so far
        self._fresh = b""  # has arrived since the last look, while nothing is in the buffer
        self._buffer: bytearray = bytearray()
        self._size = 0  # of the frame that is arriving, with its header, once it was admitted
        self._counted = 0  # of it, in the load
        self._skip = 0  # bytes of a refused frame that are still to come

    @property
    def partial(self) -> bool:
        """A frame has begun and is not whole."""
        return bool(self._fresh or self._buffer) or self._skip > 0

    def add(self, data: bytes) -> None:
        """What has arrived; bytes of a refused frame are dropped at once."""
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
        """The next whole frame, or one that is refused. Raises a fatal ProtocolError."""
        buffer = self._buffer
        if self._fresh:
            fresh, self._fresh = self._fresh, b""
            if self.load is not None and _is_one_small_frame(fresh):  # nearly every call
                self.cut += 1
                return Received(fresh[HEADER:])
            buffer.extend(fresh)
        if not self._size:
            if len(buffer) < HEADER:
                return None
            length = int.from_bytes(buffer[:HEADER], "big")
            error = self._refusal(length)
            if error is not None:
                return self._refused(length, error)
            self._size = HEADER + length
            self._count(length if length > limits.SMALL_BYTES else 0)
        if len(buffer) < self._size:
            return None
        received = Received(bytes(buffer[HEADER : self._size]), self._counted)
        del buffer[: self._size]
        self._size = self._counted = 0
        self.cut += 1
        return received

    def _count(self, size: int) -> None:
        if self.load is not None:
            self.load.requests += size
            self._counted = size

    def _refusal(self, length: int) -> SyscallError | None:
        if self.load is None and length > limits.HELLO_BYTES:
            words = f"a frame of {length} bytes before hello; {limits.HELLO_BYTES} are allowed"
            raise FrameTooBig(words, hint="say hello first", fatal=True)
        if length > limits.SKIP_BYTES:
            words = f"a frame of {length} bytes; {limits.REQUEST_BYTES} are allowed"
            raise FrameTooBig(words, hint="send less in one call", fatal=True)
        if length > limits.REQUEST_BYTES:
            words = f"the call has {length} bytes; {limits.REQUEST_BYTES} are allowed"
            return TooBig(words, "send less in one call")
        if self.load is not None and length > limits.SMALL_BYTES:
            return self.load.check_request(length)
        return None

    def _refused(self, length: int, error: SyscallError) -> Received | None:
        """Answered by its id, which is in its first bytes; the rest of it is dropped."""
        buffer = self._buffer
        if len(buffer) < HEADER + HEAD_BYTES:  # a frame that is refused is longer
            return None
        number = call_number(buffer[HEADER : HEADER + HEAD_BYTES])
        if not number:
            raise ProtocolError(f"{error.message}, and its id cannot be read", fatal=True)
        here = min(len(buffer), HEADER + length)
        self._skip = HEADER + length - here
        del buffer[:here]
        self.cut += 1
        return Received(b"", number=number, error=error)

    def close(self) -> None:
        """What was counted for a frame that never became whole is given back."""
        if self.load is not None:
            self.load.requests -= self._counted
        self._counted = 0
        self._fresh = b""
        self._buffer.clear()


def _is_one_small_frame(data: bytes) -> bool:
    """Whether it is one whole frame that is neither counted nor refused for its size."""
    length = len(data) - HEADER
    return 0 <= length <= limits.SMALL_BYTES and int.from_bytes(data[:HEADER], "big") == length
