"""Limits the share of the processors that long tasks take while other work is pending.

Long tasks run in pieces. Before each piece there is a pause in proportion to the duration of the
pieces before it. This module does not depend on what the pieces do.
"""

import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio

from ..abi import limits


class Pacing:
    """The pauses of all long tasks of a machine."""

    def __init__(self) -> None:
        self.computing: Callable[[], bool] = _never  # whether an engine computes
        self.calls: Callable[[], int] = _none  # calls of all clients so far
        self._calls_seen = 0  # `calls` at the last check
        self._called_at = -math.inf  # monotonic seconds: the last check that found new calls
        # Pieces that have ended and are not in `_next_at` yet: begun at, duration in seconds.
        self._uncounted: list[tuple[float, float]] = []
        self._next_at = 0.0  # monotonic seconds: the next piece begins no earlier

    @asynccontextmanager
    async def piece(self, most_s: float = limits.SLICE_PAUSE_S) -> AsyncGenerator[None]:
        """Pause for `most_s` seconds at most, then run the piece. Cancel point before it begins."""
        await self._pause(most_s)
        begun = time.monotonic()
        try:
            yield
        finally:
            self._uncounted.append((begun, time.monotonic() - begun))

    async def _pause(self, most_s: float) -> None:
        factor = self._pause_factor()
        ended, self._uncounted = self._uncounted, []
        if not factor:
            return
        # One time line for all tasks, so that two concurrent tasks do not take two shares.
        for begun, took_s in ended:
            self._next_at = max(self._next_at, begun) + (1 + factor) * took_s
        now = time.monotonic()
        self._next_at = min(self._next_at, now + limits.INDEX_PAUSE_S)
        await anyio.sleep(max(0.0, min(self._next_at - now, most_s)))

    def _pause_factor(self) -> float:
        """The pause as a multiple of the pieces' duration; 0 when no other work is pending."""
        now, calls = time.monotonic(), self.calls()
        if calls != self._calls_seen:
            self._calls_seen, self._called_at = calls, now
        if self.computing():
            return limits.SLICE_SHARE
        called = now - self._called_at <= limits.SLICE_CALLED_S
        return limits.SLICE_SHARE_CALLS if called else 0.0


def _never() -> bool:
    return False


def _none() -> int:
    return 0
