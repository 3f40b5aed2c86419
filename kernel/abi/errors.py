"""The errors of syscalls. Standard library only.

SyscallError            an errno, a message (what happened, with numbers), a hint (what to do)
|-- NotFound            ENOENT, ESRCH: no such process, page, model or file
|-- Denied              EACCES: the policy or the system denies it; the message names the rule
|-- Busy                EAGAIN, EBUSY: not now; the same call may succeed later
|-- Timeout             ETIMEDOUT; also a TimeoutError
|-- TooBig              E2BIG: it does not fit into the window or exceeds a limit
|-- Damaged             EIO: a database of the machine cannot be read
`-- EngineFailed        EIO, EPOISON: an engine failed, or this call makes engines fail
    `-- DeviceFault     EIO: a device failed or its process ended

Clients catch the classes. The kernel raises SyscallError with an errno, and `error_of` creates the
client's object from it. The kernel never raises Timeout, which its own deadlines would catch.
"""

import errno
import os
import resource
from enum import IntEnum
from typing import Any


class Errno(IntEnum):
    """Linux numbers on every platform; LLMasOS's own numbers start at 1000."""

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
    EPOISON = 1000  # this call ran exclusively when it crashed its engine


class SyscallError(Exception):
    """A syscall failed. `hint` says what to do."""

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
        """For copy and pickle: the constructors of subclasses have other parameters."""
        return _rebuild, (type(self), self.errno, self.message, self.hint), self.__dict__


def _rebuild(kind: type[SyscallError], errno: Errno, message: str, hint: str) -> SyscallError:
    error = kind.__new__(kind, errno, message, hint)
    SyscallError.__init__(error, errno, message, hint)
    return error


class NotFound(SyscallError):
    """ENOENT, ESRCH: there is no such process, page, model or file."""


class Busy(SyscallError):
    """EAGAIN, EBUSY: not now. The same call may succeed later."""


class Timeout(SyscallError, TimeoutError):  # type: ignore[misc]  # both have an errno
    """ETIMEDOUT: it did not end within its timeout."""


class EngineFailed(SyscallError):
    """EIO, EPOISON: an engine failed, or this call makes engines fail."""


DESCRIPTOR_HINT = "try again after connections have closed; `ulimit -Hn` shows the limit"


def descriptors_exhausted(error: Exception) -> SyscallError | None:
    """EAGAIN if the process or the machine has no free file descriptor, else None."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return SyscallError(Errno.EAGAIN, os_message(error), DESCRIPTOR_HINT)
    return None


def no_descriptor(needed: int = 1) -> str:
    """Why so many files cannot be opened now; "" when they can."""
    opened: list[int] = []
    try:
        for _ in range(needed):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return os_message(error)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return ""


def os_message(error: OSError) -> str:
    """The system's message; with the limit when no file descriptor is free."""
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"all {limit} file descriptors of this process are in use"
    if error.errno == errno.ENFILE:
        return "all file descriptors of this machine are in use"
    return error.strerror or str(error)


class Denied(SyscallError):
    """EACCES: the policy or the system denies it. `needs_approval`: a person could allow it."""

    def __init__(self, message: str, hint: str = "", *, needs_approval: bool = False) -> None:
        super().__init__(Errno.EACCES, message, hint)
        self.needs_approval = needs_approval


class TooBig(SyscallError):
    """E2BIG: it does not fit into the window or exceeds a limit."""

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
    """An error of the class for its errno."""
    if errno is Errno.EACCES:
        return Denied(message, hint)
    if errno is Errno.E2BIG:
        return TooBig(message, hint)
    return _KINDS.get(errno, SyscallError)(errno, message, hint)
