"""The CPU share of other programs during a measurement.

Foreign time is all busy time, including time stolen by the hypervisor, minus this process and its
descendants (daemon, engines, load). A disturbed run is repeated.
"""

import ctypes
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .figures import Attempt, Take

_PROC = Path("/proc")
_SUBREAPER = 36  # of prctl


@dataclass(frozen=True, slots=True)
class Clock:
    """CPU time since boot, in ticks."""

    total: int  # of all cores, idle included
    busy: int
    own: int

    def foreign_since(self, before: "Clock") -> float:
        total = max(1, self.total - before.total)
        return max(0, (self.busy - before.busy) - (self.own - before.own)) / total


def now() -> Clock | None:
    """The clock now; None where the system has no /proc."""
    try:
        words = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, words)
    busy = user + nice + system + irq + softirq + steal
    return Clock(busy + idle + iowait, busy, _own())


def _own() -> int:
    """Ticks of all descendants, including those that ended and were waited for."""
    ticks: dict[int, int] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        fields = text[text.rindex(")") + 2 :].split()  # a program's name may contain spaces
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))
        children[int(fields[1])].append(int(entry.name))
    found, todo = 0, [os.getpid()]
    while todo:
        pid = todo.pop()
        found += ticks.get(pid, 0)
        todo += children[pid]
    return found


@contextmanager
def _adopting() -> Generator[None]:
    """Become the parent of orphaned descendants, so that their time is not counted as foreign.

    They remain zombies until this process ends, so that their time still counts.
    """
    linux = sys.platform == "linux"
    if linux:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        if linux:
            ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)


def quietly(take: Callable[[], Take], tries: int) -> Sequence[Attempt]:
    """Repeat a take until one attempt is quiet, at most `tries` times."""
    attempts: list[Attempt] = []
    while len(attempts) < tries:
        before = now()
        with _adopting():
            result = take()
            after = now()
        share = after.foreign_since(before) if before and after else None
        attempts.append(Attempt(result, None if share is None else round(share, 4)))
        if not attempts[-1].noisy:
            break
    return attempts
