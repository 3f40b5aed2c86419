"""The sweeper removes what is left of an owner's erased pages, in the background.

Queued rows are erased at once, piece by piece. Words of erased pages stay in old segments of the
text indexes, and vectors in Chroma's files, until the segments are merged and the files rewritten.
That takes time proportional to the indexes, so one sweep serves many erasures: it runs SWEEP_S
after the first of them. Chroma's files are rewritten once 1/RENEW_PARTS of the vectors is erased,
or RENEW_LATE_S later. A mark on disk says that work remains; after a crash the next opening of the
owner continues it, as it does interrupted rebuilds of indexes. `forget` does the same steps itself,
without these delays (forgetting.py).
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from ..abi import limits
from ..abi.errors import SyscallError
from ..supervisor import Supervisor
from . import erasing, pieces, schema, text_index
from .fsck import resume_vectors
from .memory import Memory
from .vector_index import VectorIndex

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PendingSweep:
    """The work that the background job has to do."""

    rows_queued: anyio.Event = field(default_factory=anyio.Event)  # set: there are rows to erase
    changed: anyio.Event = field(default_factory=anyio.Event)  # set: the fields below have changed
    needed: bool = True  # a sweep: an index still holds something of erased pages
    must_rewrite_chroma: bool = False  # in the next sweep, however few vectors are erased
    erased_pages: int = 0  # whose vectors may be in Chroma's files
    # Monotonic seconds: since when nothing but the rewrite of Chroma's files remains.
    rewrite_pending_since: float | None = None


class Sweeper:
    """Runs one background job while an owner has pending work."""

    def __init__(self, memory: Memory, vectors: VectorIndex, jobs: Supervisor) -> None:
        self._memory, self._vectors, self._jobs = memory, vectors, jobs
        self._pending: PendingSweep | None = None
        memory.on_erase_pending = self.resume

    @property
    def busy(self) -> bool:
        """Whether work is pending, other than a postponed rewrite of Chroma's files."""
        return self._pending is not None and self._pending.needed

    def dirty(self, pages: int | None = None) -> None:
        """Schedule a sweep after pages were erased.

        `pages`: how many pages a reaped process had; their vectors may stay in Chroma's files for a
        later sweep. None: the next sweep rewrites these files.
        """
        self._schedule(pages)

    def resume(self) -> None:
        """Erase queued rows and resume interrupted rebuilds now, without the pause."""
        self._schedule(None).rows_queued.set()

    def _schedule(self, pages: int | None) -> PendingSweep:
        pending = self._pending
        if pending is None:
            pending = self._pending = PendingSweep()
            self._jobs.run("sweep", self._run, pending, owner=self._memory.owner)
        pending.needed = True
        pending.must_rewrite_chroma = pending.must_rewrite_chroma or pages is None
        pending.erased_pages += pages or 0
        pending.changed.set()
        return pending

    async def _run(self, pending: PendingSweep) -> None:
        """The job: sweep until nothing is left; retry failures with growing pauses."""
        pause_s = limits.SWEEP_S
        while pending.needed or pending.rewrite_pending_since is not None:
            if pending.needed:
                await self._pause(pending, pause_s)
            else:
                await self._wait_for_rewrite(pending)
            if not pending.needed:  # `sweep_now` has rewritten Chroma's files during the wait
                continue
            started = time.monotonic()
            if await self._sweep_pending(pending):
                took_s = time.monotonic() - started
                pause_s = max(limits.SWEEP_S, min(limits.SWEEP_SHARE * took_s, limits.SWEEP_MOST_S))
            else:
                pause_s = min(2 * pause_s, limits.SWEEP_LAST_S)
        self._pending = None

    async def _sweep_pending(self, pending: PendingSweep) -> bool:
        """Sweep once; if it fails or is cancelled, the work stays pending."""
        done, pending.needed = False, False
        try:
            done = await self.sweep_once()
        finally:
            if not done:
                pending.needed = pending.must_rewrite_chroma = True
        return done

    async def _wait_for_rewrite(self, pending: PendingSweep) -> None:
        """Wait until more pages are erased, or the rewrite of Chroma's files is due."""
        pending.changed = anyio.Event()
        with anyio.move_on_after(_seconds_to_rewrite(pending)) as waited:
            await pending.changed.wait()
        pending.needed = pending.needed or waited.cancelled_caught

    async def _pause(self, pending: PendingSweep, pause_s: float) -> None:
        """Pause before a sweep; erase rows that are queued meanwhile."""
        with anyio.move_on_after(pause_s):
            while True:
                await pending.rows_queued.wait()
                pending.rows_queued = anyio.Event()
                await self._maintain(self._erase_queued_rows)

    async def sweep_now(self) -> None:
        """Do the pending work now, also a postponed rewrite of Chroma's files."""
        if self._pending is not None:
            self._pending.must_rewrite_chroma = True
            await self.sweep_once()
            self._pending.changed.set()

    async def sweep_once(self) -> bool:
        """Sweep, whether or not work is pending. False: it failed, and the reason is logged."""
        return await self._maintain(self._clean_indexes)

    async def _maintain(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do work while the maintenance lock is held. False: it failed."""
        try:
            async with self._memory.maintenance:
                await work()
        except (SyscallError, OSError) as error:
            owner = self._memory.owner
            log.warning("the indexes of %s still hold erased pages: %s", owner, error)
            return False
        return True

    async def _erase_queued_rows(self) -> None:
        """Erase the queued rows and finish interrupted rebuilds of indexes."""
        memory = self._memory
        erased = await erasing.finish(memory)
        if erased:  # includes vectors that were stored meanwhile
            await self._vectors.remove([], erased)
            await memory.count_waiting()
        await text_index.resume(memory)
        if memory.read_blocking(pieces.REMAKE):
            await resume_vectors(memory, self._vectors)

    async def _clean_indexes(self) -> None:
        """Remove erased pages from the database, the indexes and, if it is time, Chroma's files."""
        memory, pending = self._memory, self._pending
        await memory.store.write(memory.database, [schema.SWEEPING], durable=False, frees=True)
        await self._erase_queued_rows()
        rewrites = pending is None or self._rewrites_chroma(pending)
        if rewrites:
            if pending is not None:
                pending.must_rewrite_chroma, pending.erased_pages = False, 0
            await self._vectors.clean_files()
        await text_index.merge(memory)
        if rewrites:  # otherwise the mark stays: after a crash, the next opening rewrites the files
            await memory.store.write(memory.database, [schema.CLEAN], frees=True)
        if pending is not None:
            since = pending.rewrite_pending_since or time.monotonic()
            pending.rewrite_pending_since = None if rewrites else since
        await memory.store.truncate_log(memory.database)

    def _rewrites_chroma(self, pending: PendingSweep) -> bool:
        """Whether to rewrite Chroma's files now: it takes time proportional to the owner's pages.

        They hold vectors and no text, so the vectors of a small process wait for others.
        """
        pages = sum(one.count for table in self._memory.tables.all() for one in table.ranges)
        return (
            pending.must_rewrite_chroma
            or pending.erased_pages * limits.RENEW_PARTS >= pages
            or _seconds_to_rewrite(pending) <= 0
        )


def _seconds_to_rewrite(pending: PendingSweep) -> float:
    """Seconds until Chroma's files are rewritten, however few vectors are erased."""
    if pending.rewrite_pending_since is None:
        return limits.RENEW_LATE_S
    return max(0.0, pending.rewrite_pending_since + limits.RENEW_LATE_S - time.monotonic())
