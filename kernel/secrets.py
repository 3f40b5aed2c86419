"""Keys of other services, by name. Each is asked for where it is used, and kept nowhere else.

`secrets/NAME` below the configuration directory holds the key, in a file that only its owner may
open. An empty file says that the keyring of the owner's desktop holds it. The only host of keyring,
which is loaded when a key is in it.
"""

import fcntl
import os
import re
import stat
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from . import limits
from .errors import Errno, SyscallError

SERVICE = "llmasos"
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{limits.NAME_CHARS - 1}}}")


class _Keyring(Protocol):
    def get_password(self, service: str, name: str) -> str | None: ...
    def set_password(self, service: str, name: str, value: str) -> None: ...
    def delete_password(self, service: str, name: str) -> None: ...


def _keyring() -> _Keyring:
    try:
        return cast("_Keyring", import_module("keyring"))
    except ImportError as error:
        hint = "`pip install 'llmasos[keyring]'`, or keep it in a file: leave --keyring out"
        raise SyscallError(Errno.ENOTSUP, "the keyring package is not installed", hint) from error


def check_name(name: str) -> None:
    """EINVAL for a name that no secret can have."""
    if not _NAME.fullmatch(name):
        # It is not repeated: somebody may have given the key itself.
        words = "that is no name of a secret"
        raise SyscallError(Errno.EINVAL, words, "letters, digits and . _ + - make a name")


def put(directory: Path, name: str, value: str, *, keyring: bool) -> None:
    """Keep a key. EINVAL for what cannot travel in a header."""
    check_name(name)
    _check_value(name, value)
    if keyring:
        try:
            _keyring().set_password(SERVICE, name, value)
        except Exception as error:  # of whatever backend this desktop has
            raise _refused(error) from error
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory) as folder:
        fresh = directory / f".{name}.new"
        fresh.unlink(missing_ok=True)  # its writer was killed
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, b"" if keyring else value.encode())
            os.fsync(file)
        finally:
            os.close(file)
        fresh.replace(directory / name)
        os.fsync(folder)


@contextmanager
def _locked(directory: Path) -> Generator[int]:
    """One writer at a time. The descriptor of the directory."""
    folder = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def _check_value(name: str, value: str) -> None:
    if not 0 < len(value) <= limits.SECRET_BYTES or not all("!" <= char <= "~" for char in value):
        words = f"{name}: a secret is 1 to {limits.SECRET_BYTES} visible ASCII characters"
        raise SyscallError(Errno.EINVAL, words, f"`llmasos secrets set {name}` reads it from stdin")


def _refused(error: Exception) -> SyscallError:
    if isinstance(error, SyscallError):
        return error
    words = f"the keyring refused: {type(error).__name__}"
    return SyscallError(Errno.EIO, words, "unlock it, or keep the secret in a file")


def names(directory: Path) -> list[str]:
    """What is kept, without a look at it."""
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if _NAME.fullmatch(path.name))


def check_kept(directory: Path, name: str) -> None:
    """ENOENT unless there is one of this name, which is not repeated either."""
    check_name(name)
    if not (directory / name).exists():
        words = "there is no secret of that name"
        raise SyscallError(
            Errno.ENOENT, words, "`llmasos secrets list`, `llmasos secrets set NAME`"
        )


def remove(directory: Path, name: str) -> None:
    """Forget a key. ENOENT when there is none."""
    check_name(name)
    path = directory / name
    try:
        held = path.stat().st_size == 0
        path.unlink()
    except FileNotFoundError:
        raise _missing(name) from None
    if held:
        try:
            _keyring().delete_password(SERVICE, name)
        except Exception as error:
            raise _refused(error) from error


def read(directory: Path, name: str) -> str:
    """The key. ENOENT; EACCES when others may read its file."""
    check_name(name)
    path = directory / name
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _missing(name) from None
    except OSError as error:
        raise SyscallError(Errno.EACCES, f"{path}: {error.strerror}") from error
    try:
        _check_private(path, os.fstat(file))
        value = os.read(file, limits.SECRET_BYTES + 1).decode("ascii", "replace").strip()
    finally:
        os.close(file)
    if not value:
        try:
            value = _keyring().get_password(SERVICE, name) or ""
        except Exception as error:
            raise _refused(error) from error
        if not value:
            raise _missing(name)
    _check_value(name, value)
    return value


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise SyscallError(Errno.EACCES, f"{path} is not a file of this user")
    if status.st_mode & 0o077:
        words = f"{path} is open to others (mode {status.st_mode & 0o777:o})"
        raise SyscallError(Errno.EACCES, words, f"`chmod 600 {path}`, and consider a new key")


def _missing(name: str) -> SyscallError:
    hint = f"`llmasos secrets set {name}` reads it from stdin"
    return SyscallError(Errno.ENOENT, f"there is no secret {name!r}", hint)
