"""Pages that nobody has any more leave the database: after a crash, and after a process has gone.

What indexes and Chroma's files keep of them is the sweeper's.
"""

from .memory import Memory


def orphans(memory: Memory, alive: set[int]) -> list[tuple[str, int]]:
    """(owner, pid) of pages whose process is gone: a crash came between the two."""
    sql = "SELECT pid FROM tables UNION SELECT pid FROM spaces WHERE pid > 0"
    return [
        (owner, int(pid or 0))
        for owner in memory.owners()
        for (pid,) in memory.now(owner, sql)
        if pid not in alive
    ]
