"""What is left of pages that are gone, after their processes were reaped.

The rows are erased at once; words of theirs stay in old segments of the text indexes, and vectors
in Chroma's files, until both are made anew. That takes as long as the indexes are large, so it is
done once for many, a while after the last; an owner who has something to sweep is marked so on
disk, and the next boot goes on. `forget` does not wait for any of this.
"""

import logging

import anyio

from .. import limits
from ..database import Statement
from ..errors import SyscallError
from ..supervisor import Supervisor
from . import schema
from .meaning import Meaning
from .memory import Memory

log = logging.getLogger(__name__)
MERGED: tuple[Statement, ...] = (
    ("INSERT INTO turns(turns) VALUES('optimize')", ()),
    ("INSERT INTO nears(nears) VALUES('optimize')", ()),
)


class Sweeper:
    """Of the machine."""

    def __init__(self, memory: Memory, meaning: Meaning, jobs: Supervisor) -> None:
        self._memory, self._meaning, self._jobs = memory, meaning, jobs
        self._due: dict[str, anyio.CancelScope] = {}  # by owner: the wait before the sweep
        for owner in memory.owners():
            if memory.now(owner, schema.IS_DIRTY):
                self.dirty(owner)

    def dirty(self, owner: str) -> None:
        """Pages of this owner are gone: sweep soon, unless more go before."""
        if owner in self._due:
            self._due[owner].cancel()
        scope = self._due[owner] = anyio.CancelScope()
        self._jobs.run("sweep", self._later, owner, scope, owner=owner)

    async def _later(self, owner: str, scope: anyio.CancelScope) -> None:
        """Until it is done: what fails is tried again after growing pauses."""
        pause_s = limits.SWEEP_S
        while not scope.cancel_called:
            with scope:
                await anyio.sleep(pause_s)
            if scope.cancel_called or await self.sweep(owner):
                break
            pause_s = min(2 * pause_s, limits.SWEEP_LAST_S)
        if self._due.get(owner) is scope:
            del self._due[owner]

    async def close(self) -> None:
        """The machine goes down: what is due is done now."""
        for owner in list(self._due):
            self._due.pop(owner).cancel()
            await self.sweep(owner)

    async def sweep(self, owner: str) -> bool:
        """Whether all of it is done."""
        try:
            await self._meaning.sweep(owner)
            database = self._memory.database(owner)
            await self._memory.store.write(database, [*MERGED, *schema.CLEAN], frees=True)
            await self._memory.store.empty_log(database)
        except (SyscallError, OSError) as error:
            log.warning("pages of %s that are gone are not swept: %s", owner, error)
            return False
        return True
