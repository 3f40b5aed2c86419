"""What can go wrong, as the caller sees it. Standard library only.

SyscallError            what happened (with the numbers), a hint (what to do), an errno
|-- NotFound            ENOENT, ESRCH: no such process, page, model or file
|-- Denied              EACCES: the gate said no; the message names the rule
|-- Busy                EAGAIN, EBUSY: not now; the same call may succeed later
|-- Timeout             ETIMEDOUT; it is a TimeoutError, too
|-- TooBig              E2BIG: it does not fit the window or a limit
|-- Damaged             EIO: a database of the machine cannot be read
`-- EngineFailed        EIO, EPOISON: an engine failed, or this call makes it fail
    `-- DeviceFault     EIO: a device failed or died
Panic                   a broken invariant: our bug. Never caught by handlers.

Callers catch classes, the kernel raises SyscallError with an errno: `error_of` makes the caller's
object. Inside the kernel a Timeout would pass for the end of one of its own deadlines.
"""

import errno
import os
import resource
from enum import IntEnum
from typing import Any


class Errno(IntEnum):
    """Linux numbers on every platform; our own begin at 1000."""

    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    E2BIG = 7
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28
    EROFS = 30
    EPIPE = 32
    ENOSYS = 38
    EPROTO = 71
    ENOTSUP = 95
    ETIMEDOUT = 110
    ECONNREFUSED = 111
    ECANCELED = 125
    EPOISON = 1000  # this call was alone when it killed its engine


class SyscallError(Exception):
    """A syscall that did not succeed. `hint` says what to do about it."""

    def __init__(
        self, errno: Errno, message: str, hint: str = "", *, call: str = "", pid: int = 0
    ) -> None:
        super().__init__(errno, message, hint)
        self.errno = errno
        self.message = message
        self.hint = hint
        self.call = call
        self.pid = pid

    def __str__(self) -> str:
        return f"{self.errno.name}: {self.message}" + (f"\n  {self.hint}" if self.hint else "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.errno.name}: {self.message})"

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can be copied, and sent to another process."""
        return _rebuilt, (type(self), self.errno, self.message, self.hint), self.__dict__


def _rebuilt(kind: type[SyscallError], errno: Errno, message: str, hint: str) -> SyscallError:
    error = kind.__new__(kind, errno, message, hint)
    SyscallError.__init__(error, errno, message, hint)
    return error


class NotFound(SyscallError):
    """ENOENT, ESRCH: there is no such process, page, model or file."""


class Busy(SyscallError):
    """EAGAIN, EBUSY: not now. The same call may succeed later."""


class Timeout(SyscallError, TimeoutError):  # type: ignore[misc]  # both have an errno
    """ETIMEDOUT: it did not end within the time that it was given."""


class EngineFailed(SyscallError):
    """EIO, EPOISON: an engine failed, or this call makes it fail."""


DESCRIPTORS = "try again when connections have closed; `ulimit -Hn` shows what a daemon may have"


def exhausted(error: Exception) -> SyscallError | None:
    """EAGAIN, where the process or the machine has no free file descriptor."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return SyscallError(Errno.EAGAIN, why(error), DESCRIPTORS)
    return None


def no_descriptor() -> str:
    """Why no file can be opened now; "" when one can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return why(error)
    return ""


def why(error: OSError) -> str:
    """The system's message, with the numbers where it has none."""
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"all {limit} file descriptors of this process are in use"
    if error.errno == errno.ENFILE:
        return "all file descriptors of this machine are in use"
    return error.strerror or str(error)


class Denied(SyscallError):
    """EACCES: the rules or the system do not allow it. `asks`: a person could allow it."""

    def __init__(self, message: str, hint: str = "", *, asks: bool = False) -> None:
        super().__init__(Errno.EACCES, message, hint)
        self.asks = asks


class TooBig(SyscallError):
    """E2BIG: it does not fit the window or a limit."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Errno.E2BIG, message, hint)


class Damaged(SyscallError):
    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Errno.EIO, message, hint)


class DeviceFault(EngineFailed):
    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Errno.EIO, message, hint)


_KINDS: dict[Errno, type[SyscallError]] = {
    Errno.ENOENT: NotFound, Errno.ESRCH: NotFound, Errno.EAGAIN: Busy, Errno.EBUSY: Busy,
    Errno.ETIMEDOUT: Timeout, Errno.EPOISON: EngineFailed,
}  # fmt: skip


def error_of(errno: Errno, message: str, hint: str = "") -> SyscallError:
    """An error of the class that its errno belongs to."""
    if errno is Errno.EACCES:
        return Denied(message, hint)
    if errno is Errno.E2BIG:
        return TooBig(message, hint)
    return _KINDS.get(errno, SyscallError)(errno, message, hint)
