"""One SQLite file: its schema, its two connections, and SQLite's errors in our words.

It must not know what the rows mean.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import Errno, SyscallError

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


class Database:
    """One SQLite file. `write` belongs to the writer thread, `read` to whoever holds the lock."""

    def __init__(self, path: Path, schema: Schema) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_newer(path, schema)
        self.path = path
        self.write = self._connect(schema)
        self.write.execute("PRAGMA journal_mode=WAL")
        self._migrate(schema)
        self.read = self._connect(schema)
        self.read.execute("PRAGMA query_only=ON")
        self.lock = threading.Lock()
        # SQLite takes no locks on the log, so a second descriptor cannot drop any.
        self.log = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT, 0o600)

    def _connect(self, schema: Schema) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA foreign_keys=ON")
        for name, function in schema.functions.items():
            connection.create_function(name, 1, function, deterministic=True)
        return connection

    def _migrate(self, schema: Schema) -> None:
        (version,) = self.write.execute("PRAGMA user_version").fetchone()
        if version > len(schema.steps):  # a crash left it in the log, beyond the header
            self.write.close()
            raise _newer(self.path, version, schema)
        if version == len(schema.steps):
            return
        if version > 0:
            copy = self.path.with_name(f"{self.path.name}.v{version}.copy")
            with sqlite3.connect(copy) as target:
                self.write.backup(target)
            target.close()
        for step in range(version, len(schema.steps)):
            self.write.executescript(
                f"BEGIN IMMEDIATE; {schema.steps[step]}; PRAGMA user_version={step + 1}; COMMIT"
            )

    @property
    def bytes(self) -> int:
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        with self.lock:
            self.read.close()
        self.write.close()
        os.close(self.log)


def _refuse_newer(path: Path, schema: Schema) -> None:
    """Look at the version in the file's header, so that a newer store stays untouched."""
    try:
        with path.open("rb") as file:
            header = file.read(64)
    except FileNotFoundError:
        return
    known = header.startswith(b"SQLite format 3\0") and len(header) == 64
    version = int.from_bytes(header[60:64], "big") if known else 0
    if version > len(schema.steps):
        raise _newer(path, version, schema)


def _newer(path: Path, version: int, schema: Schema) -> SyscallError:
    return SyscallError(
        Errno.EINVAL,
        f"{path} has version {version} of the {schema.name} store, this LLMasOS knows "
        f"{len(schema.steps)}",
        "install the newer LLMasOS again, or point LLMASOS_STATE_DIR elsewhere",
    )


def translate(error: sqlite3.Error, path: Path) -> SyscallError:
    """SQLite's exception in our words."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            hint = "free disk space, then try again; nothing was changed"
            return SyscallError(Errno.ENOSPC, f"the disk of {path.parent} is full", hint)
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            hint = "put a copy back, or move the file away to begin anew"
            return SyscallError(Errno.EIO, f"{path} is not a readable database: {error}", hint)
        case _:
            return SyscallError(Errno.EIO, f"{path}: {error}", "see `llmasos daemon logs`")
