"""Everything that was handed over: the spaces of all owners, under one lock.

The searching thread changes it; the thread of Chroma copies out what Chroma has to be told. Child
process only.
"""

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.errors import Errno, SyscallError

from .rows import Places, Rows, Vectors

SPACE_BITS = 32  # space << 32 | place
LAST = (1 << SPACE_BITS) - 1  # the last place there can be


@dataclass(slots=True)
class Space:
    """One collection of vectors."""

    rows: Rows = field(default_factory=Rows)
    removed: set[int] = field(default_factory=set[int])  # places that Chroma may still have
    foreign: set[int] = field(default_factory=set[int])  # Chroma has them, nobody handed them over
    level: bool = False  # it was compared with Chroma, which can be asked


class Owner:
    """One owner's directory."""

    def __init__(self) -> None:
        self.spaces: dict[int, Space] = {}
        self.dropped: set[int] = set()  # spaces that Chroma may still have
        self.note = ""  # why Chroma cannot be used


class Held:
    """All owners, by the path of their directory."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.owners: dict[str, Owner] = {}

    def owner(self, path: str) -> Owner:
        return self.owners.setdefault(path, Owner())

    def add(self, path: str, number: int, places: bytes, vectors: bytes) -> None:
        """EINVAL. Without places: the space is known, and empty."""
        if number >> SPACE_BITS:
            raise SyscallError(Errno.EINVAL, f"space {number} is over {SPACE_BITS} bits")
        at = places_in(places)
        with self.lock:
            owner = self.owner(path)
            space = owner.spaces.get(number, Space())
            if len(at):
                space.rows.add(at, _vectors_in(vectors, len(at)))
            owner.spaces[number] = space

    def remove(self, path: str, number: int, places: bytes | None) -> None:
        with self.lock:
            owner = self.owner(path)
            if places is None:
                owner.spaces.pop(number, None)
                owner.dropped.add(number)
            elif (space := owner.spaces.get(number)) is not None:
                at = places_in(places)
                space.rows.remove(at)
                space.removed.update(at.tolist())

    def forget_chroma(self, path: str) -> None:
        """Its files were closed: nobody knows what they hold."""
        with self.lock:
            for space in self.owner(path).spaces.values():
                space.rows.unsent()
                space.level = False

    def note(self, path: str, words: str) -> None:
        with self.lock:
            self.owner(path).note = words


def places_in(data: bytes) -> Places:
    places: NDArray[np.uint64] = np.frombuffer(data, np.uint64)
    if len(places) and int(places.max()) >> SPACE_BITS:
        raise SyscallError(Errno.EINVAL, f"a place is over {SPACE_BITS} bits")
    return places.astype(np.int64)


def _vectors_in(data: bytes, rows: int) -> Vectors:
    if not data or len(data) % (4 * rows):
        raise SyscallError(Errno.EINVAL, f"{len(data)} bytes are no {rows} vectors")
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(rows, -1)
