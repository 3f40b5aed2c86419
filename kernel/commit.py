"""What is queued for one database becomes transactions, on the thread that writes to it.

It must not know who waits for the outcome.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from . import points
from .database import Database, Statement, Transaction, translate
from .errors import Errno, SyscallError

Done = Callable[[SyscallError | None], None]
# Also of values that SQLite does not take: half of a surrogate pair, a number over 64 bits.
_FAULTS = (sqlite3.Error, ValueError, OverflowError)


@dataclass(slots=True, kw_only=True)
class Job:
    database: Database
    done: Done
    durable: bool
    frees: bool  # lets go of something, or says that: allowed when the disk is nearly full
    statements: Sequence[Statement] = ()
    work: Callable[[Transaction], None] | None = None  # instead of statements
    empties: bool = False  # the write-ahead log, before anything else is written

    @property
    def joins(self) -> bool:
        """Whether it may share a transaction with others."""
        return self.work is None and not self.empties


Outcome = list[tuple[Job, SyscallError | None]]


def commit(
    database: Database, jobs: Sequence[Job], refusal: SyscallError | None, *, broken: bool
) -> Outcome:
    """The outcome of each job, in order.

    `refusal`: why nothing may be written now, but what frees something; `broken`: not even that.
    """
    if refusal is not None:
        return _kept(database, [
            (job, refusal if broken or not job.frees else _apply_one(database, job))
            for job in jobs
        ])  # fmt: skip
    outcome: Outcome = []
    for joins, run in groupby(jobs, key=lambda job: job.joins):
        some = list(run)
        if joins and _apply_all(database, some):
            outcome += [(job, None) for job in some]
        else:  # one bad write must not take the others along
            outcome += [(job, _apply_one(database, job)) for job in some]
    return _kept(database, outcome)


def _kept(database: Database, outcome: Outcome) -> Outcome:
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


def _apply_all(database: Database, jobs: Sequence[Job]) -> bool:
    """Whether all of them are written, in one transaction."""
    try:
        _apply(database, [one for job in jobs for one in job.statements])
    except _FAULTS:
        return False
    return True


def _apply_one(database: Database, job: Job) -> SyscallError | None:
    try:
        if job.work is not None:
            _transact(database, job.work)
        else:
            _apply(database, job.statements)
        if job.empties:
            _empty(database)
    except sqlite3.Error as error:
        return translate(error, database.path)
    except _FAULTS as error:
        return SyscallError(Errno.EINVAL, f"{database.path} cannot hold this: {error}")
    return None


def _empty(database: Database) -> None:
    """Copy the log into the database and cut it off; readers are kept out meanwhile."""
    with database.lock:
        busy = database.write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise sqlite3.OperationalError("somebody else reads the database: its log stays")


def _apply(database: Database, statements: Sequence[Statement]) -> None:
    if len(statements) == 1:  # a transaction by itself, begun and committed in one
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
