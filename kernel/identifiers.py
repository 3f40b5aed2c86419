"""Numbers that identify something, and are never given twice: not after kill -9 or a power cut.

A number is given before the row that carries it is on disk, so a crash can take the row back while
somebody knows the number. Numbers are therefore reserved ahead, in blocks: the end of a block is
flushed before the first number of it is given, and the next run begins behind it. An orderly end
hands back what was not used.
"""

import asyncio
import logging

import anyio

from .database import Database, Statement
from .errors import SyscallError
from .store import Store, waiter

log = logging.getLogger(__name__)
TABLE = "CREATE TABLE identifiers(name TEXT PRIMARY KEY, next INTEGER NOT NULL)"
_RESERVE = "INSERT OR REPLACE INTO identifiers VALUES(?,?)"


class Identifiers:
    """One sequence of numbers, from 1 on, in a database that has TABLE."""

    def __init__(
        self, store: Store, database: Database, name: str, *, block: int, last: int = 0
    ) -> None:
        """`last`: the greatest number that is known to be in use."""
        self._store, self._database, self._name, self._block = store, database, name, block
        rows = store.read(database, "SELECT next FROM identifiers WHERE name = ?", (name,))
        reserved = int(rows[0][0] or 0) if rows else 0
        self._next = max(reserved, last + 1)
        self._end = self._next  # numbers below it may be given
        self._coming: asyncio.Future[None] | None = None  # a reservation that is being written
        store.at_close(self._hand_back)

    @property
    def left(self) -> int:
        """How many numbers can be given without waiting."""
        return self._end - self._next

    async def ready(self, count: int = 1) -> None:
        """Return when so many numbers can be given. ENOSPC or EIO when they cannot be reserved."""
        while self.left < count:
            with anyio.CancelScope(shield=True):
                await self._reserve(count)

    def next(self) -> int:
        """A number; 0 when none is reserved. Never waits."""
        if self.left < self._block // 2 and self._coming is None:
            self._reserve(1)
        if not self.left:
            return 0
        self._next += 1
        return self._next - 1

    def _reserve(self, count: int) -> "asyncio.Future[None]":
        """Begin to reserve a block, unless one is coming; who awaits it may have to ask again."""
        if self._coming is not None:
            return self._coming
        end = self._end + max(self._block, count)
        self._coming, done = waiter()

        def reserved(error: SyscallError | None) -> None:
            self._coming = None
            if error is None:
                self._end = end
            else:
                log.warning("no numbers of %s could be reserved: %s", self._name, error)
            done(error)

        coming = self._coming
        # Not everybody waits for it: an error that nobody asks about is no leak.
        coming.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._store.submit(self._database, [self._row(end)], reserved, durable=True, frees=True)
        return coming

    def _hand_back(self) -> None:
        """The next run goes on where this one ends."""
        if self._end > self._next:
            self._end = self._next
            self._store.submit(
                self._database, [self._row(self._next)], lambda _: None, durable=True, frees=True
            )

    def _row(self, end: int) -> Statement:
        return _RESERVE, (self._name, end)
