"""What people and programs see: tables, JSON, and text made harmless.

On a terminal a model's text may hold escape sequences: they are shown, not obeyed. JSON is one
document with sorted keys, times in ISO 8601 and UTC; streams print one document a line.
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

from llmasos.kernel.errors import SyscallError

from .exits import Usage
from .invocation import CURRENT

_TIMES = frozenset({"created", "ended", "time", "used"})  # Unix seconds
_ESCAPE = "\x1b"
_RED, _YELLOW, _GREEN = "31", "33", "32"
COLOURS = {"ok": _GREEN, "warn": _YELLOW, "fail": _RED}

_COLUMNS = 100  # where there is no terminal
_LEAST = 10  # columns of a text
_YEAR_S = 300 * 86_400  # shorter: day and month say which year
_DIGITS = ("", *"0123456789")

# Control characters as the pictures that Unicode has for them; tab and newline stay in texts.
_PICTURES = (
    {code: chr(0x2400 + code) for code in range(32)}
    | {127: "\u2421"}
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
)
_TEXT = {code: picture for code, picture in _PICTURES.items() if chr(code) not in "\t\n"}


def harmless(text: str) -> str:
    """A text that may span lines, for a terminal."""
    return text.translate(_TEXT)


def cell(value: object) -> str:
    """A value on one line."""
    return str(value).translate(_PICTURES)


def speak(text: str) -> None:
    """A piece of a model's text, at once."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Something for people that is not data. With --json everything is in the documents."""
    if CURRENT.json:
        return
    sys.stdout.flush()
    print(harmless(text), file=sys.stderr, flush=True)


def complain(error: SyscallError) -> None:
    """What happened and what to do, on stderr; with --json as one object."""
    sys.stdout.flush()
    if CURRENT.json:
        print(packed(failure(error)), file=sys.stderr, flush=True)
        return
    words = f"llmasos: {error.errno.name}:"
    if isinstance(error, Usage):
        words = f"llmasos {CURRENT.verb}:" if CURRENT.verb else "llmasos:"
    head = paint(words, _RED, sys.stderr.isatty())
    hint = f"\n  {harmless(error.hint)}" if error.hint else ""
    print(f"{head} {harmless(error.message)}{hint}", file=sys.stderr, flush=True)


def failure(error: SyscallError) -> dict[str, object]:
    """An error as JSON."""
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
    """The same, to the minute, for people."""
    return iso(seconds)[:16].replace("T", " ")


def moment(seconds: float, now: float) -> str:
    """The same in eleven columns, as `ls` does it: of this year the time, of others the year."""
    if not seconds:
        return "-"
    stamp = iso(seconds)
    return stamp[5:16].replace("T", " ") if abs(now - seconds) < _YEAR_S else stamp[:10]


def plain(value: Any) -> Any:
    """Values of the syscall table as what JSON can hold."""
    if is_dataclass(value):
        return {
            field.name: _field(field.name, getattr(value, field.name)) for field in fields(value)
        }
    if isinstance(value, dict):
        named = cast("dict[str, object]", value)
        return {name: plain(one) for name, one in named.items()}
    if isinstance(value, list):
        return [plain(one) for one in cast("list[object]", value)]
    return value


def _field(name: str, value: Any) -> Any:
    if name in _TIMES and isinstance(value, float):
        return iso(value) if value else None  # not known
    return plain(value)


def document(value: object) -> None:
    """One JSON document, on one line."""
    print(packed(value), flush=True)


def packed(value: object) -> str:
    return json.dumps(plain(value), sort_keys=True, ensure_ascii=False)


# --- tables -----------------------------------------------------------------------------------
def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, ends_in_text: bool = False
) -> None:
    """Columns as wide as they need; numbers to the right, but not in a last column of texts."""
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


def cut(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table whose last column is a text: as much of it as the line has room for."""
    lines = [list(head), *([cell(value) for value in row[:-1]] for row in rows)]
    taken = sum(max(len(line[i]) for line in lines) + 2 for i in range(len(head) - 1))
    room = max(_LEAST, columns() - taken)
    rows = [[*row[:-1], clip(str(row[-1]), room)] for row in rows]
    table(head, rows, ends_in_text=True)


def clip(text: str, room: int) -> str:
    """A text on one line, its end cut off to fit; wide letters take two columns."""
    flat = " ".join(text.split())
    ends = list(accumulate(1 + (east_asian_width(letter) in "WF") for letter in flat))
    if not ends or ends[-1] <= room:
        return flat
    return f"{flat[: bisect_right(ends, room - 1)]}…"


def columns() -> int:
    """Of the terminal; elsewhere, of one that would be wide."""
    said = os.environ.get("COLUMNS", "")
    if said.isdigit() and int(said):
        return int(said)
    if not sys.stdout.isatty():
        return _COLUMNS
    return os.get_terminal_size(sys.stdout.fileno()).columns or _COLUMNS


def card(value: Mapping[str, object]) -> None:
    """Names and values below each other; what has no value is left out."""
    shown = {name: text for name, one in value.items() if (text := cell(one))}
    width = max(map(len, shown), default=0)
    for name, text in shown.items():
        print(f"{name:{width}}  {text}")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span(seconds: float) -> str:
    """A duration for people: 12s, 3m05s, 2h07m, 4d."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d"
