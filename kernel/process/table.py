"""Processes and their table: state, owner and exit status of each process.

The table in memory is authoritative; the rows on disk restore it after kill -9. A change is written
first and applied after that, so a failed write changes nothing. A process that exists for one call
only has no row: a restart ends it with its call.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import Exit, Fork, Generate, ProcessInfo, Spawn, State
from ..access.identity import Caller
from ..storage.database import Schema, Statement, Value
from ..storage.identifiers import TABLE, Identifiers
from ..storage.store import Store
from ..watch import Followers

SCHEMA = Schema(
    "processes",
    (
        """CREATE TABLE processes(pid INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER NOT NULL,
             owner TEXT NOT NULL, app TEXT NOT NULL, model TEXT NOT NULL, nice INTEGER NOT NULL,
             created REAL NOT NULL, state TEXT NOT NULL, code INTEGER, reason TEXT NOT NULL)""",
        # False: the process ends with its connection, so it also ends at a restart.
        "ALTER TABLE processes ADD COLUMN keep INTEGER NOT NULL DEFAULT 1",
        # Older rows were created by programs of the owner.
        "ALTER TABLE processes ADD COLUMN bounds TEXT NOT NULL DEFAULT 'r:careful'",
        """ALTER TABLE processes ADD COLUMN ended REAL NOT NULL DEFAULT 0;
             UPDATE processes SET state = 'ended', ended = strftime('%s', 'now')
             WHERE state = 'zombie'""",
        TABLE,
        # Older rows: the application that started them is not known.
        "ALTER TABLE processes ADD COLUMN started_by TEXT NOT NULL DEFAULT ''",
    ),
)
_COLUMNS = """pid, parent, owner, app, model, nice, created, state, code, reason, keep, bounds,
              ended, started_by"""


@dataclass(slots=True)
class Process:
    # Set at spawn, then constant.
    pid: int
    parent: int
    owner: str
    app: str
    model: str  # canonical image name
    created: float  # Unix seconds
    keep: bool  # False: ends with the connection that spawned it
    bounds: tuple[str, ...]  # policy subjects that limit it: of its creator and its ancestors
    started_by: tuple[str, ...] = ()  # applications that started it or an ancestor
    single: bool = False  # it exists for one call only, and nothing of it is stored
    # Changed by syscalls, each written to the table's database first.
    nice: int = 0
    stopped: bool = False
    ending: Exit | None = None
    ended_at: float = 0.0  # Unix seconds; 0: it is alive
    # Of this boot only.
    connection: int = 0  # that spawned it
    call: int = 0  # number of the generate in flight; 0: none
    running: bool = False  # that call holds a slot
    cancel_wait: Callable[[], None] | None = None  # cancels that call before it has a slot
    reaped: bool = False  # removed from the table: nothing may be written for it
    discard: bool = False  # after KILL: do not store the turn in flight
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while no call is in flight
    generated: int = 0  # tokens, since boot
    rate: float = 0.0  # tokens a second of the call in flight
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    output: Followers[str] = field(default_factory=Followers[str])

    def __post_init__(self) -> None:
        self.idle.set()

    def begin(self, call: int) -> None:
        """Start a call. EAGAIN while another one is in flight: a process runs one at a time."""
        if self.call:
            raise SyscallError(
                Errno.EAGAIN,
                f"process {self.pid} is busy with call {self.call}",
                f"wait for it, or `llmasos kill -s INT {self.pid}` ends it",
                pid=self.pid,
            )
        self.call = call
        self.idle.clear()

    def end(self) -> None:
        self.call, self.running, self.cancel_wait = 0, False, None
        self.idle.set()

    @property
    def domain(self) -> str:
        """Processes of one domain may share KV. Labels will be part of it when they exist."""
        return self.owner

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects, besides its owner, that must all be allowed what it does."""
        return (*self.bounds, f"app:{self.app}", f"pid:{self.pid}")

    @property
    def lineage(self) -> str:
        """Its applications, its ancestors from the first one, and itself, as policy subjects."""
        ancestors = [one for one in self.bounds if one.startswith("pid:")]
        apps = [f"app:{one}" for one in self.started_by]
        return " ".join([*apps, *ancestors, f"pid:{self.pid}"])

    def is_own(self, caller: Caller) -> bool:
        """Whether the caller's application started it or one of its ancestors.

        A program owns its own process and that process's descendants.
        """
        if self.owner != caller.user:
            return False
        if caller.program:
            return self.pid == caller.program or f"pid:{caller.program}" in self.bounds
        return caller.app in self.started_by

    @property
    def weight(self) -> float:
        """Its share of tokens relative to a process at nice 0."""
        return limits.NICE_STEP**-self.nice

    @property
    def state(self) -> State:
        if self.ending is not None:
            return State.ENDED
        if self.stopped:
            return State.STOPPED
        if self.call:
            return State.RUNNING if self.running else State.WAITING
        return State.READY

    def info(self, window: int, context: int, title: str, used: float) -> ProcessInfo:
        return ProcessInfo(
            pid=self.pid, parent=self.parent, owner=self.owner, app=self.app, model=self.model,
            state=self.state, nice=self.nice, created=self.created, window=window,
            context=context, generated=self.generated, rate=round(self.rate, 2),
            code=self.ending.code if self.ending else None, kept=self.keep,
            ended=self.ended_at or None, title=title, used=max(used, self.created),
            started_by=list(self.started_by),
        )  # fmt: skip


class ProcessTable:
    """The process table."""

    def __init__(self, store: Store, owner: str) -> None:
        """`owner`: the owner of the machine, for whom a part of the entries is reserved."""
        self._store, self._machine_owner = store, owner
        self._database = store.open("processes.db", SCHEMA)
        self._table: dict[int, Process] = {}
        rows = store.read(self._database, f"SELECT {_COLUMNS} FROM processes ORDER BY pid")
        for row in rows:
            process = _process(row)
            self._table[process.pid] = process
        last = store.read(self._database, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence")
        self.pids = Identifiers(
            store, self._database, "pids", block=limits.PID_BLOCK, last=int(last[0][0] or 0)
        )
        self.another_ended = asyncio.Event()
        # Entries by owner: all of them, with reserved ones, and those of ended processes.
        self._taken = Counter(process.owner for process in self._table.values())
        self._ended = Counter(p.owner for p in self._table.values() if p.ending is not None)

    def all(self) -> list[Process]:
        """All processes, by pid."""
        return list(self._table.values())

    def busy(self) -> list[Process]:
        """The processes with a call in flight."""
        return [process for process in self._table.values() if process.call]

    @property
    def alive(self) -> int:
        """Number of processes that have not ended."""
        return len(self._table) - self._ended.total()

    def pids_in_use(self) -> set[int]:
        """The pids of all processes, ended ones included."""
        return set(self._table)

    def get(self, pid: int, owner: str) -> Process:
        """Alive or ended. ESRCH also for another owner's process, so that its pid is not leaked."""
        process = self.find(pid, owner)
        if process is None:
            hint = "`llmasos ps -a` lists all processes"
            raise SyscallError(Errno.ESRCH, f"there is no process {pid}", hint, pid=pid)
        return process

    def find(self, pid: int, owner: str) -> Process | None:
        """Like `get`, but None instead of ESRCH."""
        process = self._table.get(pid)
        return process if process is not None and process.owner == owner else None

    def get_alive(self, pid: int, owner: str) -> Process:
        """A process that has not ended. ESRCH."""
        process = self.get(pid, owner)
        if process.ending is not None:
            message = f"process {pid} has ended ({process.ending.reason})"
            raise SyscallError(Errno.ESRCH, message, f"`llmasos rm {pid}` removes it", pid=pid)
        return process

    async def new_pid(self) -> int:
        """A pid for `single`. ENOSPC or EIO when none can be reserved."""
        await self.pids.ready()
        return self.pids.next()

    async def spawn(self, caller: Caller, request: Spawn, model: str) -> Process:
        """A new process, durable before it is listed. EAGAIN when the table is full."""
        with self.reserve(1, caller.user):
            await self.pids.ready()
            parent = self.get_alive(request.parent, caller.user) if request.parent else None
            profile = (f"r:{request.profile}",) if request.profile else ()
            process = Process(
                pid=self.pids.next(), parent=request.parent, owner=caller.user,
                app=request.app or caller.app, model=model, created=time.time(),
                keep=request.keep, nice=request.nice, connection=caller.connection,
                bounds=_bounds(parent, (*caller.bounds, *profile)),
                started_by=_applications(parent, caller),
            )  # fmt: skip
            await self.add([process])
        return process

    @asynccontextmanager
    async def single(
        self, caller: Caller, request: Generate, model: str, pid: int
    ) -> AsyncGenerator[Process]:
        """A process for one call, listed and counted until the end of the block. EAGAIN.

        `pid`: a new one, see `new_pid`.
        """
        with self.reserve(1, caller.user):
            process = Process(
                pid=pid, parent=caller.program, owner=caller.user,
                app=request.app or caller.app, model=model, created=time.time(), keep=False,
                nice=request.nice, connection=caller.connection,
                bounds=_bounds(None, caller.bounds), started_by=_applications(None, caller),
                single=True,
            )  # fmt: skip
            self._table[process.pid] = process
            try:
                yield process
            finally:
                self._set_ended(process, Exit(process.pid, 0, "its call has ended"), time.time())
                del self._table[process.pid]
                self._ended[process.owner] -= 1

    @contextmanager
    def reserve(self, count: int, owner: str) -> Generator[None]:
        """Reserve table entries until the end of the block; `add` counts its own. EAGAIN."""
        self._check_free(count, owner)
        self._taken[owner] += count
        try:
            yield
        finally:
            self._taken[owner] -= count

    def _check_free(self, count: int, owner: str) -> None:
        """EAGAIN: too few entries for users besides the machine's owner, or for this user."""
        free = limits.PROCESSES - self._taken.total()
        if owner == self._machine_owner:
            reason = f"the limit of this machine is {limits.PROCESSES}, {free} are free"
        else:
            free -= max(0, limits.OWNER_PROCESSES - self._taken[self._machine_owner])
            reason = f"{max(0, free)} entries of the process table are free for users"
            own = limits.USER_PROCESSES - self._taken[owner]
            if own < free:
                free = own
                reason = f"{owner} has {self._taken[owner]}, {limits.USER_PROCESSES} are allowed"
        if count > free:
            raise SyscallError(
                Errno.EAGAIN,
                f"cannot create {count} process{'es' * (count > 1)}: {reason}",
                "`llmasos ps -a` lists yours; `llmasos rm PID` ends and removes one",
            )

    def children(self, parent: Process, request: Fork, caller: Caller) -> list[Process]:
        """The processes that a fork will add. Their pids must have been reserved."""
        now = time.time()
        return [
            Process(
                pid=self.pids.next(), parent=parent.pid, owner=parent.owner,
                app=request.app or parent.app, model=parent.model, created=now, keep=request.keep,
                nice=parent.nice if request.nice is None else request.nice,
                connection=caller.connection, bounds=_bounds(parent, caller.bounds),
                started_by=_applications(parent, caller),
            )
            for _ in range(request.count)
        ]  # fmt: skip

    async def add(self, processes: Sequence[Process]) -> None:
        """Write the processes, then list them: all of them or none."""
        sql = f"INSERT INTO processes({_COLUMNS}) VALUES({','.join('?' * 14)})"
        await self._store.write(self._database, [(sql, _row(process)) for process in processes])
        self._table |= {process.pid: process for process in processes}
        self._taken.update(process.owner for process in processes)

    async def renice(self, process: Process, nice: int) -> None:
        sql = "UPDATE processes SET nice = ? WHERE pid = ?"
        await self._write(process, (sql, (nice, process.pid)), durable=False)
        process.nice = nice

    async def stop(self, process: Process, stopped: bool) -> None:
        sql = "UPDATE processes SET state = ? WHERE pid = ? AND state != 'ended'"
        state = State.STOPPED if stopped else State.READY
        await self._write(process, (sql, (state, process.pid)))
        if process.ending is not None:
            raise SyscallError(Errno.ESRCH, f"process {process.pid} has ended", pid=process.pid)
        process.stopped = stopped

    async def exit(self, process: Process, code: int, reason: str) -> None:
        """End a process. A second call changes nothing."""
        if process.ending is not None:
            return
        ending, now = Exit(process.pid, code, reason), time.time()
        sql = """UPDATE processes SET state = ?, code = ?, reason = ?, ended = ?
                 WHERE pid = ? AND state != 'ended'"""
        values = (State.ENDED, code, reason, now, process.pid)
        await self._write(process, (sql, values), frees=True)
        self._set_ended(process, ending, now)

    def _set_ended(self, process: Process, ending: Exit, now: float) -> None:
        if process.ending is None:
            process.ending, process.ended_at = ending, now
            self._ended[process.owner] += 1
            process.ended.set()
            process.output.close()
            if not process.single:  # the end of its call removes it, not the collector
                self.another_ended.set()

    async def _write(
        self, process: Process, row: Statement, *, durable: bool = True, frees: bool = False
    ) -> None:
        """Write a change of a process's row, if it has one."""
        if not process.single:
            await self._store.write(self._database, [row], durable=durable, frees=frees)

    async def reap(self, process: Process) -> None:
        """Remove an ended process from the table; the end of its call removes a single one."""
        if process.pid in self._table and not process.single:
            sql = "DELETE FROM processes WHERE pid = ?"
            await self._write(process, (sql, (process.pid,)), frees=True)
            if self._table.pop(process.pid, None) is not None:
                self._taken[process.owner] -= 1
                self._ended[process.owner] -= process.ending is not None

    def surplus(self, owner: str) -> list[Process]:
        """A user's ended processes beyond the limit, oldest first."""
        most = limits.ENDED if owner == self._machine_owner else limits.USER_ENDED
        if self._ended[owner] <= most:
            return []
        ended = [p for p in self._table.values() if p.owner == owner and p.ending is not None]
        return ended[: max(0, len(ended) - most)]


def check_alive(process: Process) -> None:
    """ESRCH after the process was reaped: nothing may be written for it then."""
    if process.reaped:
        raise SyscallError(Errno.ESRCH, f"process {process.pid} was removed", pid=process.pid)


def _bounds(parent: Process | None, own: Sequence[str]) -> tuple[str, ...]:
    """The bounds of a child: the subjects of its parent, and those of its creator. EAGAIN."""
    inherited = parent.subjects if parent is not None else ()
    bounds = tuple(dict.fromkeys((*inherited, *own)))
    if len(bounds) > limits.BOUNDS:
        message = f"the process would inherit {len(bounds)} subjects, {limits.BOUNDS} are allowed"
        raise SyscallError(Errno.EAGAIN, message, "start it from a process with fewer ancestors")
    return bounds


def _applications(parent: Process | None, caller: Caller) -> tuple[str, ...]:
    """The applications that own a new process: all of its parent's, and the caller's."""
    inherited = parent.started_by if parent is not None else ()
    return tuple(dict.fromkeys((*inherited, *caller.started_by)))


def _row(process: Process) -> tuple[Value, ...]:
    return (
        process.pid, process.parent, process.owner, process.app, process.model, process.nice,
        process.created, State.READY, None, "", int(process.keep),
        " ".join(process.bounds), 0.0, " ".join(process.started_by),
    )  # fmt: skip


def _process(row: tuple[Value, ...]) -> Process:
    pid, parent, owner, app, model, nice, created, state, code, reason, keep, *applied = row
    bounds, ended, started_by = applied
    process = Process(
        pid=int(pid or 0), parent=int(parent or 0), owner=str(owner), app=str(app),
        model=str(model), created=float(created or 0), keep=bool(keep), nice=int(nice or 0),
        stopped=state == State.STOPPED, bounds=tuple(str(bounds).split()),
        started_by=tuple(str(started_by).split()),
    )  # fmt: skip
    if state == State.ENDED:
        process.ending = Exit(process.pid, int(code or 0), str(reason))
        process.ended_at = float(ended or 0)
        process.ended.set()
        process.output.close()
    return process
