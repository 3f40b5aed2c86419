"""The frames between the kernel and every child process: their format and the common types.

    to the child     types of the driver, each with the number of the request or 0
    to the kernel    UP once, ANSWER or REFUSED with the number of the request, types of the driver

The format is that of kernel/abi/wire.py with a larger limit, because the peer is trusted. Both
sides import this module, so it imports the standard library and the kernel only.
"""

from typing import Any

from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.wire import pack, unpack_reply

FRAME_BYTES = 64 * 1024 * 1024
UP, ANSWER, REFUSED = range(3)
DRIVER_BASE = 3  # the first frame type of a driver

Frame = list[Any]


def encode(frame: Frame) -> bytes:
    return pack(frame, FRAME_BYTES)


def decode(body: bytes) -> Frame:
    return unpack_reply(body)


def refusal(number: int, error: SyscallError) -> Frame:
    return [REFUSED, number, int(error.errno), error.message, error.hint]


def error_in(errno: int, message: str, hint: str) -> SyscallError:
    """The exception of a REFUSED frame; EIO becomes a DeviceFault."""
    number = Errno(errno)
    return (
        DeviceFault(message, hint) if number == Errno.EIO else SyscallError(number, message, hint)
    )
