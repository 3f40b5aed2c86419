"""Counters of the kernel, and figures that are measured on request."""

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
