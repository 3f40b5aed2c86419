"""A directory for unfinished files, inside the cache. It is removed with all of them.

The process that made it holds a lock on it. One without a lock was left by a process that was
killed, and is removed by the next process that makes one: several machines may share a cache.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from llmasos.kernel.abi.errors import DeviceFault

from .task import ID_BYTES, WORKSPACE, remove
from .task_process import finished


@asynccontextmanager
async def workspace(folder: Path) -> AsyncGenerator[Path]:
    """A new directory in `folder`, which is made if necessary. DeviceFault with the reason."""
    await asyncio.to_thread(sweep, folder)
    try:
        path, lock = _create(folder)
    except OSError as error:
        raise DeviceFault(f"cannot write to {folder}: {error}") from error
    try:
        yield path
    finally:
        await finished(asyncio.to_thread(_remove, path, lock))


def _create(folder: Path) -> tuple[Path, int]:
    """The directory and its lock."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        path = folder / f".{os.urandom(ID_BYTES).hex()}{WORKSPACE}"
        path.mkdir(mode=0o700)
        try:
            lock = _lock(path)
        except OSError:  # no locks on this file system, or no free descriptor
            remove(path)
            raise
        if lock is not None and path.exists():
            return path, lock
        if lock is not None:  # a sweep came between
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A locked descriptor; None: the directory was removed or has an owner. OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return fd


def _remove(path: Path, lock: int) -> None:
    remove(path)
    os.close(lock)


def sweep(folder: Path) -> None:
    """Remove the workspaces whose owners have ended."""
    for path in folder.glob(f".*{WORKSPACE}"):
        with suppress(OSError):  # one that cannot be opened is left for the next time
            lock = _lock(path)
            if lock is not None:
                _remove(path, lock)
