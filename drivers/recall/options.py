"""How recall is mounted: options checked, defaults chosen for this machine."""

import os
import re
from collections.abc import Mapping

from llmasos.kernel import limits
from llmasos.kernel.driver import Option
from llmasos.kernel.errors import Errno, SyscallError

from .frames import Settings

_EMBEDDERS = ("builtin", "none")
_URL = r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?"
_MOST_THREADS = 64
_ALLOWED = {
    "embedder": f"{' or '.join(_EMBEDDERS)} is allowed",
    "url": "a Chroma server is http://HOST:PORT or https://HOST:PORT; none: files of our own",
    "threads": f"a whole number from 0 (as the machine has cores) to {_MOST_THREADS} is allowed",
}


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed."""
    for name, value in options.items():
        if name not in _ALLOWED:
            known = ", ".join(sorted(_ALLOWED))
            raise SyscallError(Errno.EINVAL, f"unknown option {name!r}", f"known: {known}")
        if not _fits(name, value):
            raise SyscallError(Errno.EINVAL, f"option {name} is {value!r}", _ALLOWED[name])


def _fits(name: str, value: Option) -> bool:
    if name == "threads":
        return type(value) is int and 0 <= value <= _MOST_THREADS
    if not isinstance(value, str):
        return False
    return value in _EMBEDDERS if name == "embedder" else not value or _is_url(value)


def _is_url(value: str) -> bool:
    return re.fullmatch(_URL, value) is not None


def settings(options: Mapping[str, Option]) -> Settings:
    """Every option, chosen by the caller or for this machine."""
    check(options)
    threads = int(options.get("threads", 0)) or min(_cores(), limits.EMBED_THREADS)
    return Settings(
        embedder=str(options.get("embedder", "builtin")),
        url=str(options.get("url", "")).rstrip("/"),
        threads=threads,
        exact_pages=limits.EXACT_PAGES,
        retry_first_s=limits.CHROMA_RETRY_FIRST_S,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
