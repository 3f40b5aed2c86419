"""Questions to the person at the terminal before something cannot be undone."""

import sys

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
