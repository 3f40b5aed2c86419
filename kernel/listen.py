"""The doors that clients come through: the unix socket, and TCP with TLS where it was asked for.

Private: a socket of mode 0600 in a directory of mode 0700. Shared: 0660 and 0750, for one group.
Plain TCP does not exist: what a client sends there, keys too, could be read on the way.
"""

import asyncio
import grp
import os
import resource
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import limits, tls
from .connection import Connection
from .door import reserved
from .errors import Errno, SyscallError
from .identity import user
from .machine import Machine
from .paths import Paths
from .trap import Trap


@dataclass(frozen=True, slots=True)
class Doors:
    """What the configuration says of them."""

    shared: bool = False
    group: str = ""  # of a shared socket; "": the owner's own
    listen: str = ""  # HOST:PORT; "": no TCP
    certificate: Path = Path()
    key: Path = Path()
    clients: Path = Path()  # the authority of client certificates; none: keys only

    @property
    def gid(self) -> int:
        """EINVAL for a group that is not there."""
        if not self.group:
            return os.getegid()
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            words = f"there is no group {self.group!r}"
            raise SyscallError(Errno.EINVAL, words, f"`groupadd {self.group}`") from None


def own(directory: Path, doors: Doors) -> None:
    """Make a directory that nobody else may enter, but the group of a shared machine. EACCES when
    it is there and others may."""
    wanted = 0o750 if doors.shared else 0o700
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    hint = f"`chmod {wanted:o} {directory}`, or let LLMASOS_RUNTIME_DIR name another directory"
    if doors.shared and stat.S_ISLNK(status.st_mode):
        raise SyscallError(Errno.EACCES, f"{directory} is a symbolic link", hint)
    status = directory.stat()
    if status.st_mode & 0o777 & ~wanted:
        words = f"{directory} is open to others (mode {status.st_mode & 0o777:o})"
        raise SyscallError(Errno.EACCES, words, hint)
    if status.st_uid != os.geteuid():
        raise SyscallError(Errno.EACCES, f"{directory} belongs to {user(status.st_uid)}", hint)
    if doors.shared:
        _open_to(directory, doors, wanted)


def _open_to(path: Path, doors: Doors, mode: int) -> None:
    """Let the group in. EACCES when the owner is not of it."""
    try:
        os.chown(path, -1, doors.gid)
    except PermissionError as error:
        words = f"{path} cannot be given to the group {doors.group}: {error.strerror}"
        hint = f"`usermod -aG {doors.group} {user(os.geteuid())}`, and log in again"
        raise SyscallError(Errno.EACCES, words, hint) from error
    path.chmod(mode)


async def everywhere(
    paths: Paths, machine: Machine, doors: Doors
) -> list[asyncio.Server | tls.Server]:
    """All doors open, or none."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine.counters.most = reserved(hard)
    context = _tls(doors) if doors.listen else None
    servers: list[asyncio.Server | tls.Server] = [await _unix(paths, machine, doors)]
    if context is not None:
        try:
            servers += _tcp(machine, doors, context)
        except SyscallError:
            servers[0].close()
            raise
    return servers


async def _unix(paths: Paths, machine: Machine, doors: Doors) -> asyncio.Server:
    if paths.socket.exists() and not stat.S_ISSOCK(paths.socket.stat().st_mode):
        raise SyscallError(Errno.EEXIST, f"{paths.socket} is not a socket", "move that file away")
    paths.socket.unlink(missing_ok=True)
    place = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # also shared: it opens once its group is right
    try:
        place.bind(str(paths.socket))
    except OSError as error:
        words, hint = f"{paths.socket}: {error}", "set LLMASOS_RUNTIME_DIR to a shorter path"
        raise SyscallError(Errno.EINVAL, words, hint) from error
    finally:
        os.umask(before)
    if doors.shared:
        _open_to(paths.socket, doors, 0o660)
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(
        lambda: Connection(Trap(machine)), sock=place, backlog=limits.CONNECTIONS
    )


def _tcp(machine: Machine, doors: Doors, context: ssl.SSLContext) -> list[tls.Server]:
    """At each address that the name has: localhost has two."""
    host, port = address(doors.listen)
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, number, _, place in dict.fromkeys(found):
            listeners.append(socket.socket(family, kind, number))
            _bind(listeners[-1], place)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise SyscallError(
            Errno.EINVAL, f"{doors.listen}: {error}", "`llmasos config list` shows who set `listen`"
        ) from error
    return [tls.Server(machine, listener, context) for listener in listeners]


def _bind(listener: socket.socket, place: Any) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:  # IPv4 has a listener of its own
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.setblocking(False)
    listener.bind(place)
    listener.listen(limits.CONNECTIONS)


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, [HOST]:PORT, or :PORT for this machine alone. EINVAL."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) < 2**16:
        words = f"listen is {text!r}"
        raise SyscallError(Errno.EINVAL, words, "want HOST:PORT, or :PORT for this machine alone")
    return host.strip("[]") or "127.0.0.1", int(port)


def _tls(doors: Doors) -> ssl.SSLContext:
    """EINVAL says why there is none."""
    address(doors.listen)
    if not doors.certificate.name or not doors.key.name:
        raise SyscallError(
            Errno.EINVAL,
            f"listen is {doors.listen}, and plain TCP is never served: keys and texts could be "
            "read on the way",
            "set tls_cert and tls_key to PEM files, or leave `listen` out",
        )
    return tls.context(doors.certificate, doors.key, doors.clients)
