"""One client's socket: frames in, frames out, and nobody who can hold the kernel up.

An asyncio.Protocol with its own flow control (measured 2-3 times anyio's byte streams, and fair at
1,000 clients). It owns deadlines (hello, a frame's body), turns of at most CALLS_IN_FLIGHT frames,
the pause of a slow reader and its end. What the frames mean is its `Ear`'s business.
"""

import asyncio
from collections import deque
from typing import Protocol, cast

from . import limits
from .errors import Errno, SyscallError
from .wire import ERROR, Frames, ProtocolError, pack


class Ear(Protocol):
    """Who understands the frames of one connection."""

    def opened(self, connection: "Connection") -> None: ...
    def frame(self, body: bytes) -> None: ...
    def refused(self, error: SyscallError) -> None: ...
    def closed(self) -> None: ...


class Connection(asyncio.Protocol):
    """Bytes of one client. The ear is told of each whole frame, in order, and why we hang up."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._loop = asyncio.get_running_loop()
        self._frames = Frames()
        self._bodies: deque[bytes] = deque()
        self._out: list[bytes] = []
        self._flushing = False
        self._closing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._kick: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._turning = False
        self._bodied = False  # the deadline is for a body, not for hello

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=limits.WRITE_BUFFER_HIGH_BYTES)
        self._arm(limits.HELLO_S, "hello")
        self._ear.opened(self)

    def greeted(self) -> None:
        """Hello is done: from now on only bodies have a deadline."""
        self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._kick is not None:
            self._kick.cancel()
        self._closing = True
        self._writable.set()
        self._bodies.clear()
        self._ear.closed()

    # --- in -------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        before = len(self._bodies)
        try:
            self._bodies.extend(self._frames.feed(data))
        except ProtocolError as error:
            self._serve()
            self.refuse(error)
            return
        whole = len(self._bodies) > before
        if not self._turning:
            self._serve()
        self._watch_body(whole)

    def _serve(self) -> None:
        """One turn: a client who sends a thousand frames at once waits for the others after 32."""
        self._flushing = True  # what this turn sends leaves at its end
        for _ in range(limits.CALLS_IN_FLIGHT):
            if not self._bodies or self._closing or not self._writable.is_set():
                break
            self._ear.frame(self._bodies.popleft())
        more = bool(self._bodies) and not self._closing
        if more and self._writable.is_set():  # who does not read its answers gets no more of them
            self._loop.call_soon(self._serve)
        if more != self._turning:
            self._turning = more
            self._read_or_not()
        self._flush()

    def _read_or_not(self) -> None:
        """Read only while there is room for what comes in and for what goes out."""
        if self._closing:
            return
        if self._turning or not self._writable.is_set():
            if self._bodied:  # it is we who do not read
                self._disarm()
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            self._watch_body(whole=False)

    def _watch_body(self, whole: bool) -> None:
        """A frame that has begun must end in time; hello's own deadline is stricter."""
        if whole and self._bodied:
            self._disarm()
        if self._deadline is None and self._frames.partial and self.transport.is_reading():
            self._arm(limits.BODY_S, "the rest of a frame")

    def _arm(self, seconds: float, what: str) -> None:
        self._bodied = what != "hello"
        error = SyscallError(Errno.ETIMEDOUT, f"{what} did not come within {seconds:g} s")
        self._deadline = self._loop.call_later(seconds, self.refuse, error)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # --- out ------------------------------------------------------------------------------------
    def send(self, frame: bytes) -> None:
        """Queue a frame; all of one turn of the loop leave in one write. Never waits."""
        if self._closing:
            return
        self._out.append(frame)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._out and not self.transport.is_closing():
            self.transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    async def writable(self) -> None:
        """Return when the reader keeps up. Cancel point."""
        await self._writable.wait()

    def pause_writing(self) -> None:
        self._writable.clear()
        self._read_or_not()
        self._kick = self._loop.call_later(limits.KICK_S, self._drop)

    def resume_writing(self) -> None:
        if self._kick is not None:
            self._kick.cancel()
            self._kick = None
        self._writable.set()
        if self._bodies:
            self._loop.call_soon(self._serve)
        self._read_or_not()

    def _drop(self) -> None:
        """It does not read, so there is nobody to say it to."""
        words = f"its answers were not read for {limits.KICK_S:g} s"
        self._ear.refused(SyscallError(Errno.ETIMEDOUT, words))
        self.transport.abort()

    def refuse(self, error: SyscallError) -> None:
        """Say why, then close."""
        if self._closing:
            return
        self._ear.refused(error)
        self.send(pack([ERROR, 0, {"errno": error.errno, "message": error.message,
                                   "hint": error.hint}]))  # fmt: skip
        self._flush()
        self._closing = True
        self._disarm()
        # A client who never reads must not keep the socket open.
        self._kick = self._kick or self._loop.call_later(limits.KICK_S, self.transport.abort)
        self.transport.close()
