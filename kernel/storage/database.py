"""One SQLite file: its schema, its two connections, and SQLite's errors as SyscallError.

It must not know what the rows mean.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ..abi import limits
from ..abi.errors import DESCRIPTOR_HINT, Damaged, Errno, SyscallError, no_descriptor

log = logging.getLogger(__name__)
Value = str | int | float | bytes | None
Row = tuple[Value, ...]
Statement = tuple[str, Sequence[Value]]
Function = Callable[[str], str | int]


@dataclass(frozen=True, slots=True)
class Schema:
    """`steps[n]` turns version n into n + 1; a fresh database takes all of them."""

    name: str
    steps: Sequence[str]
    functions: Mapping[str, Function] = field(  # what its views call, on any thread
        default_factory=dict[str, Function]
    )


class Transaction:
    """Reads and writes of a function on the writer thread. All of them are committed, or none."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def read(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        return self._connection.execute(sql, values).fetchall()

    def write(self, statements: Sequence[Statement]) -> None:
        for sql, values in statements:
            self._connection.execute(sql, values)

    @property
    def changes(self) -> int:
        """Rows changed since the database was opened, including those of text indexes."""
        return self._connection.total_changes


class Checker:
    """A read-only connection for long reads. No write and no other read waits for it.

    The attached database `scratch` is in memory, for intermediate results.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip
        for name, function in schema.functions.items():
            self._connection.create_function(name, 1, function, deterministic=True)
        self._connection.execute("ATTACH ':memory:' AS scratch")

    def read(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """EIO."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error

    def close(self) -> None:
        self._connection.close()


class Database:
    """One SQLite file. `write` is for the writer thread, `read` for the thread with the lock.

    SQLite uses POSIX locks: a process loses all its locks on a file when it closes any descriptor
    of that file. So no other code in this process may open the file while a connection is open:
    another program would see the database as unused, and delete its log.
    """

    def __init__(self, path: Path, schema: Schema, limit_bytes: int = 0) -> None:
        """`limit_bytes`: see `excess`; 0: no limit."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            _refuse_newer(path, schema)
        else:
            _create(path)
        self.path = path
        self.lock = threading.Lock()
        self._limit_bytes = limit_bytes
        self._syncing = threading.Lock()  # the log is not closed during a flush
        self._schema = schema
        self._connect()

    def _connect(self) -> None:
        """Open the file, or nothing of it: its DATABASE_DESCRIPTORS may not be free."""
        with ExitStack() as opened:
            self.write = opened.enter_context(closing(self._connection()))
            self.write.execute("PRAGMA journal_mode=WAL")
            self._migrate(self._schema)
            self.read = opened.enter_context(closing(self._connection()))
            self.read.execute("PRAGMA query_only=ON")
            # SQLite takes no locks on the log, so closing a second descriptor of it drops none.
            log_flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._log = os.open(self._sibling("-wal"), log_flags, 0o600)
            opened.callback(os.close, self._log)
            # Opened now for the first flush, when no descriptor may be free.
            self._folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.pop_all()
        self._names = [str(self.path), str(self._sibling("-wal")), str(self._sibling("-shm"))]
        self._files = self._identities()

    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("PRAGMA foreign_keys=ON")
            for name, function in self._schema.functions.items():
                connection.create_function(name, 1, function, deterministic=True)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, schema: Schema) -> None:
        (version,) = self.write.execute("PRAGMA user_version").fetchone()
        if version > len(schema.steps):  # after a crash the log may have a newer version
            raise _newer(self.path, version, schema)
        if version == len(schema.steps):
            return
        if version > 0:
            self._copy(self.path.with_name(f"{self.path.name}.v{version}.copy"))
        for step in range(version, len(schema.steps)):
            self.write.executescript(
                f"BEGIN IMMEDIATE; {schema.steps[step]}; PRAGMA user_version={step + 1}; COMMIT"
            )

    def _copy(self, path: Path) -> None:
        """Copy the database. The copy gets its name only when it is complete and on disk."""
        part = _new(path)
        with closing(sqlite3.connect(part)) as target:
            self.write.backup(target)
        _sync(part)
        part.rename(path)
        _sync(path.parent)

    def _sibling(self, end: str) -> Path:
        return self.path.with_name(self.path.name + end)

    def checker(self) -> Checker:
        """A new Checker, which the caller closes. EIO."""
        try:
            return Checker(self.path, self._schema)
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    # --- durability ---------------------------------------------------------------------------
    def sync(self) -> None:
        """Flush the log, so that earlier commits survive a power cut. OSError."""
        with self._syncing:
            os.fdatasync(self._log)
            if self._folder >= 0:  # the log's directory entry must survive a power cut too
                os.fsync(self._folder)
                self._close_folder()

    def _close_folder(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def ensure_linked(self) -> None:
        """Make sure that committed rows are in files that still have their names.

        If another program deleted or replaced the log, its rows would be lost: copy them into the
        database and create a new log. For the writer thread. EIO when the database file itself was
        removed or replaced, sqlite3.Error or OSError when the copy fails.
        """
        found = self._identities()
        if found == self._files:
            return
        if found[0] != self._files[0]:
            raise SyscallError(
                Errno.EIO,
                f"{self.path} was removed or replaced while it was open",
                "`llmasos daemon stop`, put the file back, then `llmasos daemon start`",
            )
        log.warning("the log of %s was removed or replaced; creating a new one", self.path)
        with self.lock, self._syncing:
            row = self.write.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            if row[0]:
                raise sqlite3.OperationalError("its log was removed while another process reads it")
            self.read.close()
            self.write.close()
            os.close(self._log)
            self._close_folder()
            self._connect()

    def _identities(self) -> list[tuple[int, int]]:
        """Which files the three names refer to now. Called by each commit: takes microseconds."""
        return [_identity(name) for name in self._names]

    def excess(self) -> SyscallError | None:
        """The error of a write that frees no space, or None. For the writer thread.

        ENOSPC when the rows take more than the limit. Free pages of the file do not count.
        """
        if not self._limit_bytes:
            return None
        size, count, free = (
            int(self.write.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        used = size * (count - free)
        if used < self._limit_bytes:
            return None
        return SyscallError(
            Errno.ENOSPC,
            f"the data in {self.path.parent.name}/{self.path.name} takes {used / 1e6:.1f} MB; "
            f"{self._limit_bytes / 1e6:.1f} MB are allowed",
            "`llmasos mem forget` and `llmasos rm` free space; the machine's owner sets "
            "`user_bytes`",
        )

    @property
    def bytes(self) -> int:
        files = [self.path, self._sibling("-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        with self.lock:
            self.read.close()
        self.write.close()
        os.close(self._log)
        self._close_folder()


def _identity(name: str) -> tuple[int, int]:
    """Device and inode of a file; zeros when it does not exist."""
    try:
        status = os.stat(name)
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


def _create(path: Path) -> None:
    """Create an empty file with mode 0600. It is closed before it gets its name."""
    for end in ("-wal", "-shm"):  # of a moved database: SQLite would apply them to this one
        stale = path.with_name(path.name + end)
        if stale.exists():
            stale.rename(stale.with_name(f"{stale.name}.stale"))
    _new(path).rename(path)
    _sync(path.parent)
    _sync(path.parent.parent)  # the directory may be new


def _new(path: Path) -> Path:
    """An empty temporary file, for the caller to rename to `path`."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # left by an interrupted run
    os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return part


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_newer(path: Path, schema: Schema) -> None:
    """Raise EINVAL for a newer version in the file's header, before anything is changed.

    Only before the first connection: it opens and closes the file (see Database).
    """
    with path.open("rb") as file:
        header = file.read(64)
    known = header.startswith(b"SQLite format 3\0") and len(header) == 64
    version = int.from_bytes(header[60:64], "big") if known else 0
    if version > len(schema.steps):
        raise _newer(path, version, schema)


def _newer(path: Path, version: int, schema: Schema) -> SyscallError:
    return SyscallError(
        Errno.EINVAL,
        f"{path} has version {version} of the {schema.name} schema, this LLMasOS supports up to "
        f"{len(schema.steps)}",
        "install the newer LLMasOS again, or set LLMASOS_STATE_DIR to another directory",
    )


def damaged(path: Path, error: Exception) -> Damaged:
    """The error of a database that cannot be read, with a hint how to replace it."""
    return Damaged(
        f"{path} is damaged: {error}",
        f"`llmasos daemon stop`, restore a backup or start empty (`mv {path} {path}.damaged`), "
        "then `llmasos daemon start`",
    )


def translate(error: sqlite3.Error, path: Path) -> SyscallError:
    """SQLite's exception as a SyscallError."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            hint = f"free disk space (`df -h {path.parent}`), then try again; nothing was changed"
            return SyscallError(Errno.ENOSPC, f"the disk of {path.parent} is full", hint)
        case sqlite3.SQLITE_READONLY:
            hint = f"`findmnt -T {path.parent}` shows the file system to remount read-write"
            return SyscallError(Errno.EROFS, f"{path} cannot be written: {error}", hint)
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return damaged(path, error)
        # SQLite has closed what it could open.
        case sqlite3.SQLITE_CANTOPEN if reason := no_descriptor(limits.DATABASE_DESCRIPTORS):
            return SyscallError(Errno.EAGAIN, f"{path} cannot be opened: {reason}", DESCRIPTOR_HINT)
        case _:
            return SyscallError(Errno.EIO, f"{path}: {error}", "`llmasos daemon logs` has details")


def peek(path: Path, sql: str, values: Sequence[Value] = ()) -> list[Row]:
    """Rows of a database, open or not; none when it does not exist. Blocks. Damaged."""
    uri = f"{path.absolute().as_uri()}?mode=rw"  # mode=ro would leave -wal and -shm files behind
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("PRAGMA query_only=ON")
            return cast("list[Row]", connection.execute(sql, values).fetchall())
    except sqlite3.Error as error:
        translated = translate(error, path)
        if isinstance(translated, Damaged):
            raise translated from error
        return []
