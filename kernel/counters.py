"""What the kernel counts of itself, and figures that cost a look."""

import os
import time
from collections import deque
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
            self.resident, self.journal, self.at = resident_bytes(), journal.bytes, now
            self.gate_s = median(counters.gate_last_s or [0.0])


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
