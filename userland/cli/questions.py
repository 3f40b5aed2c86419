"""Questions to the user at the terminal."""

import sys
from collections.abc import Sequence

from .exits import UsageError
from .show import sanitised


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether -y is given or the user agrees. Raises UsageError if stdin is not a terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("cannot ask for confirmation: stdin is not a terminal", "confirm with -y")
    sys.stderr.write(sanitised(f"{question} [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def one_of(question: str, names: Sequence[str]) -> str:
    """Ask for one of the names, or its number from 1. Raises UsageError for any other answer."""
    sys.stderr.write(sanitised(f"{question} "))
    sys.stderr.flush()
    answer = sys.stdin.readline().strip()
    if answer in names:
        return answer
    if answer.isdecimal() and len(answer) < 7 and 1 <= int(answer) <= len(names):
        return names[int(answer) - 1]
    raise UsageError(f"{answer!r:.80} is not in the list", "enter a name or its number")
