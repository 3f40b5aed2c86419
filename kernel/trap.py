"""One connection's calls: decode, identify, authorise, journal, dispatch, reply.

Every call ends exactly once: ok, error or cancelled. What a handler raises and nobody foresaw
becomes EIO for that call alone, with its traceback in the daemon's log.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from inspect import iscoroutinefunction
from itertools import count
from typing import Any

import anyio

from . import check, door, limits
from .abi import TABLE, Durability, Syscall
from .connection import Connection
from .errors import Denied, Errno, SyscallError
from .identity import Caller
from .journal import Entry
from .machine import Machine
from .process import Process
from .syscalls import HANDLERS, Call
from .values import Hello, Welcome
from .wire import CALL, CANCEL, ERROR, ITEM, REPLY, ProtocolError, pack, unpack

log = logging.getLogger(__name__)
_NOTE_CHARS = 200
_LATE_S = 0.05  # the loop's clock and the wall's are not the same
_WORDS_CHARS = 10_000  # of an error: it may quote what a client sent
_numbers = count(1)
_WAITS = frozenset(name for name, handler in HANDLERS.items() if iscoroutinefunction(handler))


@dataclass(slots=True)
class Permit:
    """What the gate is asked about a call."""

    subjects: tuple[str, ...]
    action: str
    object: str
    rule: str = ""  # that allowed it


@dataclass(slots=True)
class Flight:
    """A call on its way."""

    scope: anyio.CancelScope
    permit: "Permit"
    pid: int  # that it is about
    refusal: Denied | None = None  # it was allowed, and is not any more


class Trap:
    """The ear of one connection. `process`: the connection of a program that the kernel started."""

    def __init__(self, machine: Machine, process: Process | None = None) -> None:
        self._machine = machine
        self._process = process
        self._tasks = machine.tasks
        self._number = next(_numbers)
        self._caller: Caller | None = None
        self._owner = ""  # until it is known
        self._flights: dict[int, Flight] = {}  # calls on their way, by the client's id
        self._quiet = asyncio.Event()  # no call is on its way
        self._expiry: asyncio.TimerHandle | None = None  # of the key it came with
        self._visitor: door.Visitor | None = None
        self._bad = 0

    # --- the connection's life --------------------------------------------------------------------
    def opened(self, connection: Connection) -> None:
        self._connection = connection
        machine = self._machine
        machine.clients.add(self)  # also who is refused: it holds a descriptor until it is gone
        try:
            self._visitor = door.visit(machine, connection.transport, self._process)
            machine.visitors[self._visitor.who] += 1
            machine.counters.connections += 1
            self._owner = self._visitor.owner
        except SyscallError as error:
            self._visitor = None
            connection.refuse(error)

    def closed(self) -> None:
        self._machine.clients.discard(self)
        if self._expiry is not None:
            self._expiry.cancel()
        if self._visitor is not None:
            self._machine.counters.connections -= 1
            self._machine.visitors[self._visitor.who] -= 1
        for flight in self._flights.values():
            flight.scope.cancel()
        if self._caller is not None:
            self._machine.users.connections[self._owner] -= 1
            if not self._machine.stopping.is_set():  # else recovery ends what was to end with it
                self._tasks.start_soon(self._hangup)

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
        self._machine.journal.append(Entry(
            "refused", owner=self._owner, syscall="" if self._caller else "hello",
            object="/kernel", errno=error.errno, note=error.message[:_NOTE_CHARS],
        ))  # fmt: skip

    def revised(self) -> None:
        """Who may do what has changed: calls that are no longer allowed end, or the connection."""
        caller = self._caller
        if caller is None:
            return
        why = self._machine.users.why_not(caller.owner, caller.key)
        if why:
            for flight in self._flights.values():
                flight.scope.cancel()
            self._connection.refuse(Denied(why, "connect again as who you are now"))
            return
        for flight in self._flights.values():
            try:
                self._permit(flight.permit, flight.pid)
            except Denied as refusal:
                flight.refusal = refusal
                flight.scope.cancel()

    # --- frames -----------------------------------------------------------------------------------
    def frame(self, body: bytes) -> None:
        try:
            message = unpack(body)
        except ProtocolError as error:
            self._complain(error)
            return
        match message:
            case [kind, int(number), str(name), fields] if kind == CALL and 0 < number < 2**53:
                self._call(number, name, fields)
            case [kind, int(number)] if kind == CANCEL:
                if number in self._flights:
                    self._flights[number].scope.cancel()
            case _:
                self._complain(ProtocolError("neither a call nor a cancel"))

    def _complain(self, error: ProtocolError) -> None:
        """A frame that makes no sense costs an answer; a client that sends only such is dropped."""
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
            permit = self._authorise(self._caller, TABLE[name], request)
            self._dispatch(number, TABLE[name], request, permit)
        except SyscallError as error:
            self._fail(number, error)
        except Exception:
            self._fail(number, _unforeseen(name))

    def _hello(self, number: int, request: Hello) -> None:
        if self._caller is not None:
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
        self._permit(Permit(caller.subjects[:1], "hello", f"/kernel/profile/{request.profile}"))
        self._caller = caller
        machine.users.connections[caller.owner] += 1
        self._watch_key(caller)
        self._connection.greeted()
        self._reply(number, Welcome(
            limits.PROTOCOL_VERSION, machine.system, caller.owner, caller.profile,
            [*notices, *machine.tuner.hear()],
        ))  # fmt: skip

    def _watch_key(self, caller: Caller) -> None:
        """A key that expires ends the connections that came with it."""
        expires = self._machine.users.expires(caller.key)
        if expires is not None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(max(0.0, expires - time.time()) + _LATE_S, self.revised)

    # --- the gate ---------------------------------------------------------------------------------
    def _authorise(self, caller: Caller, row: Syscall, request: object) -> Permit:
        """Whom and what the gate has allowed. EACCES, journaled, when it does not."""
        begin = time.perf_counter()
        pid = getattr(request, "pid", 0)
        subjects = self._subjects(caller, row, request)
        try:
            return self._permit(Permit(subjects, row.name, self._object(row, request)), pid)
        finally:
            took = time.perf_counter() - begin
            counters = self._machine.counters
            counters.gate_s += took
            counters.gate_last_s.append(took)

    def _subjects(self, caller: Caller, row: Syscall, request: object) -> tuple[str, ...]:
        """The caller, and where a process itself acts or gets a child, all above that too."""
        pid = getattr(request, "pid" if row.acts else "parent", 0)
        process = self._machine.processes.find(pid, caller.owner) if pid else None
        if process is None:
            return caller.subjects
        return tuple(dict.fromkeys((*caller.subjects, *process.subjects)))

    def _permit(self, asked: Permit, pid: int = 0) -> Permit:
        machine = self._machine
        decision = machine.policy.check(asked.subjects, asked.action, asked.object)
        if decision.allowed:
            asked.rule = decision.rule
            return asked
        machine.counters.refused += 1
        number = machine.journal.append(Entry(
            "refused", pid, self._owner, syscall=asked.action, object=asked.object,
            errno=Errno.EACCES, note=decision.rule or f"no rule for {decision.subject}",
            subject=" ".join(asked.subjects),
        ))  # fmt: skip
        raise machine.policy.refusal(asked.subjects, asked.action, asked.object, number)

    def _object(self, row: Syscall, request: object) -> str:
        """The path of the table with the request's fields in it; aliases resolved."""
        path = row.object
        if "{" not in path:
            return path
        field = path[path.index("{") + 1 : path.index("}")]
        value = str(getattr(request, field))
        if field in ("model", "image", "name"):
            value = self._machine.images.canonical(value)
        return path.replace(f"{{{field}}}", value)

    # --- dispatch ---------------------------------------------------------------------------------
    def _dispatch(self, number: int, row: Syscall, request: object, permit: Permit) -> None:
        caller = self._caller
        if caller is None:
            return
        journal = self._machine.journal
        if row.durability is Durability.C:
            journal.count(caller.told, row.name, permit.object, permit.rule)
        entry = Entry(
            "call", getattr(request, "pid", 0), caller.owner, syscall=row.name,
            object=permit.object, subject=" ".join(permit.subjects),
        )  # fmt: skip
        if row.name not in _WAITS:
            call = Call(caller, 0, None, self._send(number), self._connection.writable)
            reply = HANDLERS[row.name](self._machine, call, request)
            if row.durability is not Durability.C:
                journal.append(entry)
            self._reply(number, reply)
            return
        if len(self._flights) >= limits.CALLS_IN_FLIGHT:
            words = f"{len(self._flights)} calls of this connection are in flight"
            raise SyscallError(Errno.EAGAIN, words, "wait for one, or open a connection")
        if self._machine.stopping.is_set():
            raise SyscallError(Errno.ECANCELED, "the machine is going down", "try again later")
        begin, begun = 0, None
        if row.durability is not Durability.C and row.item is not None:
            begin, begun = journal.note(_as(entry, "begin"))
        call = Call(caller, begin, begun, self._send(number), self._connection.writable)
        self._flights[number] = Flight(anyio.CancelScope(), permit, entry.pid)
        self._machine.owe(_is_work(row))
        self._tasks.start_soon(self._run, number, row, request, entry, call)

    async def _run(
        self, number: int, row: Syscall, request: object, entry: Entry, call: Call
    ) -> None:
        """A call that may wait, to its end."""
        reply: object = None
        error: SyscallError | None = None
        flight = self._flights[number]
        with flight.scope:
            try:
                handler: Any = HANDLERS[row.name]
                reply = await handler(self._machine, call, request)
            except SyscallError as refusal:
                error = refusal
            except Exception:
                error = _unforeseen(row.name)
        if flight.refusal is not None:
            error = flight.refusal
        elif reply is None and error is None:
            error = SyscallError(Errno.ECANCELED, f"{row.name} was cancelled")
        # Beyond `scope`, so a cancel that comes late changes nothing any more.
        error = await self._close(row, entry, call.number, error)
        self._flights.pop(number, None)
        self._quiet.set()
        if error is None:
            self._reply(number, reply)
        else:
            self._fail(number, error)
        self._machine.owe(-_is_work(row))

    async def _close(
        self, row: Syscall, entry: Entry, begin: int, error: SyscallError | None
    ) -> SyscallError | None:
        """Write the outcome; an outcome that cannot be written is an error of its own."""
        if row.durability is Durability.C:
            return error
        outcome = _as(entry, "end" if begin else "call", begin, error)
        try:
            await self._machine.journal.written(outcome)
        except SyscallError as fault:
            return error or fault
        return error

    # --- answers ----------------------------------------------------------------------------------
    def _send(self, number: int) -> Any:
        def send(item: object) -> None:
            self._connection.send(pack([ITEM, number, item]))

        return send

    def _reply(self, number: int, reply: object) -> None:
        try:
            self._connection.send(pack([REPLY, number, reply]))
        except ProtocolError as error:
            self._fail(number, error)

    def _fail(self, number: int, error: SyscallError) -> None:
        fields = {
            "errno": int(error.errno), "message": error.message[:_WORDS_CHARS],
            "hint": error.hint[:_WORDS_CHARS], "call": error.call, "pid": error.pid,
            "needs_approval": isinstance(error, Denied) and error.asks,
        }  # fmt: skip
        self._connection.send(pack([ERROR, number, fields]))


def _is_work(row: Syscall) -> bool:
    """Worth waiting for when the machine goes down: `wait` waits for what may never come."""
    return row.durability is not Durability.C and row.name != "wait"


def _as(entry: Entry, kind: str, call: int = 0, error: SyscallError | None = None) -> Entry:
    return replace(entry, kind=kind, call=call, errno=int(error.errno) if error else 0)


def _unforeseen(name: str) -> SyscallError:
    log.exception("%s failed in a way nobody foresaw", name)
    return SyscallError(
        Errno.EIO, f"{name} failed inside the kernel", "`llmasos daemon logs` has the traceback"
    )
