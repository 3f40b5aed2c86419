"""Starts the daemon if none is running, and only one however many clients ask.

Standard library only. Concurrent clients serialise on a lock file: the first starts the daemon and
waits for its ready line on a pipe, the others find it running. The daemon is detached: it is no
child of its client, and has no terminal and no session of it.
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

from llmasos.kernel.abi import disk, limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.logfile import open_log
from llmasos.kernel.abi.paths import Paths

from .client import check_directory, check_state, connect, started_by_kernel

_LOG_BYTES = 4096  # of the log's end, read when the daemon did not start
_LOG_LINES = 12
# The shell exits at once, so the daemon is reparented and this program need not reap it.
_DETACH = ["/bin/sh", "-c", '"$@" &', "sh"]


def allowed() -> bool:
    """Whether a daemon may be started: not with LLMASOS_AUTOSTART=0, nor in a kernel's program."""
    return os.environ.get("LLMASOS_AUTOSTART") != "0" and not started_by_kernel()


def ensure(where: Paths, *arguments: str) -> bool:
    """Make sure that a daemon answers at `where`. True: this call started it.

    A program that a kernel started never starts one. `arguments` are passed to the daemon. Raises
    ECONNREFUSED with the end of its log when it is not ready within START_S, EBUSY when the daemon
    there serves another state directory, EACCES, EEXIST, EROFS or ENOSPC when a directory cannot
    be used.
    """
    if started_by_kernel():
        return False
    try:
        where.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_directory(where.socket)
        with _exclusive(where.runtime / "start.lock"):
            if answers(where):
                return False
            _await_previous(where)
            where.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk.check_free_space(where.state)
            _launch(where, arguments)
            return True
    except OSError as error:
        raise disk.unusable(error) from error


def answers(where: Paths) -> bool:
    """Whether the daemon of these directories answers. Raises errors other than ECONNREFUSED."""
    try:
        connect(where.socket).close()
    except SyscallError as error:
        if error.errno is not Errno.ECONNREFUSED:
            raise
        return False
    check_state(where)
    return True


@contextmanager
def _exclusive(path: Path) -> Generator[None]:
    """Hold the start lock. The wait is bounded: every holder has a deadline."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _await_previous(where: Paths) -> None:
    """A daemon that closed its socket may still be writing its files: wait until it exits."""
    try:
        lock = os.open(where.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).partition(b"\n")[0]
        wait_for_exit(int(pid or b"0"), 2 * limits.DRAIN_S)
    finally:
        os.close(lock)


def wait_for_exit(pid: int, deadline_s: float) -> bool:
    """Wait for a process that is not our child to exit. False: it still runs after `deadline_s`."""
    try:
        handle = os.pidfd_open(pid)
    except (OSError, AttributeError):  # it has exited, or this system has no pidfd
        return True
    try:
        return bool(select.select([handle], [], [], deadline_s)[0])
    finally:
        os.close(handle)


def _launch(where: Paths, arguments: Sequence[str]) -> None:
    ready, write_end = os.pipe()
    log = open_log(where.log)
    try:
        begin = os.fstat(log).st_size
        directory = ["--directory", _current_directory()]  # the daemon's own is /
        run = [*command("run"), "--ready-fd", str(write_end), *directory, *arguments]
        subprocess.run(
            [*_DETACH, *run], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
            env=_environment(where), pass_fds=(write_end,), start_new_session=True, check=True,
        )  # fmt: skip
        os.close(write_end)
        write_end = -1
        _await_ready(where, ready, begin)
    finally:
        for descriptor in (ready, write_end, log):
            if descriptor >= 0:
                os.close(descriptor)


def _current_directory() -> str:
    """The current directory; / when it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _environment(where: Paths) -> dict[str, str]:
    """The daemon's current directory is /, so its directories are passed as absolute paths."""
    names = ("runtime", "state", "cache", "config")
    absolute = {f"LLMASOS_{n.upper()}_DIR": os.path.abspath(getattr(where, n)) for n in names}
    return {**os.environ, **absolute}


def command(verb: str) -> list[str]:
    """The command line that runs the daemon's module."""
    return [sys.executable, "-X", "utf8", "-m", "llmasos.userland.daemon", verb]


def _await_ready(where: Paths, ready: int, begin: int) -> None:
    """Wait for the ready line. ECONNREFUSED with the end of the log, from byte `begin` on."""
    started = time.monotonic()
    readable = select.select([ready], [], [], limits.START_S)[0]
    if readable and os.read(ready, 64):
        return
    took_s = time.monotonic() - started
    what = "exited" if readable else "was not ready"
    raise SyscallError(
        Errno.ECONNREFUSED,
        f"the daemon {what} after {took_s:.1f} s:\n{_tail(where.log, begin)}",
        "`llmasos doctor` checks for the cause; `llmasos daemon logs` shows the whole log",
    )


def _tail(path: Path, begin: int) -> str:
    """The last lines written after byte `begin`."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        begin = begin if begin <= end else 0  # the log was rotated
        file.seek(max(begin, end - _LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:]) or "(the log is empty)"
