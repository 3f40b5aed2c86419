"""Logs of processes, bounded: a file of LOG_BYTES becomes the earlier one, and a new one begins.

A process that is started with a log as its output keeps writing to the file that it was given, so
the daemon, which runs for long, exchanges its own descriptors. Standard library only.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from . import limits

_STDERR = 2
_OUTPUTS = (1, _STDERR)  # the descriptors of stdout and stderr


def earlier(path: Path) -> Path:
    """The log before this one; it may not exist."""
    return path.with_name(f"{path.name}.1")


def open_log(path: Path) -> int:
    """A descriptor that appends. A full file is renamed first, and replaces the one before it."""
    with suppress(OSError):  # it is not there yet; where it cannot be renamed it is used as it is
        if path.stat().st_size >= limits.LOG_BYTES:
            path.replace(earlier(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr. Where that is the file `path`, the file is exchanged when it is full."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        with suppress(OSError):  # a full disk; the next record tries again
            self._exchange()

    def _exchange(self) -> None:
        written = os.fstat(_STDERR)
        if written.st_size < limits.LOG_BYTES or not os.path.samestat(written, self._path.stat()):
            return
        log = open_log(self._path)
        try:
            for output in _OUTPUTS:
                if os.path.samestat(os.fstat(output), written):
                    os.dup2(log, output)
        finally:
            os.close(log)
