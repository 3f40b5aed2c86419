"""Requantises a file in child processes, on the kernel's side: atomically, all or nothing.

One child (requantise.py) writes the new file, two more (quality.py) measure both files. The new
file is written under a temporary name beside the target and renamed when it is complete. Its
writer holds a lock on it: a temporary file without a lock is removed, by any process, so two
machines may share a cache. This module must not import llama_cpp.
"""

import asyncio
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmasos.drivers.local import gguf
from llmasos.drivers.local.quantisation import OFFERED
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Quality
from llmasos.kernel.driver import Tuning

from .task_process import Report, run

PART = ".part"  # suffix of a temporary file


async def tune(request: Tuning, report: Report) -> tuple[Quality, Quality]:
    """Requantise a file; the qualities before and after. EINVAL, ENOSPC, EIO.

    When cancelled, it ends the child and removes its files first.
    """
    if request.quantisation not in OFFERED:
        message = f"cannot convert a file to {request.quantisation!r}"
        raise SyscallError(Errno.EINVAL, message, f"the quantisations are {', '.join(OFFERED)}")
    await asyncio.to_thread(sweep, request.target.parent)
    complete = request.target.exists()
    try:
        arguments = [str(request.path), str(request.target), request.quantisation]
        await run(f"{__package__}.requantise", arguments, request.log, report)
        before = await _quality(request, request.path, "measure before", report)
        after = await _quality(request, request.target, "measure after", report)
        complete = True
    finally:
        if not complete:
            with suppress(OSError):
                request.target.unlink()
        await asyncio.shield(asyncio.to_thread(sweep, request.target.parent))
    return before, after


async def _quality(request: Tuning, path: Path, stage: str, report: Report) -> Quality:
    facts = (await asyncio.to_thread(gguf.read, path)).facts
    found: dict[str, Any] = {}
    if request.measure:
        found = await run(f"{__package__}.quality", [str(path), stage], request.log, report)
    figures = [float(found.get(name, 0)) for name in ("perplexity", "prefill", "decode")]
    return Quality(facts.quantisation or "unknown", facts.bytes, *figures)


def sweep(folder: Path) -> None:
    """Remove temporary files whose writers have ended."""
    for path in folder.glob(f".*{PART}"):
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            continue  # removed meanwhile, or not accessible
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            continue  # its writer holds the lock
        finally:
            os.close(fd)
