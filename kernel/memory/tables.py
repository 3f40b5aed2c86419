"""Every page table, who has pages of which space, and one change at a time.

A change is applied in memory while its write is on the way, under the table's lock, and taken back
when it cannot be written. What decides whether a stored page is anybody's (sharing, mapping,
replacing, erasing) holds the owner's lock as well, taken first.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import anyio

from ..errors import Errno, SyscallError
from .table import Table


class Tables:
    """Of the machine."""

    def __init__(self) -> None:
        self._by_pid: dict[int, Table] = {}
        self._having: dict[tuple[str, int], set[int]] = {}  # owner and space: pids
        self._had: dict[int, set[int]] = {}  # pid: spaces
        self._structures: dict[str, anyio.Lock] = {}  # by owner
        self._locks: dict[int, anyio.Lock] = {}  # by pid

    def get(self, pid: int) -> Table | None:
        return self._by_pid.get(pid)

    def of(self, owner: str) -> list[Table]:
        return [table for table in self._by_pid.values() if table.owner == owner]

    def add(self, table: Table) -> Table:
        self._by_pid[table.pid] = table
        self.index(table)
        return table

    def remove(self, pid: int) -> Table | None:
        """The process is gone, or never came."""
        table = self._by_pid.pop(pid, None)
        if table is not None:
            self.index(table)
        self._had.pop(pid, None)
        return table

    # --- who has what -----------------------------------------------------------------------------
    def index(self, table: Table) -> None:
        """It may have pages of other spaces now."""
        had = self._had.get(table.pid, set())
        has = table.spaces() if table.pid in self._by_pid else set[int]()
        for space in had - has:
            pids = self._having[table.owner, space]
            pids.discard(table.pid)
            if not pids:
                del self._having[table.owner, space]
        for space in has - had:
            self._having.setdefault((table.owner, space), set()).add(table.pid)
        self._had[table.pid] = has

    def having(self, owner: str, space: int) -> list[Table]:
        """Tables that have pages of a space, or write to it."""
        return [self._by_pid[pid] for pid in sorted(self._having.get((owner, space), ()))]

    # --- one change at a time ---------------------------------------------------------------------
    def structure(self, owner: str) -> anyio.Lock:
        """Held while it is decided whose a stored page is."""
        return self._structures.setdefault(owner, anyio.Lock())

    def lock(self, pid: int) -> anyio.Lock:
        return self._locks.setdefault(pid, anyio.Lock())

    def unlock(self, pids: Iterable[int]) -> None:
        """Processes that are gone need no locks any more."""
        for pid in pids:
            self._locks.pop(pid, None)

    @asynccontextmanager
    async def changing(self, table: Table, *, whole: bool = True) -> AsyncGenerator[None]:
        """One change of a table, taken back when it cannot be written.

        `whole`: not only an append. ESRCH: its process is gone meanwhile.
        """
        async with self.lock(table.pid):
            if self._by_pid.get(table.pid) is not table:
                words = f"process {table.pid} is gone"
                raise SyscallError(Errno.ESRCH, words, "`llmasos ps` lists the others")
            before = table.state(whole=whole)
            try:
                yield
            except BaseException:
                table.restore(before)
                raise
            finally:
                if whole:
                    self.index(table)
