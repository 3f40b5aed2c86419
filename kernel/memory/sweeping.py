"""What is left of pages that are gone: the sweeper removes it, owner by owner, in the background.

Their rows are erased at once, as fast as pieces go. Words of theirs stay in old segments of the
text indexes, and vectors in Chroma's files, until these are merged and made anew. That takes as
long as the indexes are large, so it is done for many at once: SWEEP_S after the first of them has
gone, however many go meanwhile; Chroma's files once a tenth of the vectors is gone, or an hour
later. What is left stands on disk, and the next boot goes on; so it does with indexes whose making
was interrupted. `forget` does not wait for any of this.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from .. import limits
from ..errors import Damaged, SyscallError
from ..supervisor import Supervisor
from . import erasing, pieces, schema, words
from .fsck import resume_vectors
from .meaning import Meaning
from .memory import Memory

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Due:
    """What has to be done for an owner."""

    erase: anyio.Event = field(default_factory=anyio.Event)  # set: there are pages to be erased
    news: anyio.Event = field(default_factory=anyio.Event)  # set: something more has gone
    sweep: bool = True  # something of pages that are gone is left in an index
    whole: bool = False  # Chroma's files are made anew by the next sweep, however few are gone
    gone: int = 0  # pages whose vectors may be in Chroma's files
    late: float | None = None  # monotonic seconds since these are left, while no words are


class Sweeper:
    """Of the machine."""

    def __init__(self, memory: Memory, meaning: Meaning, jobs: Supervisor) -> None:
        self._memory, self._meaning, self._jobs = memory, meaning, jobs
        self._due: dict[str, Due] = {}  # by owner; each has a job
        memory.left = self.left
        for owner in memory.owners():
            try:
                self._look(owner)
            except Damaged as error:  # its owner does without it, nobody else
                memory.withhold(owner, error)

    def _look(self, owner: str) -> None:
        """At boot: what the last run left."""
        if self._memory.now(owner, pieces.FILLING):
            self._memory.filling.add(owner)
        if self._memory.now(owner, pieces.UNFINISHED):
            self.left(owner)

    def dirty(self, owner: str, pages: int | None = None) -> None:
        """Pages of this owner are gone: their indexes are swept within SWEEP_S from now.

        `pages`: how many, of a process that is gone; the vectors of so few may wait for others.
        """
        due = self._due.get(owner)
        if due is None:
            due = self._due[owner] = Due()
            self._jobs.run("sweep", self._work, owner, owner=owner)
        due.sweep = True
        due.whole = due.whole or pages is None
        due.gone += pages or 0
        due.news.set()

    def left(self, owner: str) -> None:
        """There are pages to be erased, or an index to be made: begin now."""
        self.dirty(owner)
        self._due[owner].erase.set()

    async def _work(self, owner: str) -> None:
        """Until nothing is left. What fails is tried again after growing pauses."""
        due, pause_s = self._due[owner], limits.SWEEP_S
        while due.sweep or due.late is not None:
            if due.sweep:
                await self._wait(owner, due, pause_s)
            else:
                await self._wait_late(due)
            begun = time.monotonic()
            if await self._swept(owner, due):
                took_s = time.monotonic() - begun
                pause_s = max(limits.SWEEP_S, min(limits.SWEEP_SHARE * took_s, limits.SWEEP_MOST_S))
            else:
                pause_s = min(2 * pause_s, limits.SWEEP_LAST_S)
        del self._due[owner]

    async def _swept(self, owner: str, due: Due) -> bool:
        """Sweep; whatever keeps it from being done, it stays due."""
        done, due.sweep = False, False
        try:
            done = await self.sweep(owner)
        finally:
            if not done:
                due.sweep = due.whole = True
        return done

    async def _wait_late(self, due: Due) -> None:
        """Until more has gone, or Chroma's files have kept vectors for long enough."""
        due.news = anyio.Event()
        with anyio.move_on_after(_left_s(due)) as waited:
            await due.news.wait()
        due.sweep = due.sweep or waited.cancelled_caught

    async def _wait(self, owner: str, due: Due, pause_s: float) -> None:
        """The pause before a sweep; pages that have to be erased meanwhile are."""
        with anyio.move_on_after(pause_s):
            while True:
                await due.erase.wait()
                due.erase = anyio.Event()
                await self._attempt(owner, self._finish)

    async def close(self) -> None:
        """The machine goes down: what is due is done now."""
        for owner, due in list(self._due.items()):
            due.whole = True
            await self.sweep(owner)

    async def sweep(self, owner: str) -> bool:
        """Whether all of it is done."""
        return await self._attempt(owner, self._sweep)

    async def _attempt(self, owner: str, do: Callable[[str], Awaitable[None]]) -> bool:
        try:
            async with self._memory.upkeep(owner):
                await do(owner)
        except (SyscallError, OSError) as error:
            log.warning("pages of %s that are gone are not swept: %s", owner, error)
            return False
        return True

    async def _finish(self, owner: str) -> None:
        """Erase what is going, and make the indexes that are not complete."""
        memory = self._memory
        erased = await erasing.finish(memory, owner)
        if erased:  # also vectors that were made meanwhile
            await self._meaning.erased(owner, [], erased)
            await memory.count_waiting(owner)
        await words.resume(memory, owner)
        if memory.now(owner, pieces.REMAKE):
            await resume_vectors(memory, self._meaning, owner)

    async def _sweep(self, owner: str) -> None:
        memory, database = self._memory, self._memory.database(owner)
        await memory.store.write(database, [schema.SWEEPING], durable=False, frees=True)
        await self._finish(owner)
        due = self._due.get(owner)
        whole = due is None or self._renews(owner, due)
        if whole:
            if due is not None:
                due.whole, due.gone = False, 0
            await self._meaning.sweep(owner)
        await words.merge(memory, owner)
        if whole:  # else the mark stays: the next start makes Chroma's files anew
            await memory.store.write(database, [schema.CLEAN], frees=True)
        if due is not None:
            due.late = None if whole else (due.late or time.monotonic())
        await memory.store.empty_log(database)

    def _renews(self, owner: str, due: Due) -> bool:
        """Whether Chroma's files are made anew: it takes as long as the owner has pages.

        They hold numbers and no text, so a process that was a small part of them waits for others.
        """
        held = sum(one.count for table in self._memory.tables.of(owner) for one in table.ranges)
        return due.whole or due.gone * limits.RENEW_PARTS >= held or _left_s(due) <= 0


def _left_s(due: Due) -> float:
    """Until Chroma's files are made anew, however few vectors are gone."""
    if due.late is None:
        return limits.RENEW_LATE_S
    return max(0.0, due.late + limits.RENEW_LATE_S - time.monotonic())
