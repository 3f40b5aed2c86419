"""How far something long is, on stderr: one redrawn line on a terminal, a single line elsewhere.

What is over soon shows nothing.
"""

import os
import sys
from threading import Lock, Timer
from typing import TypeVar, cast

from llmasos.kernel import limits
from llmasos.kernel.values import Progress
from llmasos.userland.line import Stream

from .invocation import CURRENT
from .show import cell

R = TypeVar("R")
_CLEAR = "\r\x1b[K"


class Meter:
    """The line. It begins to be shown SHOW_S after the first word about it."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._silent = CURRENT.json
        self._lock = Lock()  # the timer's thread shows it first
        self._timer: Timer | None = None
        self._last: Progress | None = None
        self._shown = False

    def take(self, progress: Progress) -> None:
        with self._lock:
            self._last = progress
            if self._shown and self._terminal:
                self._draw(progress)
        if self._timer is None:
            self._timer = Timer(limits.SHOW_S, self._begin)
            self._timer.daemon = True
            self._timer.start()

    def _begin(self) -> None:
        with self._lock:
            if self._last is not None and not self._silent:
                self._shown = True
                self._draw(self._last)

    def _draw(self, progress: Progress) -> None:
        words = cell(f"{progress.stage} {progress.note}".strip())
        line = f"{_CLEAR}{words} {progress.done:.0%}" if self._terminal else f"{words} ...\n"
        sys.stderr.write(line)
        sys.stderr.flush()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._last = None
            if self._shown and self._terminal:
                sys.stderr.write(_CLEAR)
                sys.stderr.flush()


def follow(stream: Stream[Progress, R]) -> R:
    """The reply of a call that tells how far it is."""
    meter = Meter()
    try:
        for progress in stream:
            meter.take(progress)
    finally:
        meter.close()
    return cast("R", stream.reply)
