"""Another program that looks at the databases of a machine, as the sqlite3 tool or a backup does.

A program that closes a database and finds no lock of others on it copies the log into the database
and deletes it.
"""

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_READER = """
import sqlite3, sys
for path in sys.argv[1:]:
    connection = sqlite3.connect(path)
    connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    connection.close()
"""
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510  # the bytes that a connection has a shared lock on
_FLOCK = "hhqqi4x"  # struct flock of a 64-bit Linux: type, whence, start, length, process


def databases(state: Path) -> list[Path]:
    """Of a machine, without what belongs to Chroma."""
    return sorted(path for path in state.rglob("*.db") if "chroma" not in path.parts)


def read(paths: Iterable[Path]) -> None:
    """Open each, read, close."""
    subprocess.run([sys.executable, "-c", _READER, *paths], check=True)


def unlocked(paths: Iterable[Path], pid: int) -> list[Path]:
    """Those that a process has no shared lock on."""
    return [path for path in paths if _holder(path) != pid]


def _holder(path: Path) -> int:
    """The process with a shared lock on a database; 0: none.

    Asked file by file: a read of /proc/locks leaves out locks while other processes take theirs.
    """
    wish = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
    with path.open("r+b") as file:
        kind, _, _, _, holder = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wish))
    return 0 if kind == fcntl.F_UNLCK else int(holder)
