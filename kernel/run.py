"""This run of the kernel: what it was started with, and how it ends."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .abi.values import SettingInfo


def _nothing() -> None:
    return


@dataclass(slots=True)
class KernelRun:
    """The run of a kernel from its start to its end."""

    # Set at the start, then constant.
    owner: str  # of the machine
    system: str  # version of the software
    private: bool
    shared: bool  # other users of the system may connect
    listens: bool  # over TCP
    settings: Sequence[SettingInfo] = ()
    before: str = ""  # how the last run ended
    started: float = field(default_factory=time.monotonic)
    os_pid: int = field(default_factory=os.getpid)
    # How it ends.
    stop_reason: str = ""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    drain: bool = True  # when stopping: calls in flight get DRAIN_S
    skip_drain: Callable[[], None] = field(default=_nothing)  # stops the wait for these calls

    def stop(self, reason: str, *, drain: bool) -> None:
        """Shut down. A second call, or one without `drain`, does not wait for calls in flight."""
        self.stop_reason = self.stop_reason or reason
        if self.stopping.is_set() or not drain:
            self.drain = False
            self.skip_drain()
        self.stopping.set()
