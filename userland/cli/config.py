"""`llmasos config`: what the daemon that runs was started with, and what the next one will use.

The daemon's own reader reads the configuration, as a process. The flags of the daemon that runs are
given to it again: `daemon restart` keeps them.
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

from llmasos.kernel import paths
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland.line import Line

from . import exits, toml
from .columns import Column, fitted
from .door import connect
from .show import card, clip, document, note

Value = bool | int | float | str
_ORIGIN_CHARS = 20


class Setting(NamedTuple):
    name: str
    value: Value  # of the daemon that runs, or else of the next one
    origin: str
    next: Value  # after a restart
    next_origin: str
    description: str

    @property
    def waits(self) -> bool:
        return self.value != self.next


def list_(arguments: Namespace) -> int:
    running, found = settings()
    if arguments.json:
        document({"running": running, "settings": [_document(one) for one in found]})
        return exits.OK
    waits = any(one.waits for one in found)
    fitted([
        Column[Setting]("SETTING", lambda one: one.name),
        Column[Setting]("VALUE", lambda one: toml.written(one.value)),
        *[Column[Setting]("AFTER A RESTART", _after)] * waits,
        Column[Setting]("FROM", lambda one: _short(one.origin)),
        Column[Setting]("WHAT", lambda one: one.description),
    ], found)  # fmt: skip
    if not running:
        note("no daemon runs: these are the settings of the next one")
    elif waits:
        note("`llmasos daemon restart` brings the other values into force")
    return exits.OK


def get(arguments: Namespace) -> int:
    """The value alone goes to stdout."""
    running, found = settings()
    one = _named(found, arguments.name)
    if arguments.json:
        document({"running": running, **_document(one)})
        return exits.OK
    print(one.value if isinstance(one.value, str) else toml.written(one.value))
    _tell_next(one)
    return exits.OK


def set_(arguments: Namespace) -> int:
    return _change(arguments.name, arguments.value, arguments)


def unset(arguments: Namespace) -> int:
    return _change(arguments.name, None, arguments)


def _change(name: str, text: str | None, arguments: Namespace) -> int:
    """Checked first, then written; a daemon that runs keeps its values until a restart."""
    file = Path(os.path.realpath(paths.find().config_file))  # a link stays one
    before = _read(file)
    name = name.replace("-", "_").replace(".", "_")
    value = None if text is None else _checked(name, text)
    if value is None and name not in toml.flat(before):
        raise SyscallError(Errno.ENOENT, f"{name} is not set in {file}", "`llmasos config list`")
    after = toml.changed(before, name, value)
    if after != before:
        _write(file, after)
    running, found = settings()
    if value is None and name not in {one.name for one in found}:
        return exits.OK  # it never was a setting
    one = _named(found, name)
    if arguments.json:
        document({"running": running, "file": str(file), **_document(one)})
        return exits.OK
    _tell_next(one)
    if one.next_origin not in (str(paths.find().config_file), "default"):
        note(f"{_origin(one.next_origin)} goes before the file: there it is {one.next!r}")
    return exits.OK


def _tell_next(one: Setting) -> None:
    if one.waits:
        note(f"{one.name} is {toml.written(one.next)} after `llmasos daemon restart`")


def _origin(origin: str) -> str:
    return "the flag that the daemon was started with" if origin == "flag" else origin


# --- both daemons -----------------------------------------------------------------------------
def settings() -> tuple[bool, list[Setting]]:
    """Every setting, and whether a daemon runs."""
    running = _running()
    now = {one.name: one for one in running or ()}
    coming = read(flags(running or ()))
    found: list[Setting] = []
    for one in coming:
        value, origin = one["value"], one["origin"]
        here = now.get(one["name"])
        if here is None:
            here = v.SettingInfo(one["name"], value, origin)
        found.append(Setting(here.name, here.value, here.origin, value, origin, one["description"]))
    return running is not None, found


def flags(running: Sequence[v.SettingInfo]) -> list[str]:
    """What a daemon was started with, to be given again."""
    words: list[str] = []
    for one in running:
        if one.origin == "flag":
            value = one.value if isinstance(one.value, str) else toml.written(one.value)
            words.append(f"--{one.name.replace('_', '-')}={value}")
    return words


def of(line: Line) -> list[v.SettingInfo]:
    """The settings of the daemon at the other end."""
    return line.call("settings", v.Nothing(), v.Settings).settings


def _running() -> list[v.SettingInfo] | None:
    """None: no daemon runs."""
    try:
        with connect() as line:
            return of(line)
    except SyscallError as error:
        if error.errno is Errno.ECONNREFUSED:
            return None
        raise


def read(more: Sequence[str], *, configured: Path | None = None) -> list[dict[str, Any]]:
    """What a daemon that is started now would use. EINVAL names the value that is wrong.

    `configured`: another directory of configuration.
    """
    line = [sys.executable, "-m", "llmasos.userland.settings", "--json", *more]
    variables = {"LLMASOS_CONFIG_DIR": str(configured)} if configured is not None else {}
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **variables})
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
        words = text.strip() or "the daemon's module does not run"
        return SyscallError(Errno.EIO, words, "`llmasos doctor` looks for the cause")


def _named(found: Sequence[Setting], name: str) -> Setting:
    """ENOENT lists what there is."""
    for one in found:
        if one.name == name.replace("-", "_").replace(".", "_"):
            return one
    raise SyscallError(Errno.ENOENT, f"there is no setting {name!r}", "`llmasos config list`")


def _checked(name: str, text: str) -> Value:
    """The value as the daemon reads it. EINVAL; ENOENT: there is no such setting.

    Without the file: a mistake in it can be mended here.
    """
    flag = f"--{name.replace('_', '-')}={text}"
    with tempfile.TemporaryDirectory() as nothing:
        try:
            found = {one["name"]: one for one in read([flag], configured=Path(nothing))}
        except SyscallError as error:
            if flag not in error.message:  # the parser knows the flags that there are
                raise
            words = f"there is no setting {name!r}"
            raise SyscallError(Errno.ENOENT, words, "`llmasos config list`") from error
    value: Value = found[name]["value"]
    return value


# --- the file ---------------------------------------------------------------------------------
def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        words = f"{file} is not valid UTF-8 at its byte {error.start}"
        raise SyscallError(Errno.EINVAL, words, "mend the file") from error


def _write(file: Path, text: str) -> None:
    """Whole, or not at all; it keeps its mode."""
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
def _document(one: Setting) -> dict[str, object]:
    return {**one._asdict(), "restart": one.waits}


def _after(one: Setting) -> str:
    return toml.written(one.next) if one.waits else ""


def _short(origin: str) -> str:
    """The file of settings by its name; a variable as far as the line has room for it."""
    return Path(origin).name if os.sep in origin else clip(origin, _ORIGIN_CHARS)


def path(arguments: Namespace) -> int:
    where = paths.find()
    places = {
        "config": str(where.config_file), "policy": str(where.policy_file),
        "socket": str(where.socket), "state": str(where.state), "cache": str(where.cache),
        "log": str(where.log),
    }  # fmt: skip
    if arguments.json:
        document(places)
    else:
        card(places)
    return exits.OK
