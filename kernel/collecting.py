"""Removes processes that ended long ago and that nobody waited for, as a background job.

It sleeps until the oldest of them is due, or until another one ends.
"""

import logging
import time

import anyio

from . import limits
from .errors import SyscallError
from .machine import Machine

log = logging.getLogger(__name__)


async def collect(machine: Machine, after_s: float) -> None:
    """Until the machine goes down."""
    while True:
        machine.processes.another_ended.clear()
        pause = await _collected(machine, after_s)
        with anyio.move_on_after(pause):
            await machine.processes.another_ended.wait()


async def _collected(machine: Machine, after_s: float) -> float | None:
    """Remove what is due. Seconds until the next one is; None while nothing waits to be."""
    pause: float | None = None
    for process in machine.processes.all():
        if process.ending is None:
            continue
        left = process.ended_at + after_s - time.time()
        if left <= 0 and not process.idle.is_set():
            left = limits.COLLECT_RETRY_S  # its last call is still being cancelled
        if left <= 0:
            try:
                await machine.reap(process)
                machine.tell_process(process, "removed: it ended and nobody waited for it")
                continue
            except SyscallError as error:
                log.warning("process %d has ended and stays: %s", process.pid, error)
                left = limits.COLLECT_RETRY_S
        pause = left if pause is None else min(pause, left)
    return pause
