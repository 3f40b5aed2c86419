"""Texts given as arguments or on stdin."""

import os
import select
import stat
import sys
from collections.abc import Sequence

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError, TooBig

from .generation import clean
from .show import note

_WAIT_S = 1.0  # wait for the end of stdin before a note explains the wait
_CHUNK_BYTES = 1 << 16
_OVERHEAD = 8_192  # bytes of a request in addition to its text
WHOLE = "`llmasos mem map PID FILE` maps a whole file"


def piped(prefix: str = "") -> str:
    """All of stdin if it is a pipe, a socket or a file. Raises EINVAL if it is not UTF-8.

    `prefix`: text given as arguments. If there is some and stdin stays open, a note explains the
    wait, because the user may not expect that stdin is read.
    """
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not a real file
        return ""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)):
        return ""
    raw = _read_all(noted=not prefix)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SyscallError(
            Errno.EINVAL, f"stdin is not valid UTF-8 at byte {error.start}",
            "convert it first, for example with `iconv -t utf-8`",
        ) from error  # fmt: skip


def _read_all(*, noted: bool) -> bytes:
    """All bytes of stdin. Prints a note once if its end takes long, unless already `noted`."""
    chunks: list[bytes] = []
    while True:
        if not noted and not select.select([sys.stdin], [], [], _WAIT_S)[0]:
            noted = True
            note("waiting for the end of stdin, which is part of the prompt; "
                 "`< /dev/null` omits it")  # fmt: skip
        chunk = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def text_argument(words: Sequence[str], most: int, hint: str) -> str:
    """The words, or else stdin, verbatim. Raises E2BIG for over `most` characters or a frame."""
    return bounded(clean(" ".join(words), "the text") or piped(), most, hint)


def bounded(text: str, most: int, hint: str) -> str:
    """The text if it is within the limits. Raises E2BIG."""
    size, room = len(text.encode()), limits.REQUEST_BYTES - _OVERHEAD
    if len(text) > most or size > room:
        message = (
            f"the text has {len(text)} characters, {size} bytes; the limits are {most} and {room}"
        )
        raise TooBig(message, hint)
    return text
