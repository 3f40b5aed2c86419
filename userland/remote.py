"""A kernel on another machine: its address, the trusted certificates, and the key.

A key is read from a file or an environment variable, never from a program's arguments, which every
user of a machine can read. Loaded only by clients that connect to another machine.
"""

import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError

from .client import started_by_kernel

HOST = "LLMASOS_HOST"
KEY, KEY_FILE = "LLMASOS_KEY", "LLMASOS_KEY_FILE"
EXAMPLE = "as in box.example.com:7000"
CA, CERT, CERT_KEY = "LLMASOS_CA", "LLMASOS_CLIENT_CERT", "LLMASOS_CLIENT_KEY"


@dataclass(frozen=True, slots=True)
class Remote:
    """Address and credentials. `ca` empty: the system's certificate authorities. `cert` empty: no
    client certificate."""

    host: str
    port: int
    ca: str = ""
    cert: str = ""
    cert_key: str = ""
    key_file: str = ""  # empty: the key is in the variable LLMASOS_KEY, or there is none

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tls://{host}:{self.port}"

    def key(self) -> str | None:
        """The key of the user on that machine. EACCES: others may read its file; ENOENT."""
        if not self.key_file:
            return os.environ.get(KEY) or None
        path = Path(self.key_file).expanduser()
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            errno = Errno.ENOENT if isinstance(error, FileNotFoundError) else Errno.EACCES
            hint = "`llmasos keys create USER` creates a key; store it in a file of mode 600"
            raise SyscallError(errno, f"{path}: {error}", hint) from error
        if mode & 0o077:
            message = f"{path} may be read by others (mode {mode:o})"
            raise SyscallError(Errno.EACCES, message, f"`chmod 600 {path}`")
        return text.strip()

    def trusted(self) -> ssl.SSLContext:
        """The TLS context: authorities and client certificate. EINVAL names an unusable file."""
        try:
            context = ssl.create_default_context(cafile=_path(self.ca))
            if self.cert:
                context.load_cert_chain(_path(self.cert) or "", _path(self.cert_key))
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.ca, self.cert, self.cert_key)))
            hint = "give PEM files: the authority's certificate, the client certificate and its key"
            raise SyscallError(Errno.EINVAL, f"{files}: {error}", hint) from error
        return context

    def connect(self) -> socket.socket:
        """A connected TLS socket. ECONNREFUSED, ETIMEDOUT; EACCES for an untrusted certificate."""
        plain: socket.socket | None = None
        try:
            plain = socket.create_connection(
                (self.host, self.port), timeout=limits.REMOTE_CONNECT_S
            )
            return self.trusted().wrap_socket(plain, server_hostname=self.host)
        except (OSError, UnicodeError) as error:
            if plain is not None:
                plain.close()
            raise connect_error(self.address, error) from error
        except SyscallError:
            if plain is not None:
                plain.close()
            raise


def connect_error(address: str, error: Exception) -> SyscallError:
    """The SyscallError for a failed connection to another machine."""
    if isinstance(error, ssl.SSLError):
        hint = f"`--ca FILE`, or {CA}, names the certificate of the authority that signed its own"
        return SyscallError(Errno.EACCES, f"{address}: {error}", hint)
    if isinstance(error, TimeoutError):
        message = f"{address} did not answer for {limits.REMOTE_CONNECT_S:g} s"
        return SyscallError(
            Errno.ETIMEDOUT, message, "check the address, and that no firewall blocks the port"
        )
    if isinstance(error, UnicodeError):
        return SyscallError(Errno.EINVAL, f"{address} is not HOST:PORT", EXAMPLE)
    hint = "on that machine, `llmasos daemon start --listen HOST:PORT` listens"
    return SyscallError(Errno.ECONNREFUSED, f"{address}: {error}", hint)


def resolve(host: str | None = None, **files: str) -> Remote | None:
    """The machine given as `host`, else that of LLMASOS_HOST. None: this machine.

    A program that a kernel started ignores LLMASOS_HOST. EINVAL: not HOST:PORT.
    """
    text = host or (os.environ.get(HOST, "") if not started_by_kernel() else "")
    if not text:
        return None
    host, port = parse_address(text)
    ca, cert, cert_key, key_file = (
        files.get(name, "") or os.environ.get(variable, "") for name, variable in _FILES.items()
    )
    return Remote(host, port, ca, cert, cert_key, key_file)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, [HOST]:PORT or tls://HOST:PORT. EINVAL."""
    wrong = SyscallError(Errno.EINVAL, f"{text!r} is not HOST:PORT", EXAMPLE)
    try:
        url = urlsplit(text if "://" in text else f"tls://{text}")
        host, port = url.hostname, url.port
    except ValueError as error:
        raise wrong from error
    if url.scheme != "tls" or not host or not port or url.path or url.username:
        raise wrong
    return host, port


_FILES = {"ca": CA, "cert": CERT, "cert_key": CERT_KEY, "key_file": KEY_FILE}


def _path(name: str) -> str | None:
    return str(Path(name).expanduser()) if name else None
