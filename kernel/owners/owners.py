"""All owners: which are open, which is closed next, and which a start of the daemon opens.

A call or a job that needs an owner's data holds it open with `Owners.use`. An owner that nothing
uses is closed after OWNER_IDLE_S, or earlier when more than OWNERS_OPEN are open, or when no
descriptor is free to open another. After a start, owners with unfinished work are opened, and the
data of the others are counted; these stay closed until their first use.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from types import TracebackType

import anyio

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.values import Damage
from ..memory import loading, pieces
from ..memory.memory import COUNTED, Lag, counted, total_lag
from ..process import mailboxes
from ..storage.database import Row
from .owner import Owner, OwnerContext

log = logging.getLogger(__name__)


class OwnerUse:
    """A context manager that holds an owner open."""

    __slots__ = ("_owner", "_owners")

    def __init__(self, owner: Owner, owners: "Owners") -> None:
        self._owner, self._owners = owner, owners

    async def __aenter__(self) -> Owner:
        owner = self._owner
        owner.uses += 1
        if not owner.is_open:
            try:
                await self._owners.open(owner)
            except BaseException:
                self._owners.release(owner)
                raise
            self._owners.limit_open()
        return owner

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._owners.release(self._owner)


class Owners:
    """All owners that were used since boot, open or closed."""

    def __init__(self, context: OwnerContext) -> None:
        self._context = context
        self._owners: dict[str, Owner] = {}
        self._directory = context.store.directory / "owners"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        # Owners to check for unfinished work of the last run; None: not listed yet.
        self._unchecked: list[str] | None = None
        with os.scandir(self._directory) as entries:
            self._uncounted = {entry.name for entry in entries if entry.is_dir()}
        self.most_open = limits.OWNERS_OPEN  # fewer when the limit of descriptors is low

    def get(self, name: str) -> Owner:
        """An owner, open or closed."""
        owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = Owner(name, self._context)
        return owner

    def use(self, name: str) -> OwnerUse:
        """Hold an owner open: `async with owners.use(name) as owner`.

        Raises EAGAIN while no descriptor is free to open it.
        """
        return OwnerUse(self.get(name), self)

    def opened(self) -> list[Owner]:
        return [owner for owner in self._owners.values() if owner.is_open]

    def lag(self) -> Lag:
        """The pages without vectors of all owners, except for `uncounted`."""
        return total_lag([owner.lag for owner in self._owners.values()])

    def messages(self) -> int:
        """The messages in the mailboxes of all owners, except for `uncounted`."""
        return sum([owner.messages for owner in self._owners.values()])

    @property
    def uncounted(self) -> int:
        """The owners whose data were not counted since boot: not yet, or they cannot be read."""
        return len(self._uncounted)

    def damages(self) -> Sequence[Damage]:
        """The damaged files of the state directory."""
        return self._context.store.damages.all

    async def open(self, owner: Owner) -> None:
        """Open an owner. Idle ones are closed if no descriptor is free; EAGAIN: not enough."""
        try:
            await owner.open()
        except SyscallError as error:
            if error.errno is not Errno.EAGAIN or not await self._free_descriptors():
                raise
            await owner.open()
        self._note_counted(owner)

    def _note_counted(self, owner: Owner) -> None:
        if owner.counted:
            self._uncounted.discard(owner.name)

    # --- closing ----------------------------------------------------------------------------------
    def release(self, owner: Owner) -> None:
        """A use has ended; the last one starts the time after which the owner is closed."""
        owner.uses -= 1
        if owner.uses == 0:
            owner.used_at = time.monotonic()
            if owner.timer is None and owner.is_open:
                self._close_later(owner, limits.OWNER_IDLE_S)

    def limit_open(self) -> None:
        """Close the idle owners that were used least recently while too many are open."""
        surplus = len(self.opened()) - self.most_open
        for owner in self._idle()[: max(0, surplus)]:
            self._context.jobs.once("close owner", owner.close_if_idle)

    async def _free_descriptors(self) -> bool:
        """Close some of the idle owners; whether any was closed."""
        closed = [await owner.close_if_idle() for owner in self._idle()[: limits.OWNERS_FREED]]
        return any(closed)

    def _idle(self) -> list[Owner]:
        """The open owners that nothing uses, those used least recently first."""
        idle = [owner for owner in self.opened() if not owner.busy]
        return sorted(idle, key=lambda one: one.used_at)

    def _close_later(self, owner: Owner, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        owner.timer = loop.call_later(pause_s, self._due, owner)

    def _due(self, owner: Owner) -> None:
        """The time is over: close the owner, unless it was used meanwhile."""
        owner.timer = None
        left_s = owner.used_at + limits.OWNER_IDLE_S - time.monotonic()
        if left_s > 0 and owner.is_open:
            self._close_later(owner, left_s)
        elif owner.uses == 0 and owner.is_open:
            self._context.jobs.once("close owner", self._close, owner)

    async def _close(self, owner: Owner) -> None:
        if not await owner.close_if_idle() and owner.uses == 0 and owner.timer is None:
            self._close_later(owner, limits.OWNER_IDLE_S)

    async def finish(self) -> None:
        """At shutdown: do the pending work of all owners now, also what the last run left."""
        await self._resume_unfinished()
        for owner in self.opened():
            await owner.finish()

    # --- after boot -------------------------------------------------------------------------------
    async def resume(self) -> None:
        """Continue what the last run left unfinished; start the recall process if there are pages.

        Owners without unfinished work stay closed.
        """
        await self._resume_unfinished()
        if self._context.device.disabled:
            return
        await anyio.sleep(limits.RECALL_BOOT_S)
        for name in await anyio.to_thread.run_sync(self._names):
            if await self._start_recall(name):
                break

    async def _resume_unfinished(self) -> None:
        """Open the owners that have work left of the last run, and count the data of the others."""
        if self._unchecked is None:
            self._unchecked = await anyio.to_thread.run_sync(self._names)
        while self._unchecked:
            name = self._unchecked[0]
            found = await self._context.store.readers.run(name, self._count, name)
            if found is None:
                await self._open_once(name)
            elif not self.get(name).counted:
                self.get(name).note_counts(found, 0)
                self._note_counted(self.get(name))
            if name in self._unchecked:  # `finish` may run at the same time
                self._unchecked.remove(name)

    def _names(self) -> list[str]:
        """The owners that have a directory, those used last first. Blocks."""
        found = [path for path in self._directory.iterdir() if path.is_dir()]
        found.sort(key=lambda path: -path.stat().st_mtime)
        return [path.name for path in found]

    def _count(self, name: str) -> Lag | None:
        """The pages without vectors of an owner that has no mail and no work left. Blocks.

        None: the owner has some, was open when the last run was killed, or cannot be read.
        """
        store, files = self._context.store, (loading.name(name), mailboxes.name(name))
        if any((store.directory / f"{file}-wal").exists() for file in files):
            return None
        try:
            messages = self._peek(files[1], "SELECT count(*) FROM mail", (0,))
            found = counted(self._peek(files[0], COUNTED, (0, 0, 0)))
            unfinished = store.peek(files[0], pieces.UNFINISHED)
        except SyscallError:  # opening the owner reports this
            return None
        waits = found.waiting and not self._context.device.disabled
        return None if messages[0] or unfinished or waits else found

    def _peek(self, file: str, sql: str, without: Row) -> Row:
        """The only row of a query; `without` when there is no such file. EIO."""
        rows = self._context.store.peek(file, sql)
        if rows or not (self._context.store.directory / file).exists():
            return rows[0] if rows else without
        raise SyscallError(Errno.EIO, f"{file} cannot be read")

    async def _open_once(self, name: str) -> None:
        """Open an owner, which resumes its work."""
        try:
            async with self.use(name):
                pass
        except SyscallError as error:
            log.warning("cannot open the data of %s: %s", name, error)

    async def _start_recall(self, name: str) -> bool:
        """Start the recall process if an owner has pages, so that a first search need not wait."""
        try:
            async with self.use(name) as owner:
                if owner.pages is None or not owner.memory.has_pages():
                    return False
        except SyscallError as error:
            log.warning("cannot open the data of %s: %s", name, error)
            return False
        for owner in self.opened():
            if owner.pages is not None and owner.memory.has_pages():
                owner.vectors.ensure_indexing()
        return True
