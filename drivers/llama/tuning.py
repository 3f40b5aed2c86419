"""Requantising a file, seen from the kernel: child processes do it, and leave all or nothing.

One child makes the other file, two more measure both. What is being written
has a name of its own beside the target and is renamed when it is whole. A lock on it tells others,
in any process, whether its writer still lives: what nobody holds is removed, so two machines may
share a cache. This module must not import llama_cpp.
"""

import asyncio
import fcntl
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmasos.drivers.frames import error_in
from llmasos.drivers.process import tail
from llmasos.kernel.driver import Tuning
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.logfile import open_log
from llmasos.kernel.values import Progress, Quality

from . import gguf
from .link import environment
from .quantisation import OFFERED

PART = ".part"  # how the name of an unfinished file ends
Tell = Callable[[Progress], None]


async def tune(request: Tuning, tell: Tell) -> tuple[Quality, Quality]:
    """Requantise a file; the qualities before and after. EINVAL, ENOSPC, EIO.

    A cancel point: the child is ended, and what it wrote removed, before the cancellation goes on.
    """
    if request.quantisation not in OFFERED:
        words = f"llama.cpp cannot make {request.quantisation!r} of a file"
        raise SyscallError(Errno.EINVAL, words, f"it can make {', '.join(OFFERED)}")
    await asyncio.to_thread(sweep, request.target.parent)
    whole = request.target.exists()
    try:
        asked = [str(request.path), str(request.target), request.quantisation]
        await _errand("requantise", asked, request.log, tell)
        before = await _quality(request, request.path, "measure before", tell)
        after = await _quality(request, request.target, "measure after", tell)
        whole = True
    finally:
        if not whole:
            with suppress(OSError):
                request.target.unlink()
        await asyncio.shield(asyncio.to_thread(sweep, request.target.parent))
    return before, after


async def _quality(request: Tuning, path: Path, stage: str, tell: Tell) -> Quality:
    facts = (await asyncio.to_thread(gguf.read, path)).facts
    found: dict[str, Any] = {}
    if request.measure:
        found = await _errand("quality", [str(path), stage], request.log, tell)
    figures = [float(found.get(name, 0)) for name in ("perplexity", "prefill", "decode")]
    return Quality(facts.quantisation or "unknown", facts.bytes, *figures)


async def _errand(name: str, words: list[str], log: Path, tell: Tell) -> dict[str, Any]:
    """Run a child to its last line. DeviceFault with the log's last words when there is none."""
    try:
        fd = open_log(log)
        begin = os.fstat(fd).st_size
    except OSError as error:
        raise DeviceFault(f"{log} cannot be written: {error.strerror}") from error
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", f"{__package__}.{name}", *words,
            stdin=PIPE, stdout=PIPE, stderr=fd, env=environment(), cwd="/",
        )  # fmt: skip
    except OSError as error:
        raise DeviceFault(f"{name} cannot be started: {error.strerror}") from error
    finally:
        os.close(fd)
    try:
        answer = await _listen(process, tell)
        code = await process.wait()
    finally:
        await asyncio.shield(_end(process))
    if answer is None:
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise DeviceFault(f"the {name} process {cause}; {tail(log, begin)}", f"see {log}")
    if "errno" in answer:
        raise error_in(answer["errno"], answer["message"], answer["hint"])
    return answer


async def _listen(process: Process, tell: Tell) -> dict[str, Any] | None:
    """Its last line, if it came so far; the others are progress."""
    assert process.stdout is not None
    async for line in process.stdout:
        said: dict[str, Any] = json.loads(line)
        if "stage" not in said:
            return said
        tell(Progress(said["stage"], said["done"]))
    return None


async def _end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if process.returncode is None:
        process.kill()
    await process.wait()


def sweep(folder: Path) -> None:
    """Remove unfinished files whose writers are gone."""
    for path in folder.glob(f".*{PART}"):
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            continue  # it is gone, or not ours
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            continue  # its writer lives
        finally:
            os.close(fd)
