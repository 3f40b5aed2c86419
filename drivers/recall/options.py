"""The options of recall: validation, and defaults for this machine."""

import os
from collections.abc import Mapping
from pathlib import Path

from llmasos.kernel.abi import limits, service_url
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.driver import Option

from .frames import RecallSettings

_EMBEDDERS = ("builtin", "none")
_MOST_THREADS = 64
_ALLOWED = {
    "embedder": f"allowed: {' or '.join(_EMBEDDERS)}",
    "url": "allowed: http://HOST:PORT or https://HOST:PORT of a Chroma server; empty: local files",
    "threads": f"allowed: a whole number from 0 (one per core) to {_MOST_THREADS}",
}


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or an invalid value; the hint lists the allowed values."""
    for name, value in options.items():
        if name not in _ALLOWED:
            known = ", ".join(sorted(_ALLOWED))
            raise SyscallError(Errno.EINVAL, f"unknown option {name!r}", f"known: {known}")
        if not _is_valid(name, value):
            raise SyscallError(Errno.EINVAL, f"option {name} is {value!r}", _ALLOWED[name])


def _is_valid(name: str, value: Option) -> bool:
    if name == "threads":
        return type(value) is int and 0 <= value <= _MOST_THREADS
    if not isinstance(value, str):
        return False
    return value in _EMBEDDERS if name == "embedder" else not value or _is_url(value)


def _is_url(value: str) -> bool:
    try:
        parts = service_url.parse(value)
    except SyscallError:
        return False
    return parts.path in ("", "/") and ":" not in parts.host  # Chroma takes no IPv6 address


def settings(options: Mapping[str, Option], cache: Path) -> RecallSettings:
    """All options: those of the caller, else the defaults for this machine."""
    check(options)
    threads = int(options.get("threads", 0)) or min(_cores(), limits.EMBED_THREADS)
    return RecallSettings(
        embedder=str(options.get("embedder", "builtin")),
        url=str(options.get("url", "")).rstrip("/"),
        threads=threads,
        cache=str(cache.absolute()),
        exact_pages=limits.EXACT_PAGES,
        retry_first_s=limits.CHROMA_RETRY_FIRST_S,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
