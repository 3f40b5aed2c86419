"""Exit codes. docs/configuration.md has the same table."""

from llmasos.kernel.abi.errors import Denied, Errno, SyscallError

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
NO_DAEMON = 4
ENGINE = 5
MEMORY = 6
ASK = 75  # a user must approve the call
DENIED = 77
TIMEOUT = 124
INTERRUPTED = 130

_CODES = {
    Errno.ENOENT: NOT_FOUND,
    Errno.ESRCH: NOT_FOUND,
    Errno.ECONNREFUSED: NO_DAEMON,
    Errno.EPIPE: NO_DAEMON,
    Errno.EIO: ENGINE,
    Errno.EPOISON: ENGINE,
    Errno.ENOMEM: MEMORY,
    Errno.E2BIG: MEMORY,
    Errno.EACCES: DENIED,
    Errno.ETIMEDOUT: TIMEOUT,
    Errno.ECANCELED: INTERRUPTED,
}


class UsageError(SyscallError):
    """Invalid command line; nothing was done."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Errno.EINVAL, message, hint)


def code(error: SyscallError) -> int:
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, Denied) and error.needs_approval:
        return ASK
    return _CODES.get(error.errno, FAILED)
