"""Requantises a file in child processes, on the kernel's side: atomically, all or nothing.

One child (requantise.py) writes the new file, two more (quality.py) measure both files. The new
file is written under a temporary name beside the target and renamed when it is complete. Its
writer holds a lock on it: a temporary file without a lock is removed, by any process, so two
machines may share a cache. This module must not import llama_cpp.
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

from llmasos.drivers.exit_cause import cause
from llmasos.drivers.frames import error_in
from llmasos.drivers.local import gguf
from llmasos.drivers.local.quantisation import OFFERED
from llmasos.drivers.process import environment as child_environment
from llmasos.drivers.process import tail
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.logfile import open_log
from llmasos.kernel.abi.values import Progress, Quality
from llmasos.kernel.driver import Tuning

from .options import SPIN

PART = ".part"  # suffix of a temporary file
Report = Callable[[Progress], None]


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
        await _run_task("requantise", arguments, request.log, report)
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
        found = await _run_task("quality", [str(path), stage], request.log, report)
    figures = [float(found.get(name, 0)) for name in ("perplexity", "prefill", "decode")]
    return Quality(facts.quantisation or "unknown", facts.bytes, *figures)


async def _run_task(name: str, arguments: list[str], log: Path, report: Report) -> dict[str, Any]:
    """Run a child; its result. DeviceFault with the last lines of its log if it has none."""
    try:
        fd = open_log(log)
        begin = os.fstat(fd).st_size
    except OSError as error:
        raise DeviceFault(f"cannot write {log}: {error.strerror}") from error
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", f"{__package__}.{name}", *arguments,
            stdin=PIPE, stdout=PIPE, stderr=fd, env=environment(), cwd="/",
        )  # fmt: skip
    except OSError as error:
        raise DeviceFault(f"cannot start the {name} process: {error.strerror}") from error
    finally:
        os.close(fd)
    try:
        answer = await _read_result(process, report)
        code = await process.wait()
    finally:
        await asyncio.shield(_end(process))
    if answer is None:
        message = f"the {name} process {cause(code)}; {tail(log, begin)}"
        raise DeviceFault(message, f"see {log}")
    if "errno" in answer:
        raise error_in(answer["errno"], answer["message"], answer["hint"])
    return answer


async def _read_result(process: Process, report: Report) -> dict[str, Any] | None:
    """The last line; None if there is none. Reports the others as progress."""
    assert process.stdout is not None
    async for line in process.stdout:
        fields: dict[str, Any] = json.loads(line)
        if "stage" not in fields:
            return fields
        report(Progress(fields["stage"], fields["done"]))
    return None


async def _end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if process.returncode is None:
        process.kill()
    await process.wait()


def environment() -> dict[str, str]:
    """The environment of a child. ggml attaches no debugger when it aborts."""
    return child_environment(SPIN, GGML_NO_BACKTRACE="1")


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
