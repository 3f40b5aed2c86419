"""The life cycle of the recall process: start, failures, retries, restart, and its state.

The driver restarts a process that was up once. Until then a start that fails is retried here, after
the same pauses. This file must not know what the process is for.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from ..abi import limits
from ..abi.errors import DeviceFault, Errno, SyscallError
from ..abi.values import RECALL, RecallInfo
from ..driver import Death
from ..recall_driver import Recall, RecallListener
from ..supervisor import Supervisor


class RecallProcess:
    """The process of a driver; None: there is none. `listener` receives the driver's reports."""

    def __init__(self, driver: Recall | None, listener: RecallListener, jobs: Supervisor) -> None:
        self._driver, self._listener, self._jobs = driver, listener, jobs
        self.attempted = asyncio.Event()  # set when the first attempt to start it has ended
        if driver is None:
            self.attempted.set()
        self._state = "idle" if driver is not None else "off"
        self._failures = 0  # reports that it is down: failed starts, and ends
        self._death: Death | None = None  # the last failure, while it is down
        self._died_at = 0.0  # monotonic seconds
        self._retry_requested = False
        self._failed_starts = 0  # failed attempts before it was up once
        self._start_now = asyncio.Event()  # set: start now, without the pause
        self._state_changed = asyncio.Event()  # set and replaced at each change of state
        # Called with each new state and its reason.
        self.report: Callable[[str, str], None] = _nothing

    @property
    def requested(self) -> bool:
        """Whether its start was ever requested."""
        return self._state not in ("off", "idle")

    # --- state changes --------------------------------------------------------------------------
    def up(self) -> None:
        self._death, self._retry_requested, self._failed_starts = None, False, 0
        self._set_state("up")

    def down(self, death: Death) -> None:
        self._failures += 1
        self._death, self._died_at, self._retry_requested = death, time.monotonic(), False
        self._set_state("failed" if death.failed else "restarting")

    def _start_failed(self, error: SyscallError) -> Death:
        """It was never up, and a start failed: the reason and the time of the next attempt."""
        self._failed_starts += 1
        pause_s: float = limits.RESTART_FIRST_S * 2 ** min(self._failed_starts - 1, 30)
        return Death(
            error.message, failed=self._failed_starts > limits.CRASHES, deaths=self._failed_starts,
            retry_s=min(limits.RESTART_LAST_S, pause_s),
        )  # fmt: skip

    def _set_state(self, state: str) -> None:
        self._state = state
        self.report(state, self._death.reason if self._death is not None else "")
        self._state_changed.set()
        self._state_changed = asyncio.Event()

    # --- start and restart ----------------------------------------------------------------------
    def request_start(self) -> bool:
        """Start it if it never was; retry at once if it has failed, and DEMAND_S ago or earlier.

        True: this was the first request.
        """
        if self._state == "idle":
            self._set_state("starting")
            self._jobs.run(RECALL, self._start)
            return True
        pause_over = time.monotonic() - self._died_at >= limits.DEMAND_S
        if self._state == "failed" and pause_over and not self._retry_requested:
            self._retry_requested = True
            self._retry()
        return False

    async def _start(self) -> None:
        """Start it and retry until it is up once; from then on the driver restarts it."""
        while self._driver is not None:
            self._start_now.clear()
            try:
                await self._driver.start(self._listener)
            except SyscallError as error:
                self._listener.down(self._start_failed(error))
            else:
                break
            finally:
                self.attempted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retry_s):
                    await self._start_now.wait()

    async def stop(self) -> None:
        if self._driver is not None and self.requested:
            await self._driver.stop()

    def _retry(self) -> None:
        self._start_now.set()
        if self._driver is not None and not self._failed_starts:
            self._driver.retry()

    async def restart(self) -> None:
        """Stop it if it is up, and start it at once; returns when it is up. EIO, ENOTSUP."""
        if self._driver is None:
            hint = "`llmasos config set memory_embedder builtin`, then `llmasos daemon restart`"
            raise SyscallError(Errno.ENOTSUP, "there is no recall process", hint)
        self.request_start()
        expected = self._failures + (self._state == "up")  # until it is up; stopping it counts
        if self._failed_starts:
            self._start_now.set()
        elif self._state != "starting":
            await self._driver.restart()
        while self._state != "up":
            if self._failures > expected:
                raise self.fault()
            await self._state_changed.wait()

    # --- reports ----------------------------------------------------------------------------------
    @property
    def _retry_s(self) -> float:
        if self._death is None:
            return 0.0
        return max(0.0, self._died_at + self._death.retry_s - time.monotonic())

    def fault(self) -> DeviceFault:
        reason = self._death.reason if self._death is not None else "it is not running"
        hint = f"`llmasos devices restart {RECALL}` starts it now; see `llmasos daemon logs`"
        message = f"the recall process is down: {reason}; next start in {self._retry_s:.0f} s"
        return DeviceFault(message, hint)

    def info(self, os_pid: int, embedder: str) -> RecallInfo:
        note = self._death.reason if self._death is not None else ""
        return RecallInfo(
            self._state, os_pid, embedder, self._failures, note, round(self._retry_s, 1)
        )


def _nothing(state: str, reason: str) -> None:
    return
