"""Parsers for times on the command line: durations (90s, 30m, 12h, 90d, 2w) and ISO 8601 dates.

argparse reports a value that cannot be parsed as "invalid ... value", with the names set below.
"""

import time
from importlib import import_module

MOST_S = 10**9  # limit of the syscalls, about 31 years
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def duration(text: str) -> float:
    """Seconds, for argparse. A number without a unit is refused as ambiguous."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 10:
        raise ValueError(text)
    seconds = int(number) * _UNITS[unit]
    if not 0 < seconds <= MOST_S:
        raise ValueError(text)
    return float(seconds)


def timeout(text: str) -> float:
    """Seconds to wait, for argparse: a number of seconds, which may be 0, or a duration."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = duration(text)
    if not 0 <= seconds <= 1e6:
        raise ValueError(text)
    return seconds


def interval(text: str) -> float:
    """Seconds between two updates, for argparse."""
    seconds = timeout(text)
    if not 0.1 <= seconds <= 3600:
        raise ValueError(text)
    return seconds


def since(text: str) -> float:
    """Unix seconds, for argparse: a duration before now, or a date."""
    return _unix_time(text, 0)


def until(text: str) -> float:
    """Like `since`, but a date without a time means the end of that day."""
    return _unix_time(text, 86_400 - 0.001)


def _unix_time(text: str, day_offset_s: float) -> float:
    """`day_offset_s` is added to a date without a time."""
    try:
        return time.time() - duration(text.removesuffix(" ago"))
    except ValueError:
        datetime = import_module("datetime")  # imported on demand: most calls contain no date
    parsed = datetime.datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=datetime.UTC)
    seconds = float(parsed.timestamp()) + (0 if ":" in text else day_offset_s)
    if not 0 <= seconds <= 1e11:
        raise ValueError(text)
    return seconds


duration.__name__ = "duration (as 30m, 12h, 90d or 2w)"
interval.__name__ = "time from 0.1 s to 1 h (seconds, or as 30s or 5m)"
timeout.__name__ = "time (seconds, or as 30m or 12h)"
since.__name__ = until.__name__ = "time (12h or 30d before now, or as 2026-11-03T14:00)"
