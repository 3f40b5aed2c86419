"""How a child process ended, in words."""

import contextlib
import signal


def cause(code: int, reason: str = "") -> str:
    """How a process ended, by its exit code. `reason`: why it was killed."""
    if code < 0:
        with contextlib.suppress(ValueError):
            message = f"was killed by {signal.Signals(-code).name}"
            return f"{message}: {reason}" if reason else message
    return f"exited with code {code}"
