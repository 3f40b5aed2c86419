"""Named fault points, at which tests inject a crash or a failure.

LLMASOS_DIE_AT=NAME or NAME:N kills the process with SIGKILL when it passes the point for the Nth
time. LLMASOS_FAIL_AT=NAME or NAME:N raises a RuntimeError at the point, the first N times. Each
background job also has a point, `job.NAME`, which it passes at each start (supervisor.py).
Without these variables a point costs two comparisons.
"""

import os
import signal

POINTS = (
    "store.commit",  # a group of writes is about to be committed
    "store.written",  # it is in the write-ahead log, not flushed
    "store.synced",  # it is flushed, not acknowledged
    "index.embedded",  # the vectors of pages were computed, and are not stored
    "index.kept",  # the vectors are in the database, not in the recall process
    "index.added",  # the vectors are in the recall process
    "forget.erased",  # pages are erased from the database, their copies are not
    "forget.renewed",  # Chroma's files are rebuilt
)
_name, _, _count = os.environ.get("LLMASOS_DIE_AT", "").partition(":")
_left = int(_count or 1)
_fails, _, _times = os.environ.get("LLMASOS_FAIL_AT", "").partition(":")
_failures_left = int(_times or 1)


def passed(point: str) -> None:
    """Pass a point: may raise RuntimeError or kill the process, as configured."""
    global _failures_left, _left
    if point == _fails and _failures_left > 0:
        _failures_left -= 1
        raise RuntimeError(f"LLMASOS_FAIL_AT names {point}")
    if point != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
