"""The frames between the kernel's side of recall and its child process.

    to the child     LOAD first, then EMBED ADD SEARCH REMOVE RENEW STORED (answered by number);
                     FORGET: the caller of that number no longer waits; AHEAD: a search for this
                     question follows soon
    to the kernel    HEARTBEAT: a long operation is still running

Vectors and page numbers are sent as bytes, owners as the bytes of their path. Imported by both
sides, so it must not import numpy.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.drivers.frames import DRIVER_BASE

NAME = "recall"  # in messages
LOAD, EMBED, ADD, SEARCH, REMOVE, RENEW, STORED, FORGET, HEARTBEAT, AHEAD = range(
    DRIVER_BASE, DRIVER_BASE + 10
)


@dataclass(frozen=True, slots=True)
class RecallSettings:
    """Settings of the child."""

    embedder: str
    url: str  # of a Chroma server; empty: local files
    threads: int  # that embed texts
    cache: str  # directory of files that can be rebuilt
    exact_pages: int  # a search scores every page up to this number
    retry_first_s: float


def numbers_out(numbers: Iterable[int]) -> bytes:
    """Encode places, spaces or pages. OverflowError for a number below 0 or over 64 bits."""
    return array("Q", numbers).tobytes()


def numbers_in(data: bytes) -> list[int]:
    numbers = array("Q")
    numbers.frombytes(data)
    return numbers.tolist()


def scores_in(data: bytes) -> list[float]:
    scores = array("d")
    scores.frombytes(data)
    return scores.tolist()


def cut(joined: bytes, pieces: int) -> Sequence[bytes]:
    """Split joined bytes into vectors of one size."""
    size = len(joined) // pieces
    return [joined[start : start + size] for start in range(0, pieces * size, size)]
