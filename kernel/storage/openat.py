"""Open a path beneath a folder, without following links and without leaving the folder.

The opened file is the one that the path names, even if another process replaces parts of the path
at the same time. This uses the system call openat2 (Linux 5.6), which Python does not provide. If
it is missing, the path is walked one folder at a time. Standard library only.
"""

import ctypes
import errno
import os
import stat

_OPENAT2 = 437  # on every architecture
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
# An older kernel, or a container whose seccomp filter refuses unknown system calls.
_MISSING = frozenset({errno.ENOSYS, errno.EPERM})
_TRIES = 64  # EAGAIN: a folder was renamed during the call
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(folder: int, path: str, flags: int) -> int:
    """A descriptor. OSError: ELOOP for a link, EXDEV for a path out of the folder, or as open()."""
    raw = os.fsencode(path)
    if b"\0" in raw:  # the system call would use the part before it
        raise OSError(errno.EINVAL, "the path contains a null byte")
    if raw.startswith(b"/") or b".." in raw.split(b"/"):
        raise OSError(errno.EXDEV, "the path leads out of its folder")
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
    """`open_beneath` without openat2."""
    *folders, name = [part for part in path.split(b"/") if part not in (b"", b".")] or [b"."]
    current = os.open(".", _FOLDER, dir_fd=folder)
    try:
        for part in folders:
            _refuse_link(part, current)
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=current)
            os.close(current)
            current = below
        _refuse_link(name, current)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    finally:
        os.close(current)


def _refuse_link(name: bytes, folder: int) -> None:
    """Raise ELOOP for a link. Only for a uniform error: O_NOFOLLOW is what prevents following."""
    if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
