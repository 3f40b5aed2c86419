"""The watchdog of a child process: distinguishes one that hangs from one that gets no processor.

Linux counts for each thread how long it was ready to run and waited for a processor. This time does
not count against a child: on a busy machine a step takes long and is no hang. A deadlock does not
wait for a processor and ends after its limit; a busy loop ends after its limit plus the time that
other programs took from it. Where the system has no such count, only elapsed time counts.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_LOOK = 0.1  # of the limit: interval between two looks at the threads; most steps end before


class ThreadTimes(NamedTuple):
    """Nanoseconds since the thread was started."""

    ran: int
    waited: int  # for a processor; a wait is counted when it has ended


class RunDelay:
    """The time that a process waits for a processor, since `start`."""

    __slots__ = ("_before", "_pid", "_seen")

    def __init__(self) -> None:
        self._pid = 0
        self._before = dict[str, ThreadTimes]()
        # The last times of each thread, and since when they have not changed (monotonic seconds).
        self._seen = dict[str, tuple[ThreadTimes, float]]()

    def start(self, pid: int) -> None:
        """Count from now on, unless it counts already."""
        if not self._pid:
            self._pid, self._before = pid, _times(pid)

    def seconds(self) -> float:
        """Of the thread that waited longest: the threads of a step wait for each other."""
        return max((self._waited(*found) for found in _times(self._pid).items()), default=0.0)

    def _waited(self, thread: str, times: ThreadTimes) -> float:
        now = time.monotonic()
        known, since = self._seen.get(thread, (None, now))
        if known != times:
            self._seen[thread] = times, now
        before = self._before.get(thread, ThreadTimes(0, 0)).waited
        ongoing = now - since if known == times and _is_runnable(self._pid, thread) else 0.0
        return (times.waited - before) / 1e9 + ongoing


def _times(pid: int) -> dict[str, ThreadTimes]:
    """The times of the threads of a process; empty when the system does not count them."""
    found = dict[str, ThreadTimes]()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError):  # it has just ended; or no count
                ran, waited, _ = (thread / "schedstat").read_text().split()
                found[thread.name] = ThreadTimes(int(ran), int(waited))
    return found


def _is_runnable(pid: int, thread: str) -> bool:
    """Whether a thread runs or waits for a processor."""
    try:
        text = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["R"]


class Watchdog:
    """Calls `expire` when work is outstanding and the child, able to run, sent nothing for long.

    "Long" is `seconds`, and at most a tenth of it more.
    """

    __slots__ = ("_begun", "_expire", "_pid", "_seconds", "_timer")

    def __init__(self, pid: int, seconds: float, expire: Callable[[], None]) -> None:
        self._pid, self._seconds, self._expire = pid, seconds, expire
        self._timer: asyncio.TimerHandle | None = None
        self._begun = 0.0  # of the wait, in the time of the loop

    def reset(self, *, work: bool) -> None:
        """Activity was seen. `work`: more is outstanding, so the timer starts again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if work:
            self._look_later(self._start)

    def arm(self) -> None:
        """Work is outstanding: start the timer, unless it runs."""
        if self._timer is None:
            self.reset(work=True)

    def _look_later(self, look: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds * _LOOK, look)

    def _start(self) -> None:
        delay = RunDelay()
        delay.start(self._pid)
        # Not from `reset` on: a delay of this process does not count either.
        self._begun = asyncio.get_running_loop().time() - self._seconds * _LOOK
        self._look_later(lambda: self._check(delay))

    def _check(self, delay: RunDelay) -> None:
        waited = asyncio.get_running_loop().time() - self._begun
        if waited - delay.seconds() < self._seconds:
            self._look_later(lambda: self._check(delay))
        else:
            self._expire()
