"""Commit the queued writes of one database as transactions, on its writer thread.

It must not know who waits for the outcome.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .. import points
from ..abi.errors import Errno, SyscallError
from .database import Database, Statement, Transaction, translate

Done = Callable[[SyscallError | None], None]
# ValueError and OverflowError: a lone surrogate, an integer over 64 bits.
_FAULTS = (sqlite3.Error, ValueError, OverflowError)


@dataclass(slots=True, kw_only=True)
class WriteJob:
    database: Database
    done: Done
    durable: bool
    frees: bool  # frees space, or records that: allowed when the disk is nearly full
    statements: Sequence[Statement] = ()
    work: Callable[[Transaction], None] | None = None  # instead of statements
    truncates_log: bool = False  # truncate the write-ahead log before the next write

    @property
    def groupable(self) -> bool:
        """Whether it may share a transaction with other jobs."""
        return self.work is None and not self.truncates_log


Outcome = list[tuple[WriteJob, SyscallError | None]]


def commit(
    database: Database, jobs: Sequence[WriteJob], refusal: SyscallError | None, *, broken: bool
) -> Outcome:
    """Write the jobs and return the outcome of each, in order.

    `refusal`: the error of every job that does not free space; with `broken`, of every job.
    """
    if refusal is not None:
        return _with_linked_files(database, [
            (job, refusal if broken or not job.frees else _apply_one(database, job))
            for job in jobs
        ])  # fmt: skip
    outcome: Outcome = []
    for groupable, run in groupby(jobs, key=lambda job: job.groupable):
        group = list(run)
        if groupable and _apply_all(database, group):
            outcome += [(job, None) for job in group]
        else:  # one failed write must not fail the others
            outcome += [(job, _apply_one(database, job)) for job in group]
    return _with_linked_files(database, outcome)


def _with_linked_files(database: Database, outcome: Outcome) -> Outcome:
    """The outcome after a check that the written files are the ones that the next run opens."""
    try:
        database.ensure_linked()
    except SyscallError as error:
        failure = error
    except sqlite3.Error as error:
        failure = translate(error, database.path)
    except OSError as error:
        failure = SyscallError(Errno.EIO, f"{database.path}: {error.strerror}")
    else:
        return outcome
    return [(job, error or failure) for job, error in outcome]


def _apply_all(database: Database, jobs: Sequence[WriteJob]) -> bool:
    """Write all jobs in one transaction. False: it failed, and nothing was written."""
    try:
        _apply(database, [statement for job in jobs for statement in job.statements])
    except _FAULTS:
        return False
    return True


def _apply_one(database: Database, job: WriteJob) -> SyscallError | None:
    try:
        if job.work is not None:
            _transact(database, job.work)
        else:
            _apply(database, job.statements)
        if job.truncates_log:
            _truncate_log(database)
    except sqlite3.Error as error:
        return translate(error, database.path)
    except _FAULTS as error:
        return SyscallError(Errno.EINVAL, f"{database.path} cannot store a value: {error}")
    return None


def _truncate_log(database: Database) -> None:
    """Copy the log into the database and truncate it. Readers wait until this is done."""
    with database.lock:
        busy = database.write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise sqlite3.OperationalError("another process reads the database: its log was kept")


def _apply(database: Database, statements: Sequence[Statement]) -> None:
    if len(statements) == 1:  # autocommit: one statement is a transaction by itself
        points.passed("store.commit")
        database.write.execute(*statements[0])
        points.passed("store.written")
        return
    _transact(database, lambda transaction: transaction.write(statements))


def _transact(database: Database, work: Callable[[Transaction], None]) -> None:
    connection = database.write
    connection.execute("BEGIN IMMEDIATE")
    try:
        work(Transaction(connection))
        points.passed("store.commit")
        connection.execute("COMMIT")
        points.passed("store.written")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
