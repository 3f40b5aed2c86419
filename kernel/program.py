"""Programs: processes of the system that act as a process of ours, over a socket that they inherit.

The socket is the identity. There is no path to find, no secret in the environment or the arguments,
and nothing that a program could hand on to gain more: who connects anew from below a program is
known by its ancestors and stays within the same bounds.
"""

import asyncio
import ctypes
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .connection import Connection
from .errors import Errno, SyscallError
from .machine import Machine
from .process import Process
from .trap import Trap

FD = "LLMASOS_FD"  # the number of the inherited descriptor: not a secret
_SUBREAPER = 36  # of prctl
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ")  # of our own environment


async def start(
    machine: Machine, process: Process, command: Sequence[str], folder: Path,
    environment: Mapping[str, str],
) -> int:  # fmt: skip
    """Start it and return its pid of the system. The process ends with it. ENOENT, EACCES."""
    _adopt_orphans(machine)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        number = theirs.fileno()
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        child = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env={**kept, **environment, FD: str(number)},
            stdin=asyncio.subprocess.DEVNULL, pass_fds=(number,), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        ours.close()
        errno = Errno.EACCES if isinstance(error, PermissionError) else Errno.ENOENT
        raise SyscallError(errno, f"{command[0]} was not started: {error}") from error
    finally:
        theirs.close()
    machine.programs[child.pid] = process
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(lambda: Connection(Trap(machine, process)), ours)
    machine.tasks.start_soon(_follow, machine, process, child)
    return child.pid


def _adopt_orphans(machine: Machine) -> None:
    """Who loses its parent becomes our child and not init's: it cannot pass for somebody else."""
    with suppress(OSError, AttributeError):  # not Linux
        machine.adopts = ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0) == 0


async def _follow(machine: Machine, process: Process, child: asyncio.subprocess.Process) -> None:
    """Its end is the process's end; the end of the machine, or of the process, is its end."""
    ended = asyncio.ensure_future(process.ended.wait())
    gone = asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait((ended, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            code = gone.result()
            code = code if code >= 0 else 128 - code
            await machine.exit(process, code, "its program ended")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        ended.cancel()
        gone.cancel()
        machine.programs.pop(child.pid, None)
