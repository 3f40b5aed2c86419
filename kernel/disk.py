"""The directories of a machine: whether they can be used, and what to do when they cannot.

Standard library only: the command line looks before it starts a daemon, and the daemon again.
"""

import errno
import os
from pathlib import Path

from . import limits
from .errors import Errno, SyscallError

_ELSEWHERE = "let LLMASOS_STATE_DIR name a directory on another disk"


def unusable(error: OSError) -> SyscallError:
    """What the system said of a file or directory of ours, with what helps."""
    path = Path(os.fsdecode(error.filename or "?"))
    what = f"{path}: {error.strerror}"
    match error.errno:
        case errno.EROFS:
            hint = f"`findmnt -T {path.parent}` shows what to remount for writing; or {_ELSEWHERE}"
            return SyscallError(Errno.EROFS, what, hint)
        case errno.ENOSPC | errno.EDQUOT:
            hint = f"free disk space (`df -h {path.parent}`), or {_ELSEWHERE}"
            return SyscallError(Errno.ENOSPC, what, hint)
        case _:
            known = next((one for one in Errno if one == error.errno), Errno.EACCES)
            hint = "LLMASOS_RUNTIME_DIR and LLMASOS_STATE_DIR name directories of your own"
            return SyscallError(known, what, hint)


def check_room(state: Path) -> int:
    """The bytes that are free for a machine that is to start here.

    ENOSPC: a new machine needs FREE_BYTES, one that is there can go on with START_BYTES, and then
    only reads and removes. OSError when the directory cannot be examined.
    """
    room = os.statvfs(state)
    free = room.f_bavail * room.f_frsize
    needed = limits.START_BYTES if (state / "users.db").exists() else limits.FREE_BYTES
    if free < needed:
        what = f"{_size(free)} free at {state}, a machine needs {_size(needed)} to start"
        hint = f"free disk space (`df -h {state}`), or {_ELSEWHERE}"
        raise SyscallError(Errno.ENOSPC, what, hint)
    return free


def shortage(directory: Path, reserve: int) -> SyscallError | None:
    """Why nothing but what frees space may be written to a directory now; None: all may."""
    try:
        room = os.statvfs(directory)
    except OSError as error:  # for a moment, as on a network file system: the next write asks
        return SyscallError(
            Errno.EIO,
            f"{directory}: {error.strerror}; nothing was written",
            "make the state directory readable again, then repeat the command",
        )
    free = room.f_bavail * room.f_frsize
    if free >= reserve:
        return None
    return SyscallError(
        Errno.ENOSPC,
        f"{_size(free)} are free at {directory}, {_size(reserve)} are kept in reserve",
        f"free disk space (`df -h {directory}`): `llmasos kill`, `wait`, `mem forget` still work",
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
