"""The databases of the machine: a write queue for each, group commits, durability by class.

A write is a list of statements for one database, or a function that runs in a transaction. It is
applied completely or not at all. Each database has its own queue, and a few threads serve all
queues in turn. The writes of one database are applied in order, in one transaction where possible
(WAL, synchronous=NORMAL), which survives kill -9. A durable write is acknowledged after a second
stage, with its own queues and threads, has synced the write-ahead log.

The kernel's databases and the owners' databases have separate threads. Writes to two databases are
ordered only when both were opened with the same queue. Otherwise a caller that needs an order waits
for the first acknowledgement before it submits the second write.

It must not know what the rows mean.
"""

import asyncio
import errno
import logging
import sqlite3
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar, cast

import anyio

from .. import points
from ..abi import disk, limits
from ..abi.errors import Damaged, Errno, SyscallError, descriptors_exhausted
from .commit import Done as Done
from .commit import WriteJob, commit
from .damage import Damages
from .database import Database, Row, Schema, Statement, Transaction, Value, peek, translate
from .pacing import Pacing
from .queues import Queues
from .threads import FairThreads

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_OWNERS = "owners/"  # prefix of the names of owners' databases


class Store:
    """Created on the event loop, where every acknowledgement is delivered."""

    def __init__(self, directory: Path, *, reserve_bytes: int = limits.FREE_BYTES) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        self._reserve = reserve_bytes
        self._loop = asyncio.get_running_loop()
        self._databases: dict[Path, Database] = {}
        self.damages = Damages(directory)
        self._closing: dict[Callable[[], None], None] = {}  # in order of registration
        self._broken: dict[Database, SyscallError] = {}  # a flush failed: the error of each write
        self._queues: dict[Database, tuple[_WriterPool, str]] = {}  # pool, name of the queue
        self._kernel = _WriterPool("kernel", 1, self._write, self._sync)
        self._owners = _WriterPool("owners", limits.OWNER_WRITERS, self._write, self._sync)
        self._slices = anyio.CapacityLimiter(limits.OWNER_SLICES)
        self.pacing = Pacing()
        self.flushes = 0  # that a durable write waited for; not those of SQLite's checkpoints
        # Threads that read, by owner: few rows, files to map, all pages.
        self.readers = FairThreads(limits.OWNER_READERS, limits.READERS)
        self.file_readers = FairThreads(limits.OWNER_FILES, limits.FILES)
        self.checkers = FairThreads(1, limits.CHECKERS)

    def open(self, name: str, schema: Schema, *, queue: str = "", limit_bytes: int = 0) -> Database:
        """The database at `name` below the state directory, created or migrated if needed.

        `queue`: writes to databases with the same queue are applied in the order of submission.
        `limit_bytes`: writes to a larger database are refused, unless they free space; 0: no limit.
        Raises EAGAIN, ENOSPC or EROFS, which may pass, EIO, and EINVAL for a newer schema version.
        """
        path = self.directory / name
        self.damages.check(name)
        if path not in self._databases:
            try:
                self._databases[path] = Database(path, schema, limit_bytes)
            except sqlite3.Error as error:
                raise translate(error, path) from error
            except OSError as error:
                raise descriptors_exhausted(error) or _unusable(path, error) from error
            pool = self._owners if name.startswith(_OWNERS) else self._kernel
            self._queues[self._databases[path]] = pool, queue or name
        return self._databases[path]

    def open_or_replace(
        self, name: str, schema: Schema, probe: str, *, queue: str = ""
    ) -> tuple[Database, bool]:
        """`open` for an expendable database: rename a damaged file and create a new one.

        `probe`: a query that reads all required rows. Also returns whether the file was replaced.
        """
        try:
            database = self.open(name, schema, queue=queue)
            self.read(database, probe)
        except Damaged as error:
            self.close_database(name)
            self.damages.set_aside(name, error)
            return self.open(name, schema, queue=queue), True
        return database, False

    def disable(self, name: str, owner: str, error: SyscallError) -> None:
        """Close an owner's database for this run: from now on `open` raises the error."""
        self.close_database(name)
        self.damages.disable(name, owner, error)

    async def retire(self, name: str) -> None:
        """Apply the queued writes of a database, then close it in a thread. EIO: they failed."""
        database = self._databases.get(self.directory / name)
        if database is not None:
            await self.write(database, [], frees=True)
            await self.readers.run(name, self.close_database, name)

    def close_database(self, name: str) -> None:
        """Close a database, if it is open. No write may be queued for it. Blocks."""
        database = self._databases.pop(self.directory / name, None)
        if database is not None:
            del self._queues[database]
            self._broken.pop(database, None)
            database.close()

    def delete_database(self, name: str) -> None:
        """Delete a database. No write may be queued for it."""
        self.close_database(name)
        for end in ("", "-wal", "-shm"):
            (self.directory / f"{name}{end}").unlink(missing_ok=True)

    def peek(self, name: str, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Rows of a database, open or not; none when it does not exist. Blocks. Damaged."""
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
            WriteJob(
                database=database, done=done, durable=durable, frees=frees, statements=statements
            )
        )

    def _queue(self, job: WriteJob) -> None:
        pool, queue = self._queues[job.database]
        pool.writes.put(queue, (job,))

    async def write(
        self,
        database: Database,
        statements: Sequence[Statement],
        *,
        durable: bool = True,
        frees: bool = False,
        on_done: Done | None = None,
    ) -> None:
        """Write and wait for the acknowledgement. ENOSPC or EIO when nothing was written.

        No cancel point: a queued write is always applied, so the caller must see its outcome.
        `on_done` gets the outcome one iteration of the event loop before the caller resumes, so
        that other tasks which it wakes run first.
        """
        future, done = waiter()
        if on_done is not None:
            done = _after(on_done, done)
        self.submit(database, statements, done, durable=durable, frees=frees)
        with anyio.CancelScope(shield=True):
            await future

    async def apply(
        self, database: Database, work: Callable[[Transaction], Result], *, frees: bool = False
    ) -> Result:
        """Run a function in its own transaction, and return its result.

        The write is durable then. No cancel point, as in `write`.
        """
        results: list[Result] = []
        future, done = waiter()
        self._queue(WriteJob(
            database=database, done=done, durable=True, frees=frees,
            work=lambda transaction: results.append(work(transaction)),
        ))  # fmt: skip
        with anyio.CancelScope(shield=True):
            await future
        return results[0]

    async def slice(
        self, database: Database, work: Callable[[Transaction], Result], *, frees: bool = True
    ) -> Result:
        """Run one slice of a long task, which takes milliseconds. Other writes run between slices.

        Slices use only OWNER_SLICES of the threads, so that one is free for short writes, and each
        slice is preceded by a pause (see pacing.py). Cancel point before it is queued.
        """
        async with self._slices, self.pacing.piece():
            return await self.apply(database, work, frees=frees)

    def submit_truncate_log(self, database: Database, done: Done) -> None:
        """Queue `truncate_log`; `done` is called on the event loop."""
        self._queue(
            WriteJob(database=database, done=done, durable=True, frees=True, truncates_log=True)
        )

    async def truncate_log(self, database: Database) -> None:
        """Truncate the write-ahead log, so that no deleted row is left in it. EIO."""
        future, done = waiter()
        self.submit_truncate_log(database, done)
        with anyio.CancelScope(shield=True):
            await future

    def read(self, database: Database, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Committed rows. Blocks for the disk: run it in `readers`, except for a few rows."""
        try:
            with database.lock:
                return cast("list[Row]", database.read.execute(sql, values).fetchall())
        except sqlite3.Error as error:
            raise translate(error, database.path) from error

    def at_close(self, callback: Callable[[], None]) -> None:
        """Call this before the store closes. The writes that it submits are still applied."""
        self._closing[callback] = None

    def not_at_close(self, callback: Callable[[], None]) -> None:
        self._closing.pop(callback, None)

    def close(self) -> None:
        """Apply all queued writes, then close every database."""
        for callback in list(self._closing):
            callback()
        for pool in (self._kernel, self._owners):
            pool.writes.close()
            pool.syncs.close()
        for database in self._databases.values():
            database.close()
        self._databases.clear()
        self._queues.clear()

    # --- the threads that write -------------------------------------------------------------------
    def _write(self, queue: str, jobs: list[WriteJob]) -> None:
        for database, run in groupby(jobs, key=lambda job: job.database):
            group = list(run)
            try:
                self._commit(database, group)
            except Exception as failure:  # the thread must go on: other jobs wait for it
                self._acknowledge([(job.done, _internal(database, failure)) for job in group])

    def _commit(self, database: Database, jobs: list[WriteJob]) -> None:
        outcomes: list[tuple[Done, SyscallError | None]] = []
        to_sync: list[WriteJob] = []
        refusal, broken = self._refusal(database), database in self._broken
        for job, error in commit(database, jobs, refusal, broken=broken):
            if error is None and job.durable:
                to_sync.append(job)
            else:
                outcomes.append((job.done, error))
        if to_sync:
            self._queues[database][0].syncs.put(database, to_sync)
        self._acknowledge(outcomes)

    def _refusal(self, database: Database) -> SyscallError | None:
        broken = self._broken.get(database)
        if broken is not None:
            return SyscallError(broken.errno, broken.message, broken.hint)
        return disk.shortage(database.path.parent, self._reserve) or database.excess()

    # --- the threads that sync --------------------------------------------------------------------
    def _sync(self, database: Database, jobs: list[WriteJob]) -> None:
        """One flush covers every write before it."""
        error: SyscallError | None = None
        try:
            database.sync()
            points.passed("store.synced")
        except OSError as failure:
            # After a failed flush pages may be lost, so no later write is durable.
            error = self._broken[database] = self.damages.record_failed_flush(
                database.path, failure
            )
        except Exception as failure:  # as in _write
            error = _internal(database, failure)
        self._acknowledge([(self._count_flush, error), *((job.done, error) for job in jobs)])

    def _count_flush(self, _: SyscallError | None) -> None:
        self.flushes += 1

    def _acknowledge(self, outcomes: list[tuple[Done, SyscallError | None]]) -> None:
        if outcomes and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, outcomes)


class _WriterPool:
    """Threads that write to some of the databases, and threads that sync them."""

    def __init__(
        self, name: str, threads: int, write: Callable[[str, list[WriteJob]], None],
        sync: Callable[[Database, list[WriteJob]], None],
    ) -> None:  # fmt: skip
        batch = limits.COMMIT_ROWS
        self.writes = Queues[str, WriteJob](f"{name}-write", write, threads=threads, batch=batch)
        self.syncs = Queues[Database, WriteJob](
            f"{name}-sync", sync, threads=threads, batch=sys.maxsize
        )


def _unusable(path: Path, error: OSError) -> SyscallError:
    """The error of a database that cannot be opened: of the disk, or else EIO."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        error.filename = error.filename or str(path)
        return disk.unusable(error)
    return SyscallError(Errno.EIO, f"{path}: {error.strerror}")


def _deliver(outcomes: list[tuple[Done, SyscallError | None]]) -> None:
    for done, error in outcomes:
        try:
            done(error)
        except Exception:  # the other callbacks must still be called
            log.exception("the callback of a write failed")


def _internal(database: Database, failure: Exception) -> SyscallError:
    log.error("a write to %s failed", database.path, exc_info=failure)
    message = f"a write to {database.path} failed inside the kernel"
    return SyscallError(Errno.EIO, message, "`llmasos daemon logs` has the traceback")


def _after(first: Done, then: Done) -> Done:
    def done(error: SyscallError | None) -> None:
        try:
            first(error)
        finally:
            asyncio.get_running_loop().call_soon(then, error)

    return done


def waiter() -> tuple["asyncio.Future[None]", Done]:
    """A future, and the `done` callback that completes it."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: SyscallError | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    return future, done
