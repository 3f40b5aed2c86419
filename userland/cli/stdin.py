"""Texts that are said as words, or piped in."""

import os
import stat
import sys
from collections.abc import Sequence

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError, TooBig

from .talk import clean

_BESIDE = 8_192  # bytes that a call needs beside its text
WHOLE = "`llmasos mem map PID FILE` takes a whole file"


def piped() -> str:
    """Everything on stdin, if it is a pipe, a socket or a file. EINVAL: not UTF-8."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not a real file
        return ""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)):
        return ""
    raw = sys.stdin.buffer.read()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise SyscallError(
            Errno.EINVAL, f"stdin is not valid UTF-8 at its byte {error.start}",
            "convert it first, as with `iconv -t utf-8`",
        ) from error  # fmt: skip


def said(words: Sequence[str], most: int, hint: str) -> str:
    """The words, or else what is piped in, as it is. E2BIG: over `most` characters, or a frame."""
    return bounded(clean(" ".join(words), "the text") or piped(), most, hint)


def bounded(text: str, most: int, hint: str) -> str:
    """The same of a text that is at hand."""
    size, room = len(text.encode()), limits.REQUEST_BYTES - _BESIDE
    if len(text) > most or size > room:
        words = f"the text has {len(text)} characters, {size} bytes; {most} and {room} are allowed"
        raise TooBig(words, hint)
    return text
