"""Identifiers that are never issued twice, not even after kill -9 or a power cut.

A number is issued before the row that has it is on disk, so a crash can lose the row when a client
already knows the number. Numbers are therefore reserved in blocks: the end of a block is flushed to
disk before its first number is issued, and the next run starts after the block. A normal shutdown
returns the unused numbers.
"""

import asyncio
import logging

import anyio

from ..abi.errors import SyscallError
from .database import Database, Statement
from .store import Store, waiter

log = logging.getLogger(__name__)
TABLE = "CREATE TABLE identifiers(name TEXT PRIMARY KEY, next INTEGER NOT NULL)"
_RESERVE = "INSERT OR REPLACE INTO identifiers VALUES(?,?)"


class Identifiers:
    """One sequence of numbers, starting at 1, in a database that has TABLE."""

    def __init__(
        self, store: Store, database: Database, name: str, *, block: int, last: int = 0
    ) -> None:
        """`last`: the greatest number known to be in use."""
        self._store, self._database, self._name, self._block = store, database, name, block
        rows = store.read(database, "SELECT next FROM identifiers WHERE name = ?", (name,))
        reserved = int(rows[0][0] or 0) if rows else 0
        self._next = max(reserved, last + 1)
        self._end = self._next  # numbers below it may be issued
        self._reservation: asyncio.Future[None] | None = None  # being written
        store.at_close(self.close)

    @property
    def left(self) -> int:
        """How many numbers can be issued without waiting."""
        return self._end - self._next

    async def ready(self, count: int = 1) -> None:
        """Wait until `count` numbers can be issued. ENOSPC or EIO when none can be reserved."""
        while self.left < count:
            with anyio.CancelScope(shield=True):
                await self._reserve(count)

    def next(self) -> int:
        """Issue a number; 0 when none is reserved. Never waits."""
        if self.left < self._block // 2 and self._reservation is None:
            self._reserve(1)
        if not self.left:
            return 0
        self._next += 1
        return self._next - 1

    def _reserve(self, count: int) -> "asyncio.Future[None]":
        """Start to reserve a block, or return the reservation in progress. A caller that awaits it
        checks `left` again: the block may be too small."""
        if self._reservation is not None:
            return self._reservation
        end = self._end + max(self._block, count)
        self._reservation, done = waiter()

        def reserved(error: SyscallError | None) -> None:
            self._reservation = None
            if error is None:
                self._end = end
            else:
                log.warning("cannot reserve numbers for %s: %s", self._name, error)
            done(error)

        reservation = self._reservation
        # Not every caller awaits it: retrieve the exception, or asyncio logs it.
        reservation.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._store.submit(self._database, [self._row(end)], reserved, durable=True, frees=True)
        return reservation

    def close(self) -> None:
        """Let the next use of the database continue with the first unused number."""
        self._store.not_at_close(self.close)
        if self._end > self._next:
            self._end = self._next
            self._store.submit(
                self._database, [self._row(self._next)], lambda _: None, durable=True, frees=True
            )

    def _row(self, end: int) -> Statement:
        return _RESERVE, (self._name, end)
