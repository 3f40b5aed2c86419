"""Whether the recall device runs: its state, its deaths, when it is tried again, its restart.

The driver starts a device again that was up once; a device whose first start fails is tried again
here, after the same pauses. It knows nothing of vectors.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import anyio

from .. import limits
from ..driver import Death, Recall, RecallListener
from ..errors import DeviceFault, Errno, SyscallError
from ..supervisor import Supervisor
from ..values import RECALL, RecallInfo


class Power:
    """Of one device; None: there is none. `listener` takes what the driver reports."""

    def __init__(self, device: Recall | None, listener: RecallListener, jobs: Supervisor) -> None:
        self._device, self._listener, self._jobs = device, listener, jobs
        self.tried = anyio.Event()  # the first try to start it has ended
        if device is None:
            self.tried.set()
        self._state = "idle" if device is not None else "off"
        self._restarts = 0
        self._death: Death | None = None  # the last one, while it is down
        self._died_at = 0.0  # monotonic seconds
        self._demanded = False
        self._refusals = 0  # first starts in a row that failed
        self._now = asyncio.Event()  # the next first start need not wait any longer
        self._changed = asyncio.Event()  # set and replaced at each change of state
        self.report: Callable[[str, str], None] = _nothing  # called with each state, and why

    @property
    def begun(self) -> bool:
        """Somebody has needed it."""
        return self._state not in ("off", "idle")

    # --- what becomes of it -------------------------------------------------------------------
    def up(self) -> None:
        self._death, self._demanded, self._refusals = None, False, 0
        self._become("up")

    def down(self, death: Death) -> None:
        self._restarts += 1
        self._death, self._died_at, self._demanded = death, time.monotonic(), False
        self._become("failed" if death.failed else "restarting")

    def _refused(self, error: SyscallError) -> Death:
        """Its first start failed; what follows."""
        self._refusals += 1
        pause_s: float = limits.RESTART_FIRST_S * 2 ** min(self._refusals - 1, 30)
        return Death(
            error.message, failed=self._refusals > limits.CRASHES, deaths=self._refusals,
            retry_s=min(limits.RESTART_LAST_S, pause_s),
        )  # fmt: skip

    def _become(self, state: str) -> None:
        self._state = state
        self.report(state, self._death.reason if self._death is not None else "")
        self._changed.set()
        self._changed = asyncio.Event()

    # --- tries ----------------------------------------------------------------------------------
    def demand(self) -> bool:
        """Somebody needs it: it is started, unless it died a moment ago. True the first time."""
        if self._state == "idle":
            self._become("starting")
            self._jobs.run(RECALL, self._start)
            return True
        rested = time.monotonic() - self._died_at >= limits.DEMAND_S
        if self._state == "failed" and rested and not self._demanded:
            self._demanded = True
            self._retry()
        return False

    async def _start(self) -> None:
        """Until it is up once; from then on the driver starts it again."""
        while self._device is not None:
            self._now.clear()
            try:
                await self._device.start(self._listener)
            except SyscallError as error:
                self._listener.down(self._refused(error))
            else:
                break
            finally:
                self.tried.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retry_s):
                    await self._now.wait()

    async def stop(self) -> None:
        if self._device is not None and self.begun:
            await self._device.stop()

    def _retry(self) -> None:
        self._now.set()
        if self._device is not None and not self._refusals:
            self._device.retry()

    async def restart(self) -> None:
        """End it, if it is up, and start it at once; returns when it is up. EIO, ENOTSUP.

        It holds nothing then: what is needed is handed over again.
        """
        if self._device is None:
            hint = "`llmasos config set memory_embedder builtin`, then `llmasos daemon restart`"
            raise SyscallError(Errno.ENOTSUP, "there is no recall process", hint)
        self.demand()
        expected = self._restarts + (self._state == "up")  # times that it will have been down
        if self._refusals:
            self._now.set()
        elif self._state != "starting":
            await self._device.restart()
        while self._state != "up":
            if self._restarts > expected:
                raise self.fault()
            await self._changed.wait()

    # --- what is known of it ----------------------------------------------------------------------
    @property
    def _retry_s(self) -> float:
        if self._death is None:
            return 0.0
        return max(0.0, self._died_at + self._death.retry_s - time.monotonic())

    def fault(self) -> DeviceFault:
        reason = self._death.reason if self._death is not None else "it does not run"
        hint = f"`llmasos devices restart {RECALL}` starts it now, `llmasos daemon logs` tells more"
        words = (
            f"the recall process is down: {reason}; it is started again in {self._retry_s:.0f} s"
        )
        return DeviceFault(words, hint)

    def info(self, os_pid: int, embedder: str) -> RecallInfo:
        note = self._death.reason if self._death is not None else ""
        return RecallInfo(
            self._state, os_pid, embedder, self._restarts, note, round(self._retry_s, 1)
        )


def _nothing(state: str, reason: str) -> None:
    return
