"""Python's collector, kept from stopping everybody: a full pass looks at every object there is.

With 10,000 rules or processes that is 30 ms and more, at any moment. So what the boot made is set
aside for good, young objects are collected as always, and a full pass waits until nobody asks for
anything, or until it has waited too long.
"""

import gc

import anyio

from . import limits
from .machine import Machine

_YOUNG, _MIDDLE, _NEVER = 700, 4, 1_000_000  # allocations; passes; passes
_SKIPS = 10  # looks at a busy machine before a full pass is due all the same


async def tend(machine: Machine) -> None:
    """Until the machine goes down."""
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    skipped = 0
    try:
        while True:
            await anyio.sleep(limits.GARBAGE_S)
            skipped += 1
            if machine.owed == 0 or skipped > _SKIPS:
                gc.collect()
                skipped = 0
    finally:
        gc.set_threshold(*before)
