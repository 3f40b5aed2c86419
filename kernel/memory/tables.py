"""The page tables of one owner, the processes that use each space, and the locks for changes.

A change is applied in memory while its write is in flight, under the table's lock, and undone when
the write fails. Operations that decide whether a stored page is still in use (sharing, mapping,
replacing, erasing) also hold `ownership`, which is taken first.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import anyio

from ..abi.errors import Errno, SyscallError
from .table import PageTable


class Tables:
    """The page tables of one owner's processes."""

    def __init__(self) -> None:
        self._by_pid: dict[int, PageTable] = {}
        self._by_space: dict[int, set[int]] = {}  # space: pids
        self._spaces: dict[int, set[int]] = {}  # pid: spaces
        self._locks: dict[int, anyio.Lock] = {}  # by pid
        self.ownership = anyio.Lock()  # held while deciding whether a stored page is still in use

    def get(self, pid: int) -> PageTable | None:
        return self._by_pid.get(pid)

    def all(self) -> list[PageTable]:
        return list(self._by_pid.values())

    def add(self, table: PageTable) -> PageTable:
        self._by_pid[table.pid] = table
        self.index(table)
        return table

    def remove(self, pid: int) -> PageTable | None:
        """Remove the table of a process that was reaped, or whose fork failed."""
        table = self._by_pid.pop(pid, None)
        if table is not None:
            self.index(table)
        self._spaces.pop(pid, None)
        return table

    # --- tables by space --------------------------------------------------------------------------
    def index(self, table: PageTable) -> None:
        """Update the index of tables by space after a change of a table."""
        before = self._spaces.get(table.pid, set())
        after = table.spaces() if table.pid in self._by_pid else set[int]()
        for space in before - after:
            pids = self._by_space[space]
            pids.discard(table.pid)
            if not pids:
                del self._by_space[space]
        for space in after - before:
            self._by_space.setdefault(space, set()).add(table.pid)
        self._spaces[table.pid] = after

    def using(self, space: int) -> list[PageTable]:
        """The tables that have pages of a space, or write to it."""
        return [self._by_pid[pid] for pid in sorted(self._by_space.get(space, ()))]

    # --- locks ------------------------------------------------------------------------------------
    def lock(self, pid: int) -> anyio.Lock:
        return self._locks.setdefault(pid, anyio.Lock())

    def unlock(self, pids: Iterable[int]) -> None:
        """Drop the locks of processes that were reaped."""
        for pid in pids:
            self._locks.pop(pid, None)

    @asynccontextmanager
    async def changing(self, table: PageTable, *, whole: bool = True) -> AsyncGenerator[None]:
        """Hold the table's lock for one change; undo the change when the body raises.

        `whole` False: the change is an append only. ESRCH: the process was reaped meanwhile.
        """
        async with self.lock(table.pid):
            if self._by_pid.get(table.pid) is not table:
                message = f"process {table.pid} was removed"
                raise SyscallError(Errno.ESRCH, message, "`llmasos ps` lists processes")
            before = table.state(whole=whole)
            try:
                yield
            except BaseException:
                table.restore(before)
                raise
            finally:
                if whole:
                    self.index(table)
