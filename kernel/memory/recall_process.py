"""The life cycle of the recall process: start, failures, retries, restart, and its state.

The driver restarts a device that was up once. A first start that fails is retried here, after the
same pauses. This file must not know what a vector is.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import anyio

from ..abi import limits
from ..abi.errors import DeviceFault, Errno, SyscallError
from ..abi.values import RECALL, RecallInfo
from ..driver import Death
from ..recall_driver import Recall, RecallListener
from ..supervisor import Supervisor


class RecallProcess:
    """The process of one device; None: there is none. `listener` receives the driver's reports."""

    def __init__(self, device: Recall | None, listener: RecallListener, jobs: Supervisor) -> None:
        self._device, self._listener, self._jobs = device, listener, jobs
        self.attempted = anyio.Event()  # set when the first attempt to start it has ended
        if device is None:
            self.attempted.set()
        self._state = "idle" if device is not None else "off"
        self._restarts = 0
        self._death: Death | None = None  # the last failure, while it is down
        self._died_at = 0.0  # monotonic seconds
        self._retry_requested = False
        self._failed_starts = 0  # consecutive first starts that failed
        self._start_now = asyncio.Event()  # set: start now, without the pause
        self._state_changed = asyncio.Event()  # set and replaced at each change of state
        self.report: Callable[[str, str], None] = (
            _nothing  # called with each new state and its reason
        )

    @property
    def requested(self) -> bool:
        """Whether its start was ever requested."""
        return self._state not in ("off", "idle")

    # --- state changes --------------------------------------------------------------------------
    def up(self) -> None:
        self._death, self._retry_requested, self._failed_starts = None, False, 0
        self._set_state("up")

    def down(self, death: Death) -> None:
        self._restarts += 1
        self._death, self._died_at, self._retry_requested = death, time.monotonic(), False
        self._set_state("failed" if death.failed else "restarting")

    def _first_start_failed(self, error: SyscallError) -> Death:
        """Its first start failed: the reason and the next attempt."""
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
        """Start it, unless it failed less than DEMAND_S ago. True: this is the first start."""
        if self._state == "idle":
            self._set_state("starting")
            self._jobs.run(RECALL, self._start)
            return True
        paused = time.monotonic() - self._died_at >= limits.DEMAND_S
        if self._state == "failed" and paused and not self._retry_requested:
            self._retry_requested = True
            self._retry()
        return False

    async def _start(self) -> None:
        """Start it and retry until it is up once; from then on the driver restarts it."""
        while self._device is not None:
            self._start_now.clear()
            try:
                await self._device.start(self._listener)
            except SyscallError as error:
                self._listener.down(self._first_start_failed(error))
            else:
                break
            finally:
                self.attempted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retry_s):
                    await self._start_now.wait()

    async def stop(self) -> None:
        if self._device is not None and self.requested:
            await self._device.stop()

    def _retry(self) -> None:
        self._start_now.set()
        if self._device is not None and not self._failed_starts:
            self._device.retry()

    async def restart(self) -> None:
        """Stop it if it is up, and start it at once; returns when it is up. EIO, ENOTSUP.

        It starts without vectors: they are sent again when a search needs them.
        """
        if self._device is None:
            hint = "`llmasos config set memory_embedder builtin`, then `llmasos daemon restart`"
            raise SyscallError(Errno.ENOTSUP, "there is no recall process", hint)
        self.request_start()
        expected = self._restarts + (self._state == "up")  # failures and restarts until it is up
        if self._failed_starts:
            self._start_now.set()
        elif self._state != "starting":
            await self._device.restart()
        while self._state != "up":
            if self._restarts > expected:
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
            self._state, os_pid, embedder, self._restarts, note, round(self._retry_s, 1)
        )


def _nothing(state: str, reason: str) -> None:
    return
