"""Texts that are said as words, or piped in."""

import os
import select
import stat
import sys
from collections.abc import Sequence

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError, TooBig

from .show import note
from .talk import clean

_WAIT_S = 1.0  # for the end of stdin, before a person is told what the command waits for
_CHUNK_BYTES = 1 << 16
_BESIDE = 8_192  # bytes that a call needs beside its text
WHOLE = "`llmasos mem map PID FILE` takes a whole file"


def piped(beside: str = "") -> str:
    """Everything on stdin, if it is a pipe, a socket or a file. EINVAL: not UTF-8.

    `beside`: what was given as words; where stdin does not end soon, a note says what is waited
    for, since nothing may have been meant to come from there.
    """
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not a real file
        return ""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)):
        return ""
    raw = _all(noted=not beside)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SyscallError(
            Errno.EINVAL, f"stdin is not valid UTF-8 at its byte {error.start}",
            "convert it first, as with `iconv -t utf-8`",
        ) from error  # fmt: skip


def _all(*, noted: bool) -> bytes:
    """All bytes of stdin; a note says once that its end is waited for, unless that was `noted`."""
    chunks: list[bytes] = []
    while True:
        if not noted and not select.select([sys.stdin], [], [], _WAIT_S)[0]:
            noted = True
            note("waiting for stdin to end: its text belongs to the prompt, too; "
                 "`< /dev/null` goes without it")  # fmt: skip
        chunk = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


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
