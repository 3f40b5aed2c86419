"""A kernel on another machine: its address, the certificates that are trusted, and the key.

A key stands in a file or a variable and never among the arguments of a program, which everybody on
a machine can read. Loaded only by clients that were pointed at another machine.
"""

import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError

from .line import inherits

HOST = "LLMASOS_HOST"
KEY, KEY_FILE = "LLMASOS_KEY", "LLMASOS_KEY_FILE"
EXAMPLE = "as in box.example.com:7000"
CA, CERT, CERT_KEY = "LLMASOS_CA", "LLMASOS_CLIENT_CERT", "LLMASOS_CLIENT_KEY"


@dataclass(frozen=True, slots=True)
class Remote:
    """Where, and with what. Names of PEM files may be empty: the system's authorities, no client
    certificate."""

    host: str
    port: int
    ca: str = ""
    cert: str = ""
    cert_key: str = ""
    key_file: str = ""  # empty: the variable KEY has the key, or there is none

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tls://{host}:{self.port}"

    def key(self) -> str | None:
        """The key of its user there. EACCES: others may read its file; ENOENT."""
        if not self.key_file:
            return os.environ.get(KEY) or None
        path = Path(self.key_file).expanduser()
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            errno = Errno.ENOENT if isinstance(error, FileNotFoundError) else Errno.EACCES
            hint = "`llmasos keys create` makes a key; keep it in a file of mode 600"
            raise SyscallError(errno, f"{path}: {error}", hint) from error
        if mode & 0o077:
            words = f"{path} may be read by others (mode {mode:o})"
            raise SyscallError(Errno.EACCES, words, f"`chmod 600 {path}`")
        return text.strip()

    def trusted(self) -> ssl.SSLContext:
        """What is trusted, and what is shown. EINVAL names a file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=_path(self.ca))
            if self.cert:
                context.load_cert_chain(_path(self.cert) or "", _path(self.cert_key))
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.ca, self.cert, self.cert_key)))
            hint = "give PEM files: the authority's certificate, your own, and its key"
            raise SyscallError(Errno.EINVAL, f"{files}: {error}", hint) from error
        return context

    def connect(self) -> socket.socket:
        """A connected socket, encrypted. ECONNREFUSED, ETIMEDOUT; EACCES: it is not trusted."""
        plain: socket.socket | None = None
        try:
            plain = socket.create_connection(
                (self.host, self.port), timeout=limits.REMOTE_CONNECT_S
            )
            return self.trusted().wrap_socket(plain, server_hostname=self.host)
        except (OSError, UnicodeError) as error:
            if plain is not None:
                plain.close()
            raise refusal(self.address, error) from error
        except SyscallError:
            if plain is not None:
                plain.close()
            raise


def refusal(address: str, error: Exception) -> SyscallError:
    """Why there is no connection to a kernel elsewhere."""
    if isinstance(error, ssl.SSLError):
        hint = f"`--ca FILE`, or {CA}, names the certificate of who signed its own"
        return SyscallError(Errno.EACCES, f"{address}: {error}", hint)
    if isinstance(error, TimeoutError):
        words = f"{address} did not answer for {limits.REMOTE_CONNECT_S:g} s"
        return SyscallError(
            Errno.ETIMEDOUT, words, "check the address, and that a firewall lets its port through"
        )
    if isinstance(error, UnicodeError):
        return SyscallError(Errno.EINVAL, f"{address} is no HOST:PORT", EXAMPLE)
    hint = "there, `llmasos daemon start --listen HOST:PORT` begins to listen"
    return SyscallError(Errno.ECONNREFUSED, f"{address}: {error}", hint)


def chosen(host: str | None = None, **files: str) -> Remote | None:
    """The machine that was named, or that the environment names; None: this one.

    A program that a kernel started belongs to that one. EINVAL: it is no HOST:PORT.
    """
    text = host or (os.environ.get(HOST, "") if not inherits() else "")
    if not text:
        return None
    host, port = address(text)
    ca, cert, cert_key, key_file = (
        files.get(name, "") or os.environ.get(variable, "") for name, variable in _FILES.items()
    )
    return Remote(host, port, ca, cert, cert_key, key_file)


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, [HOST]:PORT or tls://HOST:PORT. EINVAL."""
    wrong = SyscallError(Errno.EINVAL, f"{text!r} is no HOST:PORT", EXAMPLE)
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
