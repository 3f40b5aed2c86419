"""What a row of the table of verbs is made of, and how the values of its arguments are read.

Loaded by every call: nothing heavy is imported here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One argument: its flags or its name, and what argparse has to know."""

    flags: tuple[str, ...]
    settings: dict[str, Any]
    apart: str = ""  # at most one of those with the same word may be given


class Verb(NamedTuple):
    words: str
    home: str
    summary: str
    options: tuple[Option, ...] = ()
    rest: bool = False  # its arguments are handed over unread
    extra: bool = False  # what is not in `options` is handed over as `extra`
    starts: bool = False  # it starts a private daemon when none answers
    local: bool = False  # it is about this machine, and asks no kernel elsewhere


def option(*flags: str, apart: str = "", **settings: Any) -> Option:
    return Option(flags, settings, apart)


def between(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """A number within limits, for argparse."""

    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    read.__name__ = f"number from {low:.16g} to {high:.16g}"  # argparse: "invalid ... value"
    return read


def bias(text: str) -> tuple[int, float]:
    """ID=VALUE, for argparse."""
    token, _, value = text.partition("=")
    number = float(value)
    if not (token.isascii() and token.isdigit()) or not -100 <= number <= 100:
        raise ValueError(text)
    return int(token), number


def user(text: str) -> str:
    """A user's name as the kernel takes it, for argparse."""
    plain = text.replace(".", "").replace("_", "").replace("-", "")
    if not (plain.isascii() and plain.isalnum() and text[0].isalnum() and len(text) <= 32):
        raise ValueError(text)
    return text


def named(text: str) -> str:
    """A name that is not empty, for argparse."""
    if not text:
        raise ValueError(text)
    return text


class Place(NamedTuple):
    """Where pages are: a process, and the first and the last of them if they were named."""

    pid: int
    pages: tuple[int, int] | None


def place(text: str) -> Place:
    """PID, PID:PAGE or PID:FIRST-LAST, for argparse."""
    pid, colon, some = text.partition(":")
    return Place(_number(pid, 1), pages(some) if colon else None)


def places(text: str) -> tuple[int, int] | Place:
    """PAGE or FIRST-LAST, maybe with the process before it again, for argparse."""
    return place(text) if ":" in text else pages(text)


def pages(text: str) -> tuple[int, int]:
    """PAGE or FIRST-LAST, for argparse: the first and the last."""
    low, dash, high = text.partition("-")
    first = _number(low)
    last = _number(high) if dash else first
    if not first <= last < first + PAGES:
        raise ValueError(text)
    return first, last


def _number(text: str, low: int = 0) -> int:
    if not (text.isascii() and text.isdigit()) or not low <= int(text[:20]) <= 2**53:
        raise ValueError(text)
    return int(text)


PAGES = 1_000_000  # named at once
bias.__name__ = "ID=VALUE"
user.__name__ = "user name (up to 32 letters, digits and ._-, a letter or digit first)"
named.__name__ = "name (it is empty)"
place.__name__ = "PID or PID:PAGE (as 3, 3:12 or 3:12-40)"
places.__name__ = pages.__name__ = (
    f"PAGE or FIRST-LAST (as 12 or 12-40, upwards, {PAGES} pages at most)"
)

JSON = option("--json", action="store_true", help="print JSON")
PID = option("pid", metavar="PID", type=between(int, 1, 2**53))
