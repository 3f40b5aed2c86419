"""The client's side of one connection, without I/O: requests become bytes, bytes become events.

A transport writes what `take_output` returns, passes what it reads to `receive`, and gives each
event to the caller that waits for it: client.py blocks, sdk/connection.py is async.

- The first call is hello, with the number HELLO. Others are accepted after its reply, until the
  connection has ended.
- A call has a number that is never used again. It gets its items in order, then exactly one reply
  or failure. A request that cannot be sent raises its error, and nothing else changes.
- A cancelled call gets no more items. It still ends with a reply if the kernel completed it first.
- The connection ends at its first malformed frame, at an error frame without a call, and when the
  transport reports it. Every open call then fails with a copy of the reason.
- The kernel accepts CALLS_IN_FLIGHT calls per connection. Calls that end by themselves wait here in
  one of two queues instead of being refused.
"""

import copy
from collections import deque
from itertools import count
from typing import Any, NamedTuple, TypeVar

from llmasos.kernel.abi import limits, wire
from llmasos.kernel.abi.errors import Denied, EngineFailed, Errno, SyscallError, error_of
from llmasos.kernel.abi.values import Hello

T = TypeVar("T")
HELLO = 1
LONG = frozenset({"spawn", "generate", "tokenize", "mount", "mmap", "forget", "fsck"})
ENDLESS = frozenset({"wait", "watch", "attach", "recv"})
RECONNECT = (
    "`llmasos daemon logs` shows whether and why the daemon stopped; connect again: "
    "`llmasos ps` lists the processes that still exist"
)
_ERRNOS = {int(errno): errno for errno in Errno}
_KINDS = (wire.ITEM, wire.REPLY, wire.ERROR)


class ItemReceived(NamedTuple):
    """One item of a call that streams."""

    number: int
    fields: dict[str, Any]


class ReplyReceived(NamedTuple):
    """The last event of a call that succeeded."""

    number: int
    fields: dict[str, Any]


class CallFailed(NamedTuple):
    """The last event of a call that failed."""

    number: int
    error: SyscallError


CallEvent = ItemReceived | ReplyReceived | CallFailed


class CallQueue:
    """Calls of one kind: at most `limit` are in flight, the others wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = set[int]()
        self.waiting = deque[OpenCall]()


class OpenCall:
    """A call that has not ended."""

    def __init__(self, number: int, name: str, frame: bytes, queue: CallQueue | None) -> None:
        self.number = number
        self.name = name
        self.frame = frame  # empty: it was sent
        self.queue = queue
        self.cancelled = False


class ClientProtocol:
    """The state of one connection. `error`: why it has ended.

    One thread uses it. A signal handler in this thread may start a call at any time.
    """

    def __init__(self, hello: Hello) -> None:
        self.error: SyscallError | None = None
        self._greeted = False  # hello has its reply
        self._frames = wire.Frames()
        self._numbers = count(HELLO + 1)
        self._long = CallQueue(limits.CALLS_IN_FLIGHT // 2)  # calls that wait for an engine
        self._short = CallQueue(limits.CALLS_IN_FLIGHT // 4)
        message, hint = [wire.CALL, HELLO, "hello", hello], "give a shorter key or name"
        self._output = deque([wire.pack(message, limits.HELLO_BYTES, hint=hint)])
        self._open = {HELLO: OpenCall(HELLO, "hello", b"", None)}

    # --- requests ---------------------------------------------------------------------------------
    def call(self, name: str, request: object, *, soon: bool = False) -> int:
        """Start a call and return its number. E2BIG and EINVAL for a request that cannot be sent.

        `soon`: this call of an ENDLESS syscall ends soon, so it is queued as the others are. Raises
        the error that ended the connection; EPROTO before the reply to hello.
        """
        if self.error is not None:
            raise copy.copy(self.error)  # an exception collects the traceback of each raise
        if not self._greeted:
            hint = "wait for the reply to hello"
            raise SyscallError(Errno.EPROTO, f"{name} before the reply to hello", hint)
        number, queue = next(self._numbers), None
        if soon or name not in ENDLESS:
            queue = self._long if name in LONG else self._short
        call = OpenCall(number, name, wire.call(number, name, request), queue)
        self._open[number] = call
        if queue is not None and len(queue.in_flight) >= queue.limit:
            queue.waiting.append(call)
        else:
            self._send(call)
        return number

    def _send(self, call: OpenCall) -> None:
        if call.queue is not None:
            call.queue.in_flight.add(call.number)
        frame, call.frame = call.frame, b""
        self._output.append(frame)

    def cancel(self, number: int) -> list[CallEvent]:
        """Cancel a call that has not ended. One that was not sent yet fails at once."""
        call = self._open.get(number)
        if call is None or call.cancelled:
            return []
        call.cancelled = True
        if call.queue is not None and call in call.queue.waiting:
            call.queue.waiting.remove(call)
            del self._open[number]
            message = f"{call.name} was cancelled before it was sent"
            return [CallFailed(number, SyscallError(Errno.ECANCELED, message))]
        self._output.append(wire.pack([wire.CANCEL, number]))
        return []

    @property
    def has_output(self) -> bool:
        """Whether there are bytes to write."""
        return bool(self._output)

    def take_output(self) -> bytes:
        """The bytes to write next."""
        return b"".join([self._output.popleft() for _ in range(len(self._output))])

    # --- events -----------------------------------------------------------------------------------
    def receive(self, data: bytes) -> list[CallEvent]:
        """The events of bytes that were read. No bytes: the kernel closed the connection."""
        if not data:
            return self.end("the daemon closed the connection")
        events: list[CallEvent] = []
        try:
            for body in self._frames.feed(data):
                if (event := self._event(body)) is not None:
                    events.append(event)
        except SyscallError as error:
            events += self._end(error)
        return events

    def end(self, reason: str) -> list[CallEvent]:
        """The transport lost or closed the connection: every open call fails with EPIPE."""
        return self._end(SyscallError(Errno.EPIPE, reason, RECONNECT))

    def _end(self, error: SyscallError) -> list[CallEvent]:
        if self.error is not None:
            return []
        self.error = error
        failed: list[CallEvent] = [CallFailed(one, copy.copy(error)) for one in self._open]
        self._open.clear()
        self._output.clear()
        return failed

    def _event(self, body: bytes) -> CallEvent | None:
        """The event of a frame. Raises SyscallError when it ends the connection."""
        frame = wire.unpack_reply(body)
        if len(frame) != 3 or frame[0] not in _KINDS or [*map(type, frame[1:])] != [int, dict]:
            raise wire.ProtocolError("the kernel's frame is neither an item, a reply nor an error")
        kind, number, fields = frame
        if kind == wire.ERROR and number == 0:
            raise error_from_frame(fields, "")
        call = self._open.get(number)
        if call is None:  # of an earlier client of an inherited connection
            return None
        if kind == wire.ITEM:
            return None if call.cancelled else ItemReceived(number, fields)
        self._finish(call)
        if kind == wire.ERROR:
            return CallFailed(number, error_from_frame(fields, call.name))
        self._greeted = True  # the first reply is that of hello
        return ReplyReceived(number, fields)

    def _finish(self, call: OpenCall) -> None:
        """Remove a call that has ended, and send one that waited for it."""
        del self._open[call.number]
        queue = call.queue
        if queue is not None:
            queue.in_flight.discard(call.number)
            if queue.waiting:
                self._send(queue.waiting.popleft())


def error_from_frame(fields: dict[str, Any], call: str) -> SyscallError:
    """The error in an ERROR frame. An errno that this version does not know becomes EIO."""
    number, pid = fields.get("errno"), fields.get("pid")
    errno = _ERRNOS.get(number, Errno.EIO) if isinstance(number, int) else Errno.EIO
    message, hint = str(fields.get("message", "")), str(fields.get("hint", ""))
    error = error_of(errno, message, hint)
    if isinstance(error, Denied):
        error.needs_approval = fields.get("needs_approval") is True
    elif fields.get("engine") is True:
        error = EngineFailed(errno, message, hint)
    error.call, error.pid = str(fields.get("call") or call), pid if isinstance(pid, int) else 0
    return error


def value_from_frame(fields: dict[str, Any], kind: type[T]) -> T:
    """The value in the frame of an item or a reply. EPROTO when a field is missing or wrong."""
    try:
        return wire.build(kind, fields)
    except (AttributeError, TypeError, ValueError) as error:
        message = f"the kernel sent no valid {kind.__name__}: {error}"
        raise wire.ProtocolError(message, hint="use a client of the kernel's release") from error
