"""A store of Chroma: its interface, the requests to it, and the settings of its indexes.

A store is a directory, or the collections with one prefix on a server: its *location*. It has one
collection for each space, which is an append-only sequence of pages. The id of a vector is the
place of its page in the space, and nothing else is stored. Vectors are lists, as Chroma takes and
returns them: numpy would take 0.1 s of a core to import.
"""

from collections.abc import Iterable
from typing import Protocol

from llmasos.drivers.frames import DRIVER_BASE

Vector = list[float]
# The requests: each is a method of a store, but DROP_ALL, which drops every space.
OPEN, CLOSE, PLACES, GET, WRITE, DELETE, DROP, DROP_ALL, COUNT, QUERY = range(
    DRIVER_BASE, DRIVER_BASE + 10
)
# ef_search: vectors that a query visits, twice the number requested.
HNSW = {"space": "cosine", "ef_search": 400}


class ChromaStore(Protocol):
    """An open store. All methods raise what Chroma raises."""

    def close(self) -> None: ...

    def spaces(self) -> list[int]: ...

    def places(self, space: int) -> list[int]: ...

    def get(self, space: int, places: list[int]) -> tuple[list[int], list[Vector]]:
        """Those of the places that exist, with their vectors."""
        ...

    def write(self, space: int, places: list[int], vectors: list[Vector]) -> None: ...

    def delete(self, space: int, places: list[int]) -> None: ...

    def drop(self, space: int) -> None: ...

    def count(self, space: int) -> int: ...

    def query(self, space: int, vector: Vector, most: int) -> list[int]:
        """The places of at most `most` vectors near this one, the nearest first."""
        ...


def ids(places: list[int]) -> list[str]:
    return [str(place) for place in places]


def numbers(ids: Iterable[str]) -> list[int]:
    return [int(one) for one in ids]
