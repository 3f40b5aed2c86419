"""The paths of socket, state, cache and configuration, from XDG and LLMASOS_* variables.

Standard library only. Nothing here changes the disk. The creator of a directory sets mode 0700.
"""

import os
import pwd
import stat
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import Errno, SyscallError

# The variable with the number of the descriptor that a started program inherits: its connection to
# the kernel. The number is not a credential.
CONNECTION_FD_VARIABLE = "LLMASOS_FD"


@dataclass(frozen=True, slots=True)
class Paths:
    """The directories of one daemon. `runtime` holds the socket and the lock."""

    runtime: Path
    state: Path
    cache: Path
    config: Path

    @property
    def socket(self) -> Path:
        return self.runtime / "kernel.sock"

    @property
    def lock(self) -> Path:
        """Its second line is the state directory of the daemon that holds it or held it last."""
        return self.runtime / "kernel.lock"

    @property
    def state_lock(self) -> Path:
        """Its second line is the runtime directory of the daemon that holds it or held it last."""
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
    configured = os.environ.get(f"LLMASOS_{name}_DIR")
    if configured:
        return Path(configured)
    return (_absolute(xdg) or _home(f"LLMASOS_{name}_DIR").joinpath(*below_home)) / "llmasos"


def _absolute(variable: str) -> Path | None:
    """The directory in a variable. A relative one is ignored, as the XDG specification says."""
    path = os.environ.get(variable, "")
    return Path(path) if os.path.isabs(path) else None


def _home(variable: str) -> Path:
    """The home directory, only for a path that depends on it. ENOENT when it is unknown.

    `variable`: what the user may set instead of HOME.
    """
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            uid = os.getuid()
            message = f"HOME is not set, and user {uid} has no entry in the password database"
            raise SyscallError(Errno.ENOENT, message, f"set {variable} or HOME") from None
    return Path(home)


def temporary() -> Path:
    """The socket's directory when neither LLMASOS_RUNTIME_DIR nor XDG_RUNTIME_DIR is set.

    Its parent is writable by all users. A relative TMPDIR is ignored: daemon and client may have
    different working directories.
    """
    return (_absolute("TMPDIR") or Path("/tmp")) / f"llmasos-{os.getuid()}"


def is_temporary(directory: Path) -> bool:
    """Whether it is the default directory of a socket below the temporary directory, for whichever
    state directory."""
    default = temporary()
    return directory.parent == default.parent and (
        directory == default or directory.name.startswith(f"{default.name}-")
    )


def find() -> Paths:
    """The directories of this user's daemon: LLMASOS_*_DIR, then XDG, then the defaults.

    Without XDG_RUNTIME_DIR the socket is in a private directory below the temporary directory. If
    LLMASOS_RUNTIME_DIR is not set, the socket of the state directory's running daemon takes
    precedence over the default one, so environments that share a state find the same daemon. ENOENT
    when a directory depends on an unknown home directory.
    """
    configured = os.environ.get("LLMASOS_RUNTIME_DIR")
    state = _directory("STATE", "XDG_STATE_HOME", ".local", "state")
    default = Paths(
        runtime=Path(configured) if configured else default_runtime(state),
        state=state,
        cache=_directory("CACHE", "XDG_CACHE_HOME", ".cache"),
        config=_directory("CONFIG", "XDG_CONFIG_HOME", ".config"),
    )
    if configured:
        return default
    running = replace(default, runtime=recorded_runtime(default) or default.runtime)
    exists = _is_ours(running.runtime) and running.socket.exists()
    return running if exists and foreign_state(running) is None else default


def default_runtime(state: Path) -> Path:
    """The default directory for the socket of a state directory. Each state directory other than
    the default one has its own, so that two states can have a daemon each."""
    xdg = _absolute("XDG_RUNTIME_DIR")
    runtime = xdg / "llmasos" if xdg else temporary()
    real = os.path.realpath(state)
    if real == _default_state():
        return runtime
    # If two states have the same checksum, the path recorded in the lock file tells them apart.
    return runtime.with_name(f"{runtime.name}-{zlib.crc32(os.fsencode(real)):08x}")


def _default_state() -> str:
    """Below the home directory in the password database, as HOME may be changed temporarily."""
    home = os.environ.get("HOME", "")
    with suppress(KeyError):
        home = pwd.getpwuid(os.getuid()).pw_dir
    return os.path.realpath(os.path.join(home, ".local", "state", "llmasos"))


def recorded_runtime(paths: Paths) -> Path | None:
    """The runtime directory that the last daemon of a state directory recorded there."""
    return _recorded(paths.state_lock)


def foreign_state(paths: Paths) -> Path | None:
    """The state directory of the daemon at a socket, if it differs from that of `paths`. Also None
    when its record cannot be read: another user's state directory is not comparable."""
    recorded = _recorded(paths.lock)
    differs = recorded is not None and str(recorded) != os.path.realpath(paths.state)
    return recorded if differs else None


def _recorded(lock: Path) -> Path | None:
    """The second line of a lock file; the first is a pid."""
    try:
        lines = os.fsdecode(lock.read_bytes()).split("\n")
    except OSError:
        return None
    return Path(lines[1]) if len(lines) > 1 and lines[1] else None


def _is_ours(directory: Path) -> bool:
    """Whether this user owns the directory: after a reboot another user may have created it in the
    temporary directory."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
