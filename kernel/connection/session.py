"""The protocol of one connection: hello, calls, cancels; and the connection's lifetime.

Decodes frames, passes calls to dispatch.py and encodes the results. A frame that cannot be decoded
gets an error reply with its id and affects no other call. It must not know what a syscall does.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable
from itertools import count

from .. import check
from ..abi import limits
from ..abi.errors import Denied, Errno, SyscallError
from ..abi.table import TABLE
from ..abi.values import Hello, Welcome
from ..abi.wire import (
    CALL,
    CANCEL,
    ITEM,
    REPLY,
    ProtocolError,
    call_number,
    is_number,
    pack,
    pack_error,
    unpack,
)
from ..access.identity import Caller
from ..access.permissions import Permit
from ..backpressure import Received, UserLoad
from ..dispatch import CallerCalls, InFlight, unexpected_error
from ..machine import Machine
from ..process.table import Process
from . import authentication
from .authentication import ConnectionSlot, Peer
from .connection import Connection

log = logging.getLogger(__name__)
_KEY_CHECK_MIN_S = 0.01
_numbers = count(1)


class Session:
    """Handles the frames of one connection.

    `process`: whose program inherited the connection. `slot`: already taken for the connection.
    """

    def __init__(
        self, machine: Machine, process: Process | None = None, slot: ConnectionSlot | None = None
    ) -> None:
        self._machine = machine
        self._process = process
        self._slot = slot
        self._number = next(_numbers)
        self._caller: Caller | None = None  # this and the next two are set by hello
        self._load: UserLoad | None = None  # of its user
        self._calls: CallerCalls | None = None
        self._user = ""  # until it is determined
        self._peer: Peer | None = None  # None: the connection was rejected
        self._open: OpenCalls = {}
        self._expiry: asyncio.TimerHandle | None = None  # timer for the key that it sent
        self._malformed = 0  # frames
        self._request_bytes = 0  # of the frame being handled, counted in the load

    # --- lifetime -------------------------------------------------------------------------------
    def opened(self, connection: Connection) -> None:
        self._connection = connection
        machine = self._machine
        machine.clients.add(self)
        try:
            peer = authentication.identify(machine, connection.transport, self._process)
            self._user = authentication.user_of(machine, peer)
            self._slot = self._slot or ConnectionSlot(
                machine, peer.holder, is_machine_owner=peer.is_machine_owner
            )
            self._peer = peer
            if self._process is not None:
                connection.cancel_hello_timeout()  # a program may be slow to start
        except SyscallError as error:
            connection.refuse(error)

    def closed(self) -> None:
        self._machine.clients.remove(self)
        if self._expiry is not None:
            self._expiry.cancel()
        if self._slot is not None:
            self._slot.release()
        if self._calls is not None and self._load is not None:
            self._calls.cancel()
            self._machine.users.connections[self._user] -= 1
            self._machine.loads.leave(self._load)
            if not self._machine.run.stopping.is_set():  # else recovery ends its processes
                self._machine.jobs.run("hangup", self._hang_up, self._calls)

    async def _hang_up(self, calls: CallerCalls) -> None:
        """End the processes of this connection after its last call, which may be a spawn."""
        await calls.all_ended()
        self._machine.connections.last_closed = time.monotonic()
        try:
            await self._machine.lifecycle.connection_closed(self._number)
        except SyscallError as error:
            log.warning("processes of connection %d did not end: %s", self._number, error)

    def refused(self, error: SyscallError) -> None:
        """Record in the journal that the connection is closed, with its owner and the reason."""
        self._machine.journal.rejected(self._user, error, greeted=self._caller is not None)

    def reauthorise(self) -> None:
        """Cancel the calls that are no longer allowed, or close a connection that is not."""
        caller, peer = self._caller, self._peer
        if peer is None:
            return
        why = authentication.end_reason(peer.process)
        if caller is not None:
            why = why or self._machine.users.rejection(caller.user, caller.key, caller.uid)
        if why:
            if self._calls is not None:
                self._calls.cancel()
            self._connection.refuse(Denied(why, "connect again with a valid key or user"))
        elif self._calls is not None:
            self._calls.reauthorise()

    def belongs_to(self, pid: int) -> bool:
        process = self._peer.process if self._peer is not None else None
        return process is not None and process.pid == pid

    # --- frames -----------------------------------------------------------------------------------
    def frame(self, received: Received) -> None:
        self._request_bytes = received.counted
        try:
            if received.error is not None:
                self._fail(received.number, received.error)
            else:
                self._decode(received.body)
        finally:
            if self._load is not None:
                self._load.requests -= self._request_bytes  # 0 when a call keeps it until its end
            self._request_bytes = 0

    def _decode(self, body: bytes) -> None:
        try:
            message = unpack(body)
        except ProtocolError as error:
            self._reject(error, call_number(body))
            return
        # The usual case without `match`, whose patterns take six times as long.
        if len(message) == 4 and message[0] == CALL and type(message[2]) is str:
            _, number, name, fields = message
            if is_number(number):
                self._call(number, name, fields)
                return
        match message:
            case [kind, int(number)] if kind == CANCEL:
                if number in self._open:
                    self._open[number][1].scope.cancel()
            case _:
                self._reject(ProtocolError("neither a call nor a cancel"), call_number(body))

    def _reject(self, error: ProtocolError, number: int) -> None:
        """Reply with an error, and with the call's number if it can be read.

        A client that sends too many frames without a number is disconnected.
        """
        if number:
            self._fail(number, error)
            return
        self._malformed += 1
        if self._malformed > limits.BAD_FRAMES:
            message = f"{self._malformed} malformed frames"
            self._connection.refuse(ProtocolError(message, fatal=True))
        else:
            self._fail(0, error)

    def _call(self, number: int, name: str, fields: object) -> None:
        self._machine.counters.calls += 1
        try:
            request = check.request(name, fields)
            if isinstance(request, Hello):
                self._hello(number, request)
            else:
                self._dispatch(number, name, request)
        except SyscallError as error:
            self._fail(number, error)
            if isinstance(error, Denied) and self._machine.journal.must_pause(self._user):
                self._connection.pause(limits.REFUSAL_PAUSE_S)
        except Exception as error:
            self._fail(number, unexpected_error(name, error))

    def _dispatch(self, number: int, name: str, request: object) -> None:
        if self._caller is None or self._calls is None:
            raise SyscallError(Errno.EPROTO, f"{name} before hello", "send hello first")
        if number in self._open:
            raise SyscallError(Errno.EINVAL, f"id {number} is already in flight")
        replies = _Replies(self._connection, number, self._open)
        call = self._calls.dispatch(
            self._caller, TABLE[name], request, replies, self._request_bytes
        )
        if call is not None:
            self._open[number] = replies, call
            self._request_bytes = 0

    def _fail(self, number: int, error: SyscallError) -> None:
        self._connection.send(pack_error(number, error))

    # --- hello ------------------------------------------------------------------------------------
    def _hello(self, number: int, request: Hello) -> None:
        if self._caller is not None and self._process is None:
            raise SyscallError(Errno.EPROTO, "hello was already sent")
        if request.version != limits.PROTOCOL_VERSION:
            version = limits.PROTOCOL_VERSION
            message = f"the kernel has protocol version {version}, not {request.version}"
            raise SyscallError(Errno.EPROTO, message, "use the client of the kernel's release")
        if self._peer is None:
            raise SyscallError(Errno.EPROTO, "this connection was rejected")
        machine = self._machine
        try:
            caller, notices = authentication.authenticate(
                machine, self._peer, self._number, request
            )
        except Denied as error:
            self._connection.refuse(error)
            return
        self._user = caller.user
        user, path = caller.subjects[:1], f"/kernel/profile/{request.profile}"
        machine.permissions.require(Permit(user, user[0], "hello", (path,)), caller.user)
        if self._calls is not None:
            self._end_identity(self._calls)
        elif self._peer.remote and self._slot is not None:
            self._slot.move(f"user:{caller.user}")  # counted for its address until now
        self._caller = caller
        machine.users.connections[caller.user] += 1
        self._load = machine.loads.enter(caller.user)
        self._calls = CallerCalls(machine.call_parts, self._load, self._connection)
        self._connection.set_load(self._load)
        self._watch_key()
        self._connection.cancel_hello_timeout()
        _Replies(self._connection, number, self._open).reply(Welcome(
            limits.PROTOCOL_VERSION, machine.run.system, caller.user, caller.profile,
            [*notices, *machine.requantiser.take_notices()], caller.app,
        ))  # fmt: skip

    def _end_identity(self, calls: CallerCalls) -> None:
        """Reset the connection: a program may run several clients on it, one after the other."""
        calls.cancel()
        for replies, _ in self._open.values():
            replies.receives = False
        self._open = {}  # the new client starts its own numbers
        self._machine.users.connections[self._user] -= 1
        if self._load is not None:
            self._machine.loads.leave(self._load)

    def _watch_key(self) -> None:
        """Close the connection when its key expires, also after a change of the clock."""
        expires = self._machine.users.expires(self._caller.key) if self._caller else None
        if expires is not None:
            left = max(_KEY_CHECK_MIN_S, min(expires - time.time(), limits.KEY_LOOK_S))
            self._expiry = asyncio.get_running_loop().call_later(left, self._check_key)

    def _check_key(self) -> None:
        try:
            self.reauthorise()
        finally:
            self._watch_key()


class _Replies:
    """The sink of a call: sends frames with the call's number.

    It does not refer to the call, which refers to it: a cycle would stay in memory until the next
    full garbage collection.
    """

    __slots__ = ("_connection", "_number", "_open", "receives")

    def __init__(self, connection: Connection, number: int, open_: "OpenCalls") -> None:
        self.receives = True  # False: another client uses the connection now
        self._connection = connection
        self._number = number
        self._open = open_  # of the connection; contains this until the call ends

    def item(self, item: object) -> None:
        if self.receives:
            self._connection.send(pack([ITEM, self._number, item]))

    def reply(self, reply: object) -> None:
        try:
            self._end(pack([REPLY, self._number, reply]))
        except SyscallError as error:  # larger than a frame, or not valid UTF-8
            self.fail(error)

    def fail(self, error: SyscallError) -> None:
        self._end(pack_error(self._number, error))

    def _end(self, frame: bytes) -> None:
        self._open.pop(self._number, None)
        if self.receives:
            self._connection.send(frame)

    def keeps_up(self) -> bool:
        return self._connection.is_writable

    def writable(self) -> Awaitable[None]:
        return self._connection.writable()


# Calls in flight of a connection, by the client's number.
OpenCalls = dict[int, tuple[_Replies, InFlight]]
