"""Keys of external services, by name. A key is read when it is used, and stored nowhere else.

`secrets/NAME` below the configuration directory contains the key, with mode 0600. An empty file
means that the key is in the desktop keyring of its owner. `secrets/.NAME.url` contains the only
origin (scheme, host, port) that the key is sent to. keyring is imported here only, when a key is
stored in it.
"""

import fcntl
import os
import re
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from . import limits, service_url
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
        hint = "`pip install 'llmasos[keyring]'`, or omit --keyring to store the secret in a file"
        raise SyscallError(Errno.ENOTSUP, "the keyring package is not installed", hint) from error


def check_name(name: str) -> None:
    """EINVAL for an invalid name of a secret."""
    if not _NAME.fullmatch(name):
        # The message does not repeat it: the user may have given the key instead of the name.
        message = "invalid name of a secret"
        raise SyscallError(Errno.EINVAL, message, "use letters, digits and . _ + - only")


def put(directory: Path, name: str, value: str, *, keyring: bool, url: str = "") -> None:
    """Store a key for the endpoint at a URL. Without a URL it is for the endpoint of the previous
    key of this name, or else of the first model that is added with it.

    EINVAL for a value that is not valid in an HTTP header, or an invalid URL.
    """
    check_name(name)
    _check_value(name, value)
    origin = service_url.parse(url).origin if url else ""
    if keyring:
        try:
            _keyring().set_password(SERVICE, name, value)
        except Exception as error:  # depends on the keyring backend
            raise _keyring_failure(error) from error
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory) as folder:
        if origin:  # never a new key with an old URL, nor an old key with a new one
            _bound_file(directory, name).unlink(missing_ok=True)
        _write(directory / name, b"" if keyring else value.encode())
        if origin:
            _write(_bound_file(directory, name), origin.encode())
        os.fsync(folder)


def _write(path: Path, data: bytes) -> None:
    """Replace a file atomically, with mode 0600."""
    draft = path.with_name(f".{path.name.lstrip('.')}.new")
    draft.unlink(missing_ok=True)  # left by a killed process
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    draft.replace(path)


# --- the endpoint of a key ------------------------------------------------------------------------
def bound(directory: Path, name: str) -> str:
    """The origin that a key is bound to; "" when it is not bound yet."""
    with suppress(FileNotFoundError):
        return _bound_file(directory, name).read_text(encoding="ascii", errors="replace").strip()
    return ""


def bind(directory: Path, name: str, url: str) -> None:
    """Bind a key to the origin of a URL. ENOENT; EACCES when it is bound to another origin."""
    check_exists(directory, name)
    with _locked(directory) as folder:
        if not bound(directory, name):
            _write(_bound_file(directory, name), service_url.parse(url).origin.encode())
            os.fsync(folder)
    check_bound(directory, name, url)


def check_bound(directory: Path, name: str, url: str, *, is_machine_owner: bool = True) -> None:
    """EACCES unless a key is bound to the origin of a URL. Other users than the machine's owner get
    no details."""
    check_name(name)
    origin, current = service_url.parse(url).origin, bound(directory, name)
    if current == origin:
        return
    if not is_machine_owner:
        message = f"no secret of that name is for {origin}"
        raise SyscallError(Errno.EACCES, message, "ask the owner of this kernel to add the model")
    message = f"secret {name} is for {current or 'no url yet'} and is not sent to {origin}"
    raise SyscallError(Errno.EACCES, message, f"`llmasos secrets set {name} --url {origin}`")


def _bound_file(directory: Path, name: str) -> Path:
    return directory / f".{name}.url"


@contextmanager
def _locked(directory: Path) -> Generator[int]:
    """Lock the directory for one writer. Yields its descriptor."""
    folder = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def _check_value(name: str, value: str) -> None:
    if not 0 < len(value) <= limits.SECRET_BYTES or not all("!" <= char <= "~" for char in value):
        message = f"{name}: a secret has 1 to {limits.SECRET_BYTES} visible ASCII characters"
        hint = f"`llmasos secrets set {name}` reads it from stdin"
        raise SyscallError(Errno.EINVAL, message, hint)


def _keyring_failure(error: Exception) -> SyscallError:
    if isinstance(error, SyscallError):
        return error
    message = f"the keyring failed with {type(error).__name__}"
    return SyscallError(Errno.EIO, message, "unlock it, or store the secret in a file")


def names(directory: Path) -> list[str]:
    """The names of all stored secrets."""
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if _NAME.fullmatch(path.name))


def check_exists(directory: Path, name: str) -> None:
    """ENOENT unless a secret has this name. The message does not repeat it (see check_name)."""
    check_name(name)
    if not (directory / name).exists():
        hint = "`llmasos secrets list` lists secrets, `llmasos secrets set NAME` adds one"
        raise SyscallError(Errno.ENOENT, "no secret of that name", hint)


def remove(directory: Path, name: str) -> None:
    """Delete a key. ENOENT."""
    check_name(name)
    path = directory / name
    try:
        in_keyring = path.stat().st_size == 0
        path.unlink()
        _bound_file(directory, name).unlink(missing_ok=True)
    except FileNotFoundError:
        raise _missing(name) from None
    if in_keyring:
        try:
            _keyring().delete_password(SERVICE, name)
        except Exception as error:
            raise _keyring_failure(error) from error


def read(directory: Path, name: str) -> str:
    """The key. ENOENT; EACCES when other users may read its file."""
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
            raise _keyring_failure(error) from error
        if not value:
            raise _missing(name)
    _check_value(name, value)
    return value


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise SyscallError(Errno.EACCES, f"{path} is not a regular file of this user")
    if status.st_mode & 0o077:
        message = f"{path} is accessible to other users (mode {status.st_mode & 0o777:o})"
        raise SyscallError(Errno.EACCES, message, f"`chmod 600 {path}`, and consider a new key")


def _missing(name: str) -> SyscallError:
    hint = f"`llmasos secrets set {name}` reads it from stdin"
    return SyscallError(Errno.ENOENT, f"no secret {name!r}", hint)
