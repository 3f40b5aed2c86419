"""Files that callers name: opened with the caller's rights, as they are named, and none of ours.

A rule of the policy speaks of a path. The file that is opened for it is the one that this path
names, without any link, so a link cannot lead from a path that is allowed to one that is not. What
LLMasOS keeps for itself, and what is no file of a disk, is refused to everybody.
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

from .errors import Denied, Errno, SyscallError, exhausted
from .openat import open_beneath

T = TypeVar("T")
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY
_SYSTEM = ("/proc", "/sys", "/dev")  # no files of a disk: what the system tells, and devices
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159}  # number of the system call
_HIDDEN = (FileNotFoundError, NotADirectoryError, PermissionError)
_NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)
Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class Rights:
    """Of a user of the operating system."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def rights(uid: int) -> Rights:
    """What the operating system gives a user."""
    try:
        known = pwd.getpwuid(uid)
    except KeyError:
        return Rights(uid, _NOBODY, ())
    return Rights(uid, known.pw_gid, tuple(os.getgrouplist(known.pw_name, known.pw_gid)))


@dataclass(frozen=True, slots=True)
class Access:
    """How files are opened for a caller."""

    private: tuple[Path, ...] = ()  # folders and files of LLMasOS
    rights: Rights | None = None  # None: those of the kernel's own user, who calls

    def run(self, work: "Callable[[Opener], T]") -> T:
        """Work with files, with the caller's rights. Blocks."""
        opener = Opener(_identities(self.private), _devices())
        if self.rights is None:
            return work(opener)
        return _as(self.rights, lambda: work(opener))


class Opener:
    """Opens what is not private, in a thread that has the rights for it."""

    def __init__(self, private: frozenset[Identity], devices: frozenset[int]) -> None:
        self._private = private
        self._devices = devices

    def file(self, path: Path) -> tuple[int, os.stat_result]:
        """A regular file to read, and what it is. ENOENT, EACCES, EINVAL for what is no file."""
        return self._opened(path, self._file)

    def folder(self, path: Path) -> int | None:
        """A folder to list; None for what is none. ENOENT, EACCES."""
        return self._opened(path, self._folder)

    def is_private(self, status: os.stat_result) -> bool:
        """Whether it is one of ours, by any name: a mount or a hard link may give it another."""
        return (status.st_dev, status.st_ino) in self._private or status.st_dev in self._devices

    def _opened(self, path: Path, open_: Callable[[int, Path], T]) -> T:
        if any(path == Path(one) or Path(one) in path.parents for one in _SYSTEM):
            raise Denied(f"{path} is no file of a disk", "name a file that is")
        if "\0" in str(path):
            raise SyscallError(Errno.EINVAL, "a path holds a zero byte", "name a file")
        try:
            with _closing(os.open("/", _FOLDER)) as root:
                above = str(path.parent).lstrip("/") or "."
                with _closing(open_beneath(root, above, _FOLDER)) as parent:
                    self._check_above(parent, path)
                    return open_(parent, path)
        except OSError as error:
            raise _refusal(path, error) from error

    def _file(self, parent: int, path: Path) -> tuple[int, os.stat_result]:
        # Looked at before it is opened: to open a device may do something, and to close a database
        # that SQLite has open, under the name of a hard link, drops the locks on it.
        before = _status(parent, path)
        if not stat.S_ISREG(before.st_mode):
            raise SyscallError(Errno.EINVAL, f"{path} is no file")
        self._check(before, path)
        file = open_beneath(parent, path.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise SyscallError(Errno.EINVAL, f"{path} is no file")
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
        """EACCES: a folder above is private, whatever the path calls it."""
        here = os.dup(folder)
        try:
            while True:
                status = os.fstat(here)
                self._check(status, path)
                above = os.open("..", _FOLDER | os.O_CLOEXEC, dir_fd=here)
                os.close(here)
                here = above
                if os.path.samestat(status, os.fstat(here)):
                    return
        finally:
            os.close(here)

    def _check(self, status: os.stat_result, path: Path) -> None:
        if self.is_private(status):
            words = f"{path} belongs to LLMasOS or to the system, and is given to nobody"
            raise Denied(words, "name a file of your own")


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
    """Why nothing was opened. What is missing and what may not be read are one error: who may not
    read a file does not learn whether it is there."""
    if error.errno in (errno.ELOOP, errno.EXDEV):
        words = f"{path} is a link, or leads through one, and links are not followed"
        return Denied(words, f"`realpath {path}` tells which file it is: name that one")
    refusal = exhausted(error)
    if refusal is not None:
        return refusal
    if error.errno in (errno.EIO, errno.ENOMEM):
        return SyscallError(Errno.EIO, f"{path} cannot be opened: {error.strerror}")
    words = f"there is no file {path} that you may read"
    return SyscallError(Errno.ENOENT, words, f"`ls -ld {path}` shows what is there")


# --- what is private ------------------------------------------------------------------------------
def _identities(private: tuple[Path, ...]) -> frozenset[Identity]:
    """The folders and files of LLMasOS, and all that is in them now."""
    return frozenset((one.st_dev, one.st_ino) for path in private for one in _all(path))


def _all(path: Path) -> Iterator[os.stat_result]:
    """OSError when no descriptor is free: what is private would not be known then."""
    with suppress(*_HIDDEN):
        yield path.stat()
        for folder, folders, names in os.walk(path, onerror=_unlisted):
            for name in (*folders, *names):
                with suppress(*_HIDDEN):
                    yield os.lstat(os.path.join(folder, name))


def _unlisted(error: OSError) -> None:
    if exhausted(error) is not None:
        raise error


def _devices() -> frozenset[int]:
    """File systems of the system itself, wherever they are mounted."""
    found = set[int]()
    for path in _SYSTEM:
        with suppress(OSError):
            found.add(os.stat(path).st_dev)
    return frozenset(found - {os.stat("/").st_dev})


# --- with another user's rights -------------------------------------------------------------------
def _as(who: Rights, work: Callable[[], T]) -> T:
    """In a thread that gives up the kernel's rights, and ends: it never has to get them back."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _drop(who)
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name=f"files of {who.uid}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _drop(who: Rights) -> None:
    """This thread alone has the file rights of a user now. EACCES when that was not possible.

    The calls of the C library would change all threads, so setgroups is called by its number.
    """
    number = _SETGROUPS.get(platform.machine())
    groups = (ctypes.c_uint32 * len(who.groups))(*who.groups)
    if number is None or _libc.syscall(
        ctypes.c_long(number), ctypes.c_size_t(len(who.groups)), groups
    ):
        raise Denied("the kernel cannot take another user's rights here", "let the owner map it")
    _libc.setfsgid(ctypes.c_uint32(who.gid))
    _libc.setfsuid(ctypes.c_uint32(who.uid))
    nobody = ctypes.c_uint32(2**32 - 1)  # changes nothing: both return what they were before
    if (_libc.setfsgid(nobody), _libc.setfsuid(nobody)) != (who.gid, who.uid):
        raise Denied("the kernel cannot take another user's rights here", "let the owner map it")
