"""Changes one setting of config.toml and preserves the rest of the text. Pure.

The text is edited by lines, so comments and order are kept. The result is parsed and compared with
the expected settings: syntax that this editor does not support is refused, never damaged.
"""

import json
import re
import tomllib
from typing import Any, cast

from llmasos.kernel.abi.errors import Errno, SyscallError

Value = bool | int | float | str
_TABLE = re.compile(r"^\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(#.*)?$")
_ANY_TABLE = re.compile(r"^\s*\[")
_VALUE = r"""(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"'\[{]+)"""


def changed(text: str, name: str, value: Value | None) -> str:
    """The text with the setting set, or removed for None. Raises EINVAL for unsupported syntax."""
    before = flat(text)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    index, match = _find(lines, name)
    if match is not None:
        lines[index] = "" if value is None else _replaced(lines[index], match, value)
    elif value is not None and name not in before:
        lines.insert(_end_of_top(lines), f"{name} = {written(value)}\n")
    after = "".join(lines)
    expected = {key: one for key, one in before.items() if key != name}
    if value is not None:
        expected[name] = value
    if _read(after) != expected:
        message = f"{name} is written in a form that this command cannot edit"
        raise SyscallError(Errno.EINVAL, message, "edit the file that `llmasos config path` prints")
    return after


def written(value: Value) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def flat(text: str) -> dict[str, Any]:
    """Settings by name; `url` in the table [memory] is memory_url. Raises EINVAL."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SyscallError(
            Errno.EINVAL, f"the file is not valid TOML: {error}", "correct the file first"
        ) from None
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


def _find(lines: list[str], name: str) -> tuple[int, re.Match[str] | None]:
    """The line that sets it: at the top, or in the table whose name is its prefix."""
    table = ""
    for index, line in enumerate(lines):
        head = _TABLE.match(line)
        if head is not None:
            table = head[1]
        elif _ANY_TABLE.match(line):
            table = "?"  # an array of tables or a nested table: no settings
        match = re.match(rf"^\s*{re.escape(_key(name, table))}\s*=\s*{_VALUE}", line)
        if match is not None and (not table or name.startswith(f"{table}_")):
            return index, match
    return -1, None


def _key(name: str, table: str) -> str:
    return name.removeprefix(f"{table}_") if table else name


def _replaced(line: str, match: re.Match[str], value: Value) -> str:
    return f"{line[: match.start('value')]}{written(value)}{line[match.end('value') :]}"


def _end_of_top(lines: list[str]) -> int:
    """The line after the last top-level setting, before the first table and its comments."""
    end = next((index for index, line in enumerate(lines) if _ANY_TABLE.match(line)), len(lines))
    settings = [
        index for index, line in enumerate(lines[:end]) if re.match(r"^\s*[A-Za-z0-9_.\"'-]", line)
    ]
    if settings:
        return settings[-1] + 1
    while end and end < len(lines) and lines[end - 1].strip().startswith("#"):
        end -= 1
    return end
