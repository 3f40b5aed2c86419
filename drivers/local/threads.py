"""Adapts the number of computing threads to the cores that other programs leave idle.

Threads wait for each other in spin loops, which is slow on a shared core: on two cores beside one
busy program, two threads are slower than one. So the load of other programs on our cores is sampled
twice a second while there are steps. The number of threads decreases at once and increases after
two consecutive samples.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.5
_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY = 0.6  # of a core: from this load on it counts as used by others


@dataclass(frozen=True, slots=True)
class LoadSample:
    """Seconds of CPU time since boot."""

    at: float  # monotonic seconds
    busy: float  # of our cores, by all processes and the hypervisor
    own: float  # by this process


def wanted(cores: int, foreign: float) -> int:
    """Threads for so many cores, when other programs use `foreign` of them."""
    return max(1, cores - int(foreign + 1 - _BUSY))


class Threads:
    """Adapts to the load of the machine. Without /proc/stat the number is constant."""

    def __init__(self, most: int) -> None:
        self.now = self._most = most
        self._cores = _affinity()
        self._last = self._sample()
        self._increase_seen = False

    def choose(self) -> int:
        """Threads for the next step."""
        last = self._last
        if last is None or self._most == 1 or time.monotonic() - last.at < _SAMPLE_S:
            return self.now
        sample = self._last = self._sample()
        if (
            sample is not None and sample.at - last.at < 4 * _SAMPLE_S
        ):  # else the engine was idle meanwhile
            foreign = (sample.busy - last.busy - (sample.own - last.own)) / (sample.at - last.at)
            self._adapt(min(self._most, wanted(len(self._cores), max(0.0, foreign))))
        return self.now

    def _adapt(self, threads: int) -> None:
        if threads > self.now and not self._increase_seen:
            self._increase_seen = True
            return
        self._increase_seen, self.now = False, threads

    def _sample(self) -> LoadSample | None:
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
        return LoadSample(time.monotonic(), ticks / _TICKS, times.user + times.system)


def _affinity() -> frozenset[str]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(f"cpu{core}" for core in os.sched_getaffinity(0))
    return frozenset(f"cpu{core}" for core in range(os.cpu_count() or 1))
