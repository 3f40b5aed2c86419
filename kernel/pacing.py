"""How much of the processors long work takes: before each piece it rests, for a share of the time
that the piece before took, as long as others have something to do. Knows nothing of the pieces.
"""

from collections.abc import Callable

import anyio

from . import limits


class Pacing:
    """Of all the long work of a machine."""

    def __init__(self) -> None:
        self.computing: Callable[[], bool] = _never  # whether an engine computes
        self.calls: Callable[[], int] = _none  # made so far, by anybody
        self._seen = 0  # of them, at the last look

    async def rest(self, took_s: float, most_s: float = limits.SLICE_PAUSE_S) -> None:
        """Before a piece of work; `took_s`: the piece before. Cancel point."""
        before, self._seen = self._seen, self.calls()
        if self.computing():
            share = limits.SLICE_SHARE
        elif self._seen != before:
            share = limits.SLICE_SHARE_CALLS
        else:
            return
        await anyio.sleep(min(share * took_s, most_s))


def _never() -> bool:
    return False


def _none() -> int:
    return 0
