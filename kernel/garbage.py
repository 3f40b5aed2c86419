"""Python's garbage collector: keeps full collections from delaying calls.

A full collection visits every object: with 10,000 rules or processes that takes 30 ms and more. So
the survivors of each collection of the oldest generation are frozen. The next one then visits only
what is new, takes milliseconds and may run at any moment, by Python's own rule. Frozen objects that
form cycles later are freed by a full collection. It runs when memory has grown and no reply is
pending, or when it has grown so much that the cycles cost more than the delay.
"""

import gc
import sys
from typing import Protocol

import anyio

from .abi import limits

_YOUNG, _MIDDLE, _OLD = 700, 4, 10  # allocations; passes; passes
# Allocated blocks, in proportion to those after the last full collection.
_GROWN, _GROWN_MUCH = 1.25, 1.5


class Load(Protocol):
    """What the collector needs to know of the machine."""

    @property
    def pending_replies(self) -> int: ...


async def collect_when_idle(load: Load) -> None:
    """Run until the machine shuts down."""
    before = gc.get_threshold()
    gc.callbacks.append(_freeze_survivors)
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    try:
        least = _collect_all()
        while True:
            await anyio.sleep(limits.GARBAGE_S)
            blocks = sys.getallocatedblocks()
            least = min(least, blocks)
            if blocks > least * (_GROWN_MUCH if load.pending_replies else _GROWN):
                least = _collect_all()
    finally:
        gc.callbacks.remove(_freeze_survivors)
        gc.set_threshold(*before)


def _collect_all() -> int:
    """Collect everything; the blocks that are left."""
    gc.unfreeze()
    gc.collect()
    return sys.getallocatedblocks()


def _freeze_survivors(phase: str, collection: dict[str, int]) -> None:
    if phase == "stop" and collection["generation"] == 2:
        gc.freeze()
