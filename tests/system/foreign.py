"""Another program that looks at the databases of a machine, as the sqlite3 tool or a backup does.

A program that closes a database and finds no lock of others on it copies the log into the database
and deletes it.
"""

import os
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
_SHARED_FIRST = 0x40000002  # the bytes of a database that a connection has a shared lock on


def databases(state: Path) -> list[Path]:
    """Of a machine, without what belongs to Chroma."""
    return sorted(path for path in state.rglob("*.db") if "chroma" not in path.parts)


def read(paths: Iterable[Path]) -> None:
    """Open each, read, close."""
    subprocess.run([sys.executable, "-c", _READER, *paths], check=True)


def unlocked(paths: Iterable[Path], pid: int) -> list[Path]:
    """Those that a process has no shared lock on."""
    held: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, _, owner, file, first, *_ = line.replace("->", "").split()
        if kind == "POSIX" and int(owner) == pid and int(first) == _SHARED_FIRST:
            held.add(int(file.rpartition(":")[2]))
    return [path for path in paths if os.stat(path).st_ino not in held]
