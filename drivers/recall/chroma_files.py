"""Chroma's files in an owner's directory: their lock, their version, and their replacement.

    chroma/           used by Chroma; llmasos.json in it records the version that wrote it
    chroma.new/       being written by a rebuild      chroma.old/   about to be removed
    chroma.lock       locked by the process that uses the files: Chroma itself has no lock
    chroma.id         with a Chroma server: the prefix of this owner's collection names

A folder is renamed to `chroma/` when it is complete, so a killed process leaves either a `chroma/`
with a version file, or none, and it is rebuilt from the vectors in memory. The next process that
opens the files removes leftovers of the other two. A `chroma/` without a readable version file is
rebuilt too: all of it is derived data.
"""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from llmasos.kernel.abi.errors import DeviceFault

_VERSION_FILE = "llmasos.json"
_FORMAT = 1  # of the names of collections and ids
_MODE = 0o700


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except OSError as error:
        message = f"{error.filename or 'a file'}: {error.strerror or error}"
        raise DeviceFault(message) from error


class NewerVersion(DeviceFault):
    """A newer version wrote the files and may be installed again: only `renew` replaces them."""


class ChromaFiles:
    """The files of one owner. All methods but `close` raise DeviceFault with the reason."""

    def __init__(self, owner: Path) -> None:
        self._owner = owner
        self.path, self._new, self._old = (
            owner / f"chroma{end}" for end in ("", ".new", ".old")
        )  # fmt: skip
        self._lock = -1

    def lock(self) -> None:
        """Lock the files until `close` or the end of this process."""
        if self._lock >= 0:
            return
        with _translated():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            fd = os.open(self._owner / "chroma.lock", flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise DeviceFault("another process has its files open") from error
        self._lock = fd

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def prepare(self) -> None:
        """Make the files ready to be opened; create them if needed. NewerVersion."""
        self.lock()
        with _translated():
            self._sweep()
            found = _read_version(self.path)
            if found is None:
                with suppress(FileNotFoundError):
                    shutil.rmtree(self.path)
                _create(self._new)
                self._new.rename(self.path)
                _sync(self._owner)
                return
        _check_version(self.path, *found)

    def create_new(self) -> Path:
        """An empty directory for the files that `swap` moves to `chroma/`."""
        self.lock()
        with _translated():
            self._sweep()
            _create(self._new)
        return self._new

    def swap(self, heartbeat: Callable[[], None]) -> None:
        """Replace the files by the new ones and remove the old. `heartbeat` is called per file."""
        with _translated():
            for folder, _, names in os.walk(self._new):
                for name in names:
                    _sync(Path(folder, name))
                    heartbeat()
                _sync(Path(folder))
            with suppress(FileNotFoundError):
                self.path.rename(self._old)
            self._new.rename(self.path)
            _sync(self._owner)
            self._sweep()

    def clear(self) -> None:
        """Remove the files."""
        self.lock()
        with _translated():
            self._sweep()
            with suppress(FileNotFoundError):
                shutil.rmtree(self.path)
            _sync(self._owner)

    def _sweep(self) -> None:
        for path in (self._new, self._old):
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
        _sync(self._owner)

    def prefix(self) -> str:
        """The unique prefix of the names of this owner's collections on a server."""
        path = self._owner / "chroma.id"
        with _translated():
            with suppress(FileNotFoundError):
                return path.read_text(encoding="ascii")
            part = path.with_suffix(".part")
            name = f"llmasos-{secrets.token_hex(16)}"
            part.write_text(name, encoding="ascii")
            _sync(part)
            part.rename(path)
            _sync(self._owner)
        return name


def _create(path: Path) -> None:
    path.mkdir(_MODE)
    file = path / _VERSION_FILE
    file.write_text(json.dumps({"format": _FORMAT, "chroma": version("chromadb")}))
    _sync(file)
    _sync(path)


def _read_version(path: Path) -> tuple[int, str] | None:
    """The format and Chroma's version; None when the version file is missing or damaged."""
    try:
        written = json.loads((path / _VERSION_FILE).read_text(encoding="utf-8"))
        return int(written["format"]), str(written["chroma"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _check_version(path: Path, file_format: int, written_by: str) -> None:
    """NewerVersion: the installed version may not be able to read the files."""
    installed = version("chromadb")
    if file_format > _FORMAT or _parts(written_by) > _parts(installed):
        message = (
            f"{path} was written by Chroma {written_by} (format {file_format}), "
            f"this is {installed} ({_FORMAT})"
        )
        raise NewerVersion(message)


def _parts(text: str) -> list[int]:
    return [int(part) for part in text.split(".") if part.isdecimal()]


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
