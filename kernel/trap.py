"""One connection's calls: decode, identify, authorise, journal, dispatch, reply.

Every call ends exactly once: ok, error or cancelled. What a handler raises and nobody foresaw
becomes EIO for that call alone, with its traceback in the daemon's log.
"""

import asyncio
import logging
import time
from functools import partial
from inspect import iscoroutinefunction
from itertools import count
from typing import Any

import anyio

from . import check, door, limits, permit
from .abi import TABLE, Durability, Syscall
from .backpressure import Load, Received
from .connection import Connection
from .door import Place, Visitor
from .errors import Denied, Errno, SyscallError
from .flight import Flight, as_kind, entry_of, inside, is_work, unforeseen
from .identity import Caller
from .journal import Entry
from .machine import Machine
from .permit import Permit
from .process import Process
from .syscalls import HANDLERS, Call
from .values import Hello, Welcome
from .wire import (
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

log = logging.getLogger(__name__)
_SOON_S = 0.01
_numbers = count(1)
_WAITS = frozenset(name for name, handler in HANDLERS.items() if iscoroutinefunction(handler))
# They read what is stored, and their replies may be large; what waits for an event or an engine
# would keep the others from reading.
_READS = frozenset(name for name in _WAITS if TABLE[name].durability is Durability.C) - {
    "recv", "watch", "attach", "tokenize", "embed", "devices"
}  # fmt: skip


class Trap:
    """The ear of one connection.

    `process`: whose program inherited it. `place`: it has got one already.
    """

    def __init__(
        self, machine: Machine, process: Process | None = None, place: Place | None = None
    ) -> None:
        self._machine = machine
        self._process = process
        self._place = place
        self._jobs = machine.jobs
        self._number = next(_numbers)
        self._caller: Caller | None = None
        self._owner = ""  # until it is known
        self._flights: dict[int, Flight] = {}  # calls on their way, by the client's id
        self._quiet = asyncio.Event()  # no call is on its way
        self._expiry: asyncio.TimerHandle | None = None  # of the key it came with
        self._visitor: Visitor | None = None  # None: it was turned away
        self._bad = 0
        self._load: Load | None = None  # of its user, from hello on
        self._reads = asyncio.Semaphore(limits.USER_READS)
        self._counted = 0  # bytes of the frame in hand, in the load

    # --- the connection's life --------------------------------------------------------------------
    def opened(self, connection: Connection) -> None:
        self._connection = connection
        machine = self._machine
        machine.clients.add(self)
        try:
            visitor = door.visit(machine, connection.transport, self._process)
            self._owner = door.known(machine, visitor)
            self._place = self._place or Place(machine, visitor.who, own=visitor.own)
            self._visitor = visitor
            if self._process is not None:
                connection.greeted()  # no deadline: a program may take its time to start
        except SyscallError as error:
            connection.refuse(error)

    def closed(self) -> None:
        self._machine.clients.discard(self)
        if self._expiry is not None:
            self._expiry.cancel()
        if self._place is not None:
            self._place.leave()
        for flight in self._flights.values():
            flight.scope.cancel()
        if self._caller is not None:
            self._machine.users.connections[self._caller.owner] -= 1
            self._leave_load()
            if not self._machine.stopping.is_set():  # else recovery ends what was to end with it
                self._jobs.run("hangup", self._hangup)

    async def _hangup(self) -> None:
        """After its last call: a spawn on its way would be missed."""
        while self._flights:
            self._quiet.clear()
            await self._quiet.wait()
        try:
            await self._machine.hangup(self._number)
        except SyscallError as error:
            log.warning("processes of connection %d stay: %s", self._number, error)

    def refused(self, error: SyscallError) -> None:
        """It is being hung up on: whom and why stands in the journal."""
        self._machine.journal.turned_away(self._owner, error, greeted=self._caller is not None)

    def revised(self) -> None:
        """Who may do what has changed: calls that are no longer allowed end, or the connection."""
        caller, visitor = self._caller, self._visitor
        if visitor is None:
            return
        why = door.left_over(visitor.process)
        if caller is not None:
            why = why or self._machine.users.why_not(caller.owner, caller.key, caller.uid)
        if why:
            for flight in self._flights.values():
                flight.scope.cancel()
            self._connection.refuse(Denied(why, "connect again as who you are now"))
        if why or caller is None:
            return
        for flight in self._flights.values():
            try:
                permit.ask(self._machine, flight.permit, caller.owner, flight.pid)
            except Denied as refusal:
                flight.refusal = refusal
                flight.scope.cancel()

    def of(self, process: Process) -> bool:
        return self._visitor is not None and self._visitor.process is process

    # --- frames -----------------------------------------------------------------------------------
    def frame(self, received: Received) -> None:
        self._counted = received.counted
        try:
            if received.error is not None:
                self._fail(received.number, received.error)
            else:
                self._frame(received.body)
        finally:
            if self._load is not None:
                self._load.requests -= self._counted  # 0 when a call has taken it over
            self._counted = 0

    def _frame(self, body: bytes) -> None:
        try:
            message = unpack(body)
        except ProtocolError as error:
            self._complain(error, call_number(body))
            return
        match message:
            case [kind, number, str(name), fields] if kind == CALL and is_number(number):
                self._call(number, name, fields)
            case [kind, int(number)] if kind == CANCEL:
                if number in self._flights:
                    self._flights[number].scope.cancel()
            case _:
                self._complain(ProtocolError("neither a call nor a cancel"), call_number(body))

    def _complain(self, error: ProtocolError, number: int) -> None:
        """A frame that makes no sense costs an answer, to its call where its id can be read; a
        client that sends frames without an id is dropped."""
        if number:
            self._fail(number, error)
            return
        self._bad += 1
        if self._bad > limits.BAD_FRAMES:
            self._connection.refuse(ProtocolError(f"{self._bad} malformed frames", fatal=True))
        else:
            self._fail(0, error)

    def _call(self, number: int, name: str, fields: object) -> None:
        self._machine.counters.calls += 1
        try:
            request = check.request(name, fields)
            if isinstance(request, Hello):
                self._hello(number, request)
                return
            if self._caller is None:
                raise SyscallError(Errno.EPROTO, f"{name} before hello", "say hello first")
            if number in self._flights:
                raise SyscallError(Errno.EINVAL, f"id {number} is in flight already")
            row = TABLE[name]
            self._dispatch(
                number, row, request, permit.of(self._machine, self._caller, row, request)
            )
        except SyscallError as error:
            self._fail(number, error)
            if isinstance(error, Denied) and self._machine.journal.hurries(self._owner):
                self._connection.pause(limits.REFUSAL_PAUSE_S)
        except Exception as error:
            self._fail(number, unforeseen(name, error))

    def _hello(self, number: int, request: Hello) -> None:
        if self._caller is not None and self._process is None:
            raise SyscallError(Errno.EPROTO, "hello was said already")
        if request.version != limits.PROTOCOL_VERSION:
            words = f"this kernel speaks version {limits.PROTOCOL_VERSION}, not {request.version}"
            raise SyscallError(Errno.EPROTO, words, "use the client that came with this kernel")
        if self._visitor is None:
            raise SyscallError(Errno.EPROTO, "this connection was refused")
        machine = self._machine
        try:
            greeted = door.greet(machine, self._visitor, self._number, request)
        except Denied as error:
            self._connection.refuse(error)
            return
        caller, notices = greeted
        self._owner = caller.owner
        who, path = caller.subjects[:1], f"/kernel/profile/{request.profile}"
        permit.ask(machine, Permit(who, who[0], "hello", (path,)), caller.owner)
        if self._caller is not None:
            self._handed_over()
        elif self._visitor.far and self._place is not None:
            self._place.move(f"user:{caller.owner}")  # it was its address's until now
        self._caller = caller
        machine.users.connections[caller.owner] += 1
        self._load = machine.loads.enter(caller.owner)
        self._connection.count_in(self._load)
        self._watch_key()
        self._connection.greeted()
        self._reply(number, Welcome(
            limits.PROTOCOL_VERSION, machine.system, caller.owner, caller.profile,
            [*notices, *machine.tuner.hear()], caller.app,
        ))  # fmt: skip

    def _handed_over(self) -> None:
        """A program may run others one after the other: each says hello on what they inherit."""
        for flight in self._flights.values():
            flight.scope.cancel()
        self._flights = {}  # their numbers begin anew
        self._machine.users.connections[self._owner] -= 1
        self._leave_load()

    def _leave_load(self) -> None:
        if self._load is not None:
            self._machine.loads.leave(self._load)

    def _watch_key(self) -> None:
        """A key that expires ends the connections that came with it, whatever clocks do."""
        expires = self._machine.users.expires(self._caller.key) if self._caller else None
        if expires is not None:
            left = max(_SOON_S, min(expires - time.time(), limits.KEY_LOOK_S))
            self._expiry = asyncio.get_running_loop().call_later(left, self._look_at_key)

    def _look_at_key(self) -> None:
        try:
            self.revised()
        finally:
            self._watch_key()

    # --- dispatch ---------------------------------------------------------------------------------
    def _dispatch(self, number: int, row: Syscall, request: object, given: Permit) -> None:
        caller, load = self._caller, self._load
        if caller is None or load is None:
            return
        journal = self._machine.journal
        if row.name not in _WAITS:
            call = Call(caller, 0, None, self._send(number), self._connection.writable, given.own)
            reply = HANDLERS[row.name](self._machine, call, request)
            if row.durability is Durability.C:
                self._count(row, given)
            else:
                journal.append(entry_of(caller, request, given))
            self._reply(number, reply)
            return
        if len(self._flights) >= limits.CALLS_IN_FLIGHT:
            words = f"{len(self._flights)} calls of this connection are in flight"
            raise SyscallError(Errno.EAGAIN, words, "wait for one, or open a connection")
        load.check_calls()
        if self._machine.stopping.is_set():
            raise SyscallError(Errno.ECANCELED, "the machine is going down", "try again later")
        entry = entry_of(caller, request, given)
        begin, begun = 0, None
        if row.durability is not Durability.C and row.item is not None:
            begin, begun = journal.note(as_kind(entry, "begin"))
        call = Call(caller, begin, begun, self._send(number), self._connection.writable, given.own)
        self._flights[number] = Flight(anyio.CancelScope(), given, entry.pid, self._counted)
        self._counted = 0
        load.calls += 1
        self._machine.owe(is_work(row))
        failed = partial(self._broke, number, row, self._flights)
        self._jobs.once("call", self._run, number, row, request, entry, call, failed=failed)

    async def _run(
        self, number: int, row: Syscall, request: object, entry: Entry, call: Call
    ) -> None:
        """A call that may wait, to its end."""
        reply: object = None
        error: SyscallError | None = None
        flights = self._flights
        flight = flights[number]
        with flight.scope:
            try:
                reply = await self._handle(row, request, call)
            except SyscallError as refusal:
                error = refusal
            except Exception as fault:
                error = unforeseen(row.name, fault)
        if reply is None:  # else it is done, whatever may come now
            error = flight.refusal or error
            error = error or SyscallError(Errno.ECANCELED, f"{row.name} was cancelled")
        # Beyond `scope`, so a cancel that comes late changes nothing any more.
        error = await self._close(row, entry, call.number, error)
        if row.durability is Durability.C and error is None:
            self._count(row, flight.permit)
        self._landed(number, flights)
        if flights is not self._flights:
            pass  # who asked has handed the connection over
        elif error is None:
            self._reply(number, reply)
        else:
            self._fail(number, error)
        self._machine.owe(-is_work(row))

    async def _handle(self, row: Syscall, request: object, call: Call) -> object:
        """A call that reads starts once its caller reads the replies to those before."""
        handler: Any = HANDLERS[row.name]
        if row.name not in _READS or self._load is None:
            return await handler(self._machine, call, request)
        async with self._reads:  # one connection does not queue for all that its user may read
            await self._load.begin_read(self._connection)
            try:
                return await handler(self._machine, call, request)
            finally:
                self._load.end_read()

    def _broke(self, number: int, row: Syscall, flights: dict[int, Flight]) -> None:
        """The call failed outside its handler: it ends all the same."""
        self._landed(number, flights)
        if flights is self._flights:
            self._fail(number, inside(row.name))
        self._machine.owe(-is_work(row))

    def _landed(self, number: int, flights: dict[int, Flight]) -> None:
        """A call is no longer in flight."""
        flight = flights.pop(number, None)
        if flight is not None and self._load is not None:
            self._load.calls -= 1
            self._load.requests -= flight.counted
        self._quiet.set()

    async def _close(
        self, row: Syscall, entry: Entry, begin: int, error: SyscallError | None
    ) -> SyscallError | None:
        """Write the outcome; an outcome that cannot be written is an error of its own."""
        if row.durability is Durability.C:
            return error
        if error is not None and error.errno is Errno.EIO:  # it may have killed its engine
            await self._machine.scheduler.marked()
        outcome = as_kind(entry, "end" if begin else "call", begin, error)
        try:
            await self._machine.journal.written(outcome)
        except SyscallError as fault:
            return error or fault
        return error

    def _count(self, row: Syscall, given: Permit) -> None:
        """By kind."""
        object_ = permit.counted(given.object)
        self._machine.journal.count(given.told, row.name, object_, given.rule)

    # --- answers ----------------------------------------------------------------------------------
    def _send(self, number: int) -> Any:
        def send(item: object) -> None:
            self._connection.send(pack([ITEM, number, item]))

        return send

    def _reply(self, number: int, reply: object) -> None:
        try:
            self._connection.send(pack([REPLY, number, reply]))
        except SyscallError as error:  # it is over a frame, or holds no UTF-8
            self._fail(number, error)

    def _fail(self, number: int, error: SyscallError) -> None:
        self._connection.send(pack_error(number, error))
