"""Processes and their table: what is alive, whose it is, how it ended.

The table in memory is what runs; the rows on disk are what comes back after kill -9. A change is
written first and applied after, so a write that fails changes nothing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import limits
from .database import Schema, Value
from .errors import Errno, SyscallError
from .identifiers import TABLE, Identifiers
from .identity import Caller
from .store import Store
from .values import Exit, Fork, ProcessInfo, Spawn, State
from .watch import Followers

SCHEMA = Schema(
    "processes",
    (
        """CREATE TABLE processes(pid INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER NOT NULL,
             owner TEXT NOT NULL, app TEXT NOT NULL, model TEXT NOT NULL, nice INTEGER NOT NULL,
             created REAL NOT NULL, state TEXT NOT NULL, code INTEGER, reason TEXT NOT NULL)""",
        # A process may end with its connection: after a restart that connection is gone.
        "ALTER TABLE processes ADD COLUMN keep INTEGER NOT NULL DEFAULT 1",
        # What was there before came from programs of the owner.
        "ALTER TABLE processes ADD COLUMN bounds TEXT NOT NULL DEFAULT 'r:careful'",
        """ALTER TABLE processes ADD COLUMN ended REAL NOT NULL DEFAULT 0;
             UPDATE processes SET state = 'ended', ended = strftime('%s', 'now')
             WHERE state = 'zombie'""",
        TABLE,
        # What was there before is of no application: nobody knows which one started it.
        "ALTER TABLE processes ADD COLUMN started_by TEXT NOT NULL DEFAULT ''",
    ),
)
_COLUMNS = """pid, parent, owner, app, model, nice, created, state, code, reason, keep, bounds,
              ended, started_by"""


@dataclass(slots=True)
class Process:
    # Set at spawn, never again.
    pid: int
    parent: int
    owner: str
    app: str
    model: str  # canonical image name
    created: float  # Unix seconds
    keep: bool  # False: ends with the connection that spawned it
    bounds: tuple[str, ...]  # subjects of the gate: whoever made it, and all above it
    started_by: tuple[str, ...] = ()  # applications that started it, or a process above it
    # Changed by syscalls, each written to the table's database first.
    nice: int = 0
    stopped: bool = False
    ending: Exit | None = None
    ended_at: float = 0.0  # Unix seconds; 0: it is alive
    # Of this boot only.
    connection: int = 0  # that spawned it
    call: int = 0  # of the generate in flight; 0: none
    running: bool = False  # that call holds a slot
    patience: Callable[[], None] | None = None  # ends that call while it has no slot yet
    reaped: bool = False  # it is off the table: nothing may be written for it any more
    discard: bool = False  # KILL: forget the turn in flight
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # no call in flight
    generated: int = 0  # tokens, since boot
    rate: float = 0.0  # tokens a second of the call in flight
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    output: Followers[str] = field(default_factory=Followers[str])

    def __post_init__(self) -> None:
        self.idle.set()

    def begin(self, call: int) -> None:
        """Take a call. EAGAIN while another is in flight: a conversation is one thread."""
        if self.call:
            raise SyscallError(
                Errno.EAGAIN,
                f"process {self.pid} is in call {self.call}",
                f"wait for it, or `llmasos kill -s INT {self.pid}`",
                pid=self.pid,
            )
        self.call = call
        self.idle.clear()

    def end(self) -> None:
        self.call, self.running, self.patience = 0, False, None
        self.idle.set()

    @property
    def domain(self) -> str:
        """Who may share what was computed for it. Labels join here when there are any."""
        return self.owner

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whose consent all that it does needs, beside its owner's."""
        return (*self.bounds, f"app:{self.app}", f"pid:{self.pid}")

    @property
    def lineage(self) -> str:
        """Its applications, and the processes from the first above it to itself."""
        above = [one for one in self.bounds if one.startswith("pid:")]
        return " ".join([*(f"app:{one}" for one in self.started_by), *above, f"pid:{self.pid}"])

    def is_own(self, caller: Caller) -> bool:
        """Whether the caller's application started it, or a process above it.

        A program has its own process, and those below.
        """
        if self.owner != caller.owner:
            return False
        if caller.program:
            return self.pid == caller.program or f"pid:{caller.program}" in self.bounds
        return caller.app in self.started_by

    @property
    def weight(self) -> float:
        """Its share of tokens against a process at nice 0."""
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


class Processes:
    """The process table."""

    def __init__(self, store: Store, owner: str) -> None:
        """`owner`: the user whose machine this is; places are kept for them."""
        self._store, self._owner = store, owner
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
        # Entries by owner, those that are on their way included; and of these, who has ended.
        self._taken = Counter(process.owner for process in self._table.values())
        self._ended = Counter(p.owner for p in self._table.values() if p.ending is not None)

    def all(self) -> list[Process]:
        """By pid."""
        return list(self._table.values())

    def get(self, pid: int, owner: str) -> Process:
        """Alive or ended. ESRCH also for another owner's: who may not see it learns nothing."""
        process = self.find(pid, owner)
        if process is None:
            hint = "`llmasos ps -a` lists what there is"
            raise SyscallError(Errno.ESRCH, f"there is no process {pid}", hint, pid=pid)
        return process

    def find(self, pid: int, owner: str) -> Process | None:
        """Like `get`, for who can go on without it."""
        process = self._table.get(pid)
        return process if process is not None and process.owner == owner else None

    def living(self, pid: int, owner: str) -> Process:
        process = self.get(pid, owner)
        if process.ending is not None:
            words = f"process {pid} has ended ({process.ending.reason})"
            raise SyscallError(Errno.ESRCH, words, f"`llmasos rm {pid}` removes it", pid=pid)
        return process

    async def spawn(self, caller: Caller, request: Spawn, model: str) -> Process:
        """A new process, durable before it is listed. EAGAIN when the table is full."""
        with self.reserve(1, caller.owner):
            await self.pids.ready()
            parent = self.living(request.parent, caller.owner) if request.parent else None
            profile = (f"r:{request.profile}",) if request.profile else ()
            process = Process(
                pid=self.pids.next(), parent=request.parent, owner=caller.owner,
                app=request.app or caller.app, model=model, created=time.time(),
                keep=request.keep, nice=request.nice, connection=caller.connection,
                bounds=_joined(parent, (*caller.bounds, *profile)),
                started_by=_applications(parent, caller),
            )  # fmt: skip
            await self.add([process])
        return process

    @contextmanager
    def reserve(self, count: int, owner: str) -> Generator[None]:
        """Entries of the table for processes to come; `add` makes them lasting. EAGAIN."""
        self._check_room(count, owner)
        self._taken[owner] += count
        try:
            yield
        finally:
            self._taken[owner] -= count

    def _check_room(self, count: int, owner: str) -> None:
        """EAGAIN: all entries are taken, but for those of the machine's owner; or this user's."""
        free = limits.PROCESSES - self._taken.total()
        if owner == self._owner:
            words = f"this machine holds {limits.PROCESSES} at most, and {free} are free"
        else:
            free -= max(0, limits.OWNER_PROCESSES - self._taken[self._owner])
            words = f"{max(0, free)} entries of the process table are free for users"
            own = limits.USER_PROCESSES - self._taken[owner]
            if own < free:
                free = own
                words = f"{owner} has {self._taken[owner]}, {limits.USER_PROCESSES} are allowed"
        if count > free:
            raise SyscallError(
                Errno.EAGAIN,
                f"{count} more process{'es' * (count > 1)}: {words}",
                "`llmasos ps -a` lists yours; `llmasos kill` and `llmasos wait` make room",
            )

    def children(self, parent: Process, request: Fork, caller: Caller) -> list[Process]:
        """What a fork will add; so many pids are ready."""
        now = time.time()
        return [
            Process(
                pid=self.pids.next(), parent=parent.pid, owner=parent.owner,
                app=request.app or parent.app, model=parent.model, created=now, keep=request.keep,
                nice=parent.nice if request.nice is None else request.nice,
                connection=caller.connection, bounds=_joined(parent, caller.bounds),
                started_by=_applications(parent, caller),
            )
            for _ in range(request.count)
        ]  # fmt: skip

    async def add(self, processes: Sequence[Process]) -> None:
        """List them, once they are durable: all of them, or none."""
        sql = f"INSERT INTO processes({_COLUMNS}) VALUES({','.join('?' * 14)})"
        await self._store.write(self._database, [(sql, _row(process)) for process in processes])
        self._table |= {process.pid: process for process in processes}
        self._taken.update(process.owner for process in processes)

    async def renice(self, process: Process, nice: int) -> None:
        sql = "UPDATE processes SET nice = ? WHERE pid = ?"
        await self._store.write(self._database, [(sql, (nice, process.pid))], durable=False)
        process.nice = nice

    async def stop(self, process: Process, stopped: bool) -> None:
        sql = "UPDATE processes SET state = ? WHERE pid = ? AND state != 'ended'"
        state = State.STOPPED if stopped else State.READY
        await self._store.write(self._database, [(sql, (state, process.pid))])
        if process.ending is not None:
            raise SyscallError(Errno.ESRCH, f"process {process.pid} has ended", pid=process.pid)
        process.stopped = stopped

    async def exit(self, process: Process, code: int, reason: str) -> None:
        """End it. A second end changes nothing."""
        if process.ending is not None:
            return
        ending, now = Exit(process.pid, code, reason), time.time()
        sql = """UPDATE processes SET state = ?, code = ?, reason = ?, ended = ?
                 WHERE pid = ? AND state != 'ended'"""
        values = (State.ENDED, code, reason, now, process.pid)
        await self._store.write(self._database, [(sql, values)], frees=True)
        if process.ending is None:
            process.ending, process.ended_at = ending, now
            self._ended[process.owner] += 1
            process.ended.set()
            process.output.close()
            self.another_ended.set()

    async def reap(self, process: Process) -> None:
        """Take an ended process off the table."""
        if process.pid in self._table:
            sql = "DELETE FROM processes WHERE pid = ?"
            await self._store.write(self._database, [(sql, (process.pid,))], frees=True)
            if self._table.pop(process.pid, None) is not None:
                self._taken[process.owner] -= 1
                self._ended[process.owner] -= process.ending is not None

    def surplus(self, owner: str) -> list[Process]:
        """A user's ended ones beyond the limit, oldest first."""
        most = limits.ENDED if owner == self._owner else limits.USER_ENDED
        if self._ended[owner] <= most:
            return []
        ended = [p for p in self._table.values() if p.owner == owner and p.ending is not None]
        return ended[: max(0, len(ended) - most)]


def check_alive(process: Process) -> None:
    """ESRCH: it was reaped, so nothing may be written for it any more."""
    if process.reaped:
        raise SyscallError(Errno.ESRCH, f"process {process.pid} is gone", pid=process.pid)


def _joined(parent: Process | None, bounds: Sequence[str]) -> tuple[str, ...]:
    """A child needs the consent of all that its parent needs, and of its maker. EAGAIN."""
    above = parent.subjects if parent is not None else ()
    joined = tuple(dict.fromkeys((*above, *bounds)))
    if len(joined) > limits.BOUNDS:
        words = f"{len(joined)} subjects above a process, {limits.BOUNDS} are allowed"
        raise SyscallError(Errno.EAGAIN, words, "start it from further up")
    return joined


def _applications(parent: Process | None, caller: Caller) -> tuple[str, ...]:
    """Whose own process a new one is: all of the parent's applications, and the caller's."""
    above = parent.started_by if parent is not None else ()
    return tuple(dict.fromkeys((*above, *caller.started_by)))


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
