"""The way to a kernel: an inherited connection, a unix socket, or TCP with TLS."""

import ssl
from functools import partial
from pathlib import Path
from typing import TypedDict

import anyio
import anyio.to_thread
from anyio.abc import ByteStream, UNIXSocketStream

from llmasos.kernel import paths
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland import start
from llmasos.userland.line import check, check_state, inherited, refusal
from llmasos.userland.remote import Remote, address, chosen
from llmasos.userland.remote import refusal as far_refusal


class ConnectOptions(TypedDict, total=False):
    """Where a client connects, and as what. See AsyncLLMasOS."""

    socket: str | Path | None
    host: str
    profile: str
    app: str
    autostart: bool
    tls: ssl.SSLContext | None


def target(host: str | None, place: str | Path | None) -> str | Path | Remote | None:
    """Where a client connects: what it names, or what LLMASOS_HOST names. EINVAL."""
    return place if place is not None and not host else chosen(host)


async def dial(
    place: str | Path | Remote | None, tls: ssl.SSLContext | None, *, autostart: bool
) -> ByteStream:
    """A stream to the kernel at `place`, or to this user's own, started if need be."""
    if isinstance(place, Remote):
        return await _far(place.address, tls or await anyio.to_thread.run_sync(place.trusted))
    if str(place).startswith("tls://"):
        return await _far(str(place), tls)
    given = inherited() if place is None else None
    if given is not None:
        return await UNIXSocketStream.from_socket(given)
    if place is not None:
        return await _near(Path(place))
    where = paths.find()
    try:
        return await _own(where)
    except SyscallError as error:
        wanted = autostart and start.allowed()
        if error.errno is not Errno.ECONNREFUSED or not wanted:
            raise
    await anyio.to_thread.run_sync(partial(start.ensure, where, "--private"))
    return await _own(where)


async def _own(where: paths.Paths) -> UNIXSocketStream:
    """Also EBUSY, when the daemon there serves another state directory."""
    stream = await _near(where.socket)
    try:
        check_state(where)
    except BaseException:
        await stream.aclose()
        raise
    return stream


async def _near(path: Path) -> UNIXSocketStream:
    check(path)
    try:
        return await anyio.connect_unix(path)
    except OSError as error:  # anyio wraps some of them
        cause = error.__cause__
        raise refusal(path, cause if isinstance(cause, OSError) else error) from error


async def _far(place: str, tls: ssl.SSLContext | None) -> ByteStream:
    """Over TCP with TLS, and nothing else: plain TCP would show the key to everybody between."""
    host, port = address(place)
    try:
        return await anyio.connect_tcp(
            host, port, tls_standard_compatible=False,
            ssl_context=tls or ssl.create_default_context(),
        )  # fmt: skip
    except (OSError, UnicodeError) as error:
        raise far_refusal(place, error) from error
