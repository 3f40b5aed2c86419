"""Programs: processes of the system that act as a process of ours, over a socket that they inherit.

The socket is the identity. There is no path to find and no secret in the environment or the
arguments; who connects anew from below a program is known by its ancestors and stays within the
same bounds. That is no sandbox: a program with the user's rights has other ways than this socket.
"""

import asyncio
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from anyio import CancelScope, move_on_after

from .connection import Connection
from .errors import Errno, SyscallError, exhausted
from .machine import Machine
from .paths import FD
from .process import Process
from .trap import Trap

log = logging.getLogger(__name__)
_SUBREAPER = 36  # of prctl
_BURIAL_S, _LOOKS = 1.0, 20  # what was killed needs a moment to end
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LLMASOS_RUNTIME_DIR")  # of our own environment


async def start(
    machine: Machine, process: Process, command: Sequence[str], folder: Path,
    environment: Mapping[str, str],
) -> int:  # fmt: skip
    """Start it and return its pid of the system. The process ends with it. ENOENT, EACCES."""
    _adopt_orphans(machine)
    pid = 0
    with CancelScope(shield=True):  # one that is started is known and followed
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            child = await _run(command, folder, environment, ours, theirs)
        machine.programs[child.pid] = process
        machine.jobs.once("program", _follow, machine, process, child)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Connection(Trap(machine, process)), ours)
        pid = child.pid
    return pid


async def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], ours: socket.socket,
    theirs: socket.socket,
) -> asyncio.subprocess.Process:  # fmt: skip
    number = theirs.fileno()
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        return await asyncio.create_subprocess_exec(
            *command, cwd=folder, env={**kept, **environment, FD: str(number)},
            stdin=asyncio.subprocess.DEVNULL, pass_fds=(number,), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        ours.close()
        errno = Errno.EACCES if isinstance(error, PermissionError) else Errno.ENOENT
        refusal = SyscallError(errno, f"{command[0]} was not started: {error}")
        raise exhausted(error) or refusal from error


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
    except SyscallError as error:
        log.warning("process %d stays without its program: %s", process.pid, error)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        ended.cancel()
        with move_on_after(_BURIAL_S, shield=True):
            await gone
            for _ in range(_LOOKS):
                if _buried(child.pid):
                    break
                await asyncio.sleep(_BURIAL_S / _LOOKS)
        machine.programs.pop(child.pid, None)


def _buried(group: int) -> bool:
    """Its orphans became our children: nobody else waits for them. Who has left its group stays a
    zombie until we end."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
        return False
    return True
