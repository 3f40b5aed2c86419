"""The vectors of one space in memory, ordered by place: their scores, and their state in Chroma.

The score of a page is the cosine of the question and the page's vector smoothed by its neighbours,
norm(v + 0.3 (before + after)), where a neighbour is the adjacent place, if it exists. The stored
vectors are not smoothed: scores are smoothed by adding those of the neighbours, and the lengths of
the smoothed vectors are stored. Not thread-safe; recall process only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import Errno, SyscallError

Vectors = NDArray[np.float32]
Places = NDArray[np.int64]
Scores = NDArray[np.float64]

_SHARE = np.float32(0.3)  # of each neighbour
_LENGTH_ERROR = 0.01
_GROWTH = 1.5
_FIRST_ROWS = 64
_BLOCK = 2048  # rows that are smoothed at once
_STORED, _PENDING, _SENT = range(3)  # state of a row in Chroma


class Rows:
    """The rows of one space. An index is a position in the order of places, valid until the next
    change."""

    def __init__(self) -> None:
        self._count = 0
        self._arrays = _empty(0, 0)

    @property
    def count(self) -> int:
        return self._count

    @property
    def dimensions(self) -> int:
        """Of each vector; 0: there are no rows, so any number is accepted."""
        return self._arrays.vectors.shape[1] if self._count else 0

    @property
    def places(self) -> Places:
        return self._arrays.places[: self._count]

    # --- changes ------------------------------------------------------------------------------
    def add(self, places: Places, vectors: Vectors) -> None:
        """Add rows, or replace the vectors of existing rows. EINVAL."""
        _check(vectors, self.dimensions)
        places, vectors = _ordered(places, vectors)
        if not len(places):
            return
        if not self._count or places[0] > self.places[-1]:
            self._append(places, vectors)
        elif len(at := self.find(places)) == len(places):
            self._arrays.vectors[at] = vectors
            self._arrays.state[at] = _PENDING
            self._rescale(int(at[0]), int(at[-1]) + 1)
        else:
            self._merge(places, vectors)

    def _append(self, places: Places, vectors: Vectors) -> None:
        first, end = self._count, self._count + len(places)
        if not first or end > len(self._arrays.places):
            grown = _empty(max(_FIRST_ROWS, end, int(first * _GROWTH)), vectors.shape[1])
            if first:
                grown.copy(self._arrays, first)
            self._arrays = grown
        self._arrays.places[first:end] = places
        self._arrays.vectors[first:end] = vectors
        self._arrays.state[first:end] = _PENDING
        self._count = end
        self._rescale(first, end)

    def _merge(self, places: Places, vectors: Vectors) -> None:
        old = self._arrays
        kept = ~np.isin(self.places, places)
        both = np.concatenate([self.places[kept], places])
        order = np.argsort(both)
        states = np.full(len(places), _PENDING, np.uint8)
        self._arrays = _Arrays(
            both[order],
            np.concatenate([old.vectors[: self._count][kept], vectors])[order],
            np.concatenate([old.state[: self._count][kept], states])[order],
            np.zeros(len(both), np.float32),
        )
        self._count = len(both)
        self._rescale(0, self._count)

    def remove(self, places: Places) -> None:
        kept = ~np.isin(self.places, places)
        old, count = self._arrays, self._count
        # Copies, so that removed vectors do not stay in memory.
        self._arrays = _Arrays(
            old.places[:count][kept], old.vectors[:count][kept], old.state[:count][kept],
            np.zeros(int(kept.sum()), np.float32),
        )  # fmt: skip
        self._count = len(self._arrays.places)
        self._rescale(0, self._count)

    def _rescale(self, first: int, end: int) -> None:
        """Update the lengths of the smoothed vectors of these rows and their neighbours."""
        first, end = max(0, first - 1), min(self._count, end + 1)
        for start in range(first, end, _BLOCK):
            stop = min(end, start + _BLOCK)
            smooth = self._smooth(start, stop)
            lengths = np.sqrt(np.einsum("ij,ij->i", smooth, smooth))
            # A smoothed vector of length 0 has no direction: its score is 0.
            inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
            self._arrays.scale[start:stop] = inverse

    def _smooth(self, first: int, end: int) -> Vectors:
        vectors, wide = self._arrays.vectors, slice(max(0, first - 1), min(self._count, end + 1))
        smooth = vectors[first:end].copy()
        before, after = self._joined(first, end)
        zero = np.zeros((1, vectors.shape[1]), np.float32)
        around = vectors[wide]
        if wide.start == first:
            around = np.concatenate([zero, around])
        if wide.stop == end:
            around = np.concatenate([around, zero])
        smooth += (_SHARE * before)[:, None] * around[:-2]
        smooth += (_SHARE * after)[:, None] * around[2:]
        return smooth

    def _joined(self, first: int, end: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """1 where the previous row, and the next row, is a neighbour."""
        places = self.places
        steps = np.diff(places[max(0, first - 1) : end + 1]) == 1
        if first == 0:
            steps = np.concatenate([[False], steps])
        if end == self._count:
            steps = np.concatenate([steps, [False]])
        return steps[:-1].astype(np.float32), steps[1:].astype(np.float32)

    # --- scores -------------------------------------------------------------------------------
    def span(self, first: int, last: int) -> tuple[int, int]:
        """The range of indexes of the places from `first` to `last`, inclusive."""
        low, high = np.searchsorted(self.places, [first, last + 1])
        return int(low), int(high)

    def find(self, places: Places) -> NDArray[np.intp]:
        """The indexes of the places that exist."""
        at = np.searchsorted(self.places, places)
        inside = at < self._count
        at, places = at[inside], places[inside]
        found: NDArray[np.intp] = at[self.places[at] == places]
        return found

    def scores(self, question: Vectors, first: int, end: int) -> Scores:
        """Scores of the rows from `first` to `end`, exclusive."""
        low, high = max(0, first - 1), min(self._count, end + 1)
        raw = self._arrays.vectors[low:high] @ question
        before, after = self._joined(first, end)
        padded = np.zeros(end - first + 2, np.float32)
        padded[low - first + 1 : high - first + 1] = raw
        smooth = padded[1:-1] + _SHARE * (before * padded[:-2] + after * padded[2:])
        return (smooth * self._arrays.scale[first:end]).astype(np.float64)

    def scores_at(self, question: Vectors, at: NDArray[np.intp]) -> Scores:
        """Scores of the rows at these indexes."""
        last = self._count - 1
        places = self.places
        total = self._arrays.vectors[at] @ question
        for beside in (at - 1, at + 1):
            clipped = np.clip(beside, 0, last)
            near = np.abs(places[clipped] - places[at]) == 1
            total[near] += _SHARE * (self._arrays.vectors[clipped[near]] @ question)
        return (total * self._arrays.scale[at]).astype(np.float64)

    # --- state in Chroma ----------------------------------------------------------------------
    def pending(self, first: int, end: int) -> NDArray[np.intp]:
        """The rows from `first` to `end` that Chroma does not have."""
        return np.flatnonzero(self._arrays.state[first:end] != _STORED) + first

    @property
    def has_pending(self) -> bool:
        """Whether Chroma does not have all rows."""
        return bool((self._arrays.state[: self._count] != _STORED).any())

    def send(self, most: int) -> tuple[Places, Vectors]:
        """Copies of up to `most` pending rows, for Chroma; `sent` or `unsent` follows."""
        at = np.flatnonzero(self._arrays.state[: self._count] == _PENDING)[:most]
        self._arrays.state[at] = _SENT
        return self._arrays.places[at], self._arrays.vectors[at]

    def sent(self) -> None:
        """Chroma has stored the sent rows; rows changed since are still pending."""
        state = self._arrays.state[: self._count]
        state[state == _SENT] = _STORED

    def unsent(self) -> None:
        """The state in Chroma is unknown: every row is pending."""
        self._arrays.state[: self._count] = _PENDING

    def block(self, start: int, most: int) -> tuple[Places, Vectors]:
        """Copies of up to `most` rows from `start` on."""
        end = min(self._count, start + most)
        return self._arrays.places[start:end].copy(), self._arrays.vectors[start:end].copy()


@dataclass(slots=True)
class _Arrays:
    """Columns of the same rows."""

    places: Places  # ascending
    vectors: Vectors
    state: NDArray[np.uint8]  # in Chroma
    scale: NDArray[np.float32]  # 1 / length of the smoothed vector

    def copy(self, other: "_Arrays", count: int) -> None:
        self.places[:count] = other.places[:count]
        self.vectors[:count] = other.vectors[:count]
        self.state[:count] = other.state[:count]
        self.scale[:count] = other.scale[:count]


def _empty(rows: int, dimensions: int) -> _Arrays:
    return _Arrays(
        np.empty(rows, np.int64),
        np.empty((rows, dimensions), np.float32),
        np.empty(rows, np.uint8),
        np.empty(rows, np.float32),
    )


def _ordered(places: Places, vectors: Vectors) -> tuple[Places, Vectors]:
    """Sort by place; of duplicate places the last one is kept."""
    if len(places) < 2 or (np.diff(places) > 0).all():
        return places, vectors
    unique, at = np.unique(places[::-1], return_index=True)
    return unique, vectors[::-1][at]


def _check(vectors: Vectors, dimensions: int) -> None:
    if dimensions and len(vectors) and vectors.shape[1] != dimensions:
        message = f"vectors of {vectors.shape[1]} dimensions for a space of {dimensions}"
        hint = "remove the space first: vectors of different sizes cannot be compared"
        raise SyscallError(Errno.EINVAL, message, hint)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if not (np.abs(squares - 1) < _LENGTH_ERROR).all():  # also for NaN
        raise SyscallError(Errno.EINVAL, "a vector does not have length 1")
