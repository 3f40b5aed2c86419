"""Background job that removes processes which ended long ago without a `wait`.

It sleeps until the oldest of them is due, or until another process ends.
"""

import logging
import time

import anyio

from .abi import limits
from .abi.errors import SyscallError
from .lifecycle import Lifecycle

log = logging.getLogger(__name__)


async def collect(lifecycle: Lifecycle, after_s: float) -> None:
    """Run until the machine shuts down."""
    while True:
        lifecycle.processes.another_ended.clear()
        pause = await _remove_due(lifecycle, after_s)
        with anyio.move_on_after(pause):
            await lifecycle.processes.another_ended.wait()


async def _remove_due(lifecycle: Lifecycle, after_s: float) -> float | None:
    """Remove the processes that are due. Seconds until the next one is; None: there is none."""
    pause: float | None = None
    for process in lifecycle.processes.all():
        if process.ending is None:
            continue
        left = process.ended_at + after_s - time.time()
        if left <= 0 and not process.idle.is_set():
            left = limits.COLLECT_RETRY_S  # its last call is being cancelled
        if left <= 0:
            try:
                await lifecycle.reap(process)
                lifecycle.record(process, "removed: it ended and no call waited for it")
                continue
            except SyscallError as error:
                log.warning("cannot remove ended process %d: %s", process.pid, error)
                left = limits.COLLECT_RETRY_S
        pause = left if pause is None else min(pause, left)
    return pause
