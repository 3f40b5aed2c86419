"""The databases of the machine: one writer thread, group commits, durability by class.

A write is a list of statements for one database; it is applied whole or
not at all. The writer thread gathers what is queued into one transaction a database (WAL,
synchronous=NORMAL): that survives kill -9. A durable write is acknowledged only after a second
thread has synced the write-ahead log, so that others never wait for the disk's flush.

It must not know what the rows mean.
"""

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import anyio

from . import limits, points
from .database import Database, Row, Schema, Statement, Value, translate
from .errors import Errno, SyscallError

Done = Callable[[SyscallError | None], None]


@dataclass(slots=True)
class _Job:
    database: Database
    statements: Sequence[Statement]
    durable: bool
    frees: bool  # lets go of something, or says that: allowed when the disk is nearly full
    done: Done
    empties: bool = False  # the write-ahead log, before anything else is written


class Store:
    """The writer. Made on the event loop, which hears every acknowledgement."""

    def __init__(self, directory: Path, *, reserve_bytes: int = limits.FREE_BYTES) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        self._reserve = reserve_bytes
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._syncs: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._databases: dict[Path, Database] = {}
        self._closing: list[Callable[[], None]] = []
        self._broken = ""  # why no write can be trusted any more
        self._threads = [
            threading.Thread(target=self._write_loop, name="store-write", daemon=True),
            threading.Thread(target=self._sync_loop, name="store-sync", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def open(self, name: str, schema: Schema) -> Database:
        """The database at `name` below the state directory; created or migrated at need."""
        path = self.directory / name
        if path not in self._databases:
            try:
                self._databases[path] = Database(path, schema)
            except sqlite3.Error as error:
                raise translate(error, path) from error
            except OSError as error:
                raise SyscallError(Errno.EIO, f"{path}: {error.strerror}") from error
        return self._databases[path]

    def shut(self, name: str) -> None:
        """Close a database, if it is open. Nothing may be queued for it."""
        database = self._databases.pop(self.directory / name, None)
        if database is not None:
            database.close()

    def forget(self, name: str) -> None:
        """Delete a database. Nothing may be queued for it."""
        self.shut(name)
        for end in ("", "-wal", "-shm"):
            (self.directory / f"{name}{end}").unlink(missing_ok=True)

    def peek(self, name: str, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Rows of a database, open here or not; none if it is gone. Blocks."""
        uri = f"{(self.directory / name).as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                return cast("list[Row]", connection.execute(sql, values).fetchall())
        except sqlite3.Error:
            return []

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
        self._jobs.put(_Job(database, statements, durable, frees, done))

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

    async def empty_log(self, database: Database) -> None:
        """Nothing that was deleted before stays in the write-ahead log. EIO."""
        future, done = waiter()
        self._jobs.put(_Job(database, [], True, True, done, empties=True))
        with anyio.CancelScope(shield=True):
            await future

    def read(self, database: Database, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """Rows as last committed. Blocks for the disk: call it in a thread, or for a few rows."""
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
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for database in self._databases.values():
            database.close()
        self._databases.clear()

    # --- the writer thread ----------------------------------------------------------------------
    def _write_loop(self) -> None:
        try:
            self._write_all()
        finally:
            self._syncs.put(None)

    def _write_all(self) -> None:
        while True:
            jobs, last = self._gather()
            written: list[_Job] = []
            answers: list[tuple[Done, SyscallError | None]] = []
            for database in dict.fromkeys(job.database for job in jobs):
                mine = [job for job in jobs if job.database is database]
                for job, error in self._kept(database, self._commit(database, mine)):
                    if error is None and job.durable:
                        written.append(job)
                    else:
                        answers.append((job.done, error))
            self._answer(answers)
            if written:
                self._syncs.put(written)
            if last:
                return

    def _gather(self) -> tuple[list[_Job], bool]:
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= limits.COMMIT_ROWS:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _commit(
        self, database: Database, jobs: list[_Job]
    ) -> list[tuple[_Job, SyscallError | None]]:
        refusal = self._refusal(database)
        if refusal is None and any(job.empties for job in jobs):
            return self._commit_each(database, jobs)
        if refusal is not None:
            late = [(job, refusal) for job in jobs if not job.frees or self._broken]
            jobs = [job for job in jobs if job.frees and not self._broken]
            return [*late, *(self._commit_each(database, jobs))]
        try:
            self._apply(database, [s for job in jobs for s in job.statements])
        except sqlite3.Error:
            return self._commit_each(database, jobs)  # one bad write must not take the others along
        return [(job, None) for job in jobs]

    def _kept(
        self, database: Database, outcome: list[tuple[_Job, SyscallError | None]]
    ) -> list[tuple[_Job, SyscallError | None]]:
        """The outcome of a commit, once its rows are where the next run will look for them."""
        try:
            database.keep()
        except SyscallError as error:
            fault = error
        except sqlite3.Error as error:
            fault = translate(error, database.path)
        except OSError as error:
            fault = SyscallError(Errno.EIO, f"{database.path}: {error.strerror}")
        else:
            return outcome
        return [(job, error or fault) for job, error in outcome]

    def _commit_each(
        self, database: Database, jobs: list[_Job]
    ) -> list[tuple[_Job, SyscallError | None]]:
        outcome: list[tuple[_Job, SyscallError | None]] = []
        for job in jobs:
            try:
                self._apply(database, job.statements)
                if job.empties:
                    self._empty(database)
            except sqlite3.Error as error:
                outcome.append((job, translate(error, database.path)))
            else:
                outcome.append((job, None))
        return outcome

    def _apply(self, database: Database, statements: Sequence[Statement]) -> None:
        connection = database.write
        if len(statements) == 1:  # a transaction by itself, begun and committed in one
            points.passed("store.commit")
            connection.execute(*statements[0])
            points.passed("store.written")
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in statements:
                connection.execute(sql, values)
            points.passed("store.commit")
            connection.execute("COMMIT")
            points.passed("store.written")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _empty(self, database: Database) -> None:
        """Copy the log into the database and cut it off; readers are kept out meanwhile."""
        with database.lock:
            (
                busy,
                *_,
            ) = database.write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("somebody else reads the database: its log stays")

    def _refusal(self, database: Database) -> SyscallError | None:
        if self._broken:
            return SyscallError(Errno.EIO, self._broken, "see `llmasos daemon logs`, then restart")
        try:
            room = os.statvfs(database.path.parent)
        except OSError as error:  # for a moment, as on a network file system: the next write asks
            return SyscallError(
                Errno.EIO,
                f"{database.path.parent}: {error.strerror}; nothing was written",
                "make the state directory readable again, then repeat the command",
            )
        free = room.f_bavail * room.f_frsize
        if free >= self._reserve:
            return None
        return SyscallError(
            Errno.ENOSPC,
            f"{free} bytes are free at {database.path.parent}, {self._reserve} are kept in reserve",
            "free disk space: `llmasos kill` and `wait` still work and remove what processes hold",
        )

    # --- the sync thread ------------------------------------------------------------------------
    def _sync_loop(self) -> None:
        while (jobs := self._syncs.get()) is not None:
            more = True
            while more:  # one flush serves everything written before it begins
                try:
                    further = self._syncs.get_nowait()
                except queue.Empty:
                    more = False
                else:
                    if further is None:
                        self._syncs.put(None)
                        more = False
                    else:
                        jobs += further
            error: SyscallError | None = None
            try:
                for database in {job.database for job in jobs}:
                    database.sync()
                points.passed("store.synced")
            except OSError as fault:
                # A failed flush may have dropped the pages: nothing written since is certain.
                self._broken = f"the disk did not take a flush: {fault}"
                error = SyscallError(Errno.EIO, self._broken)
            self._answer([(job.done, error) for job in jobs])

    def _answer(self, answers: list[tuple[Done, SyscallError | None]]) -> None:
        if answers and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_tell, answers)


def _tell(answers: list[tuple[Done, SyscallError | None]]) -> None:
    for done, error in answers:
        done(error)


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
