"""The words between the kernel's side of recall and its child process.

    to the child     LOAD first, then EMBED ADD SEARCH REMOVE RENEW STORED (answered by their
                     number); FORGET: whoever asked that number does not wait any more; AHEAD:
                     this question will be searched for soon
    to the kernel    LIVES: something that takes long is still worked on

Vectors and numbers of pages travel as bytes, owners as the bytes of their path. Imported by both
sides, so it must not import numpy.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.drivers.frames import OWN

NAME = "recall"  # in what people read
LOAD, EMBED, ADD, SEARCH, REMOVE, RENEW, STORED, FORGET, LIVES, AHEAD = range(OWN, OWN + 10)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the child loads, and how."""

    embedder: str
    url: str  # of a Chroma server; empty: files of our own
    threads: int  # texts that become vectors at once
    exact_pages: int
    retry_first_s: float


def numbers_out(numbers: Iterable[int]) -> bytes:
    """Raises OverflowError for what is no place, space or page."""
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
    """Vectors of one size out of their joined bytes."""
    size = len(joined) // pieces
    return [joined[start : start + size] for start in range(0, pieces * size, size)]
