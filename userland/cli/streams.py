"""Makes the standard streams usable, whatever state the command was started in.

Loaded by every call: standard library only.
"""

import codecs
import io
import os
import sys
from collections.abc import Sequence

from llmasos.kernel.abi.errors import Errno, SyscallError


class ClosedOutput(io.TextIOBase):
    """Replaces a closed standard output: printing raises EINVAL instead of losing text."""

    def write(self, text: str, /) -> int:
        raise SyscallError(
            Errno.EINVAL, "standard output is closed: cannot print",
            "`> /dev/null` discards the output",
        )  # fmt: skip


def prepare() -> None:
    """Open closed descriptors 0 to 2, and escape characters that a stream cannot encode.

    A closed descriptor would be reused for the next socket or file, which would then receive
    the printed text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115  open until the end
    sys.stdout = sys.stdout or ClosedOutput()
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def restart_in_utf8() -> None:
    """Re-execute in UTF-8 mode if the encoding is ASCII (LC_ALL=C with PYTHONUTF8=0)."""
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        rest: Sequence[str] = sys.orig_argv[1:]
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *rest])
