"""The standard streams of the command, whatever it was started with.

Loaded by every call: standard library only.
"""

import codecs
import io
import os
import sys
from collections.abc import Sequence

from llmasos.kernel.errors import Errno, SyscallError


class Closed(io.TextIOBase):
    """Standard output that was closed: what is printed is refused instead of lost."""

    def write(self, text: str, /) -> int:
        raise SyscallError(
            Errno.EINVAL, "standard output is closed: nothing can be printed",
            "`> /dev/null` drops what is printed",
        )  # fmt: skip


def prepare() -> None:
    """Descriptors 0 to 2 are open, and no letter is an error.

    A descriptor that was closed would be given to the next socket or file, and what is printed
    would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115  open until the end
    sys.stdout = sys.stdout or Closed()
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def restart_in_utf8() -> None:
    """Where Python would read and write ASCII only (LC_ALL=C with PYTHONUTF8=0), begin again."""
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        rest: Sequence[str] = sys.orig_argv[1:]
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *rest])
