"""The databases of the machine: a queue of writes each, group commits, durability by class.

A write is a list of statements for one database, or a function that runs in a transaction; it is
applied whole or not at all. Each database has a queue of its own, and a few threads serve the
queues in turn: what is queued for one database is applied in order, as one transaction where it can
be (WAL, synchronous=NORMAL): that survives kill -9. A durable write is acknowledged after a second
stage, with queues and threads of its own, has synced the write-ahead log.

The kernel's own databases have threads that the owners' never take. Between two databases there is
no order, but for those that were opened with the same queue: whoever needs one waits for the first
acknowledgement before it submits the second write.

It must not know what the rows mean.
"""

import asyncio
import logging
import sqlite3
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar, cast

import anyio

from . import disk, limits, points
from .commit import Done as Done
from .commit import Job, commit
from .damage import Damages
from .database import Database, Row, Schema, Statement, Transaction, Value, peek, translate
from .errors import Damaged, Errno, SyscallError, exhausted
from .pacing import Pacing
from .queues import Queues
from .turns import Turns

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_OWNERS = "owners/"  # what the names of their databases begin with


class Store:
    """Made on the event loop, which gets every acknowledgement."""

    def __init__(self, directory: Path, *, reserve_bytes: int = limits.FREE_BYTES) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        self._reserve = reserve_bytes
        self._loop = asyncio.get_running_loop()
        self._databases: dict[Path, Database] = {}
        self.damages = Damages(directory)
        self._closing: list[Callable[[], None]] = []
        self._broken: dict[Database, SyscallError] = {}  # why no write to it can be trusted now
        self._places: dict[Database, tuple[_Lane, str]] = {}  # where writes are queued
        self._kernel = _Lane("kernel", 1, self._write, self._sync)
        self._owners = _Lane("owners", limits.OWNER_WRITERS, self._write, self._sync)
        self._slices = anyio.CapacityLimiter(limits.OWNER_SLICES)
        self.pacing = Pacing()
        self.readers = Turns(limits.OWNER_READERS, limits.READERS)  # by owner

    def open(self, name: str, schema: Schema, *, queue: str = "") -> Database:
        """The database at `name` below the state directory; created or migrated at need.

        `queue`: databases of the same one are written in the order of all their submissions.
        EIO, EINVAL for a newer one.
        """
        path = self.directory / name
        self.damages.check(name)
        if path not in self._databases:
            try:
                self._databases[path] = Database(path, schema)
            except sqlite3.Error as error:
                raise translate(error, path) from error
            except OSError as error:
                refusal = SyscallError(Errno.EIO, f"{path}: {error.strerror}")
                raise exhausted(error) or refusal from error
            lane = self._owners if name.startswith(_OWNERS) else self._kernel
            self._places[self._databases[path]] = lane, queue or name
        return self._databases[path]

    def replaceable(
        self, name: str, schema: Schema, probe: str, *, queue: str = ""
    ) -> tuple[Database, bool]:
        """`open` for what a machine can do without: a damaged file is set aside for a new one.

        `probe`: a query that reads what will be needed. Also tells whether the file was replaced.
        """
        try:
            database = self.open(name, schema, queue=queue)
            self.read(database, probe)
        except Damaged as error:
            self.shut(name)
            self.damages.set_aside(name, error)
            return self.open(name, schema, queue=queue), True
        return database, False

    def withhold(self, name: str, owner: str, error: SyscallError) -> None:
        """Do without an owner's database from now on: `open` raises the error."""
        self.shut(name)
        self.damages.withhold(name, owner, error)

    def shut(self, name: str) -> None:
        """Close a database, if it is open. Nothing may be queued for it."""
        database = self._databases.pop(self.directory / name, None)
        if database is not None:
            del self._places[database]
            self._broken.pop(database, None)
            database.close()

    def forget(self, name: str) -> None:
        """Delete a database. Nothing may be queued for it."""
        self.shut(name)
        for end in ("", "-wal", "-shm"):
            (self.directory / f"{name}{end}").unlink(missing_ok=True)

    def peek(self, name: str, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Rows of a database, open here or not; none if it is gone. Blocks. Damaged."""
        return peek(self.directory / name, sql, values)

    def submit(
        self,
        database: Database,
        statements: Sequence[Statement],
        done: Done,
        *,
        durable: bool = False,
        frees: bool = False,
    ) -> None:
        """Queue a write; `done` is called on the event loop, in order of submission."""
        self._queue(
            Job(database=database, done=done, durable=durable, frees=frees, statements=statements)
        )

    def _queue(self, job: Job) -> None:
        lane, queue = self._places[job.database]
        lane.writes.put(queue, (job,))

    async def write(
        self,
        database: Database,
        statements: Sequence[Statement],
        *,
        durable: bool = True,
        frees: bool = False,
        first: Done | None = None,
    ) -> None:
        """Write and wait for the acknowledgement. ENOSPC or EIO when it did not happen.

        No cancel point: what is queued will be written, so its caller must get to apply it.
        `first` hears the outcome before the caller goes on, a turn of the loop earlier: what it
        has others send is on its way by then.
        """
        future, done = waiter()
        if first is not None:
            done = _after(first, done)
        self.submit(database, statements, done, durable=durable, frees=frees)
        with anyio.CancelScope(shield=True):
            await future

    async def apply(
        self, database: Database, work: Callable[[Transaction], Result], *, frees: bool = False
    ) -> Result:
        """Write with a function that runs in a transaction by itself; its result.

        Durable when it returns. No cancel point, as `write`.
        """
        results: list[Result] = []
        future, done = waiter()
        self._queue(Job(
            database=database, done=done, durable=True, frees=frees,
            work=lambda transaction: results.append(work(transaction)),
        ))  # fmt: skip
        with anyio.CancelScope(shield=True):
            await future
        return results[0]

    async def slice(
        self, database: Database, work: Callable[[Transaction], Result], *, frees: bool = True
    ) -> Result:
        """One piece of long work, that takes milliseconds; other writes go between two pieces.

        Only some threads ever work on pieces, so that short writes find a free one; and each rests
        before it begins (see pacing.py). Cancel point before it is queued.
        """
        async with self._slices, self.pacing.piece():
            return await self.apply(database, work, frees=frees)

    def submit_empty(self, database: Database, done: Done) -> None:
        """Queue `empty_log`; `done` is called on the event loop."""
        self._queue(Job(database=database, done=done, durable=True, frees=True, empties=True))

    async def empty_log(self, database: Database) -> None:
        """Nothing that was deleted before stays in the write-ahead log. EIO."""
        future, done = waiter()
        self.submit_empty(database, done)
        with anyio.CancelScope(shield=True):
            await future

    def read(self, database: Database, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Rows as last committed. Blocks for the disk: call it by `readers`, or for a few rows."""
        try:
            with database.lock:
                return cast("list[Row]", database.read.execute(sql, values).fetchall())
        except sqlite3.Error as error:
            raise translate(error, database.path) from error

    def at_close(self, last: Callable[[], None]) -> None:
        """Call this before the store closes: what it submits is still written."""
        self._closing.append(last)

    def close(self) -> None:
        """Finish what is queued, then close every database."""
        for last in self._closing:
            last()
        for lane in (self._kernel, self._owners):
            lane.writes.close()
            lane.syncs.close()
        for database in self._databases.values():
            database.close()
        self._databases.clear()
        self._places.clear()

    # --- the threads that write -------------------------------------------------------------------
    def _write(self, queue: str, jobs: list[Job]) -> None:
        for database, run in groupby(jobs, key=lambda job: job.database):
            some = list(run)
            try:
                self._commit(database, some)
            except Exception as fault:  # the thread goes on: others wait for it
                self._answer([(job.done, _unforeseen(database, fault)) for job in some])

    def _commit(self, database: Database, jobs: list[Job]) -> None:
        answers: list[tuple[Done, SyscallError | None]] = []
        written: list[Job] = []
        refusal, broken = self._refusal(database), database in self._broken
        for job, error in commit(database, jobs, refusal, broken=broken):
            if error is None and job.durable:
                written.append(job)
            else:
                answers.append((job.done, error))
        if written:
            self._places[database][0].syncs.put(database, written)
        self._answer(answers)

    def _refusal(self, database: Database) -> SyscallError | None:
        broken = self._broken.get(database)
        if broken is not None:
            return SyscallError(broken.errno, broken.message, broken.hint)
        return disk.shortage(database.path.parent, self._reserve)

    # --- the threads that sync --------------------------------------------------------------------
    def _sync(self, database: Database, jobs: list[Job]) -> None:
        """One flush serves everything that was written before it begins."""
        error: SyscallError | None = None
        try:
            database.sync()
            points.passed("store.synced")
        except OSError as fault:
            # A failed flush may have dropped the pages: nothing written since is certain.
            error = self._broken[database] = self.damages.lose_flush(database.path, fault)
        except Exception as unforeseen:  # as above
            error = _unforeseen(database, unforeseen)
        self._answer([(job.done, error) for job in jobs])

    def _answer(self, answers: list[tuple[Done, SyscallError | None]]) -> None:
        if answers and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_tell, answers)


class _Lane:
    """Threads that write to some of the databases, and threads that sync them."""

    def __init__(
        self, name: str, threads: int, write: Callable[[str, list[Job]], None],
        sync: Callable[[Database, list[Job]], None],
    ) -> None:  # fmt: skip
        turn = limits.COMMIT_ROWS
        self.writes = Queues[str, Job](f"{name}-write", write, threads=threads, turn=turn)
        self.syncs = Queues[Database, Job](f"{name}-sync", sync, threads=threads, turn=sys.maxsize)


def _tell(answers: list[tuple[Done, SyscallError | None]]) -> None:
    for done, error in answers:
        try:
            done(error)
        except Exception:  # the others are told all the same
            log.exception("the outcome of a write was not taken in")


def _unforeseen(database: Database, fault: Exception) -> SyscallError:
    log.error("a write to %s failed", database.path, exc_info=fault)
    words = f"a write to {database.path} failed inside the kernel"
    return SyscallError(Errno.EIO, words, "`llmasos daemon logs` has the traceback")


def _after(first: Done, done: Done) -> Done:
    def told(error: SyscallError | None) -> None:
        try:
            first(error)
        finally:
            asyncio.get_running_loop().call_soon(done, error)

    return told


def waiter() -> tuple["asyncio.Future[None]", Done]:
    """A future, and the `done` that settles it."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: SyscallError | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    return future, done
