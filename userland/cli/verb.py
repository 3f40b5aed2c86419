"""The types of a row of the table of verbs, and the parsers of argument values.

Loaded by every call: no heavy module is imported here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One argument: its flags or its name, and the keyword arguments for argparse."""

    flags: tuple[str, ...]
    settings: dict[str, Any]
    group: str = ""  # options with the same group exclude each other


class Verb(NamedTuple):
    name: str  # its words, as "policy add"
    function: str  # ".module:function" of this package, imported when the verb runs
    summary: str  # in the help
    options: tuple[Option, ...] = ()
    rest: bool = False  # arguments are passed to the function unparsed
    takes_settings: bool = False  # --SETTING VALUE of the daemon, passed as `settings`
    starts: bool = False  # starts a private daemon if none answers
    local: bool = False  # concerns this machine only and connects to no remote kernel


def option(*flags: str, group: str = "", **settings: Any) -> Option:
    return Option(flags, settings, group)


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
    """A user name that the kernel accepts, for argparse."""
    letters = text.replace(".", "").replace("_", "").replace("-", "")
    if not (letters.isascii() and letters.isalnum() and text[0].isalnum() and len(text) <= 32):
        raise ValueError(text)
    return text


def named(text: str) -> str:
    """A name that is not empty, for argparse."""
    if not text:
        raise ValueError(text)
    return text


class ProcessPages(NamedTuple):
    """A process, and the first and last of its pages if a range was given."""

    pid: int
    pages: tuple[int, int] | None


def process_pages(text: str) -> ProcessPages:
    """PID, PID:PAGE or PID:FIRST-LAST, for argparse."""
    pid, colon, some = text.partition(":")
    return ProcessPages(_number(pid, 1), pages(some) if colon else None)


def pages_argument(text: str) -> tuple[int, int] | ProcessPages:
    """PAGE or FIRST-LAST, optionally prefixed with `PID:`, for argparse."""
    return process_pages(text) if ":" in text else pages(text)


def pages(text: str) -> tuple[int, int]:
    """PAGE or FIRST-LAST, for argparse: the first and the last page."""
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


PAGES = 1_000_000  # maximum of one range
# argparse puts these names into its error messages: "invalid ... value".
bias.__name__ = "ID=VALUE"
user.__name__ = "user name (up to 32 letters, digits and ._-, starting with a letter or digit)"
named.__name__ = "name (it is empty)"
process_pages.__name__ = "PID or PID:PAGE (as 3, 3:12 or 3:12-40)"
pages_argument.__name__ = pages.__name__ = (
    f"PAGE or FIRST-LAST (as 12 or 12-40, ascending, at most {PAGES} pages)"
)

JSON = option("--json", action="store_true", help="print JSON")
PID = option("pid", metavar="PID", type=between(int, 1, 2**53))
