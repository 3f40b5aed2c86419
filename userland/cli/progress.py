"""Progress of a long call on stderr: one redrawn line on a terminal, a single line elsewhere.

A call that ends within SHOW_S prints nothing.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TypeVar, cast

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Progress
from llmasos.userland.client import BlockingStream

from .invocation import CURRENT
from .show import cell

R = TypeVar("R")
_CLEAR = "\r\x1b[K"


class ProgressMeter:
    """The progress line. It is shown from SHOW_S after the first report."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._hidden = CURRENT.json
        self._lock = Lock()  # the thread of the timer draws first
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
            if self._last is not None and not self._hidden:
                self._shown = True
                self._draw(self._last)

    def _draw(self, progress: Progress) -> None:
        text = cell(f"{progress.stage} {progress.note}".strip())
        line = f"{_CLEAR}{text} {progress.done:.0%}" if self._terminal else f"{text} ...\n"
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
            self._shown = False


@contextmanager
def progress_meter() -> Generator[ProgressMeter]:
    """A progress line that is removed at the end of the block."""
    meter = ProgressMeter()
    try:
        yield meter
    finally:
        meter.close()


def follow(stream: BlockingStream[Progress, R]) -> R:
    """Show the progress reports of a call and return its reply."""
    with progress_meter() as meter:
        for progress in stream:
            meter.take(progress)
    return cast("R", stream.reply)
