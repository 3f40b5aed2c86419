"""Connects to a kernel: an inherited connection, a unix socket, or TCP with TLS."""

import ssl
from functools import partial
from pathlib import Path
from typing import TypedDict

import anyio
import anyio.to_thread
from anyio.abc import ByteStream, UNIXSocketStream

from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland import start
from llmasos.userland.client import (
    check_directory,
    check_state,
    connect_error,
    inherited_connection,
)
from llmasos.userland.remote import Remote, parse_address, resolve
from llmasos.userland.remote import connect_error as remote_error


class ConnectOptions(TypedDict, total=False):
    """Options of a client. See AsyncLLMasOS."""

    socket: str | Path | None  # path of a kernel's socket; None: the user's own kernel
    host: str  # HOST:PORT of a kernel on another machine
    profile: str
    app: str
    autostart: bool  # start a private kernel when none answers
    tls: ssl.SSLContext | None


def target(host: str | None, socket: str | Path | None) -> str | Path | Remote | None:
    """The kernel to connect to: `host`, `socket`, or LLMASOS_HOST. None: this user's. EINVAL."""
    return socket if socket is not None and not host else resolve(host)


async def dial(
    target: str | Path | Remote | None, tls: ssl.SSLContext | None, *, autostart: bool
) -> ByteStream:
    """A stream to the kernel at `target`. None: this user's kernel, started when none answers."""
    if isinstance(target, Remote):
        context = tls or await anyio.to_thread.run_sync(target.trusted)
        return await _connect_tls(target.address, context)
    if str(target).startswith("tls://"):
        return await _connect_tls(str(target), tls)
    inherited = inherited_connection() if target is None else None
    if inherited is not None:
        return await UNIXSocketStream.from_socket(inherited)
    if target is not None:
        return await _connect_unix(Path(target))
    where = paths.find()
    try:
        return await _connect_user_daemon(where)
    except SyscallError as error:
        wanted = autostart and start.allowed()
        if error.errno is not Errno.ECONNREFUSED or not wanted:
            raise
    await anyio.to_thread.run_sync(partial(start.ensure, where, "--private"))
    return await _connect_user_daemon(where)


async def _connect_user_daemon(where: paths.Paths) -> UNIXSocketStream:
    """Also raises EBUSY when the daemon there serves another state directory."""
    stream = await _connect_unix(where.socket)
    try:
        check_state(where)
    except BaseException:
        await stream.aclose()
        raise
    return stream


async def _connect_unix(path: Path) -> UNIXSocketStream:
    check_directory(path)
    try:
        return await anyio.connect_unix(path)
    except OSError as error:  # anyio wraps some errors
        cause = error.__cause__
        raise connect_error(path, cause if isinstance(cause, OSError) else error) from error


async def _connect_tls(address: str, tls: ssl.SSLContext | None) -> ByteStream:
    """Connect over TCP with TLS. Plain TCP is not supported: it would expose the key."""
    host, port = parse_address(address)
    try:
        return await anyio.connect_tcp(
            host, port, tls_standard_compatible=False,
            ssl_context=tls or ssl.create_default_context(),
        )  # fmt: skip
    except (OSError, UnicodeError) as error:
        raise remote_error(address, error) from error
