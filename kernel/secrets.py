"""Keys of other services, by name. Each is asked for where it is used, and kept nowhere else.

`secrets/NAME` below the configuration directory holds the key, in a file that only its owner may
open. An empty file says that the keyring of the owner's desktop holds it. `secrets/.NAME.url` holds
the one endpoint that the key is sent to. The only host of keyring, which is loaded when a key is in
it.
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
from urllib.parse import urlsplit

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


def put(directory: Path, name: str, value: str, *, keyring: bool, url: str = "") -> None:
    """Keep a key, for the endpoint at a URL. Without one it is for that of the key before it, or
    else for the first model that is added with it.

    EINVAL for what cannot travel in a header, or no URL.
    """
    check_name(name)
    _check_value(name, value)
    place = origin(url) if url else ""
    if keyring:
        try:
            _keyring().set_password(SERVICE, name, value)
        except Exception as error:  # of whatever backend this desktop has
            raise _refused(error) from error
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory) as folder:
        if place:  # never the key of one URL with another
            _bound_file(directory, name).unlink(missing_ok=True)
        _write(directory / name, b"" if keyring else value.encode())
        if place:
            _write(_bound_file(directory, name), place.encode())
        os.fsync(folder)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for its owner alone."""
    fresh = path.with_name(f".{path.name.lstrip('.')}.new")
    fresh.unlink(missing_ok=True)  # its writer was killed
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    fresh.replace(path)


# --- the one endpoint that a key is for -----------------------------------------------------------
def origin(url: str) -> str:
    """Scheme, host and port of a URL: what a key is bound to. EINVAL. The URL is not repeated."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (ValueError, KeyError) as error:
        hint = "as in https://api.example.com/v1"
        raise SyscallError(Errno.EINVAL, "the url is not http:// or https://", hint) from error
    host = parts.hostname or ""
    if not host or "@" in parts.netloc:
        raise SyscallError(Errno.EINVAL, "the url has no host, or a user", "as in https://HOST/v1")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def bound(directory: Path, name: str) -> str:
    """The origin that a key is for; "" while that is open."""
    with suppress(FileNotFoundError):
        return _bound_file(directory, name).read_text(encoding="ascii", errors="replace").strip()
    return ""


def claim(directory: Path, name: str, url: str) -> None:
    """Its owner gives a key to a model at a URL: from now on it is for that one. ENOENT; EACCES
    when it is for another."""
    check_kept(directory, name)
    with _locked(directory) as folder:
        if not bound(directory, name):
            _write(_bound_file(directory, name), origin(url).encode())
            os.fsync(folder)
    check_bound(directory, name, url)


def check_bound(directory: Path, name: str, url: str, *, owner: bool = True) -> None:
    """EACCES unless a key is for the endpoint at a URL. Who does not own it learns no more."""
    check_name(name)
    place, kept = origin(url), bound(directory, name)
    if kept == place:
        return
    if not owner:
        words = f"no secret of that name is for {place}"
        raise SyscallError(Errno.EACCES, words, "ask the owner of this kernel to add the model")
    words = f"the secret {name} is for {kept or 'no url yet'}, and is not sent to {place}"
    raise SyscallError(Errno.EACCES, words, f"`llmasos secrets set {name} --url {place}`")


def _bound_file(directory: Path, name: str) -> Path:
    return directory / f".{name}.url"


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
        _bound_file(directory, name).unlink(missing_ok=True)
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
