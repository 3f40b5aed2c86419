"""Named points at which a crash matters, so that tests can have one exactly there.

LLMASOS_DIE_AT=NAME or NAME:N ends the process by SIGKILL when it passes the point for the Nth time.
Without it a point costs a comparison.
"""

import os
import signal

POINTS = (
    "store.commit",  # a group of writes is about to be committed
    "store.written",  # it is in the write-ahead log, not flushed
    "store.synced",  # it is flushed, nobody has been told
    "index.embedded",  # pages have become vectors, which nobody knows yet
    "index.kept",  # their vectors are in the database, the recall process does not know
    "index.added",  # it knows
    "forget.erased",  # pages are gone from the database, copies of them are not
    "forget.renewed",  # Chroma's files are new
)
_name, _, _count = os.environ.get("LLMASOS_DIE_AT", "").partition(":")
_left = int(_count or 1)


def passed(point: str) -> None:
    """This point has been reached. Never returns where it is the wanted one."""
    global _left
    if point != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
