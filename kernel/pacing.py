"""How much of the processors long work takes: its pieces together, one part of so many, as long as
others have something to do. Each piece waits until those before it have been rested for. Knows
nothing of the pieces.
"""

import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio

from . import limits


class Pacing:
    """Of all the long work of a machine."""

    def __init__(self) -> None:
        self.computing: Callable[[], bool] = _never  # whether an engine computes
        self.calls: Callable[[], int] = _none  # made so far, by anybody
        self._seen = 0  # of them, at the last look
        self._called_at = -math.inf  # monotonic seconds: a look that found more of them
        self._ended: list[tuple[float, float]] = []  # pieces to rest for: begun at, took_s
        self._next_at = 0.0  # monotonic seconds: the next piece begins no sooner

    @asynccontextmanager
    async def piece(self, most_s: float = limits.SLICE_PAUSE_S) -> AsyncGenerator[None]:
        """A rest of `most_s` seconds at most, then the piece. Cancel point before it begins."""
        await self._rest(most_s)
        begun = time.monotonic()
        try:
            yield
        finally:
            self._ended.append((begun, time.monotonic() - begun))

    async def _rest(self, most_s: float) -> None:
        share = self._share()
        ended, self._ended = self._ended, []
        if not share:
            return
        # On one time line, so that two works that go on at once do not take two shares.
        for begun, took_s in ended:
            self._next_at = max(self._next_at, begun) + (1 + share) * took_s
        now = time.monotonic()
        self._next_at = min(self._next_at, now + limits.INDEX_PAUSE_S)
        await anyio.sleep(max(0.0, min(self._next_at - now, most_s)))

    def _share(self) -> float:
        """The rest, as a multiple of the pieces; 0 when nobody else has anything to do."""
        now, calls = time.monotonic(), self.calls()
        if calls != self._seen:
            self._seen, self._called_at = calls, now
        if self.computing():
            return limits.SLICE_SHARE
        called = now - self._called_at <= limits.SLICE_CALLED_S
        return limits.SLICE_SHARE_CALLS if called else 0.0


def _never() -> bool:
    return False


def _none() -> int:
    return 0
