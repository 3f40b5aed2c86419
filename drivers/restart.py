"""Keeps a device running: starts it again after growing pauses, for as long as it is mounted.

A `Running` is one life of a device, as a child process or a look at an endpoint; it is never used
again after its end. `Restarter` waits for that end, reports it, and starts the next one. A device
that ended too often in a row is reported as failed, and is still tried again: after the next pause,
when somebody asks for it (`retry`), or on request (`restart`). Nothing here polls.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from llmasos.kernel import limits
from llmasos.kernel.driver import Death
from llmasos.kernel.errors import DeviceFault, SyscallError

log = logging.getLogger(__name__)
REQUESTED = "it was restarted on request"
_DOUBLINGS = 30  # more would make no difference


class Running(Protocol):
    """One life of a device."""

    @property
    def ended(self) -> "asyncio.Future[Death]": ...

    async def close(self, reason: str = "") -> None:
        """End it. `reason`: why, where it was not the device's fault."""
        ...


@dataclass(slots=True)
class Backoff:
    """Pauses between the tries to start a device: they double until it has run for STEADY_S."""

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
        """A death with what follows it."""
        return replace(death, failed=self.failed, deaths=self.deaths, retry_s=self.pause_s)


R = TypeVar("R", bound=Running)


class Restarter(Generic[R]):
    """Keeps a device running: what ends it ends what was asked of it and nothing else."""

    def __init__(self, name: str, launch: Callable[[], Awaitable[R]]) -> None:
        self._name, self._launch = name, launch
        self.line: R | None = None  # None while it is down
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._now = asyncio.Event()  # the next try need not wait any longer
        self._requested = False  # a restart: the next try needs no pause

    @property
    def running(self) -> R:
        if self.line is None:
            raise DeviceFault(f"{self._name} is down", "it is being started again: try later")
        return self.line

    async def start(self, up: Callable[[R], None], down: Callable[[Death], None]) -> None:
        """Returns after `up`. DeviceFault with the reason; then nothing is tried again."""
        self._up, self._down = up, down
        self.line = line = await self._launch()
        up(line)
        self._task = asyncio.create_task(self._keep(line))

    def retry(self) -> None:
        """Start it now, instead of at the end of the pause; no effect unless it is in one."""
        self._now.set()

    async def restart(self) -> None:
        """End it, if it is up, and start it at once; earlier deaths do not count any more."""
        self._requested = True
        self._backoff.reset()
        self._now.set()
        if self.line is not None:
            await self.line.close(REQUESTED)

    async def _keep(self, line: R) -> None:
        """Wait for the end, report it, start it again."""
        while True:
            begun = time.monotonic()
            death = await asyncio.shield(line.ended)
            self.line = None
            self._note(death, time.monotonic() - begun)
            while self.line is None:
                await self._pause()
                try:
                    self.line = line = await self._launch()
                except SyscallError as error:
                    self._note(Death(error.message), 0.0)
                except Exception as error:  # a launch that fails is no reason to give up
                    log.exception("%s was not started", self._name)
                    self._note(Death(f"{type(error).__name__}: {error}"), 0.0)
            self._requested = False  # made while it started: it has been
            self._report(self._up, line)

    def _note(self, death: Death, lived_s: float) -> None:
        self._now.clear()
        if self._requested:
            self._report(self._down, death)
            return
        self._backoff.died(lived_s)
        self._report(self._down, self._backoff.applied(death))

    async def _pause(self) -> None:
        if not self._requested:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.pause_s):
                    await self._now.wait()
        self._requested = False

    def _report(self, listener: Callable[..., None], news: object) -> None:
        """A listener that fails must not keep the device down for ever."""
        try:
            listener(news)
        except Exception:
            log.exception("what became of %s was not taken in", self._name)

    async def stop(self) -> None:
        """End it: ask, then kill."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self.line is not None:
            await self.line.close()
            self.line = None
