"""How many threads compute: as many as the other programs leave cores.

Threads that wait for each other by spinning lose more than they win when a core is not theirs: on
two cores beside one busy program, two threads are slower than one. So what everybody else takes of
our cores is looked up twice a second, while there are steps, and the number follows: down at once,
up when two looks agree.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 0.5
_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")
_TAKEN = 0.6  # of a core: from here on it counts as somebody else's


@dataclass(frozen=True, slots=True)
class Look:
    """Seconds of processor time until now."""

    at: float
    busy: float  # of our cores, by everybody and by the hypervisor
    own: float


def wanted(cores: int, foreign: float) -> int:
    """Threads for so many cores, when others take `foreign` of them."""
    return max(1, cores - int(foreign + 1 - _TAKEN))


class Threads:
    """Follows the load of the machine. Where the system does not tell it, nothing changes."""

    def __init__(self, most: int) -> None:
        self.now = self._most = most
        self._cores = _affinity()
        self._last = self._look()
        self._agreed = 0

    def choose(self) -> int:
        """Threads for the next step."""
        last = self._last
        if last is None or self._most == 1 or time.monotonic() - last.at < _LOOK_S:
            return self.now
        look = self._last = self._look()
        if look is not None and look.at - last.at < 4 * _LOOK_S:  # else there was a pause
            taken = (look.busy - last.busy - (look.own - last.own)) / (look.at - last.at)
            self._follow(min(self._most, wanted(len(self._cores), max(0.0, taken))))
        return self.now

    def _follow(self, threads: int) -> None:
        if threads > self.now and not self._agreed:
            self._agreed = 1
            return
        self._agreed, self.now = 0, threads

    def _look(self) -> Look | None:
        try:
            lines = _STAT.read_text().splitlines()
        except OSError:
            return None
        ticks = 0
        for line in lines:
            name, *numbers = line.split()
            if name in self._cores:
                user, nice, system, _idle, _wait, irq, soft, steal = map(int, numbers[:8])
                ticks += user + nice + system + irq + soft + steal
        times = os.times()
        return Look(time.monotonic(), ticks / _TICKS, times.user + times.system)


def _affinity() -> frozenset[str]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(f"cpu{core}" for core in os.sched_getaffinity(0))
    return frozenset(f"cpu{core}" for core in range(os.cpu_count() or 1))
