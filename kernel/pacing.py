"""How much of the processors long work takes: before each piece it rests, for a share of the time
that the piece before took, as long as others have something to do. Knows nothing of the pieces.
"""

import math
import time
from collections.abc import Callable

import anyio

from . import limits


class Pacing:
    """Of all the long work of a machine."""

    def __init__(self) -> None:
        self.computing: Callable[[], bool] = _never  # whether an engine computes
        self.calls: Callable[[], int] = _none  # made so far, by anybody
        self._seen = 0  # of them, at the last look
        self._called_at = -math.inf  # monotonic seconds: a look that found more of them

    async def rest(self, took_s: float, most_s: float = limits.SLICE_PAUSE_S) -> None:
        """Before a piece of work; `took_s`: the piece before. Cancel point."""
        now, calls = time.monotonic(), self.calls()
        if calls != self._seen:
            self._seen, self._called_at = calls, now
        if self.computing():
            share = limits.SLICE_SHARE
        elif now - self._called_at <= limits.SLICE_CALLED_S:
            share = limits.SLICE_SHARE_CALLS
        else:
            return
        await anyio.sleep(min(share * took_s, most_s))


def _never() -> bool:
    return False


def _none() -> int:
    return 0
