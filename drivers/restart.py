"""Keeps a device running: restarts it with exponential back-off while it is mounted.

A `Running` is one run of a device: a child process, or a probe of an endpoint. It is not reused
after its end. `Restarter` waits for the end, reports it, and starts the next run. A device that
ended too often in a row is reported as failed, and is still restarted: after the next pause, when
a caller needs it (`retry`), or on request (`restart`). Nothing here polls.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, SyscallError
from llmasos.kernel.driver import Death

log = logging.getLogger(__name__)
REQUESTED = "it was restarted on request"
_DOUBLINGS = 30  # more would make no difference


class Running(Protocol):
    """One run of a device."""

    @property
    def ended(self) -> "asyncio.Future[Death]": ...

    async def close(self, reason: str = "") -> None:
        """End it. `reason`: set when the device is not at fault."""
        ...


@dataclass(slots=True)
class Backoff:
    """Pauses between restarts: they double until a run lasts STEADY_S."""

    deaths: int = 0  # in a row

    def died(self, lived_s: float) -> None:
        self.deaths = 1 if lived_s >= limits.STEADY_S else self.deaths + 1

    def reset(self) -> None:
        self.deaths = 0

    @property
    def failed(self) -> bool:
        return self.deaths > limits.CRASHES

    @property
    def pause_s(self) -> float:
        doubled: float = limits.RESTART_FIRST_S * 2 ** min(_DOUBLINGS, max(0, self.deaths - 1))
        return min(limits.RESTART_LAST_S, doubled)

    def applied(self, death: Death) -> Death:
        """The death with the number of deaths and the pause before the next start."""
        return replace(death, failed=self.failed, deaths=self.deaths, retry_s=self.pause_s)


R = TypeVar("R", bound=Running)


class Restarter(Generic[R]):
    """Keeps one device running. Its end fails the requests to it and nothing else."""

    def __init__(self, name: str, launch: Callable[[], Awaitable[R]]) -> None:
        self._name, self._launch = name, launch
        self.current: R | None = None  # None while it is down
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._retry_now = asyncio.Event()  # the next start does not wait for the end of the pause
        self._requested = False  # by restart(): the next start has no pause

    @property
    def running(self) -> R:
        if self.current is None:
            raise DeviceFault(f"{self._name} is down", "it is being restarted; try again later")
        return self.current

    async def start(self, up: Callable[[R], None], down: Callable[[Death], None]) -> None:
        """Start it; returns after `up`. DeviceFault with the reason: it is not retried."""
        self._up, self._down = up, down
        self.current = device = await self._launch()
        up(device)
        self._task = asyncio.create_task(self._keep(device))

    def retry(self) -> None:
        """Start it now instead of at the end of the pause; no effect outside a pause."""
        self._retry_now.set()

    async def restart(self) -> None:
        """End it, if it is up, and start it at once; resets the back-off."""
        self._requested = True
        self._backoff.reset()
        self._retry_now.set()
        if self.current is not None:
            await self.current.close(REQUESTED)

    async def _keep(self, device: R) -> None:
        """Wait for the end, report it, and start it again."""
        while True:
            begun = time.monotonic()
            death = await asyncio.shield(device.ended)
            self.current = None
            self._record(death, time.monotonic() - begun)
            while self.current is None:
                await self._pause()
                try:
                    self.current = device = await self._launch()
                except SyscallError as error:
                    self._record(Death(error.message), 0.0)
                except Exception as error:  # a bug in a launch must not stop the restarts
                    log.exception("cannot start %s", self._name)
                    self._record(Death(f"{type(error).__name__}: {error}"), 0.0)
            self._requested = False  # a request during the launch is satisfied by it
            self._report(self._up, device)

    def _record(self, death: Death, lived_s: float) -> None:
        self._retry_now.clear()
        if self._requested:
            self._report(self._down, death)
            return
        self._backoff.died(lived_s)
        self._report(self._down, self._backoff.applied(death))

    async def _pause(self) -> None:
        if not self._requested:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.pause_s):
                    await self._retry_now.wait()
        self._requested = False

    def _report(self, listener: Callable[..., None], event: object) -> None:
        """Call a listener; its failure must not keep the device down."""
        try:
            listener(event)
        except Exception:
            log.exception("the listener of %s failed", self._name)

    async def stop(self) -> None:
        """End it and stop restarting it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self.current is not None:
            await self.current.close()
            self.current = None
