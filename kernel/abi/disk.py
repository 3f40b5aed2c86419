"""Checks of the directories of a machine, and the errors when they cannot be used.

Standard library only: the command line runs them before it starts a daemon, and so does the daemon.
"""

import errno
import os
from pathlib import Path

from . import limits
from .errors import Errno, SyscallError

_OTHER_DISK = "set LLMASOS_STATE_DIR to a directory on another disk"


def unusable(error: OSError) -> SyscallError:
    """The system's error for a file or directory of the machine, with a hint."""
    path = Path(os.fsdecode(error.filename or "?"))
    message = f"{path}: {error.strerror}"
    match error.errno:
        case errno.EROFS:
            hint = f"`findmnt -T {path.parent}` shows the file system to remount read-write; "
            return SyscallError(Errno.EROFS, message, f"{hint}or {_OTHER_DISK}")
        case errno.ENOSPC | errno.EDQUOT:
            hint = f"free disk space (`df -h {path.parent}`), or {_OTHER_DISK}"
            return SyscallError(Errno.ENOSPC, message, hint)
        case _:
            known = next((one for one in Errno if one == error.errno), Errno.EACCES)
            hint = "set LLMASOS_RUNTIME_DIR and LLMASOS_STATE_DIR to directories of your own"
            return SyscallError(known, message, hint)


def check_free_space(state: Path) -> int:
    """The free bytes for a machine that starts with this state directory.

    ENOSPC: a new machine needs FREE_BYTES. An existing one needs START_BYTES, and below FREE_BYTES
    it only reads and removes. OSError when the directory cannot be examined.
    """
    status = os.statvfs(state)
    free = status.f_bavail * status.f_frsize
    needed = limits.START_BYTES if (state / "users.db").exists() else limits.FREE_BYTES
    if free < needed:
        message = f"{_size(free)} free at {state}; a machine needs {_size(needed)} to start"
        hint = f"free disk space (`df -h {state}`), or {_OTHER_DISK}"
        raise SyscallError(Errno.ENOSPC, message, hint)
    return free


def shortage(directory: Path, reserve: int) -> SyscallError | None:
    """The error for a write to a directory with less than `reserve` bytes free, or None.

    Writes that free space are still allowed then.
    """
    try:
        status = os.statvfs(directory)
    except OSError as error:  # may be temporary on a network file system: not cached
        return SyscallError(
            Errno.EIO,
            f"{directory}: {error.strerror}; nothing was written",
            "make the state directory readable again, then repeat the command",
        )
    free = status.f_bavail * status.f_frsize
    if free >= reserve:
        return None
    return SyscallError(
        Errno.ENOSPC,
        f"{_size(free)} free at {directory}; {_size(reserve)} are reserved",
        f"free disk space (`df -h {directory}`); `llmasos kill`, `llmasos wait` and "
        "`llmasos mem forget` still work",
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
