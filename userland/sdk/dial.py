"""The way to a kernel: an inherited connection, a unix socket, or TCP with TLS."""

import ssl
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from anyio.abc import ByteStream, UNIXSocketStream

from llmasos.kernel import paths
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland import start
from llmasos.userland.line import check, inherited, refusal


async def dial(
    place: str | Path | None, tls: ssl.SSLContext | None, *, autostart: bool
) -> ByteStream:
    """A stream to the kernel at `place`, or to this user's own, started if need be."""
    if str(place).startswith("tls://"):
        return await _far(str(place), tls)
    given = inherited() if place is None else None
    if given is not None:
        return await UNIXSocketStream.from_socket(given)
    path = Path(place) if place is not None else paths.find().socket
    try:
        return await _near(path)
    except SyscallError as error:
        wanted = place is None and autostart and start.allowed()
        if error.errno is not Errno.ECONNREFUSED or not wanted:
            raise
    await anyio.to_thread.run_sync(partial(start.ensure, paths.find(), "--private"))
    return await _near(path)


async def _near(path: Path) -> ByteStream:
    check(path)
    try:
        return await anyio.connect_unix(path)
    except OSError as error:  # anyio wraps some of them
        cause = error.__cause__
        raise refusal(path, cause if isinstance(cause, OSError) else error) from error


async def _far(address: str, tls: ssl.SSLContext | None) -> ByteStream:
    """Over TCP with TLS, and nothing else: plain TCP would show the key to everybody between."""
    wrong = SyscallError(Errno.EINVAL, f"{address} is not tls://HOST:PORT")
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise wrong from error
    if not host or not port:
        raise wrong
    try:
        return await anyio.connect_tcp(
            host, port, tls_standard_compatible=False,
            ssl_context=tls or ssl.create_default_context(),
        )  # fmt: skip
    except UnicodeError as error:  # no name of a host may be so
        raise wrong from error
    except ssl.SSLError as error:
        words, hint = f"{address}: {error}", "give `tls` a context that trusts its certificate"
        raise SyscallError(Errno.EACCES, words, hint) from error
    except OSError as error:
        raise SyscallError(Errno.ECONNREFUSED, f"{address}: {error}", "is it listening?") from error
