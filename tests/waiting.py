"""Waiting for what nothing announces: files, counts, states of another process.

Where the journal, a stream or an event announces it, a test waits for that instead.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
DEADLINE_S = 60.0  # a guard against hangs, never a timing
PAUSE_S = 0.02  # between two looks, so that what is waited for has the processor


def until(look: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """The first result of `look` that is true."""
    end, pause = time.monotonic() + deadline_s, threading.Event()
    while not (found := look()):
        assert time.monotonic() < end, "it did not come about in time"
        pause.wait(PAUSE_S)
    return found
