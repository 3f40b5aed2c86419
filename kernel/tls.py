"""TLS 1.3 over TCP: the machine's certificate, and the handshake of each connection.

asyncio's servers know a connection only after its handshake and forget one that failed. Here it has
a place from its first byte on, a deadline, and a line in the journal when it fails.
"""

import asyncio
import logging
import socket
import ssl
from pathlib import Path

from . import limits
from .connection import Connection
from .door import TCP, place
from .errors import Errno, SyscallError
from .journal import Entry
from .machine import Machine
from .trap import Trap

log = logging.getLogger(__name__)
_NOTE_CHARS = 200
_PAUSE_S = 1.0  # after an accept that failed: there may be no descriptor left


def context(certificate: Path, key: Path, clients: Path) -> ssl.SSLContext:
    """What the machine shows, and whose certificates it asks for, if any. EINVAL."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        tls.load_cert_chain(certificate, key)
        if clients.name:
            tls.load_verify_locations(clients)
            tls.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        words = f"{certificate}, {key}, {clients}: {error}"
        hint = "give PEM files: tls_cert and its tls_key belong together"
        raise SyscallError(Errno.EINVAL, words, hint) from error
    return tls


class Server:
    """Accepts until it is closed."""

    def __init__(self, machine: Machine, place: socket.socket, tls: ssl.SSLContext) -> None:
        self._machine, self._place, self._tls = machine, place, tls
        self._accepting = asyncio.ensure_future(self._accept())

    def close(self) -> None:
        self._accepting.cancel()
        self._place.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._place)
            except OSError as error:
                log.warning("nobody can come over TCP: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        try:
            place(self._machine, TCP, own=False)
        except SyscallError as error:
            self._refused(error)
            connection.close()
            return
        self._machine.visitors[TCP] += 1
        self._machine.tasks.start_soon(self._greet, connection)

    async def _greet(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: Connection(Trap(self._machine)), connection, ssl=self._tls,
                ssl_handshake_timeout=limits.HELLO_S, ssl_shutdown_timeout=limits.HELLO_S,
            )  # fmt: skip
        except OSError as error:  # ssl.SSLError and ConnectionError are of them
            self._refused(SyscallError(Errno.EPROTO, f"no TLS 1.3 handshake: {error}"))
        finally:
            self._machine.visitors[TCP] -= 1  # the trap has counted it, too

    def _refused(self, error: SyscallError) -> None:
        self._machine.journal.append(Entry(
            "refused", syscall="hello", object="/kernel", errno=error.errno,
            note=error.message[:_NOTE_CHARS],
        ))  # fmt: skip
