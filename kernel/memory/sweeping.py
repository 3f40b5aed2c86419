"""The sweeper removes what is left of an owner's erased pages, in the background.

Queued rows are erased at once, piece by piece. Words of erased pages stay in old segments of the
text indexes, and vectors in Chroma's files, until the segments are merged and the files rewritten.
That takes time proportional to the indexes, so one sweep serves many erasures: it runs SWEEP_S
after the first of them. Chroma's files are rewritten once 1/RENEW_PARTS of the vectors is gone, or
RENEW_LATE_S later. The remaining work is recorded on disk and continues when the owner is opened
again, as do interrupted rebuilds of indexes. `forget` sweeps by itself, without these delays.
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
    """The pending work."""

    erase: anyio.Event = field(default_factory=anyio.Event)  # set: there are rows to erase
    more: anyio.Event = field(default_factory=anyio.Event)  # set: more pages were erased
    sweep: bool = True  # an index still holds something of erased pages
    whole: bool = False  # the next sweep rewrites Chroma's files, however few vectors are gone
    gone: int = 0  # erased pages whose vectors may be in Chroma's files
    late: float | None = None  # monotonic seconds: since when only Chroma's files are left to do


class Sweeper:
    """Runs one background job while an owner has pending work."""

    def __init__(self, memory: Memory, vectors: VectorIndex, jobs: Supervisor) -> None:
        self._memory, self._vectors, self._jobs = memory, vectors, jobs
        self._pending: PendingSweep | None = None
        memory.on_erase_pending = self.resume

    @property
    def busy(self) -> bool:
        """Whether work is pending, other than the late rewrite of Chroma's files."""
        return self._pending is not None and self._pending.sweep

    def dirty(self, pages: int | None = None) -> None:
        """Schedule a sweep after pages were erased.

        `pages`: how many pages a reaped process had; their vectors may stay in Chroma's files for a
        later sweep. None: the next sweep rewrites these files.
        """
        self._schedule(pages)

    def resume(self) -> None:
        """Erase queued rows and resume interrupted rebuilds now, without the pause."""
        self._schedule(None).erase.set()

    def _schedule(self, pages: int | None) -> PendingSweep:
        pending = self._pending
        if pending is None:
            pending = self._pending = PendingSweep()
            self._jobs.run("sweep", self._work, pending, owner=self._memory.owner)
        pending.sweep = True
        pending.whole = pending.whole or pages is None
        pending.gone += pages or 0
        pending.more.set()
        return pending

    async def _work(self, pending: PendingSweep) -> None:
        """The job: sweep until nothing is left; retry failures with growing pauses."""
        pause_s = limits.SWEEP_S
        while pending.sweep or pending.late is not None:
            if pending.sweep:
                await self._wait(pending, pause_s)
            else:
                await self._wait_late(pending)
            if not pending.sweep:  # `finish` did it meanwhile
                continue
            started = time.monotonic()
            if await self._swept(pending):
                took_s = time.monotonic() - started
                pause_s = max(limits.SWEEP_S, min(limits.SWEEP_SHARE * took_s, limits.SWEEP_MOST_S))
            else:
                pause_s = min(2 * pause_s, limits.SWEEP_LAST_S)
        self._pending = None

    async def _swept(self, pending: PendingSweep) -> bool:
        """Sweep; if it fails or is cancelled, the work stays pending."""
        done, pending.sweep = False, False
        try:
            done = await self.sweep()
        finally:
            if not done:
                pending.sweep = pending.whole = True
        return done

    async def _wait_late(self, pending: PendingSweep) -> None:
        """Wait until more pages are erased, or the rewrite of Chroma's files is due."""
        pending.more = anyio.Event()
        with anyio.move_on_after(_left_s(pending)) as waited:
            await pending.more.wait()
        pending.sweep = pending.sweep or waited.cancelled_caught

    async def _wait(self, pending: PendingSweep, pause_s: float) -> None:
        """Pause before a sweep; erase rows that are queued meanwhile."""
        with anyio.move_on_after(pause_s):
            while True:
                await pending.erase.wait()
                pending.erase = anyio.Event()
                await self._try(self._finish)

    async def finish(self) -> None:
        """Do the pending work now."""
        if self._pending is not None:
            self._pending.whole = True
            await self.sweep()
            self._pending.more.set()

    async def sweep(self) -> bool:
        """Sweep once. Whether it succeeded."""
        return await self._try(self._sweep)

    async def _try(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            async with self._memory.maintenance:
                await work()
        except (SyscallError, OSError) as error:
            owner = self._memory.owner
            log.warning("the indexes of %s still hold erased pages: %s", owner, error)
            return False
        return True

    async def _finish(self) -> None:
        """Erase the queued rows and finish interrupted rebuilds of indexes."""
        memory = self._memory
        erased = await erasing.finish(memory)
        if erased:  # includes vectors that were stored meanwhile
            await self._vectors.remove([], erased)
            await memory.count_waiting()
        await text_index.resume(memory)
        if memory.read_blocking(pieces.REMAKE):
            await resume_vectors(memory, self._vectors)

    async def _sweep(self) -> None:
        memory, pending = self._memory, self._pending
        await memory.store.write(memory.database, [schema.SWEEPING], durable=False, frees=True)
        await self._finish()
        whole = pending is None or self._rewrites_chroma(pending)
        if whole:
            if pending is not None:
                pending.whole, pending.gone = False, 0
            await self._vectors.sweep()
        await text_index.merge(memory)
        if whole:  # otherwise the mark stays: the next boot rewrites Chroma's files
            await memory.store.write(memory.database, [schema.CLEAN], frees=True)
        if pending is not None:
            pending.late = None if whole else (pending.late or time.monotonic())
        await memory.store.truncate_log(memory.database)

    def _rewrites_chroma(self, pending: PendingSweep) -> bool:
        """Whether to rewrite Chroma's files now: it takes time proportional to the owner's pages.

        They hold vectors and no text, so the vectors of a small process wait for others.
        """
        pages = sum(one.count for table in self._memory.tables.all() for one in table.ranges)
        return pending.whole or pending.gone * limits.RENEW_PARTS >= pages or _left_s(pending) <= 0


def _left_s(pending: PendingSweep) -> float:
    """Seconds until Chroma's files are rewritten, however few vectors are gone."""
    if pending.late is None:
        return limits.RENEW_LATE_S
    return max(0.0, pending.late + limits.RENEW_LATE_S - time.monotonic())
