"""A process that ends with SIGSYS as soon as it makes a file with a name or uses the network.

The kernel of the system ends it, at the call, in any of its libraries: a seccomp filter
that is installed before the first module of the program is imported. x86-64 Linux only.
"""

import ctypes
import struct
from pathlib import Path

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _MASK, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000
_NUMBER, _FIRST, _SECOND, _THIRD = 0, 16, 24, 32  # offsets in struct seccomp_data
_CREATES = 0o100  # O_CREAT
_AF_UNIX = 1
_OPEN, _OPENAT, _SOCKET = 2, 257, 41
_FORBIDDEN = (  # rename mkdir creat link symlink mknod, with those relative to a folder; openat2
    82, 83, 85, 86, 88, 133, 258, 259, 264, 265, 266, 316, 437,
)  # fmt: skip

SITE = f"""
import sys
sys.dont_write_bytecode = True
from {__name__} import confine
confine()
# It writes the process's oom_score_adj, and creates no file.
from llmasos.drivers import child_runtime
child_runtime.exit_with_parent = lambda pid: None
"""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def site(folder: Path) -> Path:
    """Python processes with this folder on PYTHONPATH are confined."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


def confine() -> None:
    """Confine this process, its threads and its children."""
    code = _code()
    program = _Program(len(code) // 8, code)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(
        _SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def _code() -> bytes:
    """The filter, in the language of Berkeley packet filters."""
    kill = _one(_RETURN, _KILL_PROCESS)
    code = b""
    for number in _FORBIDDEN:
        code += _when(number, kill)
    code += _when(_OPEN, _one(_LOAD, _SECOND) + _one(_MASK, _CREATES, 0, 1) + kill)
    code += _when(_OPENAT, _one(_LOAD, _THIRD) + _one(_MASK, _CREATES, 0, 1) + kill)
    code += _when(_SOCKET, _one(_LOAD, _FIRST) + _one(_EQUAL, _AF_UNIX, 1, 0) + kill)
    return code + _one(_RETURN, _ALLOW)


def _when(number: int, body: bytes) -> bytes:
    """Do `body` at this call. It ends with a return, or loads: so the number is loaded again."""
    return _one(_LOAD, _NUMBER) + _one(_EQUAL, number, 0, len(body) // 8) + body


def _one(operation: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("<HBBI", operation, then, otherwise, value)
