"""The vectors in memory: the spaces of all owners, under one lock.

A space is a set of vectors; a place is the number of a vector in its space. The main thread changes
the store; the synchronizer's thread copies the changes for Chroma. Recall process only.
"""

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import Errno, SyscallError

from .rows import Places, Rows, Vectors

SPACE_BITS = 32  # space << 32 | place
LAST = (1 << SPACE_BITS) - 1  # the highest place


@dataclass(slots=True)
class Space:
    """One collection of vectors."""

    rows: Rows = field(default_factory=Rows)
    removed: set[int] = field(default_factory=set[int])  # places that Chroma may still have
    foreign: set[int] = field(default_factory=set[int])  # places that only Chroma has
    synchronized: bool = False  # compared with Chroma, which can be queried


class OwnerVectors:
    """One owner's directory."""

    def __init__(self) -> None:
        self.spaces: dict[int, Space] = {}
        self.dropped: set[int] = set()  # spaces that Chroma may still have
        self.note = ""  # why Chroma cannot be used; empty: it can


class VectorStore:
    """All owners, by the path of their directory."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.owners: dict[str, OwnerVectors] = {}

    def owner(self, path: str) -> OwnerVectors:
        return self.owners.setdefault(path, OwnerVectors())

    def add(self, path: str, number: int, places: bytes, vectors: bytes) -> None:
        """Add vectors to a space. Without places it creates an empty space. EINVAL."""
        if number >> SPACE_BITS:
            raise SyscallError(Errno.EINVAL, f"space {number} exceeds {SPACE_BITS} bits")
        decoded = places_in(places)
        with self.lock:
            owner = self.owner(path)
            space = owner.spaces.get(number, Space())
            if len(decoded):
                space.rows.add(decoded, _vectors_in(vectors, len(decoded)))
            owner.spaces[number] = space

    def remove(self, path: str, number: int, places: bytes | None) -> None:
        with self.lock:
            owner = self.owner(path)
            if places is None:
                owner.spaces.pop(number, None)
                owner.dropped.add(number)
            elif (space := owner.spaces.get(number)) is not None:
                decoded = places_in(places)
                space.rows.remove(decoded)
                space.removed.update(decoded.tolist())

    def invalidate_chroma(self, path: str) -> None:
        """Its files were closed: their content is unknown and must be compared again."""
        with self.lock:
            for space in self.owner(path).spaces.values():
                space.rows.unsent()
                space.synchronized = False

    def note(self, path: str, message: str) -> None:
        with self.lock:
            self.owner(path).note = message


def places_in(data: bytes) -> Places:
    places: NDArray[np.uint64] = np.frombuffer(data, np.uint64)
    if len(places) and int(places.max()) >> SPACE_BITS:
        raise SyscallError(Errno.EINVAL, f"a place exceeds {SPACE_BITS} bits")
    return places.astype(np.int64)


def _vectors_in(data: bytes, rows: int) -> Vectors:
    if not data or len(data) % (4 * rows):
        raise SyscallError(Errno.EINVAL, f"{len(data)} bytes are not {rows} vectors of one size")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(rows, -1)
