"""Durations as people type them: 90s, 30m, 12h, 90d, 2w."""

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


duration.__name__ = "duration (as 30m, 12h, 90d or 2w)"  # argparse: "invalid ... value"
