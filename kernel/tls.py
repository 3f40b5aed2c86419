"""TLS 1.3 over TCP: the machine's certificate, and the handshake of each connection.

asyncio's servers know a connection only after its handshake and forget one that failed. Here it has
a place from its first byte on, a deadline, and a line in the journal when it fails.
"""

import asyncio
import logging
import socket
import ssl
from pathlib import Path

import anyio

from . import limits
from .connection import Connection
from .door import Place, far
from .errors import Errno, SyscallError
from .machine import Machine
from .trap import Trap

log = logging.getLogger(__name__)


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

    def __init__(self, machine: Machine, listener: socket.socket, tls: ssl.SSLContext) -> None:
        self._machine, self._listener, self._tls = machine, listener, tls
        self._scope = anyio.CancelScope()
        machine.jobs.run("accept", self._accept)

    def close(self) -> None:
        self._scope.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._scope:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    log.warning("no connection over TCP can be accepted: %s", error)
                    await anyio.sleep(limits.ACCEPT_PAUSE_S)
                    continue
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        try:
            place = Place(self._machine, far(connection.getpeername()))
        except (OSError, SyscallError) as error:
            self._turn_away(error)
            connection.close()
            return

        def failed() -> None:
            place.leave()
            connection.close()

        self._machine.jobs.once("handshake", self._greet, connection, place, failed=failed)

    async def _greet(self, connection: socket.socket, place: Place) -> None:
        """The handshake; from then on the trap has the place."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: Connection(Trap(self._machine, place=place)), connection, ssl=self._tls,
                ssl_handshake_timeout=limits.HELLO_S, ssl_shutdown_timeout=limits.HELLO_S,
            )  # fmt: skip
        except OSError as error:  # ssl.SSLError and ConnectionError are of them
            place.leave()
            self._turn_away(error)

    def _turn_away(self, error: OSError | SyscallError) -> None:
        if not isinstance(error, SyscallError):
            error = SyscallError(Errno.EPROTO, f"no TLS 1.3 handshake: {error}")
        self._machine.journal.turned_away("", error)
