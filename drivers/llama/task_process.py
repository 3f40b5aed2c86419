"""Runs a task in a child process, on the kernel's side: its progress, its result, its end.

The child is written with task.py. This module must not import llama_cpp.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from llmasos.drivers.exit_cause import cause
from llmasos.drivers.frames import error_in
from llmasos.drivers.process import environment as child_environment
from llmasos.drivers.process import tail
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.logfile import open_log
from llmasos.kernel.abi.values import Progress

from .options import SPIN

Report = Callable[[Progress], None]


async def run(module: str, arguments: list[str], log: Path, report: Report) -> dict[str, Any]:
    """Run a child; its result. DeviceFault with the last lines of its log if it has none."""
    name = module.rpartition(".")[2]
    try:
        fd = open_log(log)
        begin = os.fstat(fd).st_size
    except OSError as error:
        raise DeviceFault(f"cannot write {log}: {error.strerror}") from error
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", module, *arguments,
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
        await finished(_end(process))
    if answer is None:
        message = f"the {name} process {cause(code)}; {tail(log, begin)}"
        raise DeviceFault(message, f"see {log}")
    if "errno" in answer:
        raise error_in(answer["errno"], answer["message"], answer["hint"])
    return answer


async def finished(cleanup: Awaitable[None]) -> None:
    """Wait for a cleanup, also in a task that is cancelled.

    The kernel cancels a call by a scope of anyio, which cancels each later wait of the task, too.
    """
    with anyio.CancelScope(shield=True):
        await asyncio.shield(cleanup)


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
