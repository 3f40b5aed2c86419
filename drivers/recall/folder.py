"""The files of Chroma in an owner's directory: whose they are, and how new ones take their place.

    chroma/           what Chroma uses; llmasos.json in it tells which version wrote it
    chroma.new/       being written by a renewal      chroma.old/   about to be removed
    chroma.lock       locked by the process that uses them: Chroma itself has no lock
    chroma.id         where a server keeps the vectors, the beginning of the collections' names

A folder gets its name when it is complete, so a process that is killed leaves a `chroma/` with its
mark, or none: then it is made again from what is handed over. What is left of the other two is
removed by the next process that opens the files. A `chroma/` without a readable mark is of no use
to anybody, as all of it is derived: it is made anew, too.
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

from llmasos.kernel.errors import DeviceFault

_MARK = "llmasos.json"
_FORMAT = 1  # how collections and ids are named
_MODE = 0o700


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except OSError as error:
        words = f"{error.filename or 'a file'}: {error.strerror or error}"
        raise DeviceFault(words) from error


class Newer(DeviceFault):
    """The files are of a newer version, which may come back: only a renewal replaces them."""


class Folder:
    """An owner's directory. Everything but `close` raises DeviceFault with the reason."""

    def __init__(self, owner: Path) -> None:
        self._owner = owner
        self.path, self._new, self._old = (
            owner / f"chroma{end}" for end in ("", ".new", ".old")
        )  # fmt: skip
        self._lock = -1

    def lock(self) -> None:
        """Nobody else opens the files until `close`, or our end."""
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
        """Files that Chroma may open, new ones where there are none. Newer: of a newer version."""
        self.lock()
        with _translated():
            self._sweep()
            found = _mark(self.path)
            if found is None:
                with suppress(FileNotFoundError):
                    shutil.rmtree(self.path)
                _make(self._new)
                self._new.rename(self.path)
                _sync(self._owner)
                return
        _check(self.path, *found)

    def fresh(self) -> Path:
        """An empty directory for the files that `swap` puts in place."""
        self.lock()
        with _translated():
            self._sweep()
            _make(self._new)
        return self._new

    def swap(self, lives: Callable[[], None]) -> None:
        """The fresh files instead of the others, which are gone when it returns."""
        with _translated():
            for folder, _, names in os.walk(self._new):
                for name in names:
                    _sync(Path(folder, name))
                    lives()
                _sync(Path(folder))
            with suppress(FileNotFoundError):
                self.path.rename(self._old)
            self._new.rename(self.path)
            _sync(self._owner)
            self._sweep()

    def clear(self) -> None:
        """No files at all."""
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
        """Of the names of this owner's collections on a server: nobody else's begin so."""
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


def _make(path: Path) -> None:
    path.mkdir(_MODE)
    mark = path / _MARK
    mark.write_text(json.dumps({"format": _FORMAT, "chroma": version("chromadb")}))
    _sync(mark)
    _sync(path)


def _mark(path: Path) -> tuple[int, str] | None:
    """The form of the files and Chroma's version; None when the mark is missing or damaged."""
    try:
        written = json.loads((path / _MARK).read_text(encoding="utf-8"))
        return int(written["format"]), str(written["chroma"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _check(path: Path, form: int, theirs: str) -> None:
    """Newer: the files are of a version that this one may not understand."""
    ours = version("chromadb")
    if form > _FORMAT or _parts(theirs) > _parts(ours):
        words = f"{path} was written by Chroma {theirs} (form {form}), this is {ours} ({_FORMAT})"
        raise Newer(words)


def _parts(told: str) -> list[int]:
    return [int(part) for part in told.split(".") if part.isdecimal()]


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
