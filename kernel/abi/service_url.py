"""The URL of a service that LLMasOS calls over HTTP: the only validation of such URLs.

A URL may contain a key by mistake, so no message contains it.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import Errno, SyscallError

_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "as in https://api.example.com/v1 or http://127.0.0.1:8080/v1"


@dataclass(frozen=True, slots=True)
class ServiceUrl:
    """The parts of a valid URL."""

    scheme: str  # http or https
    host: str  # an IPv6 address without brackets
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse(url: str) -> ServiceUrl:
    """The parts of a URL. EINVAL."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise SyscallError(Errno.EINVAL, "the url is not printable ASCII without spaces", _EXAMPLE)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        message = "invalid url: its host or port is malformed"
        raise SyscallError(Errno.EINVAL, message, _EXAMPLE) from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise SyscallError(Errno.EINVAL, "the url is not http://HOST or https://HOST", _EXAMPLE)
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise SyscallError(
            Errno.EINVAL,
            "the url contains a user, a password or a query: keys must not be part of a url",
            "`llmasos secrets set NAME` stores a key; `--set secret=NAME` uses it",
        )
    return ServiceUrl(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], parts.path)
