"""Where things stand: socket, state, cache and configuration, from XDG and LLMASOS_*.

Standard library only. Nothing here touches the disk; who creates a directory gives it mode 0700.
"""

import os
from dataclasses import dataclass
from pathlib import Path

FD = "LLMASOS_FD"  # the number of the descriptor that a program inherits: not a secret


@dataclass(frozen=True, slots=True)
class Paths:
    """The directories of one machine. `runtime` holds the socket and the lock."""

    runtime: Path
    state: Path
    cache: Path
    config: Path

    @property
    def socket(self) -> Path:
        return self.runtime / "kernel.sock"

    @property
    def lock(self) -> Path:
        return self.runtime / "kernel.lock"

    @property
    def log(self) -> Path:
        return self.state / "daemon.log"

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def policy_file(self) -> Path:
        return self.config / "policy.csv"

    @property
    def secrets(self) -> Path:
        return self.config / "secrets"


def _directory(name: str, xdg: str, fallback: Path) -> Path:
    own = os.environ.get(f"LLMASOS_{name}_DIR")
    if own:
        return Path(own)
    base = os.environ.get(xdg)
    return (Path(base) if base else fallback) / "llmasos"


def temporary() -> Path:
    """Where the socket stands when no place is named; others may write beside it."""
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"llmasos-{os.getuid()}"


def find() -> Paths:
    """The directories of this user: LLMASOS_*_DIR, then XDG, then the usual places.

    Without XDG_RUNTIME_DIR the socket stands in a private directory below the temporary one.
    """
    home = Path.home()
    own = os.environ.get("LLMASOS_RUNTIME_DIR")
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if own:
        runtime = Path(own)
    elif xdg:
        runtime = Path(xdg) / "llmasos"
    else:
        runtime = temporary()
    return Paths(
        runtime=runtime,
        state=_directory("STATE", "XDG_STATE_HOME", home / ".local" / "state"),
        cache=_directory("CACHE", "XDG_CACHE_HOME", home / ".cache"),
        config=_directory("CONFIG", "XDG_CONFIG_HOME", home / ".config"),
    )
