"""Where things stand: socket, state, cache and configuration, from XDG and LLMASOS_*.

Standard library only. Nothing here changes the disk; who creates a directory gives it mode 0700.
"""

import os
import pwd
import stat
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import Errno, SyscallError

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
        """Its second line is the state directory of the daemon that holds it, or held it last."""
        return self.runtime / "kernel.lock"

    @property
    def state_lock(self) -> Path:
        """Its second line is the runtime directory of the daemon that holds it, or held it last."""
        return self.state / "lock"

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


def _directory(name: str, xdg: str, *below_home: str) -> Path:
    own = os.environ.get(f"LLMASOS_{name}_DIR")
    if own:
        return Path(own)
    return (_xdg(xdg) or _home(f"LLMASOS_{name}_DIR").joinpath(*below_home)) / "llmasos"


def _xdg(name: str) -> Path | None:
    """A base directory. The specification has relative paths ignored."""
    path = os.environ.get(name, "")
    return Path(path) if os.path.isabs(path) else None


def _home(instead: str) -> Path:
    """The home directory, asked for only where a path depends on it. ENOENT when there is none."""
    found = os.environ.get("HOME", "")
    if not os.path.isabs(found):
        try:
            found = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            words = f"HOME is not set, and user {os.getuid()} has no entry in the password database"
            raise SyscallError(Errno.ENOENT, words, f"set {instead}, or HOME") from None
    return Path(found)


def temporary() -> Path:
    """Where the socket stands when no place is named; others may write beside it."""
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"llmasos-{os.getuid()}"


def is_temporary(directory: Path) -> bool:
    """Whether it is the place of a socket below the temporary directory, of any state."""
    usual = temporary()
    return directory.parent == usual.parent and (
        directory == usual or directory.name.startswith(f"{usual.name}-")
    )


def find() -> Paths:
    """The directories of this user: LLMASOS_*_DIR, then XDG, then the usual places.

    Without XDG_RUNTIME_DIR the socket stands in a private directory below the temporary one. Where
    LLMASOS_RUNTIME_DIR names no place, the socket of the state directory's daemon comes before the
    usual one: environments that share a state find one daemon. ENOENT when a directory depends on a
    home directory that is not known.
    """
    named = os.environ.get("LLMASOS_RUNTIME_DIR")
    state = _directory("STATE", "XDG_STATE_HOME", ".local", "state")
    usual = Paths(
        runtime=Path(named) if named else usual_runtime(state),
        state=state,
        cache=_directory("CACHE", "XDG_CACHE_HOME", ".cache"),
        config=_directory("CONFIG", "XDG_CONFIG_HOME", ".config"),
    )
    if named:
        return usual
    noted = replace(usual, runtime=noted_runtime(usual) or usual.runtime)
    is_there = _is_ours(noted.runtime) and noted.socket.exists()
    return noted if is_there and other_state(noted) is None else usual


def usual_runtime(state: Path) -> Path:
    """Where the socket of a state directory stands when no place is named: each state that is not
    in the usual place has one of its own, so that two states can have a daemon each."""
    xdg = _xdg("XDG_RUNTIME_DIR")
    runtime = xdg / "llmasos" if xdg else temporary()
    real = os.path.realpath(state)
    if real == _usual_state():
        return runtime
    # Two states of one checksum are found out by what the lock file notes.
    return runtime.with_name(f"{runtime.name}-{zlib.crc32(os.fsencode(real)):08x}")


def _usual_state() -> str:
    """Below the home directory of the password database: HOME may be another one for a while."""
    home = os.environ.get("HOME", "")
    with suppress(KeyError):
        home = pwd.getpwuid(os.getuid()).pw_dir
    return os.path.realpath(os.path.join(home, ".local", "state", "llmasos"))


def noted_runtime(where: Paths) -> Path | None:
    """The runtime directory that the last daemon of a state directory noted there."""
    return _noted(where.state_lock)


def other_state(where: Paths) -> Path | None:
    """The state directory that the daemon at a socket noted, if it is another one than `where`
    names. None, too, for who may not read that: another user's state is not ours to compare."""
    noted = _noted(where.lock)
    return noted if noted is not None and str(noted) != os.path.realpath(where.state) else None


def _noted(lock: Path) -> Path | None:
    """The second line of a lock file, the first one is a pid."""
    try:
        lines = os.fsdecode(lock.read_bytes()).split("\n")
    except OSError:
        return None
    return Path(lines[1]) if len(lines) > 1 and lines[1] else None


def _is_ours(directory: Path) -> bool:
    """Others can write where temporary directories are: after a reboot it may be another user's."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
