"""Times as people type them: durations as 90s, 30m, 12h, 90d, 2w; and dates in ISO 8601.

What argparse says of one that it cannot read is "invalid ... value", with the names given below.
"""

import time
from importlib import import_module

MOST_S = 10**9  # what the syscalls take, some 31 years
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def duration(text: str) -> float:
    """Seconds, for argparse. A number alone is refused: nobody could tell of what."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 10:
        raise ValueError(text)
    seconds = int(number) * _UNITS[unit]
    if not 0 < seconds <= MOST_S:
        raise ValueError(text)
    return float(seconds)


def patience(text: str) -> float:
    """Seconds to wait, for argparse: a number of them, 0 too, or a duration."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = duration(text)
    if not 0 <= seconds <= 1e6:
        raise ValueError(text)
    return seconds


def interval(text: str) -> float:
    """Seconds between two looks, for argparse."""
    seconds = patience(text)
    if not 0.1 <= seconds <= 3600:
        raise ValueError(text)
    return seconds


def since(text: str) -> float:
    """Unix seconds, for argparse: so long ago, or a date."""
    return _moment(text, 0)


def until(text: str) -> float:
    """The same; a day's end, if only a day is named."""
    return _moment(text, 86_400 - 0.001)


def _moment(text: str, day: float) -> float:
    try:
        return time.time() - duration(text.removesuffix(" ago"))
    except ValueError:
        moment = import_module("datetime")  # most calls have no date: they do not pay for it
    read = moment.datetime.fromisoformat(text)
    if read.tzinfo is None:
        read = read.replace(tzinfo=moment.UTC)
    seconds = float(read.timestamp()) + (0 if ":" in text else day)
    if not 0 <= seconds <= 1e11:
        raise ValueError(text)
    return seconds


duration.__name__ = "duration (as 30m, 12h, 90d or 2w)"
interval.__name__ = "time from 0.1 s to 1 h (seconds, or as 30s or 5m)"
patience.__name__ = "time (seconds, or as 30m or 12h)"
since.__name__ = until.__name__ = "time (12h, 30d: so long ago; or as 2026-11-03T14:00)"
