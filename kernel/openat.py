"""Open a path beneath a folder: no link on the way is followed, and nothing leads out.

So what is opened is the file that the path names, whatever is put in its place meanwhile. This is
the system call openat2 (Linux 5.6), which Python does not have; where it is missing, the path is
walked one folder at a time. Standard library only.
"""

import ctypes
import errno
import os
import stat

_OPENAT2 = 437  # on every architecture
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
# An older kernel, or a container whose filter refuses calls that it does not know.
_MISSING = frozenset({errno.ENOSYS, errno.EPERM})
_TRIES = 64  # EAGAIN: a folder was renamed meanwhile
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(folder: int, path: str, flags: int) -> int:
    """A descriptor. OSError: ELOOP for a link, EXDEV for a path that leads out, else as open()."""
    raw = os.fsencode(path)
    if b"\0" in raw:  # the system would take what stands before it
        raise OSError(errno.EINVAL, "a path holds a zero byte")
    if raw.startswith(b"/") or b".." in raw.split(b"/"):
        raise OSError(errno.EXDEV, "a path leads out of its folder")
    try:
        return _openat2(folder, raw, flags)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
    return walk_beneath(folder, raw, flags)


def _openat2(folder: int, path: bytes, flags: int) -> int:
    how = _How(flags | os.O_CLOEXEC, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    number = errno.EAGAIN
    for _ in range(_TRIES):
        opened: int = _libc.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_int(folder), ctypes.c_char_p(path),
            ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
        )  # fmt: skip
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number))


def walk_beneath(folder: int, path: bytes, flags: int) -> int:
    """The same where openat2 is missing."""
    *folders, name = [part for part in path.split(b"/") if part not in (b"", b".")] or [b"."]
    here = os.open(".", _FOLDER, dir_fd=folder)
    try:
        for part in folders:
            _refuse_link(part, here)
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        _refuse_link(name, here)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def _refuse_link(name: bytes, folder: int) -> None:
    """For the error alone: O_NOFOLLOW is what keeps a link from being followed."""
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
