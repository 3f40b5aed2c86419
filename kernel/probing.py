"""Which driver can run a model file that is open."""

from collections.abc import Mapping
from pathlib import Path

from .driver import Driver
from .errors import Errno, SyscallError

REMOTE = "remote"  # the driver of every image that is a url


def first(drivers: Mapping[str, Driver], path: Path, file: int) -> str:
    """The first driver that accepts a file; the first complaint when none does. Blocks.

    Each reads what was opened, whatever has the path now.
    """
    opened = Path(f"/proc/self/fd/{file}")
    complaint: SyscallError | None = None
    for name in drivers:
        if name == REMOTE:  # it runs no files, and is not loaded to say so
            continue
        try:
            drivers[name].probe(opened)
        except SyscallError as error:
            complaint = complaint or _named(error, opened, path)
        else:
            return name
    raise complaint or SyscallError(Errno.ENOTSUP, f"no driver can run {path}")


def _named(error: SyscallError, opened: Path, path: Path) -> SyscallError:
    """A complaint that calls the file by its path."""
    words = error.message.replace(str(opened), str(path))
    if words.startswith(f"{opened.name} "):
        words = path.name + words.removeprefix(opened.name)
    return SyscallError(error.errno, words, error.hint)
