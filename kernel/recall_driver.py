"""The interface between the kernel and recall devices: Protocols, and the values they pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .driver import Death, Option


@dataclass(frozen=True, slots=True)
class RecallFacts:
    """Facts of a recall device that is up."""

    os_pid: int
    embedder: str  # vectors of another embedder are not comparable. Empty: it makes none
    dimensions: int  # of those vectors


@dataclass(frozen=True, slots=True)
class SpaceRange:
    """A range of places of one space, which a search covers."""

    space: int  # an address space or a mapping: one collection of vectors
    first: int
    last: int  # inclusive


@dataclass(frozen=True, slots=True)
class VectorScores:
    """Similarity of pages to a question: cosines, smoothed over the neighbours of each page."""

    pages: Sequence[int]  # space << 32 | place
    scores: Sequence[float]
    mean: float  # of the scores of all pages in the ranges
    spread: float  # standard deviation of these
    unknown: Sequence[int] = ()  # spaces without vectors here: `add` them, and search again
    note: str = ""  # why the answer is incomplete


class RecallListener(Protocol):
    def up(self, facts: RecallFacts) -> None: ...
    def down(self, death: Death) -> None:
        """It died and has lost its vectors, or it failed to restart."""
        ...


class Recall(Protocol):
    """A device for vector search. `owner` is an owner's directory; a space has one owner.

    It opens no database of the kernel: its vectors were passed to it and can be passed again. All
    methods raise DeviceFault while it is down, and all are safe to cancel.
    """

    async def start(self, listener: RecallListener) -> None:
        """Returns after `listener.up`. DeviceFault with the reason."""
        ...

    async def stop(self) -> None: ...

    def retry(self) -> None:
        """As Engine.retry."""
        ...

    async def restart(self) -> None:
        """As Engine.restart."""
        ...

    async def embed(self, texts: Sequence[str]) -> Sequence[bytes]:
        """A vector of norm 1 for each: little-endian 32-bit floats. ENOTSUP: no embedder."""
        ...

    async def add(
        self, owner: Path, space: int, places: Sequence[int], vectors: Sequence[bytes]
    ) -> None:
        """Add vectors of a space, in any order, also again.

        Searches find them when it returns; Chroma is updated later.
        """
        ...

    def prefetch(self, question: str) -> None:
        """A search for this text follows soon: it may be embedded now. Never raises."""
        ...

    async def search(
        self, owner: Path, question: str | bytes, ranges: Sequence[SpaceRange], also: Sequence[int]
    ) -> VectorScores:
        """Scores of the pages in these ranges nearest to a text or a vector, and of `also`."""
        ...

    async def remove(self, owner: Path, space: int, places: Sequence[int] | None = None) -> None:
        """Remove vectors, or a whole space. The next `renew` deletes their bytes from disk."""
        ...

    async def renew(self, owner: Path) -> None:
        """Rebuild Chroma's files; the old ones are deleted when it returns."""
        ...

    async def stored(self, owner: Path, space: int) -> int:
        """Count of a space's vectors in Chroma, once it is up to date. -1: it is unusable."""
        ...


class RecallDriver(Protocol):
    """A driver module of recall devices."""

    def check(self, options: Mapping[str, Option]) -> None:
        """EINVAL for an unknown option or a bad value, with the allowed ones."""
        ...

    def recall(self, options: Mapping[str, Option], log: Path, cache: Path) -> Recall:
        """A device that is not started. `log`: a file; `cache`: a folder of rebuildable files."""
        ...
