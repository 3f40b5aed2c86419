"""Long work on the event loop, in slices: whoever waits gets a turn between two of them."""

import time
from typing import Any

import anyio.lowlevel

from . import limits

_AT_ONCE = 32


class Breath:
    """Call it often: it lets others go first once SLICE_S has passed. `shield`: no cancel point."""

    def __init__(self, *, shield: bool = False) -> None:
        self._pause = (
            anyio.lowlevel.cancel_shielded_checkpoint if shield else anyio.lowlevel.checkpoint
        )
        self._begun = time.monotonic()

    async def __call__(self) -> None:
        if time.monotonic() - self._begun > limits.SLICE_S:
            await self._pause()
            self._begun = time.monotonic()


async def release(objects: list[Any]) -> None:
    """Free what this list alone refers to: ten thousand objects at once take milliseconds."""
    breath = Breath(shield=True)
    while objects:
        del objects[-_AT_ONCE:]
        await breath()
