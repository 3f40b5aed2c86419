"""Which driver can run a model file that is open."""

from collections.abc import Mapping
from pathlib import Path

from ..abi.errors import Errno, SyscallError
from ..driver import Driver

REMOTE = "remote"  # the driver of every image that is a url


def first(drivers: Mapping[str, Driver], path: Path, file: int) -> str:
    """The first driver that accepts a file. Raises the first driver's error if none does. Blocks.

    Each driver reads the opened file, even if the path names another file by now.
    """
    opened = Path(f"/proc/self/fd/{file}")
    refusal: SyscallError | None = None
    for name in drivers:
        if name == REMOTE:  # it runs no files: do not import it
            continue
        try:
            drivers[name].probe(opened)
        except SyscallError as error:
            refusal = refusal or _with_path(error, opened, path)
        else:
            return name
    raise refusal or SyscallError(Errno.ENOTSUP, f"no driver can run {path}")


def _with_path(error: SyscallError, opened: Path, path: Path) -> SyscallError:
    """The error with the file's path in place of its descriptor."""
    message = error.message.replace(str(opened), str(path))
    if message.startswith(f"{opened.name} "):
        message = path.name + message.removeprefix(opened.name)
    return SyscallError(error.errno, message, error.hint)
