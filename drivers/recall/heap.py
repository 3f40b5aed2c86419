"""Returns freed memory to the system after a burst of texts.

The embedding threads allocate arrays of megabytes, of a different size for each batch, on heaps of
their own; glibc keeps freed blocks between two used ones, so the process would grow for hours.
Recall process only.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

from llmasos.kernel.abi import limits


class Heap:
    """Any thread may call `trim` after its work; it trims at most every RECALL_TRIM_S seconds."""

    def __init__(self) -> None:
        trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        self._malloc_trim: Callable[[int], int] | None = trim
        self._lock = threading.Lock()
        self._due = 0.0

    def trim(self) -> None:
        now = time.monotonic()
        if self._malloc_trim is None or now < self._due or not self._lock.acquire(blocking=False):
            return
        try:
            self._due = now + limits.RECALL_TRIM_S
            self._malloc_trim(0)
        finally:
            self._lock.release()
