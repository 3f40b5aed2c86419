"""Opens files that callers name: with the caller's rights, without links, never private files.

A policy rule allows a path. The opened file is the one that this path names directly, because no
link is followed: a link cannot lead from an allowed path to one that is not allowed. The private
files of LLMasOS, and paths that are not files on a disk, are refused to every caller.
"""

import ctypes
import errno
import os
import platform
import pwd
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..abi.errors import Denied, Errno, SyscallError, descriptors_exhausted
from .openat import open_beneath

T = TypeVar("T")
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY
_SYSTEM = ("/proc", "/sys", "/dev")  # not on a disk: kernel interfaces and devices
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159}  # number of the system call
_HIDDEN = (FileNotFoundError, NotADirectoryError, PermissionError)
_NOBODY = 65534
_NO_RIGHTS = "the kernel cannot act with another user's rights on this machine"
_ASK_OWNER = "ask the owner of this kernel to map the file"
_libc = ctypes.CDLL(None, use_errno=True)
Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class Rights:
    """The file rights of a user of the operating system."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def rights(uid: int) -> Rights:
    """A user's rights from the password database; without an entry, no group."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Rights(uid, _NOBODY, ())
    return Rights(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


@dataclass(frozen=True, slots=True)
class Access:
    """How files are opened for a caller."""

    private: tuple[Path, ...] = ()  # folders and files of LLMasOS
    rights: Rights | None = None  # None: the caller is the user that the kernel runs as

    def run(self, work: "Callable[[Opener], T]") -> T:
        """Call `work` with the caller's rights. Blocks."""
        opener = Opener(_identities(self.private), _devices())
        if self.rights is None:
            return work(opener)
        return _as(self.rights, lambda: work(opener))


class Opener:
    """Opens files that are not private. For a thread that has the caller's rights."""

    def __init__(self, private: frozenset[Identity], devices: frozenset[int]) -> None:
        self._private = private
        self._devices = devices

    def file(self, path: Path) -> tuple[int, os.stat_result]:
        """Open a regular file for reading. ENOENT, EACCES; EINVAL when it is not a file."""
        return self._opened(path, self._file)

    def folder(self, path: Path) -> int | None:
        """Open a folder for listing; None when it is not a folder. ENOENT, EACCES."""
        return self._opened(path, self._folder)

    def is_private(self, status: os.stat_result) -> bool:
        """Whether a file is private under any name: also through a mount or a hard link."""
        return (status.st_dev, status.st_ino) in self._private or status.st_dev in self._devices

    def _opened(self, path: Path, open_: Callable[[int, Path], T]) -> T:
        if any(path == Path(one) or Path(one) in path.parents for one in _SYSTEM):
            raise Denied(f"{path} is not a file on a disk", "give the path of a regular file")
        if "\0" in str(path):
            raise SyscallError(Errno.EINVAL, "the path contains a null byte", "give a valid path")
        try:
            with _closing(os.open("/", _FOLDER)) as root:
                above = str(path.parent).lstrip("/") or "."
                with _closing(open_beneath(root, above, _FOLDER)) as parent:
                    self._check_above(parent, path)
                    return open_(parent, path)
        except OSError as error:
            raise _refusal(path, error) from error

    def _file(self, parent: int, path: Path) -> tuple[int, os.stat_result]:
        # Check before opening: opening a device may have an effect, and closing a hard link to a
        # database that SQLite has open drops the locks on it.
        before = _status(parent, path)
        if not stat.S_ISREG(before.st_mode):
            raise SyscallError(Errno.EINVAL, f"{path} is not a regular file")
        self._check(before, path)
        file = open_beneath(parent, path.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise SyscallError(Errno.EINVAL, f"{path} is not a regular file")
            self._check(status, path)
        except BaseException:
            os.close(file)
            raise
        return file, status

    def _folder(self, parent: int, path: Path) -> int | None:
        status = _status(parent, path) if path.name else os.fstat(parent)
        self._check(status, path)
        if not stat.S_ISDIR(status.st_mode):
            return None
        return open_beneath(parent, path.name or ".", os.O_RDONLY | os.O_DIRECTORY)

    def _check_above(self, folder: int, path: Path) -> None:
        """EACCES when a parent folder is private, by any name."""
        current = os.dup(folder)
        try:
            while True:
                status = os.fstat(current)
                self._check(status, path)
                above = os.open("..", _FOLDER | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = above
                if os.path.samestat(status, os.fstat(current)):
                    return
        finally:
            os.close(current)

    def _check(self, status: os.stat_result, path: Path) -> None:
        if self.is_private(status):
            message = f"{path} belongs to LLMasOS or to the system: no caller may open it"
            raise Denied(message, "give the path of another file")


def _status(parent: int, path: Path) -> os.stat_result:
    status = os.stat(path.name or ".", dir_fd=parent, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return status


@contextmanager
def _closing(descriptor: int) -> Generator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refusal(path: Path, error: OSError) -> SyscallError:
    """The error for a file that was not opened. A missing file and one without read permission give
    the same error, so that a caller cannot find out which files exist."""
    if error.errno in (errno.ELOOP, errno.EXDEV):
        message = f"{path} is a link or contains one, and links are not followed"
        return Denied(message, f"`realpath {path}` shows the path without links: use that one")
    refusal = descriptors_exhausted(error)
    if refusal is not None:
        return refusal
    if error.errno in (errno.EIO, errno.ENOMEM):
        return SyscallError(Errno.EIO, f"cannot open {path}: {error.strerror}")
    message = f"{path} does not exist or you may not read it"
    return SyscallError(Errno.ENOENT, message, f"`ls -ld {path}` shows its permissions")


# --- what is private ------------------------------------------------------------------------------
def _identities(private: tuple[Path, ...]) -> frozenset[Identity]:
    """The private folders and files, with everything in them now."""
    return frozenset((one.st_dev, one.st_ino) for path in private for one in _all(path))


def _all(path: Path) -> Iterator[os.stat_result]:
    """OSError when no descriptor is free: the list of private files would be incomplete."""
    with suppress(*_HIDDEN):
        yield path.stat()
        for folder, folders, names in os.walk(path, onerror=_unlisted):
            for name in (*folders, *names):
                with suppress(*_HIDDEN):
                    yield os.lstat(os.path.join(folder, name))


def _unlisted(error: OSError) -> None:
    if descriptors_exhausted(error) is not None:
        raise error


def _devices() -> frozenset[int]:
    """The devices of the system's own file systems, wherever they are mounted."""
    found = set[int]()
    for path in _SYSTEM:
        with suppress(OSError):
            found.add(os.stat(path).st_dev)
    return frozenset(found - {os.stat("/").st_dev})


# --- with another user's rights -------------------------------------------------------------------
def _as(who: Rights, work: Callable[[], T]) -> T:
    """Call `work` in a new thread that drops the kernel's rights. The thread ends afterwards, so
    the rights are never restored."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _drop(who)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"files of {who.uid}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _drop(who: Rights) -> None:
    """Give this thread, and no other, the file rights of a user. EACCES when that fails.

    The C library's setgroups changes all threads, so the system call is made by its number.
    """
    number = _SETGROUPS.get(platform.machine())
    groups = (ctypes.c_uint32 * len(who.groups))(*who.groups)
    if number is None or _libc.syscall(
        ctypes.c_long(number), ctypes.c_size_t(len(who.groups)), groups
    ):
        raise Denied(_NO_RIGHTS, _ASK_OWNER)
    _libc.setfsgid(ctypes.c_uint32(who.gid))
    _libc.setfsuid(ctypes.c_uint32(who.uid))
    invalid = ctypes.c_uint32(2**32 - 1)  # changes nothing: both calls return the current id
    if (_libc.setfsgid(invalid), _libc.setfsuid(invalid)) != (who.gid, who.uid):
        raise Denied(_NO_RIGHTS, _ASK_OWNER)
