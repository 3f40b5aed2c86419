"""One connection's calls: decode, identify, authorise, journal, dispatch, reply.

Every call ends exactly once: ok, error or cancelled. What a handler raises and nobody foresaw
becomes EIO for that call alone, with its traceback in the daemon's log.
"""

import asyncio
import logging
import time
from dataclasses import replace
from inspect import iscoroutinefunction
from itertools import count
from typing import Any

import anyio

from . import check, identity, limits
from .abi import TABLE, Durability, Syscall
from .connection import Connection
from .errors import Denied, Errno, SyscallError
from .identity import Caller
from .journal import Entry
from .machine import Machine
from .syscalls import HANDLERS, Call
from .values import Hello, Welcome
from .wire import CALL, CANCEL, ERROR, ITEM, REPLY, ProtocolError, pack, unpack

log = logging.getLogger(__name__)
_WORDS_CHARS = 10_000  # of an error: it may quote what a client sent
_numbers = count(1)
_WAITS = frozenset(name for name, handler in HANDLERS.items() if iscoroutinefunction(handler))


class Trap:
    """The ear of one connection."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tasks = machine.tasks
        self._number = next(_numbers)
        self._caller: Caller | None = None
        self._scopes: dict[int, anyio.CancelScope] = {}  # calls in flight, by the client's id
        self._quiet = asyncio.Event()  # no call is in flight
        self._counted = False  # among the connections; who is turned away never is
        self._bad = 0

    # --- the connection's life --------------------------------------------------------------------
    def opened(self, connection: Connection) -> None:
        self._connection = connection
        try:
            counters = self._machine.counters
            if counters.connections >= counters.most:
                words = f"{counters.most} clients are connected"
                raise SyscallError(Errno.EAGAIN, words, "try again later")
            socket = connection.transport.get_extra_info("socket")
            self._owner = identity.admit(identity.peer(socket))
            counters.connections += 1
            self._counted = True
        except SyscallError as error:
            self._owner = ""
            connection.refuse(error)

    def closed(self) -> None:
        self._machine.counters.connections -= self._counted
        for scope in self._scopes.values():
            scope.cancel()
        if self._caller is not None:
            self._tasks.start_soon(self._hangup)

    async def _hangup(self) -> None:
        """After its last call: a spawn on its way would be missed."""
        while self._scopes:
            self._quiet.clear()
            await self._quiet.wait()
        try:
            await self._machine.hangup(self._number)
        except SyscallError as error:
            log.warning("processes of connection %d stay: %s", self._number, error)

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
                if number in self._scopes:
                    self._scopes[number].cancel()
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
            if number in self._scopes:
                raise SyscallError(Errno.EINVAL, f"id {number} is in flight already")
            object_, rule = self._authorise(self._caller, TABLE[name], request)
            self._dispatch(number, TABLE[name], request, object_, rule)
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
        machine = self._machine
        subjects = identity.subject(self._owner)
        self._permit(subjects, "hello", f"/kernel/profile/{request.profile}")
        caller, notices = identity.greet(self._number, self._owner, request)
        self._caller = caller
        self._connection.greeted()
        self._reply(number, Welcome(
            limits.PROTOCOL_VERSION, machine.system, caller.owner, caller.profile,
            [*notices, *machine.tuner.hear()],
        ))  # fmt: skip

    # --- the gate ---------------------------------------------------------------------------------
    def _authorise(self, caller: Caller, row: Syscall, request: object) -> tuple[str, str]:
        """The canonical object and the rule that allows it. EACCES, journaled, when none does."""
        begin = time.perf_counter()
        object_ = self._object(row, request)
        try:
            rule = self._permit(caller.subjects, row.name, object_)
        finally:
            self._machine.counters.gate_s += time.perf_counter() - begin
        return object_, rule

    def _permit(self, subjects: tuple[str, ...], action: str, object_: str) -> str:
        machine = self._machine
        decision = machine.policy.check(subjects, action, object_)
        if decision.allowed:
            return decision.rule
        machine.counters.refused += 1
        machine.journal.append(Entry(
            "refused", owner=self._owner, syscall=action, object=object_, errno=Errno.EACCES,
            note=decision.rule or "no rule",
        ))  # fmt: skip
        refusal: Denied = machine.policy.refusal(subjects, action, object_, decision.rule)
        raise refusal

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
    def _dispatch(
        self, number: int, row: Syscall, request: object, object_: str, rule: str
    ) -> None:
        caller = self._caller
        if caller is None:
            return
        journal = self._machine.journal
        if row.durability is Durability.C:
            journal.count(caller.subjects[-1], row.name, row.object, rule)
        entry = Entry(
            "call", getattr(request, "pid", 0), caller.owner, syscall=row.name, object=object_
        )
        if row.name not in _WAITS:
            call = Call(caller, 0, None, self._send(number), self._connection.writable)
            reply = HANDLERS[row.name](self._machine, call, request)
            if row.durability is not Durability.C:
                journal.append(entry)
            self._reply(number, reply)
            return
        if len(self._scopes) >= limits.CALLS_IN_FLIGHT:
            words = f"{len(self._scopes)} calls of this connection are in flight"
            raise SyscallError(Errno.EAGAIN, words, "wait for one, or open a connection")
        if self._machine.stopping.is_set():
            raise SyscallError(Errno.ECANCELED, "the machine is going down", "try again later")
        begin, begun = 0, None
        if row.durability is not Durability.C and row.item is not None:
            begin, begun = journal.note(_as(entry, "begin"))
        call = Call(caller, begin, begun, self._send(number), self._connection.writable)
        self._scopes[number] = anyio.CancelScope()
        self._machine.owe(_is_work(row))
        self._tasks.start_soon(self._run, number, row, request, entry, call)

    async def _run(
        self, number: int, row: Syscall, request: object, entry: Entry, call: Call
    ) -> None:
        """A call that may wait, to its end."""
        reply: object = None
        error: SyscallError | None = None
        with self._scopes[number]:
            try:
                handler: Any = HANDLERS[row.name]
                reply = await handler(self._machine, call, request)
            except SyscallError as refusal:
                error = refusal
            except Exception:
                error = _unforeseen(row.name)
        if reply is None and error is None:
            error = SyscallError(Errno.ECANCELED, f"{row.name} was cancelled")
        # Beyond `scope`, so a cancel that comes late changes nothing any more.
        error = await self._close(row, entry, call.number, error)
        self._scopes.pop(number, None)
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
