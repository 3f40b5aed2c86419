"""The options of an endpoint: validation and defaults."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmasos.kernel.abi import limits, secrets
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Option

_MODEL_CHARS = 256
OPENAI, LLAMA = "openai", "llama"
_CHOICES = {
    "dialect": (OPENAI, LLAMA),  # llama: a llama.cpp server, with more fields
    "limit": ("max_tokens", "max_completion_tokens"),  # newer OpenAI models require the second
}
_PATHS = ("/chat/completions", "/completions", "/embeddings", "/models")
_TEXTS = ("url", "model", "secret")
_WHOLE = {
    "slots": (1, limits.SLOTS_MAX),  # requests at once
    "window": (16, limits.WINDOW_MAX),  # tokens
    "retries": (0, 20),
}
_SECONDS = ("connect_s", "first_s", "stall_s")
_SECONDS_SPAN = (0.05, 86_400)


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """All options of an endpoint."""

    url: str  # as https://HOST/v1, without a trailing slash
    model: str = ""  # empty: the only one that the endpoint lists
    secret: str = ""  # its name; empty: no key is sent
    dialect: str = OPENAI
    limit: str = "max_tokens"
    slots: int = 0  # 0: as the endpoint reports, else SLOTS
    window: int = 0  # tokens; 0: as the endpoint reports, else REMOTE_WINDOW_TOKENS
    retries: int = limits.REMOTE_RETRIES
    connect_s: float = limits.REMOTE_CONNECT_S
    first_s: float = limits.REMOTE_FIRST_S
    stall_s: float = limits.REMOTE_STALL_S

    @property
    def origin(self) -> str:
        """Scheme, host and port, for messages."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def root(self) -> str:
        """The base of llama.cpp's own paths."""
        return self.url.removesuffix("/v1")

    @property
    def secure(self) -> bool:
        return self.url.startswith("https://")


def settings(options: Mapping[str, Option]) -> RemoteSettings:
    """Validate the options. EINVAL for an unknown option or an invalid value."""
    for name, value in options.items():
        _check(name, value)
    url = str(options.get("url", "")).rstrip("/")
    host = _host(url)
    secret = str(options.get("secret", ""))
    if secret:
        secrets.check_name(secret)
    if secret and url.startswith("http:") and not _loopback(host):
        raise SyscallError(
            Errno.EINVAL,
            f"a secret would be sent unencrypted to {host}",
            "give an https:// url; http:// with a secret is allowed for this machine only",
        )
    known = {**options, "url": url}
    return RemoteSettings(**known)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def _check(name: str, value: Option) -> None:
    if name in _WHOLE:
        low, high = _WHOLE[name]
        valid = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        allowed = f"allowed: a whole number from {low} to {high}"
    elif name in _SECONDS:
        least, most = _SECONDS_SPAN
        valid = isinstance(value, (int, float)) and not isinstance(value, bool)
        valid = valid and least <= float(value) <= most
        allowed = f"allowed: {least:g} to {most:g} seconds"
    elif name in _CHOICES:
        valid, allowed = value in _CHOICES[name], f"allowed: {', '.join(_CHOICES[name])}"
    elif name in _TEXTS:
        valid = isinstance(value, str) and (name == "url" or 0 < len(value) <= _MODEL_CHARS)
        allowed = f"allowed: a text of 1 to {_MODEL_CHARS} characters"
    else:
        known = ", ".join(sorted({*_WHOLE, *_SECONDS, *_CHOICES, *_TEXTS} - {"url"}))
        raise SyscallError(Errno.EINVAL, f"unknown option {name!r}", f"known: {known}")
    if not valid:
        raise SyscallError(Errno.EINVAL, f"option {name} is {value!r:.80}", allowed)


def _host(url: str) -> str:
    """The host of a valid url. EINVAL; the message omits the url, which may contain a key."""
    hint = "as in https://api.example.com/v1 or http://127.0.0.1:8080/v1"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise SyscallError(Errno.EINVAL, "the url is not printable ASCII without spaces", hint)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SyscallError(Errno.EINVAL, f"invalid url: {error}", hint) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SyscallError(Errno.EINVAL, "the url is not http://HOST or https://HOST", hint)
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url:
        raise SyscallError(
            Errno.EINVAL,
            "the url contains a user, a password or a query: keys must not be part of a url",
            "`llmasos secrets set NAME` stores a key; `--set secret=NAME` uses it",
        )
    path = next((path for path in _PATHS if parts.path.endswith(path)), "")
    if path:
        message = f"the url ends with {path}, which the driver adds itself"
        raise SyscallError(Errno.EINVAL, message, f"give it without {path}")
    return parts.hostname


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
