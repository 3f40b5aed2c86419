"""Output for users and programs: tables, JSON and sanitised text.

Escape sequences in the text of a model are made visible on a terminal, so that they have no effect.
JSON is one document with sorted keys and times in ISO 8601 and UTC; streams print one document per
line.
"""

import json
import os
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, cast
from unicodedata import east_asian_width

from llmasos.kernel.abi.errors import SyscallError

from .exits import UsageError
from .invocation import CURRENT

_TIMES = frozenset({"created", "ended", "time", "used"})  # Unix seconds
_ESCAPE = "\x1b"
_RED, _YELLOW, _GREEN = "31", "33", "32"
COLOURS = {"ok": _GREEN, "warn": _YELLOW, "fail": _RED}

_COLUMNS = 100  # without a terminal
_MIN_TEXT = 10  # terminal columns
_RECENT_S = 300 * 86_400  # within this age day and month identify the year
_DIGITS = ("", *"0123456789")

# Control characters as Unicode control pictures; tab and newline are kept in texts.
_PICTURES = (
    {code: chr(0x2400 + code) for code in range(32)}
    | {127: "\u2421"}
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
)
_TEXT = {code: picture for code, picture in _PICTURES.items() if chr(code) not in "\t\n"}


def sanitised(text: str) -> str:
    """A text, possibly of several lines, with control characters made visible."""
    return text.translate(_TEXT)


def cell(value: object) -> str:
    """A value as one line, with control characters made visible."""
    return str(value).translate(_PICTURES)


def write_text(text: str) -> None:
    """Write a piece of a model's text and flush."""
    sys.stdout.write(sanitised(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a note for users on stderr. Prints nothing with --json: the documents have all data."""
    if CURRENT.json:
        return
    sys.stdout.flush()
    print(sanitised(text), file=sys.stderr, flush=True)


def print_error(error: SyscallError) -> None:
    """Print the message and the hint on stderr; with --json as one object."""
    sys.stdout.flush()
    if CURRENT.json:
        print(json_text(error_fields(error)), file=sys.stderr, flush=True)
        return
    prefix = f"llmasos: {error.errno.name}:"
    if isinstance(error, UsageError):
        prefix = f"llmasos {CURRENT.verb}:" if CURRENT.verb else "llmasos:"
    head = paint(prefix, _RED, sys.stderr.isatty())
    hint = f"\n  {sanitised(error.hint)}" if error.hint else ""
    print(f"{head} {sanitised(error.message)}{hint}", file=sys.stderr, flush=True)


def error_fields(error: SyscallError) -> dict[str, object]:
    """The fields of an error for JSON output."""
    return {"errno": error.errno.name, "number": int(error.errno), "message": error.message,
            "hint": error.hint}  # fmt: skip


def paint(text: str, colour: str, terminal: bool) -> str:
    if not terminal or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"{_ESCAPE}[{colour}m{text}{_ESCAPE}[0m"


# --- JSON -------------------------------------------------------------------------------------
def iso(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    stamp = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


def minute(seconds: float) -> str:
    """The same, to the minute, without the T."""
    return iso(seconds)[:16].replace("T", " ")


def short_time(seconds: float, now: float) -> str:
    """The same in at most 11 columns, like `ls`: recent with the time, older with the year."""
    if not seconds:
        return "-"
    stamp = iso(seconds)
    return stamp[5:16].replace("T", " ") if abs(now - seconds) < _RECENT_S else stamp[:10]


def jsonable(value: Any) -> Any:
    """Values of the syscall table as JSON types."""
    if is_dataclass(value):
        return {
            field.name: _field(field.name, getattr(value, field.name)) for field in fields(value)
        }
    if isinstance(value, dict):
        named = cast("dict[str, object]", value)
        return {name: jsonable(one) for name, one in named.items()}
    if isinstance(value, list):
        return [jsonable(one) for one in cast("list[object]", value)]
    return value


def _field(name: str, value: Any) -> Any:
    if name in _TIMES and isinstance(value, float):
        return iso(value) if value else None  # 0: unknown
    return jsonable(value)


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    print(json_text(value), flush=True)


def json_text(value: object) -> str:
    return json.dumps(jsonable(value), sort_keys=True, ensure_ascii=False)


# --- tables -----------------------------------------------------------------------------------
def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, ends_in_text: bool = False
) -> None:
    """Print columns as wide as needed. Numbers are right-aligned, except in a last text column."""
    lines = [list(head), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = [
        len(lines) > 1 and all(line[i].lstrip("-")[:1] in _DIGITS for line in lines[1:])
        for i in range(len(head))
    ]
    right[-1] = right[-1] and not ends_in_text
    for line in lines:
        padded = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ]
        print("  ".join(padded).rstrip())


def table_clipped(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table whose last column is a text, clipped to the width of the terminal."""
    lines = [list(head), *([cell(value) for value in row[:-1]] for row in rows)]
    taken = sum(max(len(line[i]) for line in lines) + 2 for i in range(len(head) - 1))
    room = max(_MIN_TEXT, columns() - taken)
    rows = [[*row[:-1], clip(str(row[-1]), room)] for row in rows]
    table(head, rows, ends_in_text=True)


def clip(text: str, room: int) -> str:
    """A text as one line, cut off to fit; wide letters take two columns."""
    flat = " ".join(text.split())
    ends = list(accumulate(1 + (east_asian_width(letter) in "WF") for letter in flat))
    if not ends or ends[-1] <= room:
        return flat
    return f"{flat[: bisect_right(ends, room - 1)]}…"


def columns() -> int:
    """The width of the terminal; without one, _COLUMNS."""
    variable = os.environ.get("COLUMNS", "")
    if variable.isdigit() and int(variable):
        return int(variable)
    if not sys.stdout.isatty():
        return _COLUMNS
    return os.get_terminal_size(sys.stdout.fileno()).columns or _COLUMNS


def key_values(value: Mapping[str, object]) -> None:
    """Print one name and value per line; empty values are omitted."""
    shown = {name: text for name, one in value.items() if (text := cell(one))}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        print(f"{name:{width}}  {text}")


def size(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span(seconds: float) -> str:
    """A duration as 12s, 3m05s, 2h07m or 4d."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d"
