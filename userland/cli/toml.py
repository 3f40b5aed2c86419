"""One setting of config.toml changed, and everything else left as a person wrote it. Pure.

The file is edited by lines, so comments and order stay. What comes out is read and compared: a
form that this does not know is refused and never damaged.
"""

import json
import re
import tomllib
from typing import Any, cast

from llmasos.kernel.errors import Errno, SyscallError

Value = bool | int | float | str
_TABLE = re.compile(r"^\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(#.*)?$")
_ANY_TABLE = re.compile(r"^\s*\[")
_VALUE = r"""(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"'\[{]+)"""


def changed(text: str, name: str, value: Value | None) -> str:
    """The text with the setting set; None: without it. EINVAL: it has to be edited by hand."""
    before = flat(text)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    at, match = _found(lines, name)
    if match is not None:
        lines[at] = "" if value is None else _replaced(lines[at], match, value)
    elif value is not None and name not in before:
        lines.insert(_end_of_top(lines), f"{name} = {written(value)}\n")
    after = "".join(lines)
    wanted = {key: one for key, one in before.items() if key != name}
    if value is not None:
        wanted[name] = value
    if _read(after) != wanted:
        words = f"{name} stands in a form that is not edited here"
        raise SyscallError(Errno.EINVAL, words, "edit the file; `llmasos config path` names it")
    return after


def written(value: Value) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def flat(text: str) -> dict[str, Any]:
    """Settings by name: `url` of the table [memory] is memory_url. EINVAL: it is no TOML."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SyscallError(Errno.EINVAL, f"the file is no TOML: {error}", "mend it first") from None
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            table = cast("dict[str, Any]", value)
            found |= {f"{name}_{key}": one for key, one in table.items()}
        else:
            found[name] = value
    return found


def _read(text: str) -> dict[str, Any] | None:
    try:
        return flat(text)
    except SyscallError:
        return None


def _found(lines: list[str], name: str) -> tuple[int, re.Match[str] | None]:
    """The line that sets it: at the top, or in the table that its name begins with."""
    table = ""
    for at, line in enumerate(lines):
        head = _TABLE.match(line)
        if head is not None:
            table = head[1]
        elif _ANY_TABLE.match(line):
            table = "?"  # of tables, or in tables: none of ours
        match = re.match(rf"^\s*{re.escape(_key(name, table))}\s*=\s*{_VALUE}", line)
        if match is not None and (not table or name.startswith(f"{table}_")):
            return at, match
    return -1, None


def _key(name: str, table: str) -> str:
    return name.removeprefix(f"{table}_") if table else name


def _replaced(line: str, match: re.Match[str], value: Value) -> str:
    return f"{line[: match.start('value')]}{written(value)}{line[match.end('value') :]}"


def _end_of_top(lines: list[str]) -> int:
    """After the last setting that is in no table; before the first table and what is told of it."""
    end = next((at for at, line in enumerate(lines) if _ANY_TABLE.match(line)), len(lines))
    settings = [
        at for at, line in enumerate(lines[:end]) if re.match(r"^\s*[A-Za-z0-9_.\"'-]", line)
    ]
    if settings:
        return settings[-1] + 1
    while end and end < len(lines) and lines[end - 1].strip().startswith("#"):
        end -= 1
    return end
