"""Pages that nobody has any more leave the database: after a crash, and after a process has gone.

What indexes and Chroma's files keep of them is the sweeper's.
"""

import logging

from ..errors import Damaged, SyscallError
from .memory import Memory

log = logging.getLogger(__name__)


async def recover(memory: Memory, alive: set[int]) -> None:
    """After a crash: what no living process has leaves the database of each owner.

    A database that turns out to be damaged is not used in this run, and keeps nobody else from it.
    """
    for owner in memory.owners():
        try:
            await memory.clear(owner)
            for pid in orphans(memory, owner, alive):
                await memory.erase(owner, pid)
        except Damaged as error:
            memory.withhold(owner, error)
        except SyscallError as error:  # as on a full disk: the next start tries again
            log.warning("pages that nobody has stay in the database of %s: %s", owner, error)


def orphans(memory: Memory, owner: str, alive: set[int]) -> list[int]:
    """Pids that have pages, and whose process is gone: a crash came between the two."""
    sql = "SELECT pid FROM tables UNION SELECT pid FROM spaces WHERE pid > 0"
    return [int(pid or 0) for (pid,) in memory.now(owner, sql) if pid not in alive]
