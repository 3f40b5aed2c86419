"""What the kernel counts of itself, and figures that cost a look."""

import math
import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from . import limits
from .journal import Journal


@dataclass(slots=True)
class Counters:
    """Since boot."""

    calls: int = 0
    refused: int = 0
    gate_s: float = 0.0
    gate_last_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=1024))
    connections: int = 0  # now
    most: int = limits.CONNECTIONS  # of them, with the descriptors that we have


@dataclass(slots=True)
class Sizes:
    """Figures that cost a look at the disk, or at many numbers: at most a second old."""

    resident: int = 0  # bytes of this process in RAM
    journal: int = 0  # bytes
    gate_s: float = 0.0  # of a call in the gate, median of the last ones
    at: float = -1.0

    def look(self, journal: Journal, counters: Counters) -> None:
        now = time.monotonic()
        if now - self.at >= 1.0 or self.at < 0:
            self.at = now
            with suppress(OSError):  # no descriptor is free: the last figures stay
                self.resident, self.journal = resident_bytes(), journal.bytes
            self.gate_s = median(counters.gate_last_s or [0.0])


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Rate:
    """Tokens a second over the last seconds, by exponential decay."""

    _SPAN_S = 4.0

    def __init__(self) -> None:
        self._tokens = 0.0
        self._at = 0.0

    def value(self, now: float) -> float:
        return self._left(now) * 0.6931 / self._SPAN_S  # ln 2: the mean life of a token's count

    def add(self, tokens: int, now: float) -> None:
        self._tokens = self._left(now) + tokens
        self._at = now

    def _left(self, now: float) -> float:
        return self._tokens * math.exp2((self._at - now) / self._SPAN_S)
