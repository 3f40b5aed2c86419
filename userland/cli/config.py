"""`llmasos config`: the settings of the running daemon, and those of the next start.

The settings module of the daemon reads the configuration, as a subprocess. It gets the flags of the
running daemon, because `daemon restart` keeps them.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmasos.kernel.abi import paths
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from . import exits, toml
from .columns import Column, fitted
from .connection import connect
from .show import clip, key_values, note, print_json

Value = bool | int | float | str
_ORIGIN_CHARS = 20
_LIST_HINT = "`llmasos config list` lists the settings"


class SettingRow(NamedTuple):
    name: str
    value: Value  # of the running daemon, else of the next start
    origin: str
    next: Value  # after a restart
    next_origin: str
    description: str

    @property
    def pending(self) -> bool:
        return self.value != self.next


def list_(arguments: Namespace) -> int:
    running, found = settings()
    if arguments.json:
        print_json({"running": running, "settings": [_document(one) for one in found]})
        return exits.OK
    pending = any(one.pending for one in found)
    fitted([
        Column[SettingRow]("SETTING", lambda one: one.name),
        Column[SettingRow]("VALUE", lambda one: toml.written(one.value)),
        *[Column[SettingRow]("AFTER A RESTART", _after)] * pending,
        Column[SettingRow]("FROM", lambda one: _short(one.origin)),
        Column[SettingRow]("WHAT", lambda one: one.description),
    ], found)  # fmt: skip
    if not running:
        note("no daemon is running: these are the settings of the next start")
    elif pending:
        note("`llmasos daemon restart` applies the pending values")
    return exits.OK


def get(arguments: Namespace) -> int:
    """Print the value on stdout; the note on a pending value goes to stderr."""
    running, found = settings()
    one = _named(found, arguments.name)
    if arguments.json:
        print_json({"running": running, **_document(one)})
        return exits.OK
    print(one.value if isinstance(one.value, str) else toml.written(one.value))
    _print_next(one)
    return exits.OK


def set_(arguments: Namespace) -> int:
    return _change(arguments.name, arguments.value, arguments)


def unset(arguments: Namespace) -> int:
    return _change(arguments.name, None, arguments)


def _change(name: str, text: str | None, arguments: Namespace) -> int:
    """Check the value, then write it. A running daemon keeps its values until a restart."""
    file = Path(os.path.realpath(paths.find().config_file))  # keeps a symbolic link
    before = _read(file)
    name = name.replace("-", "_").replace(".", "_")
    value = None if text is None else _checked(name, text)
    if value is None and name not in toml.flat(before):
        raise SyscallError(Errno.ENOENT, f"{name} is not set in {file}", _LIST_HINT)
    after = toml.changed(before, name, value)
    if after != before:
        _write(file, after)
    running, found = settings()
    if value is None and name not in {one.name for one in found}:
        return exits.OK  # an unknown name was removed from the file
    one = _named(found, name)
    if arguments.json:
        print_json({"running": running, "file": str(file), **_document(one)})
        return exits.OK
    _print_next(one)
    if one.next_origin not in (str(paths.find().config_file), "default"):
        note(f"{_origin(one.next_origin)} overrides the file: its value is {one.next!r}")
    return exits.OK


def _print_next(one: SettingRow) -> None:
    if one.pending:
        note(f"{one.name} is {toml.written(one.next)} after `llmasos daemon restart`")


def _origin(origin: str) -> str:
    return "the command-line flag of the daemon" if origin == "flag" else origin


# --- both daemons -----------------------------------------------------------------------------
def settings() -> tuple[bool, list[SettingRow]]:
    """Whether a daemon is running, and every setting."""
    running = _running()
    if running is not None and (other := other_directory(running)):
        note(other)
    listed = running.settings if running is not None else []
    now = {one.name: one for one in listed}
    next_settings = read(flags(listed))
    found: list[SettingRow] = []
    for one in next_settings:
        value, origin = one["value"], one["origin"]
        current = now.get(one["name"])
        if current is None:
            current = v.SettingInfo(one["name"], value, origin)
        found.append(
            SettingRow(
                current.name, current.value, current.origin, value, origin, one["description"]
            )
        )
    return running is not None, found


def flags(running: Sequence[v.SettingInfo]) -> list[str]:
    """The command-line flags that a daemon was started with."""
    words: list[str] = []
    for one in running:
        if one.origin == "flag":
            value = one.value if isinstance(one.value, str) else toml.written(one.value)
            words.append(f"--{one.name.replace('_', '-')}={value}")
    return words


def settings_of(client: BlockingClient) -> v.Settings:
    """The settings of the connected daemon."""
    return client.call("settings", v.Nothing(), v.Settings)


def other_directory(running: v.Settings) -> str:
    """A message when the daemon uses another configuration directory than this command; else ""."""
    own = paths.find().config
    if not running.directory or os.path.realpath(running.directory) == os.path.realpath(own):
        return ""
    return f"the daemon uses the configuration directory {running.directory}, this command {own}"


def _running() -> v.Settings | None:
    """The settings of the running daemon; None if none is running."""
    try:
        with connect() as client:
            return settings_of(client)
    except SyscallError as error:
        if error.errno is Errno.ECONNREFUSED:
            return None
        raise


def read(more: Sequence[str], *, configured: Path | None = None) -> list[dict[str, Any]]:
    """The settings that a daemon started now would use. EINVAL names the invalid value.

    `configured`: the configuration directory, if not the default one.
    """
    command = [sys.executable, "-m", "llmasos.userland.settings", "--json", *more]
    environment = {"LLMASOS_CONFIG_DIR": str(configured)} if configured is not None else {}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise _reported(done.stderr)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _reported(text: str) -> SyscallError:
    """The error that the module printed as JSON."""
    try:
        fields = json.loads(text.strip().splitlines()[-1])
        return SyscallError(Errno(fields["number"]), fields["message"], fields["hint"])
    except (ValueError, KeyError, IndexError, TypeError):
        message = text.strip() or "the settings module failed without a message"
        return SyscallError(Errno.EIO, message, "`llmasos doctor` checks for the cause")


def _named(found: Sequence[SettingRow], name: str) -> SettingRow:
    """The setting of that name. Raises ENOENT."""
    for one in found:
        if one.name == name.replace("-", "_").replace(".", "_"):
            return one
    raise SyscallError(Errno.ENOENT, f"no setting {name!r}", _LIST_HINT)


def _checked(name: str, text: str) -> Value:
    """The value as the daemon parses it. Raises EINVAL; ENOENT for an unknown setting.

    Does not read the file, so that a mistake in it can be corrected with `config set`.
    """
    flag = f"--{name.replace('_', '-')}={text}"
    with tempfile.TemporaryDirectory() as empty:
        try:
            found = {one["name"]: one for one in read([flag], configured=Path(empty))}
        except SyscallError as error:
            if flag not in error.message:  # an unknown flag is quoted in the message
                raise
            message = f"no setting {name!r}"
            raise SyscallError(Errno.ENOENT, message, _LIST_HINT) from error
    value: Value = found[name]["value"]
    return value


# --- the file ---------------------------------------------------------------------------------
def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        message = f"{file} is not valid UTF-8 at byte {error.start}"
        raise SyscallError(Errno.EINVAL, message, "save the file as UTF-8") from error


def _write(file: Path, text: str) -> None:
    """Replace the file atomically; keeps its mode."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    descriptor, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(draft, mode)
        os.replace(draft, file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


# --- shown ------------------------------------------------------------------------------------
def _document(one: SettingRow) -> dict[str, object]:
    return {**one._asdict(), "restart": one.pending}


def _after(one: SettingRow) -> str:
    return toml.written(one.next) if one.pending else ""


def _short(origin: str) -> str:
    """The name of the configuration file without its directory, or a clipped variable name."""
    return Path(origin).name if os.sep in origin else clip(origin, _ORIGIN_CHARS)


def path(arguments: Namespace) -> int:
    where = paths.find()
    files = {
        "config": str(where.config_file), "policy": str(where.policy_file),
        "socket": str(where.socket), "state": str(where.state), "cache": str(where.cache),
        "log": str(where.log),
    }  # fmt: skip
    if arguments.json:
        print_json(files)
    else:
        key_values(files)
    return exits.OK
