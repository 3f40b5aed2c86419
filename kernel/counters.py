"""Counters of the kernel, and figures that are measured on request."""

import math
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .abi import limits
from .storage.journal import Journal


@dataclass(slots=True)
class Counters:
    """Counters since boot."""

    calls: int = 0
    connections: int = 0  # open now
    most: int = limits.CONNECTIONS  # limit of open connections, by the available descriptors


@dataclass(slots=True)
class Sizes:
    """Figures that are expensive to measure: at most one second old."""

    resident: int = 0  # bytes of this process in RAM
    journal: int = 0  # bytes
    gate_s: float = 0.0  # authorisation of a call, median of the last ones
    at: float = -1.0  # monotonic seconds of the last measurement; negative: none yet

    def refresh(self, journal: Journal, gate_last_s: Collection[float]) -> None:
        now = time.monotonic()
        if now - self.at >= 1.0 or self.at < 0:
            self.at = now
            with suppress(OSError):  # no free descriptor: keep the last figures
                self.resident, self.journal = resident_bytes(), journal.bytes
            self.gate_s = median(gate_last_s or [0.0])


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Rate:
    """Tokens per second over the last seconds, by exponential decay."""

    _HALF_LIFE_S = 4.0

    def __init__(self) -> None:
        self._tokens = 0.0
        self._at = 0.0

    def value(self, now: float) -> float:
        return self._decayed(now) * 0.6931 / self._HALF_LIFE_S  # ln 2 / half-life

    def add(self, tokens: int, now: float) -> None:
        self._tokens = self._decayed(now) + tokens
        self._at = now

    def _decayed(self, now: float) -> float:
        return self._tokens * math.exp2((self._at - now) / self._HALF_LIFE_S)
