"""Questions to the person at the terminal."""

import sys
from collections.abc import Sequence

from .exits import Usage
from .show import harmless


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether -y was given or a person agrees. Usage: there is nobody to ask."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise Usage("nobody can be asked here", "-y does it without a question")
    sys.stderr.write(harmless(f"{question} [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def one_of(question: str, names: Sequence[str]) -> str:
    """A name, or its number from 1. Usage: it is neither."""
    sys.stderr.write(harmless(f"{question} "))
    sys.stderr.flush()
    said = sys.stdin.readline().strip()
    if said in names:
        return said
    if said.isdecimal() and len(said) < 7 and 1 <= int(said) <= len(names):
        return names[int(said) - 1]
    raise Usage(f"{said!r:.80} is none of them", "give one of the names, or its number")
