"""Listeners: the unix socket, and TCP with TLS if it is configured.

Private: a socket of mode 0600 in a directory of mode 0700. Shared: 0660 and 0750, for one group.
There is no plain TCP: keys and texts could be read on the network.
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

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.paths import Paths
from ..access.identity import user
from ..machine import Machine
from . import tls
from .authentication import shares
from .connection import Connection
from .session import Session


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """The settings of the listeners."""

    shared: bool = False
    group: str = ""  # of a shared socket; "": the owner's own
    listen: str = ""  # HOST:PORT; "": no TCP
    certificate: Path = Path()
    key: Path = Path()
    clients: Path = Path()  # the CA of client certificates; none: they are not requested

    @property
    def gid(self) -> int:
        """The id of the group. EINVAL when the group does not exist."""
        if not self.group:
            return os.getegid()
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            message = f"no group {self.group!r}"
            hint = f"`groupadd {self.group}` creates it"
            raise SyscallError(Errno.EINVAL, message, hint) from None


def make_directory(directory: Path, options: ListenOptions) -> None:
    """Make a directory that only this user, and the group of a shared machine, can access.

    EACCES when it exists and others can access it.
    """
    wanted = 0o750 if options.shared else 0o700
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    hint = f"`chmod {wanted:o} {directory}`, or set LLMASOS_RUNTIME_DIR to another directory"
    if options.shared and stat.S_ISLNK(status.st_mode):
        raise SyscallError(Errno.EACCES, f"{directory} is a symbolic link", hint)
    status = directory.stat()
    if status.st_mode & 0o777 & ~wanted:
        message = f"{directory} is open to others (mode {status.st_mode & 0o777:o})"
        raise SyscallError(Errno.EACCES, message, hint)
    if status.st_uid != os.geteuid():
        raise SyscallError(Errno.EACCES, f"{directory} belongs to {user(status.st_uid)}", hint)
    if options.shared:
        _open_to(directory, options, wanted)


def _open_to(path: Path, options: ListenOptions, mode: int) -> None:
    """Give the group access. EACCES when the owner is not a member."""
    try:
        os.chown(path, -1, options.gid)
    except PermissionError as error:
        message = f"cannot give {path} to the group {options.group}: {error.strerror}"
        hint = f"`usermod -aG {options.group} {user(os.geteuid())}`, and log in again"
        raise SyscallError(Errno.EACCES, message, hint) from error
    path.chmod(mode)


async def open_all(
    paths: Paths, machine: Machine, options: ListenOptions
) -> list[asyncio.Server | tls.TlsServer]:
    """Open all listeners, or none."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine.counters.most, machine.owners.most_open = shares(hard)
    context = _tls(options) if options.listen else None
    servers: list[asyncio.Server | tls.TlsServer] = [await _unix(paths, machine, options)]
    if context is not None:
        try:
            servers += _tcp(machine, options, context)
        except SyscallError:
            servers[0].close()
            raise
    return servers


async def _unix(paths: Paths, machine: Machine, options: ListenOptions) -> asyncio.Server:
    if paths.socket.exists() and not stat.S_ISSOCK(paths.socket.stat().st_mode):
        raise SyscallError(Errno.EEXIST, f"{paths.socket} is not a socket", "move that file away")
    paths.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # a shared socket gets its mode after its group
    try:
        listener.bind(str(paths.socket))
    except OSError as error:
        message, hint = f"{paths.socket}: {error}", "set LLMASOS_RUNTIME_DIR to a shorter path"
        raise SyscallError(Errno.EINVAL, message, hint) from error
    finally:
        os.umask(before)
    if options.shared:
        _open_to(paths.socket, options, 0o660)
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(
        lambda: Connection(Session(machine)), sock=listener, backlog=limits.CONNECTIONS
    )


def _tcp(machine: Machine, options: ListenOptions, context: ssl.SSLContext) -> list[tls.TlsServer]:
    """A server for each address of the host name: localhost has two."""
    host, port = address(options.listen)
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address_ in dict.fromkeys(found):
            listeners.append(socket.socket(family, kind, protocol))
            _bind(listeners[-1], address_)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise SyscallError(
            Errno.EINVAL,
            f"{options.listen}: {error}",
            "`llmasos config list` shows where `listen` is set",
        ) from error
    return [tls.TlsServer(machine, listener, context) for listener in listeners]


def _bind(listener: socket.socket, address_: Any) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:  # IPv4 has a separate listener
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.setblocking(False)
    listener.bind(address_)
    listener.listen(limits.CONNECTIONS)


def address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT, [HOST]:PORT, or :PORT for the loopback address. EINVAL."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) < 2**16:
        message, hint = f"listen is {text!r}", "want HOST:PORT, or :PORT for this machine only"
        raise SyscallError(Errno.EINVAL, message, hint)
    return host.strip("[]") or "127.0.0.1", int(port)


def _tls(options: ListenOptions) -> ssl.SSLContext:
    """The TLS context. EINVAL when a setting is missing or wrong."""
    address(options.listen)
    if not options.certificate.name or not options.key.name:
        raise SyscallError(
            Errno.EINVAL,
            f"listen is {options.listen} without a certificate, and plain TCP is not supported",
            "set tls_cert and tls_key to PEM files, or remove `listen`",
        )
    return tls.context(options.certificate, options.key, options.clients)
