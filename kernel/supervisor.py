"""Background jobs of the kernel: runs them, restarts those that fail, and reports their state.

`run` is for work that can be repeated: an unexpected exception is logged with its traceback, and
the job runs again after a pause that doubles with each failure. `once` is for work that must not be
repeated: the exception is logged, and `failed` is called so that no caller waits for it forever.
What is not an Exception (cancellation, SystemExit) is not caught. The supervisor owns the task
group and does not know what a job does.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import extract_tb
from typing import Literal, TypeVarTuple

import anyio
from anyio.abc import TaskGroup

from . import points
from .abi import limits

log = logging.getLogger(__name__)
Args = TypeVarTuple("Args")
Body = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class BackgroundJob:
    """The state of one job."""

    name: str
    owner: str  # of the data it works on; empty: none
    state: Literal["running", "waiting", "failed", "ended"] = "running"  # waiting: to run again
    failures: int = 0
    error: str = ""  # last failure: type and location, without its text, which may quote user data
    failed_at: float = 0.0  # monotonic seconds
    pause_s: float = 0.0  # between the last failure and the next run

    @property
    def retry_s(self) -> float:
        """Seconds until the next run; 0 unless it waits for one."""
        if self.state != "waiting":
            return 0.0
        return max(0.0, self.failed_at + self.pause_s - time.monotonic())


class Supervisor:
    """Every background job of a machine."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._jobs: dict[int, BackgroundJob] = {}  # jobs of `run`, by a serial number
        self._number = 0
        self._ended: deque[BackgroundJob] = deque(maxlen=limits.JOBS_ENDED)  # after a failure
        self.failures = 0  # of all jobs, since boot
        self.report: Callable[[BackgroundJob], None] = _nothing  # called at each change of state

    def run(
        self, name: str, body: Callable[[*Args], Awaitable[object]], *args: *Args,
        owner: str = "",
    ) -> None:  # fmt: skip
        """Run a job until it returns; after an unexpected exception run it again."""
        self._number += 1
        self._jobs[self._number] = BackgroundJob(name, owner)
        self._tasks.start_soon(self._run_until_done, self._number, partial(body, *args))

    def once(
        self, name: str, body: Callable[[*Args], Awaitable[object]], *args: *Args,
        failed: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Run a job; after an unexpected exception call `failed`."""
        self._tasks.start_soon(self._attempt_once, name, partial(body, *args), failed)

    @property
    def running(self) -> int:
        """Number of `run` jobs that are running, not waiting to run again."""
        return len([job for job in self._jobs.values() if job.state == "running"])

    def jobs(self) -> list[BackgroundJob]:
        """The jobs that run or wait, then those that have ended after a failure."""
        return [*self._jobs.values(), *self._ended]

    async def _run_until_done(self, number: int, body: Body) -> None:
        job = self._jobs[number]
        try:
            while not await self._attempt(job, body):
                await anyio.sleep(job.pause_s)
                job.state = "running"
                self.report(job)
        finally:
            del self._jobs[number]
        if job.failures:
            job.state = "ended"
            self._ended.append(job)
            self.report(job)

    async def _attempt(self, job: BackgroundJob, body: Body) -> bool:
        """Run it once. False after a failure."""
        begun = time.monotonic()
        try:
            points.passed(f"job.{job.name}")
            await body()
        except Exception as error:
            now = time.monotonic()
            first = job.pause_s == 0 or now - begun > limits.JOB_STEADY_S
            job.pause_s = limits.JOB_RETRY_FIRST_S if first else 2 * job.pause_s
            job.pause_s = min(job.pause_s, limits.JOB_RETRY_LAST_S)
            self._note_failure(job, error, "waiting")
            return False
        return True

    async def _attempt_once(self, name: str, body: Body, failed: Callable[[], None] | None) -> None:
        try:
            points.passed(f"job.{name}")
            await body()
        except Exception as error:
            job = BackgroundJob(name, "")
            self._note_failure(job, error, "failed")
            self._ended.append(job)
            if failed is not None:
                failed()

    def _note_failure(
        self, job: BackgroundJob, error: Exception, state: Literal["waiting", "failed"]
    ) -> None:
        self.failures += 1
        job.failures += 1
        job.state, job.failed_at = state, time.monotonic()
        job.error = _describe(error)
        again = f", runs again in {job.pause_s:g} s" if state == "waiting" else ""
        log.error("background job %s failed%s", job.name, again, exc_info=error)
        self.report(job)


def _describe(error: Exception) -> str:
    """Its type and where it was raised; for an OSError also the operating system's message."""
    frames = extract_tb(error.__traceback__)
    location = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    message = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{location}{message}"


def _nothing(_: BackgroundJob) -> None:
    return
