"""How an endpoint is used: its url and options checked, and what was not said filled in."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmasos.kernel import limits, secrets
from llmasos.kernel.driver import Option
from llmasos.kernel.errors import Errno, SyscallError

_MODEL_CHARS = 256
OPENAI, LLAMA = "openai", "llama"
_CHOICES = {
    "dialect": (OPENAI, LLAMA),  # llama: the server is llama.cpp's, which takes and tells more
    "limit": ("max_tokens", "max_completion_tokens"),  # the field that newer models insist on
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
class Settings:
    """Every option."""

    url: str  # as https://HOST/v1, without a slash at its end
    model: str = ""  # empty: the only one that the endpoint lists
    secret: str = ""  # its name; empty: none is sent
    dialect: str = OPENAI
    limit: str = "max_tokens"
    slots: int = 0  # 0: as many as the endpoint says, or SLOTS
    window: int = 0  # 0: what the endpoint says, or REMOTE_WINDOW_TOKENS
    retries: int = limits.REMOTE_RETRIES
    connect_s: float = limits.REMOTE_CONNECT_S
    first_s: float = limits.REMOTE_FIRST_S
    stall_s: float = limits.REMOTE_STALL_S

    @property
    def place(self) -> str:
        """The endpoint's host, as people see it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def root(self) -> str:
        """Where llama.cpp's own paths begin."""
        return self.url.removesuffix("/v1")

    @property
    def secure(self) -> bool:
        return self.url.startswith("https://")


def settings(options: Mapping[str, Option]) -> Settings:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
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
            f"a secret would cross the network unencrypted to {host}",
            "give an https:// url; http:// with a secret is for this machine alone",
        )
    known = {**options, "url": url}
    return Settings(**known)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def _check(name: str, value: Option) -> None:
    if name in _WHOLE:
        low, high = _WHOLE[name]
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        allowed = f"a whole number from {low} to {high} is allowed"
    elif name in _SECONDS:
        least, most = _SECONDS_SPAN
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = fits and least <= float(value) <= most
        allowed = f"seconds from {least:g} to {most:g} are allowed"
    elif name in _CHOICES:
        fits, allowed = value in _CHOICES[name], f"allowed: {', '.join(_CHOICES[name])}"
    elif name in _TEXTS:
        fits = isinstance(value, str) and (name == "url" or 0 < len(value) <= _MODEL_CHARS)
        allowed = f"a text of 1 to {_MODEL_CHARS} characters is allowed"
    else:
        known = ", ".join(sorted({*_WHOLE, *_SECONDS, *_CHOICES, *_TEXTS} - {"url"}))
        raise SyscallError(Errno.EINVAL, f"unknown option {name!r}", f"known: {known}")
    if not fits:
        raise SyscallError(Errno.EINVAL, f"option {name} is {value!r:.80}", allowed)


def _host(url: str) -> str:
    """The host of a usable url. The url is not repeated: a key may stand in it."""
    hint = "as in https://api.example.com/v1 or http://127.0.0.1:8080/v1"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise SyscallError(Errno.EINVAL, "the url is not plain ASCII", hint)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SyscallError(Errno.EINVAL, f"the url makes no sense: {error}", hint) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SyscallError(Errno.EINVAL, "the url is not http:// or https:// and a host", hint)
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url:
        raise SyscallError(
            Errno.EINVAL,
            "the url holds a user, a password or a query: keys do not belong there",
            "`llmasos secrets set NAME`, then `--set secret=NAME`",
        )
    path = next((path for path in _PATHS if parts.path.endswith(path)), "")
    if path:
        words = f"the url goes on to {path}, which is added where it is needed"
        raise SyscallError(Errno.EINVAL, words, f"give it without {path}")
    return parts.hostname


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
