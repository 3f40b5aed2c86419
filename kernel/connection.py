"""One client's socket: frames in, frames out, and nobody who can hold the kernel up.

An asyncio.Protocol with its own flow control (measured 2-3 times anyio's byte streams, and fair at
1,000 clients). It owns deadlines (hello, a frame's body), turns of at most CALLS_IN_FLIGHT frames
and TURN_BYTES, the pause of a slow reader and its end: a frame is taken only while the replies to
those before it are read. What the frames mean is its `Ear`'s business.
"""

import asyncio
import time
from typing import Protocol, cast

from . import limits
from .backpressure import Load, Received, Requests
from .errors import Errno, SyscallError
from .wire import ProtocolError, pack_error


class Ear(Protocol):
    """Who understands the frames of one connection."""

    def opened(self, connection: "Connection") -> None: ...
    def frame(self, received: Received) -> None: ...
    def refused(self, error: SyscallError) -> None: ...
    def closed(self) -> None: ...


class Connection(asyncio.Protocol):
    """Bytes of one client. The ear is told of each whole frame, in order, and why we hang up."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._loop = asyncio.get_running_loop()
        self._requests = Requests()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self._closing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._handed = 0  # bytes that the transport has got so far
        self._unread = 0  # bytes of them in the user's load
        self._kick: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._hello: asyncio.TimerHandle | None = None
        self._body: asyncio.TimerHandle | None = None
        self._arrived = 0  # bytes so far
        self._turning = False  # another turn is due, so nothing more is read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=limits.WRITE_BUFFER_HIGH_BYTES)
        error = SyscallError(Errno.ETIMEDOUT, f"hello did not come within {limits.HELLO_S:g} s")
        self._hello = self._loop.call_later(limits.HELLO_S, self.refuse, error)
        self._ear.opened(self)

    def greeted(self) -> None:
        """Hello is done, or may take its time: from now on only bodies have a deadline."""
        if self._hello is not None:
            self._hello.cancel()
            self._hello = None

    def count_in(self, load: Load) -> None:
        """Whose requests and replies these are, from now on."""
        self._count_unread(0)
        self._requests.load = load
        self._count_unread(self._behind())

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._hello, self._body, self._kick, self._pause):
            if timer is not None:
                timer.cancel()
        self._closing = True
        self._count_unread(0)
        self._requests.close()
        self._writable.set()
        self._ear.closed()
        # What refers to each other is freed only by a full pass of the collector, which is rare.
        del self._ear, self.transport

    # --- in -------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._arrived += len(data)
        self._requests.add(data)
        if not self._turning:
            self._serve()
        self._watch_body()

    def _serve(self) -> None:
        """One turn: a client who sends a thousand frames at once waits for the others after 32."""
        if self._closing:
            return
        self._flushing = True  # what this turn sends leaves at its end
        try:
            more = self._take_frames()
        except ProtocolError as error:
            self.refuse(error)
            return
        if more and self._may_start():
            self._loop.call_soon(self._serve)
        if more != self._turning and not self._closing:
            self._turning = more
            self._read_or_not()
        self._flush()

    def _take_frames(self) -> bool:
        """Hand frames to the ear; whether there may be more of them here."""
        requests, taken, begin = self._requests, 0, time.monotonic()
        for _ in range(limits.CALLS_IN_FLIGHT):
            if self._closing or taken > limits.TURN_BYTES or not self._may_start():
                break
            received = requests.next()
            if received is None:
                return False
            taken += len(received.body)
            self._ear.frame(received)
            if not requests.partial:  # nearly every call: it was all that had arrived
                return False
            if time.monotonic() - begin > limits.TURN_S:
                break
            if self._out_bytes > limits.WRITE_BUFFER_HIGH_BYTES:
                self._flush()  # the transport finds out whether its reader keeps up
                self._flushing = True
        return True

    def _may_start(self) -> bool:
        """Who does not read the replies gets no more of them, and who has to pause none yet."""
        if self._pause is not None:
            return False  # `_go_on` is called at its end
        if not self._writable.is_set():
            return False  # `resume_writing` goes on
        load = self._requests.load
        if load is not None and load.overfull:
            load.when_read(self._go_on)
            return False
        return True

    def pause(self, seconds: float) -> None:
        """Handle no request for a while."""
        if self._pause is None and not self._closing:
            self._pause = self._loop.call_later(seconds, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self._serve()

    def _go_on(self) -> None:
        self._loop.call_soon(self._serve)

    def _read_or_not(self) -> None:
        """Read only while there is room for what comes in and for what goes out."""
        if self._closing:
            return
        if self._turning or not self._writable.is_set():
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            self._watch_body()

    def _watch_body(self) -> None:
        """A frame that has begun must go on."""
        if self._body is None and self._requests.partial and not self._closing:
            seen = self._requests.cut, self._arrived
            self._body = self._loop.call_later(limits.BODY_S, self._check_body, *seen)

    def _check_body(self, cut: int, arrived: int) -> None:
        self._body = None
        progress = self._arrived - arrived >= limits.PROGRESS_BYTES
        if progress or self._requests.cut > cut or not self.transport.is_reading():
            self._watch_body()
        elif self._requests.partial:
            words = f"the rest of a frame did not come within {limits.BODY_S:g} s"
            self.refuse(SyscallError(Errno.ETIMEDOUT, words))

    # --- out ------------------------------------------------------------------------------------
    def send(self, frame: bytes) -> None:
        """Queue a frame; all of one turn of the loop leave in one write. Never waits."""
        if self._closing:
            return
        self._out.append(frame)
        self._out_bytes += len(frame)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._out and not self._closing and not self.transport.is_closing():
            self._handed += self._out_bytes
            self.transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._count_unread(self._behind())
        self._out.clear()
        self._out_bytes = 0

    @property
    def is_writable(self) -> bool:
        return self._writable.is_set()

    @property
    def has_read_all(self) -> bool:
        """Whether no reply waits here for its reader."""
        return not self._out and (self._closing or not self.transport.get_write_buffer_size())

    async def writable(self) -> None:
        """Return when the reader keeps up. Cancel point."""
        await self._writable.wait()

    def _behind(self) -> int:
        """Bytes that wait for a reader that does not keep up."""
        return 0 if self._writable.is_set() else self.transport.get_write_buffer_size()

    def _count_unread(self, bytes_: int) -> None:
        load = self._requests.load
        if load is not None and bytes_ != self._unread:
            change, self._unread = bytes_ - self._unread, bytes_
            load.change_unread(change)

    def pause_writing(self) -> None:
        self._writable.clear()
        self._read_or_not()
        self._watch_reader()

    def resume_writing(self) -> None:
        if self._kick is not None:
            self._kick.cancel()
            self._kick = None
        self._writable.set()
        if self._closing:
            return
        self._count_unread(0)
        if self._turning:
            self._go_on()
        self._read_or_not()

    def _watch_reader(self) -> None:
        read = self._handed - self.transport.get_write_buffer_size()
        self._kick = self._loop.call_later(limits.KICK_S, self._check_reader, read)

    def _check_reader(self, read: int) -> None:
        """One that takes long to read a large reply stays; one that has stopped is dropped."""
        now = self._handed - self.transport.get_write_buffer_size()
        if now - read >= limits.PROGRESS_BYTES:
            self._watch_reader()
            return
        words = f"its answers were not read for {limits.KICK_S:g} s"
        self._ear.refused(SyscallError(Errno.ETIMEDOUT, words))
        self.transport.abort()

    def refuse(self, error: SyscallError) -> None:
        """Say why, then close."""
        if self._closing:
            return
        self._ear.refused(error)
        self.send(pack_error(0, error))
        self._flush()
        self._closing = True
        self.greeted()
        # A client who never reads must not keep the socket open.
        if self._kick is not None:
            self._kick.cancel()
        self._kick = self._loop.call_later(limits.KICK_S, self.transport.abort)
        self.transport.close()
