"""Runs all calls, of clients and of the kernel's own jobs: authorise, journal, handle, then reply.

`CallerCalls.dispatch` takes a caller, a request that check.py has validated, and a sink for the
results. Every call ends exactly once: ok, error or cancelled. An unexpected exception of a handler
becomes EIO for that call only, with its traceback in the daemon's log. This file must not know
frames, nor how a caller is connected.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Protocol

import anyio

from .abi import limits
from .abi.errors import Denied, Errno, SyscallError, descriptors_exhausted
from .abi.table import TABLE, Durability, Syscall
from .abi.values import Generate
from .access.identity import Caller
from .access.permissions import Permissions, Permit, counter_object
from .backpressure import ReplyReader, UserLoad
from .owners.owners import Owners
from .process.table import ProcessTable
from .run import KernelRun
from .scheduling.loader import Loader
from .storage.journal import Entry, Journal
from .supervisor import Supervisor
from .syscalls import CALLS_ON_USER_DATA, CallContext, Handler

log = logging.getLogger(__name__)
# Calls that may wait long, for an event or an engine: they would hold one of the USER_READS places.
_NOT_LIMITED = frozenset({"recv", "watch", "attach", "tokenize", "embed", "devices"})


class Sink(Protocol):
    """Where the results of one call go. Only `writable` waits."""

    def item(self, item: object) -> None:
        """One item of a stream."""

    def reply(self, reply: object) -> None:
        """The call has succeeded."""

    def fail(self, error: SyscallError) -> None:
        """The call has failed."""

    def keeps_up(self) -> bool:
        """Whether the receiver of the stream keeps up."""
        ...

    def writable(self) -> Awaitable[None]:
        """Return when the receiver of the stream keeps up."""
        ...


@dataclass(slots=True, eq=False)
class InFlight:
    """A call in flight."""

    row: Syscall
    caller: Caller
    sink: Sink
    scope: anyio.CancelScope
    permit: Permit
    pid: int  # in its journal events; for `generate` on a model: of the process made for this call
    request_bytes: int  # counted in its user's load until it has ended
    refusal: Denied | None = None  # set when it is no longer allowed

    def entry(self, kind: str, call: int = 0, errno: int = 0) -> Entry:
        """An event of this call. `call`: the number of its begin event."""
        permit = self.permit
        return Entry(
            kind, self.pid, self.caller.user, call, self.row.name, permit.object, errno,
            subject=permit.recorded,
        )  # fmt: skip


@dataclass(slots=True)
class CallParts:
    """The parts of the kernel that the calls of all callers use."""

    handlers: Mapping[str, Handler]
    permissions: Permissions
    journal: Journal
    owners: Owners
    processes: ProcessTable
    loader: Loader
    jobs: Supervisor
    run: KernelRun
    waits: frozenset[str] = field(init=False)  # calls whose handler may wait
    reads: frozenset[str] = field(init=False)  # calls that read stored data: large replies
    pending_replies: int = field(init=False, default=0)  # that a shutdown waits for
    no_pending_replies: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.no_pending_replies.set()
        waits = {name for name, handler in self.handlers.items() if iscoroutinefunction(handler)}
        self.waits = frozenset(waits)
        counted = {name for name in waits if TABLE[name].durability is Durability.C}
        self.reads = frozenset(counted - _NOT_LIMITED)

    def add_pending_replies(self, count: int) -> None:
        """Change the number of pending replies; a negative count subtracts."""
        self.pending_replies += count
        if self.pending_replies:
            self.no_pending_replies.clear()
        else:
            self.no_pending_replies.set()


class CallerCalls:
    """The calls of one caller that are in flight, under the limits of one connection and user."""

    def __init__(self, parts: CallParts, load: UserLoad, reader: ReplyReader) -> None:
        self._parts = parts
        self._load = load
        self._reader = reader
        self._reads = asyncio.Semaphore(limits.USER_READS)
        self._in_flight: set[InFlight] = set()
        self._one_ended = asyncio.Event()  # set when a call has ended

    # --- all of them ------------------------------------------------------------------------------
    def cancel(self) -> None:
        for call in self._in_flight:
            call.scope.cancel()

    def reauthorise(self) -> None:
        """The rules have changed: cancel the calls that are no longer allowed."""
        for call in self._in_flight:
            try:
                self._parts.permissions.require(call.permit, call.caller.user, call.pid)
            except Denied as refusal:
                call.refusal = refusal
                call.scope.cancel()

    async def all_ended(self) -> None:
        """Return when none is in flight."""
        while self._in_flight:
            self._one_ended.clear()
            await self._one_ended.wait()

    # --- one --------------------------------------------------------------------------------------
    def dispatch(
        self, caller: Caller, row: Syscall, request: object, sink: Sink, request_bytes: int = 0
    ) -> InFlight | None:
        """Run a call. Returns it while it is in flight, None when the sink has its reply.

        Raises EACCES, ESRCH, EAGAIN, ECANCELED, and the errors of handlers that never wait.
        """
        parts = self._parts
        permit = parts.permissions.authorise(caller, row, request)
        pid = getattr(request, "pid", 0)
        if row.name in parts.waits:
            scope = anyio.CancelScope()
            flight = InFlight(row, caller, sink, scope, permit, pid, request_bytes)
            self._start(flight, request)
            return flight
        data = parts.owners.get(caller.user)
        call = CallContext(
            caller,
            data,
            0,
            None,
            sink.item,
            sink.keeps_up,
            sink.writable,
            permit.own_part_only,
            pid,
        )
        reply = parts.handlers[row.name](call, request)
        if row.durability is Durability.C:
            self._count(row, permit)
        else:
            parts.journal.append(Entry(
                "call", pid, caller.user, syscall=row.name, object=permit.object,
                subject=permit.recorded,
            ))  # fmt: skip
        sink.reply(reply)
        return None

    def _start(self, flight: InFlight, request: object) -> None:
        if len(self._in_flight) >= limits.CALLS_IN_FLIGHT:
            count, most = len(self._in_flight), limits.CALLS_IN_FLIGHT
            message = f"{count} calls of this connection are in flight; at most {most} are allowed"
            raise SyscallError(Errno.EAGAIN, message, "wait for one, or open another connection")
        self._load.check_calls()
        if self._parts.run.stopping.is_set():
            raise SyscallError(Errno.ECANCELED, "the machine is shutting down", "try again later")
        self._in_flight.add(flight)
        self._load.calls += 1
        self._parts.add_pending_replies(_shutdown_waits_for(flight.row))
        failed = partial(self._fail, flight)
        self._parts.jobs.once("call", self._run, flight, request, failed=failed)

    async def _run(self, flight: InFlight, request: object) -> None:
        try:
            await self._run_to_end(flight, request)
        finally:  # when the machine stops without draining, nothing may wait for this call
            self._end(flight)

    async def _begin(self, flight: InFlight, request: object) -> CallContext:
        """The context of a call, after its begin event was queued. ENOSPC or EIO: it has no pid."""
        if isinstance(request, Generate) and not request.pid:
            flight.pid = await self._parts.processes.new_pid()
        row, sink = flight.row, flight.sink
        number, begun = 0, None
        if row.durability is not Durability.C and row.item is not None:
            number, begun = self._parts.journal.append_future(flight.entry("begin"))
        data = self._parts.owners.get(flight.caller.user)
        return CallContext(
            flight.caller, data, number, begun, sink.item, sink.keeps_up, sink.writable,
            flight.permit.own_part_only, flight.pid,
        )  # fmt: skip

    async def _run_to_end(self, flight: InFlight, request: object) -> None:
        """Run a call that may wait, to its reply."""
        row = flight.row
        reply: object = None
        error: SyscallError | None = None
        number = 0  # of its begin event
        with flight.scope:
            try:
                call = await self._begin(flight, request)
                number = call.number
                reply = await self._handle(row, request, call)
            except SyscallError as failure:
                error = failure
            except Exception as exception:
                error = unexpected_error(row.name, exception)
        if reply is None:  # a call with a reply has succeeded, even if it is cancelled now
            error = flight.refusal or error
            error = error or SyscallError(Errno.ECANCELED, f"{row.name} was cancelled")
        # Outside of `scope`: a later cancel has no effect.
        error = await self._close(flight, number, error)
        if row.durability is Durability.C and error is None:
            self._count(row, flight.permit)
        self._end(flight)
        if error is None:
            flight.sink.reply(reply)
        else:
            flight.sink.fail(error)
        self._parts.add_pending_replies(-_shutdown_waits_for(row))

    async def _handle(self, row: Syscall, request: object, call: CallContext) -> object:
        """Call the handler. A reading call waits until its caller has read earlier replies."""
        if row.name not in self._parts.reads:
            return await self._with_data(row, request, call)
        async with self._reads:  # bounds the share of one connection in its user's reads
            await self._load.begin_read(self._reader)
            try:
                return await self._with_data(row, request, call)
            finally:
                self._load.end_read()

    async def _with_data(self, row: Syscall, request: object, call: CallContext) -> object:
        """Call the handler, with the caller's data open if it needs it."""
        handler: Any = self._parts.handlers[row.name]
        if row.name not in CALLS_ON_USER_DATA:
            return await handler(call, request)
        async with self._parts.owners.use(call.caller.user):
            return await handler(call, request)

    async def _close(
        self, flight: InFlight, number: int, error: SyscallError | None
    ) -> SyscallError | None:
        """Journal the outcome. Returns the call's error, or else that of the journal."""
        if flight.row.durability is Durability.C:
            return error
        if error is not None and error.errno is Errno.EIO:  # it may have killed its engine
            await self._parts.loader.wait_marks_written()
        kind, errno = "end" if number else "call", int(error.errno) if error else 0
        try:
            await self._parts.journal.append_and_wait(flight.entry(kind, number, errno))
        except SyscallError as failure:
            return error or failure
        return error

    def _fail(self, flight: InFlight) -> None:
        """End a call that failed outside its handler."""
        self._end(flight)
        flight.sink.fail(_failed_inside(flight.row.name))
        self._parts.add_pending_replies(-_shutdown_waits_for(flight.row))

    def _end(self, flight: InFlight) -> None:
        """Remove a call from those in flight."""
        if flight in self._in_flight:
            self._in_flight.remove(flight)
            self._load.calls -= 1
            self._load.requests -= flight.request_bytes
        self._one_ended.set()

    def _count(self, row: Syscall, permit: Permit) -> None:
        """Count a call of class C: the journal has no row for each of them."""
        object_ = counter_object(permit.object)
        self._parts.journal.count(permit.recorded, row.name, object_, permit.rule)


def _shutdown_waits_for(row: Syscall) -> bool:
    """Whether a shutdown waits for a call. Not for `wait`, which may never return."""
    return row.durability is not Durability.C and row.name != "wait"


def unexpected_error(name: str, error: Exception) -> SyscallError:
    """EIO, with a traceback in the log; EAGAIN when no descriptor is free."""
    refusal = descriptors_exhausted(error)
    if refusal is not None:
        return refusal
    log.exception("%s failed with an unexpected exception", name)
    return _failed_inside(name)


def _failed_inside(name: str) -> SyscallError:
    return SyscallError(
        Errno.EIO, f"{name} failed inside the kernel", "`llmasos daemon logs` has the traceback"
    )
