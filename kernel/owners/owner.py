"""The data of one owner: opened at its first use, closed when it is idle, disabled when damaged.

An owner is a user whose processes have data on this machine. The data is one directory with two
databases, pages.db and mail.db. While an owner is open, its page tables and mailboxes are in
memory. A database that cannot be read stays disabled until the next start, and affects no other
owner. What a crash left unfinished is completed when the owner is opened for the first time.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from ..abi.errors import Errno, SyscallError
from ..memory import erasing, loading
from ..memory.memory import Lag, Memory
from ..memory.paging import Pager
from ..memory.recall_device import RecallDevice
from ..memory.sweeping import Sweeper
from ..memory.vector_index import VectorIndex
from ..process import mailboxes
from ..process.mailboxes import Mailboxes
from ..storage.database import damaged
from ..storage.store import Store
from ..supervisor import Supervisor

log = logging.getLogger(__name__)
Part = TypeVar("Part")
_UNREADABLE = (SyscallError, ValueError, TypeError)
_PASSING = (Errno.EAGAIN, Errno.ENOSPC, Errno.EROFS)  # no descriptor, a full disk, a read-only one


@dataclass(frozen=True, slots=True)
class OpenPages:
    """The pages of an open owner, and what works on them."""

    memory: Memory
    vectors: VectorIndex
    sweeper: Sweeper
    pager: Pager


@dataclass(frozen=True, slots=True)
class OwnerContext:
    """What all owners share."""

    store: Store
    device: RecallDevice
    jobs: Supervisor
    alive: Callable[[], set[int]]  # pids of all processes
    limit_bytes: Callable[[str], int] = lambda _: 0  # of an owner's pages; 0: no limit


class Owner:
    """The data of one owner. Its parts may be used inside of `Owners.use` only."""

    def __init__(self, name: str, context: OwnerContext) -> None:
        self.name = name
        self.uses = 0  # calls and jobs that hold it open
        self.used_at = 0.0  # monotonic seconds: when the last of them ended
        self.is_open = False
        self.timer: asyncio.TimerHandle | None = None  # to close it; owners.py sets it
        self._context = context
        self._open_lock = anyio.Lock()  # held while it is opened or closed
        self._recovered = False  # what a crash interrupted was completed, at the first opening
        # None: closed. A SyscallError: the database cannot be read, until the next start.
        self._pages: OpenPages | SyscallError | None = None
        self._mail: Mailboxes | SyscallError | None = None
        # The last counts of a closed owner, which are reported while it is closed.
        self._lag_at_close: Lag | None = None  # None: not counted since boot
        self._messages_at_close: int | None = None  # the same

    # --- its parts, for calls: a call on a disabled database fails --------------------------------
    @property
    def memory(self) -> Memory:
        """Its page tables and pages. Raises EIO when their database cannot be read."""
        return _usable(self._pages).memory

    @property
    def vectors(self) -> VectorIndex:
        return _usable(self._pages).vectors

    @property
    def sweeper(self) -> Sweeper:
        return _usable(self._pages).sweeper

    @property
    def pager(self) -> Pager:
        return _usable(self._pages).pager

    @property
    def mail(self) -> Mailboxes:
        """Its mailboxes. Raises EIO when their database cannot be read."""
        return _usable(self._mail)

    # --- the same parts, for the kernel's own work, which skips a disabled database ---------------
    @property
    def pages(self) -> OpenPages | None:
        """Its pages; None while they cannot be read or it is closed."""
        return self._pages if isinstance(self._pages, OpenPages) else None

    @property
    def mailboxes(self) -> Mailboxes | None:
        """Its mailboxes; None while they cannot be read or it is closed."""
        return self._mail if isinstance(self._mail, Mailboxes) else None

    # --- its state --------------------------------------------------------------------------------
    @property
    def lag(self) -> Lag:
        """Its pages that have no vector; of an owner that is closed, when it was counted last."""
        return self.pages.memory.lag if self.pages is not None else self._lag_at_close or Lag()

    @property
    def messages(self) -> int:
        """The messages in its mailboxes; of an owner that is closed, when it was counted last."""
        if self.mailboxes is not None:
            return self.mailboxes.messages
        return self._messages_at_close or 0

    @property
    def counted(self) -> bool:
        """Whether `lag` and `messages` are known."""
        pages = self.pages is not None or self._lag_at_close is not None
        return pages and (self.mailboxes is not None or self._messages_at_close is not None)

    def note_counts(self, lag: Lag, messages: int) -> None:
        """The counts of an owner that was not opened since boot."""
        self._lag_at_close, self._messages_at_close = lag, messages

    def indexing(self) -> tuple[str, str]:
        """The state of its vectors, and why: off, idle, current, running or stuck."""
        if self._context.device.disabled:
            return "off", ""
        if self.pages is not None:
            return self.pages.vectors.state()
        if self._lag_at_close is None:
            return "idle", "the pages are not counted yet"
        return ("idle", "no search yet") if self._lag_at_close.waiting else ("current", "")

    @property
    def busy(self) -> bool:
        """Whether a call or job uses it, or background work on its data is not finished."""
        pages, mail = self.pages, self.mailboxes
        works = pages is not None and (pages.vectors.busy or pages.sweeper.busy)
        return self.uses > 0 or works or (mail is not None and mail.busy)

    # --- open and close ---------------------------------------------------------------------------
    async def open(self) -> None:
        """Open it, if it is closed. Raises EAGAIN, ENOSPC or EROFS while it cannot be opened."""
        async with self._open_lock:
            if self.is_open:
                return
            # A part that is open already, after a failure of the other one, stays as it is.
            self._mail = self._mail or await self._open_mail()
            self._pages = self._pages or await self._open_pages()
            self.is_open = True

    async def _open_pages(self) -> OpenPages | SyscallError:
        store, device, jobs = self._context.store, self._context.device, self._context.jobs
        try:
            limit = self._context.limit_bytes(self.name)
            loaded = await store.readers.run(self.name, loading.load, store, self.name, limit)
            memory = Memory(store, loaded)
            # There is no sweeper yet that would be resumed: note whether it will be needed.
            erase_pending = anyio.Event()
            memory.on_erase_pending = erase_pending.set
            if not self._recovered:
                await erasing.recover(memory, self._context.alive())
        except _UNREADABLE as error:
            return self._disabled(loading.name(self.name), error)
        self._recovered = True
        vectors = VectorIndex(memory, device)
        sweeper = Sweeper(memory, vectors, jobs)  # takes on_erase_pending over
        if loaded.unfinished or erase_pending.is_set():
            sweeper.resume()
        if device.lifecycle.requested and memory.has_pages():
            vectors.ensure_indexing()
        return OpenPages(memory, vectors, sweeper, Pager(memory, vectors))

    async def _open_mail(self) -> Mailboxes | SyscallError:
        store, file = self._context.store, mailboxes.name(self.name)
        if not (store.directory / file).exists():
            return Mailboxes(store, self.name, None)
        try:
            loaded = await store.readers.run(self.name, mailboxes.load, store, self.name)
        except _UNREADABLE as error:
            return self._disabled(file, error)
        return Mailboxes(store, self.name, loaded)

    def _disabled(self, file: str, error: Exception) -> SyscallError:
        """Disable a database that cannot be read. Returns the error of all calls that need it."""
        if isinstance(error, SyscallError) and error.errno in _PASSING:
            raise error  # this is no damage: a later opening may succeed
        store = self._context.store
        fault = error if isinstance(error, SyscallError) else damaged(store.directory / file, error)
        store.disable(file, self.name, fault)
        return fault

    async def close_if_idle(self) -> bool:
        """Finish pending work and close it. False: in use, at work, or it failed."""
        if self.pages is not None and not self.busy:
            await self.pages.sweeper.sweep_now()
        async with self._open_lock:
            if self.busy or not self.is_open:
                return not self.is_open
            self.is_open = False  # from now on a new use waits for the lock, then opens it again
            try:
                await self._close_parts()
            except SyscallError as error:  # for example a failed flush: see damage.py
                # The parts that are still open stay so, and the next use opens the others again.
                log.warning("the data of %s cannot be closed: %s", self.name, error)
                return False
        return True

    async def _close_parts(self) -> None:
        if self.mailboxes is not None:
            self.mailboxes.close()
            await self._context.store.retire(mailboxes.name(self.name))
            self._messages_at_close, self._mail = self.mailboxes.messages, None
        if self._pages is not None:
            self._lag_at_close = self.lag
            self._pages = await self._close_pages(self._pages)

    async def _close_pages(self, pages: OpenPages | SyscallError) -> SyscallError | None:
        """Close the pages; None. The error of a disabled database is kept instead."""
        if isinstance(pages, SyscallError):
            return pages
        await self._context.store.retire(loading.name(self.name))
        pages.vectors.close()
        return None

    async def finish(self) -> None:
        """At shutdown: do the pending work now."""
        if self.mailboxes is not None:
            self.mailboxes.close()
        if self.pages is not None:
            await self.pages.sweeper.sweep_now()


def _usable(part: Part | SyscallError | None) -> Part:
    """A part of an open owner. Raises EIO, with the reason, when its database is disabled."""
    if part is None:
        raise RuntimeError("the owner is not open: enter Owners.use first")
    if isinstance(part, SyscallError):
        raise SyscallError(part.errno, part.message, part.hint)
    return part
