"""The number of pages of each owner that have no vector, kept in memory.

The numbers are counted in the database at boot and after each batch. This file owns nothing else
and must not know what a page is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..storage.database import Value

COUNTED = """SELECT (SELECT count(*) FROM todo), (SELECT min(since) FROM todo),
                    (SELECT count(*) FROM refused)"""


@dataclass(frozen=True, slots=True)
class Lag:
    """The indexing lag of one owner, or of the machine."""

    waiting: int = 0  # pages that wait for a vector
    since: float = 0.0  # Unix seconds: when the oldest of them began to wait; 0: none waits
    refused: int = 0  # pages of which the embedder made no vector


class Lags:
    """The lags of all owners."""

    def __init__(self) -> None:
        self._lags: dict[str, Lag] = {}
        self._total: Lag | None = Lag()  # of all owners; None: not computed yet

    def of(self, owner: str) -> Lag:
        return self._lags.get(owner, Lag())

    def total(self) -> Lag:
        if self._total is None:
            lags = list(self._lags.values())
            since = min((one.since for one in lags if one.waiting), default=0.0)
            waiting, refused = sum(one.waiting for one in lags), sum(one.refused for one in lags)
            self._total = Lag(waiting, since, refused)
        return self._total

    def add(self, owner: str, pages: int) -> None:
        """Add pages that begin to wait now."""
        before = self.of(owner)
        since = before.since if before.waiting else time.time()
        self._set(owner, Lag(before.waiting + pages, since, before.refused))

    def counted(self, owner: str, row: Sequence[Value]) -> None:
        """Set a lag to the row that the query COUNTED returns."""
        waiting, since, refused = row
        self._set(owner, Lag(int(waiting or 0), float(since or 0), int(refused or 0)))

    def _set(self, owner: str, lag: Lag) -> None:
        self._lags[owner], self._total = lag, None
