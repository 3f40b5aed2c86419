"""Free memory goes back to the system: what a burst of texts took is not kept for the next one.

The threads that embed allocate arrays of megabytes, of another size for each batch, on heaps of
their own; glibc keeps what is freed between two that are in use, so the process would grow for
hours. Child process only.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

from llmasos.kernel import limits


class Heap:
    """Any thread may call `trim` after its work; every RECALL_TRIM_S one of them does it."""

    def __init__(self) -> None:
        trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        self._give_back: Callable[[int], int] | None = trim
        self._lock = threading.Lock()
        self._due = 0.0

    def trim(self) -> None:
        now = time.monotonic()
        if self._give_back is None or now < self._due or not self._lock.acquire(blocking=False):
            return
        try:
            self._due = now + limits.RECALL_TRIM_S
            self._give_back(0)
        finally:
            self._lock.release()
