"""Locks on the directories of a machine: one daemon runs for a socket, and one for a store."""

import fcntl
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import quote

from .abi import disk
from .abi.errors import Errno, SyscallError
from .abi.paths import Paths, foreign_state, recorded_runtime


@contextmanager
def locked(paths: Paths) -> Generator[None]:
    """Hold both locks: two sockets may share a state directory. The directories exist.

    EBUSY; EACCES, EROFS or ENOSPC when a directory cannot be used.
    """
    with ExitStack() as locks:
        try:
            other = foreign_state(paths)
            variable = f"LLMASOS_STATE_DIR={quote(str(other))} " if other else ""
            stop = f"`{variable}llmasos daemon stop` ends it"
            lock = _lock_file(locks, paths.lock, str(paths.socket), stop)
            state = os.path.realpath(paths.state)
            os.pwrite(lock, os.fsencode(f"{os.getpid()}\n{state}\n"), 0)
            runtime = recorded_runtime(paths)
            stop = f"`LLMASOS_RUNTIME_DIR={quote(str(runtime))} llmasos daemon stop` ends it"
            where = f"{runtime} with its state in {paths.state}"
            lock = _lock_file(locks, paths.state_lock, where, stop)
            os.pwrite(lock, os.fsencode(f"{os.getpid()}\n{paths.runtime}\n"), 0)
        except OSError as error:
            raise disk.unusable(error) from error
        yield


def _lock_file(locks: ExitStack, file: Path, where: str, stop: str) -> int:
    """Lock a file and write our pid into it. EBUSY, with `stop` as hint: a daemon has the lock."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    locks.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode(errors="replace").partition("\n")[0] or "?"
        message = f"a daemon runs already (pid {pid}) at {where}"
        raise SyscallError(Errno.EBUSY, message, stop) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        error.filename = str(file)
        raise
    return lock
