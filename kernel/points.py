"""Named points at which a crash or a failure matters, so that tests can have one exactly there.

LLMASOS_DIE_AT=NAME or NAME:N ends the process by SIGKILL when it passes the point for the Nth time.
LLMASOS_FAIL_AT=NAME or NAME:N raises a RuntimeError at the point, the first N times. Each
background job has a point too, `job.NAME`, which it passes whenever it starts (supervisor.py).
Without them a point costs two comparisons.
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
_fails, _, _times = os.environ.get("LLMASOS_FAIL_AT", "").partition(":")
_failures_left = int(_times or 1)


def passed(point: str) -> None:
    """This point has been reached. Never returns where it is the wanted one."""
    global _failures_left, _left
    if point == _fails and _failures_left > 0:
        _failures_left -= 1
        raise RuntimeError(f"LLMASOS_FAIL_AT names {point}")
    if point != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
