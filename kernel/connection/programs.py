"""Programs: OS processes that the kernel starts for an LLMasOS process, with an inherited socket.

The socket is the identity: there is no path, and no secret in the environment or the arguments. A
descendant of a program that opens a new connection is identified by its ancestors and has the same
bounds. This is not a sandbox: a program with the user's rights can act without this socket.
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

from ..abi.errors import Errno, SyscallError, descriptors_exhausted
from ..abi.paths import CONNECTION_FD_VARIABLE
from ..machine import Machine
from ..process.table import Process
from .connection import Connection
from .session import Session

log = logging.getLogger(__name__)
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_REAP_S, _REAP_TRIES = 1.0, 20  # killed processes need some time to exit
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "LLMASOS_RUNTIME_DIR")  # environment variables


async def start(
    machine: Machine, process: Process, command: Sequence[str], folder: Path,
    environment: Mapping[str, str],
) -> int:  # fmt: skip
    """Start a program and return its OS pid. The process ends with it. ENOENT, EACCES."""
    _adopt_orphans(machine)
    pid = 0
    with CancelScope(shield=True):  # a started program must be registered and followed
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            child = await _run(command, folder, environment, ours, theirs)
        machine.connections.programs[child.pid] = process
        machine.jobs.once("program", _follow, machine, process, child)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Connection(Session(machine, process)), ours)
        pid = child.pid
    return pid


async def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], ours: socket.socket,
    theirs: socket.socket,
) -> asyncio.subprocess.Process:  # fmt: skip
    number = theirs.fileno()
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    try:
        return await asyncio.create_subprocess_exec(
            *command, cwd=folder,
            env={**inherited, **environment, CONNECTION_FD_VARIABLE: str(number)},
            stdin=asyncio.subprocess.DEVNULL, pass_fds=(number,), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        ours.close()
        errno = Errno.EACCES if isinstance(error, PermissionError) else Errno.ENOENT
        refusal = SyscallError(errno, f"cannot start {command[0]}: {error}")
        raise descriptors_exhausted(error) or refusal from error


def _adopt_orphans(machine: Machine) -> None:
    """Become the parent of orphaned descendants instead of init, so that they stay identified."""
    with suppress(OSError, AttributeError):  # not Linux
        status = ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        machine.connections.is_subreaper = status == 0


async def _follow(machine: Machine, process: Process, child: asyncio.subprocess.Process) -> None:
    """End the process when its program exits, and the program when the process or machine ends."""
    ended = asyncio.ensure_future(process.ended.wait())
    exited = asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait((ended, exited), return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            code = exited.result()
            code = code if code >= 0 else 128 - code
            await machine.lifecycle.exit(process, code, "its program ended")
    except SyscallError as error:
        log.warning("process %d did not end with its program: %s", process.pid, error)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        ended.cancel()
        with move_on_after(_REAP_S, shield=True):
            await exited
            for _ in range(_REAP_TRIES):
                if _reap(child.pid):
                    break
                await asyncio.sleep(_REAP_S / _REAP_TRIES)
        machine.connections.programs.pop(child.pid, None)


def _reap(group: int) -> bool:
    """Reap the exited processes of the group; whether none is left.

    They are children of this process as orphans of the program. An orphan that has left the group
    stays a zombie until this process exits.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
        return False
    return True
