"""Makes sure that a daemon answers: starts one if none does, and only one however many ask.

Standard library only. Clients who race stand in line at a lock file; whoever comes first starts the
daemon and waits for its word on a pipe, the others find it running. The daemon is nobody's child:
it belongs to no terminal and no session, and nobody has to wait for it.
"""

import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmasos.kernel import disk, limits
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.logfile import open_log
from llmasos.kernel.paths import Paths

from .line import check, check_state, connect, inherits

_LOG_BYTES = 4096  # of the log's end, read when the daemon did not come up
_LOG_LINES = 12
# The shell leaves at once, so the daemon has no parent that would have to wait for it.
_DETACH = ["/bin/sh", "-c", '"$@" &', "sh"]


def allowed() -> bool:
    """Whether this user wants daemons started; a program that a kernel started has one already."""
    return os.environ.get("LLMASOS_AUTOSTART") != "0" and not inherits()


def ensure(where: Paths, *arguments: str) -> bool:
    """Have a daemon answer at `where`; True when it was started here, which no program does that a
    kernel started: it has one.

    `arguments` go to the daemon. Raises ECONNREFUSED with the end of its log when it did not come
    up within START_S, EBUSY when one of another state answers there, EACCES, EEXIST, EROFS or
    ENOSPC when a directory cannot be used.
    """
    if inherits():
        return False
    try:
        where.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        check(where.socket)
        with _alone(where.runtime / "start.lock"):
            if answers(where):
                return False
            _farewell(where)
            where.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk.check_room(where.state)
            _launch(where, arguments)
            return True
    except OSError as error:
        raise disk.unusable(error) from error


def answers(where: Paths) -> bool:
    """Whether the daemon of these directories does. Errors other than absence are raised."""
    try:
        connect(where.socket).close()
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED:
            raise
        return False
    check_state(where)
    return True


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """One starter at a time. The wait ends: whoever holds the lock has a deadline."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _farewell(where: Paths) -> None:
    """A daemon that has closed its door may still be writing: wait until it is gone."""
    try:
        lock = os.open(where.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).partition(b"\n")[0]
        gone(int(pid or b"0"), 2 * limits.DRAIN_S)
    finally:
        os.close(lock)


def gone(pid: int, deadline_s: float) -> bool:
    """Wait for the end of a process that is not ours; False when it outlived the deadline."""
    try:
        handle = os.pidfd_open(pid)
    except (OSError, AttributeError):  # it is gone already, or this system has no such handles
        return True
    try:
        return bool(select.select([handle], [], [], deadline_s)[0])
    finally:
        os.close(handle)


def _launch(where: Paths, arguments: Sequence[str]) -> None:
    ready, tell = os.pipe()
    log = open_log(where.log)
    try:
        begin = os.fstat(log).st_size
        here = ["--directory", _here()]  # it stands in / itself
        run = [*command("run"), "--ready-fd", str(tell), *here, *arguments]
        subprocess.run(
            [*_DETACH, *run], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
            env=_environment(where), pass_fds=(tell,), start_new_session=True, check=True,
        )  # fmt: skip
        os.close(tell)
        tell = -1
        _await(where, ready, begin)
    finally:
        for descriptor in (ready, tell, log):
            if descriptor >= 0:
                os.close(descriptor)


def _here() -> str:
    """The current directory, which may have been removed."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _environment(where: Paths) -> dict[str, str]:
    """It stands in / and not here, so its directories must not be relative."""
    names = ("runtime", "state", "cache", "config")
    own = {f"LLMASOS_{n.upper()}_DIR": os.path.abspath(getattr(where, n)) for n in names}
    return {**os.environ, **own}


def command(verb: str) -> list[str]:
    """How the daemon's module is started."""
    return [sys.executable, "-X", "utf8", "-m", "llmasos.userland.daemon", verb]


def _await(where: Paths, ready: int, begin: int) -> None:
    """Its word, or the end of its log from `begin` on as the reason why none came."""
    started = time.monotonic()
    readable = select.select([ready], [], [], limits.START_S)[0]
    if readable and os.read(ready, 64):
        return
    took = time.monotonic() - started
    what = "ended" if readable else "was not ready"
    raise SyscallError(
        Errno.ECONNREFUSED,
        f"the daemon {what} after {took:.1f} s:\n{_tail(where.log, begin)}",
        "`llmasos doctor` looks for the cause; the whole log: `llmasos daemon logs`",
    )


def _tail(path: Path, begin: int) -> str:
    """The last lines that were written after `begin`."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        begin = begin if begin <= end else 0  # the file was full, and another one has begun
        file.seek(max(begin, end - _LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:]) or "(it wrote nothing)"
