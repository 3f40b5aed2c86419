"""Bounded log files of processes: at LOG_BYTES a log is renamed, and a new file is started.

A process that has a log as its stdout and stderr keeps writing to the opened file. The daemon runs
for a long time, so it replaces its own descriptors when the file is full. Standard library only.
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
    """The renamed log before this one; it may not exist."""
    return path.with_name(f"{path.name}.1")


def open_log(path: Path) -> int:
    """A descriptor for appending. A full file is renamed first, and replaces the earlier log."""
    with suppress(OSError):  # it may not exist yet; if it cannot be renamed, it stays in use
        if path.stat().st_size >= limits.LOG_BYTES:
            path.replace(earlier(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes to stderr. If that is the file `path`, it is replaced by a new file when full."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        with suppress(OSError):  # a full disk: the next record tries again
            self._rotate()

    def _rotate(self) -> None:
        current = os.fstat(_STDERR)
        if current.st_size < limits.LOG_BYTES or not os.path.samestat(current, self._path.stat()):
            return
        log = open_log(self._path)
        try:
            for output in _OUTPUTS:
                if os.path.samestat(os.fstat(output), current):
                    os.dup2(log, output)
        finally:
            os.close(log)
