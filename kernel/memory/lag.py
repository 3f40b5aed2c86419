"""The number of an owner's pages that have no vector, kept in memory.

The numbers are counted in the database when it is opened and after each batch. This file must not
know what a page is.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..storage.database import Value

COUNTED = """SELECT (SELECT count(*) FROM todo), (SELECT min(since) FROM todo),
                    (SELECT count(*) FROM refused)"""


@dataclass(frozen=True, slots=True)
class Lag:
    """The indexing lag of one owner, or of several."""

    waiting: int = 0  # pages that wait for a vector
    since: float = 0.0  # Unix seconds: when the oldest of them began to wait; 0: none waits
    refused: int = 0  # pages of which the embedder made no vector

    def with_pages(self, pages: int) -> "Lag":
        """This lag and pages that begin to wait now."""
        since = self.since if self.waiting else time.time()
        return Lag(self.waiting + pages, since, self.refused)


def counted(row: Sequence[Value]) -> Lag:
    """The lag in the row that the query COUNTED returns."""
    waiting, since, refused = row
    return Lag(int(waiting or 0), float(since or 0), int(refused or 0))


def total(lags: Iterable[Lag]) -> Lag:
    """The sum of several lags, since the oldest page that waits."""
    found = list(lags)
    since = min((one.since for one in found if one.waiting), default=0.0)
    return Lag(sum(one.waiting for one in found), since, sum(one.refused for one in found))
