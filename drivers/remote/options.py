"""The options of an endpoint: validation and defaults."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from llmasos.kernel.abi import limits, secrets, service_url
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
        return service_url.parse(self.url).origin

    @property
    def root(self) -> str:
        """The base of llama.cpp's own paths."""
        return self.url.removesuffix("/v1")

    @property
    def secure(self) -> bool:
        return service_url.parse(self.url).scheme == "https"


def settings(options: Mapping[str, Option]) -> RemoteSettings:
    """Validate the options. EINVAL for an unknown option or an invalid value."""
    for name, value in options.items():
        _check(name, value)
    url = str(options.get("url", "")).rstrip("/")
    parts = _parsed(url)
    secret = str(options.get("secret", ""))
    if secret:
        secrets.check_name(secret)
    if secret and parts.scheme == "http" and not _loopback(parts.host):
        raise SyscallError(
            Errno.EINVAL,
            f"a secret would be sent unencrypted to {parts.host}",
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


def _parsed(url: str) -> service_url.ServiceUrl:
    """The parts of a valid url without the path of a single service. EINVAL."""
    parts = service_url.parse(url)
    path = next((path for path in _PATHS if parts.path.endswith(path)), "")
    if path:
        message = f"the url ends with {path}, which the driver adds itself"
        raise SyscallError(Errno.EINVAL, message, f"give it without {path}")
    return parts


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
