"""Passes the stream of a call on to its caller, without a task switch for each token.

The device delivers the text of a step from the step itself. The task of the call wakes only at the
end, when its caller is slow, and when something cannot be sent: with sixteen calls, waking each of
their tasks in each step took more than a quarter of the kernel's time.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..abi.errors import SyscallError
from ..scheduling.device import Device
from ..scheduling.work import Work


@dataclass(frozen=True, slots=True)
class Stream:
    """The way to the caller."""

    send: Callable[[object], None]  # never waits
    keeps_up: Callable[[], bool]  # False: the reader is slow
    writable: Callable[[], Awaitable[None]]  # waits for a slow reader


class Relay:
    """The relay of one call. Its device calls `deliver` after each step with text."""

    def __init__(self, stream: Stream, device: Device, work: Work) -> None:
        self._stream, self._device, self._work = stream, device, work
        self._failure: SyscallError | None = None
        work.deliver = self.deliver

    def deliver(self) -> None:
        """Send what is in the stream, unless the caller is slow. Never waits."""
        if not self._stream.keeps_up():
            self._work.ready.set()
            return
        try:
            self._send()
        except SyscallError as error:
            self._failure = error
            self._work.ready.set()

    def _send(self) -> None:
        delta = self._device.take(self._work)
        if delta is not None:
            self._stream.send(delta)
            self._work.process.output.publish(delta.text)

    async def run(self) -> None:
        """Return at the end of the work, when everything was sent."""
        try:
            await self._run(self._work)
        finally:
            self._work.deliver = None  # it refers to this object, and this object to the work

    async def _run(self, work: Work) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            self._send()
            await self._stream.writable()
            if work.texts or self._failure is not None:
                continue
            if work.done:
                return
            work.ready.clear()
            await work.ready.wait()
