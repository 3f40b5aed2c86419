"""The words that every child process and its kernel share, and the form of their frames.

    to the child     a driver's own words, each with the number of the request or 0
    to the kernel    UP once, ANSWER or REFUSED for a request by its number, a driver's own words

The frames are those of kernel/wire.py under a larger cap, because the peer is ours. Standard
library and kernel only: both sides import this.
"""

from typing import Any

from llmasos.kernel.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.wire import pack, unpack_reply

FRAME_BYTES = 64 * 1024 * 1024
UP, ANSWER, REFUSED = range(3)
OWN = 3  # a driver's own words begin here

Frame = list[Any]


def encode(frame: Frame) -> bytes:
    return pack(frame, FRAME_BYTES)


def decode(body: bytes) -> Frame:
    return unpack_reply(body)


def refusal(number: int, error: SyscallError) -> Frame:
    return [REFUSED, number, int(error.errno), error.message, error.hint]


def error_in(errno: int, message: str, hint: str) -> SyscallError:
    """The refusal as an exception; EIO is the device's own."""
    number = Errno(errno)
    return (
        DeviceFault(message, hint) if number == Errno.EIO else SyscallError(number, message, hint)
    )
