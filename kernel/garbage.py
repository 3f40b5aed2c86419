"""Python's garbage collector: keeps full collections from delaying calls.

A full collection visits every object: with 10,000 rules or processes that takes 30 ms and more, at
any moment. So the objects created at boot are frozen, young objects are collected as usual, and a
full collection waits until no reply is pending, or at most for _SKIPS checks.
"""

import gc

import anyio

from .abi import limits
from .dispatch import Dispatcher

_YOUNG, _MIDDLE, _NEVER = 700, 4, 1_000_000  # allocations; passes; passes
_SKIPS = 10  # checks that find the machine busy before a full collection runs anyway


async def collect_when_idle(dispatcher: Dispatcher) -> None:
    """Run until the machine shuts down."""
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    skipped = 0
    try:
        while True:
            await anyio.sleep(limits.GARBAGE_S)
            skipped += 1
            if dispatcher.pending_replies == 0 or skipped > _SKIPS:
                gc.collect()
                skipped = 0
    finally:
        gc.set_threshold(*before)
