"""TLS 1.3 over TCP: the machine's certificate, and the handshake of each connection.

asyncio's servers report a connection only after its handshake, and a failed handshake not at all.
Here a connection has a slot and a deadline from the start, and a failure is journaled.
"""

import asyncio
import logging
import socket
import ssl
from pathlib import Path

import anyio

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..machine import Machine
from .authentication import ConnectionSlot, address_holder
from .connection import Connection
from .session import Session

log = logging.getLogger(__name__)


def context(certificate: Path, key: Path, clients: Path) -> ssl.SSLContext:
    """The TLS context: the certificate, and the CA of client certificates, if any. EINVAL."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        tls.load_cert_chain(certificate, key)
        if clients.name:
            tls.load_verify_locations(clients)
            tls.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(path) for path in (certificate, key, clients) if path.name)
        hint = "set tls_cert and its tls_key, and tls_clients if used, to PEM files"
        raise SyscallError(Errno.EINVAL, f"{files}: {error}", hint) from error
    return tls


class TlsServer:
    """Accepts connections until it is closed."""

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
                    log.warning("cannot accept a TCP connection: %s", error)
                    await anyio.sleep(limits.ACCEPT_PAUSE_S)
                    continue
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        try:
            slot = ConnectionSlot(self._machine, address_holder(connection.getpeername()))
        except (OSError, SyscallError) as error:
            self._reject(error)
            connection.close()
            return

        def failed() -> None:
            slot.release()
            connection.close()

        self._machine.jobs.once("handshake", self._handshake, connection, slot, failed=failed)

    async def _handshake(self, connection: socket.socket, slot: ConnectionSlot) -> None:
        """Do the TLS handshake. After it the session owns the slot."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: Connection(Session(self._machine, slot=slot)), connection, ssl=self._tls,
                ssl_handshake_timeout=limits.HELLO_S, ssl_shutdown_timeout=limits.HELLO_S,
            )  # fmt: skip
        except OSError as error:  # includes ssl.SSLError and ConnectionError
            slot.release()
            self._reject(error)

    def _reject(self, error: OSError | SyscallError) -> None:
        if not isinstance(error, SyscallError):
            error = SyscallError(Errno.EPROTO, f"TLS 1.3 handshake failed: {error}")
        self._machine.journal.rejected("", error)
