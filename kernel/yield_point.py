"""Cooperative yields: long work on the event loop runs in slices, with other tasks in between."""

import time
from typing import Any

import anyio.lowlevel

from .abi import limits

_BATCH = 32


class YieldPoint:
    """Call it often: it yields to other tasks every SLICE_S. `shield`: without a cancel point."""

    def __init__(self, *, shield: bool = False) -> None:
        self._checkpoint = (
            anyio.lowlevel.cancel_shielded_checkpoint if shield else anyio.lowlevel.checkpoint
        )
        self._started = time.monotonic()

    async def __call__(self) -> None:
        if time.monotonic() - self._started > limits.SLICE_S:
            await self._checkpoint()
            self._started = time.monotonic()


async def release(objects: list[Any]) -> None:
    """Free the objects that only this list refers to, in slices: 10,000 at once take ms.

    Yields before and after, so that no slice is added to one of its caller.
    """
    yield_point = YieldPoint(shield=True)
    await anyio.lowlevel.cancel_shielded_checkpoint()
    while objects:
        del objects[-_BATCH:]
        await yield_point()
    await anyio.lowlevel.cancel_shielded_checkpoint()
