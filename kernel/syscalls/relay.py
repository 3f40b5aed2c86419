"""Passes the stream of a call on to its caller, without a task switch for each token.

The device delivers the text of a step from the step itself. The task of the call wakes only at the
end, when its caller is slow, and when something cannot be sent: with sixteen calls, waking each of
their tasks in each step took more than a quarter of the kernel's time.
"""

from collections.abc import Awaitable
from typing import Protocol

from ..abi.errors import SyscallError
from ..scheduling.device import Device
from ..scheduling.work import Work


class Stream(Protocol):
    """The caller's side, as a CallContext has it."""

    def send(self, item: object, /) -> None: ...
    def keeps_up(self) -> bool: ...
    def writable(self) -> Awaitable[None]: ...


class Relay:
    """The relay of one call. Its device calls `deliver` after each step with text."""

    def __init__(self, call: Stream, device: Device, work: Work) -> None:
        self._call, self._device, self._work = call, device, work
        self._failure: SyscallError | None = None
        work.deliver = self.deliver

    def deliver(self) -> None:
        """Send what is in the stream, unless the caller is slow. Never waits."""
        if not self._call.keeps_up():
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
            self._call.send(delta)
            self._work.process.output.publish(delta.text)

    async def run(self) -> None:
        """Return at the end of the work, when everything was sent."""
        work = self._work
        while True:
            if self._failure is not None:
                raise self._failure
            self._send()
            await self._call.writable()
            if work.texts or self._failure is not None:
                continue
            if work.done:
                return
            work.ready.clear()
            await work.ready.wait()
