"""`llmasos policy edit`: opens the user rules in an editor and applies them if they are valid.

The editor gets a copy. The copy is kept unless its rules were applied, so that no edit is lost.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits, policy
from .connection import connect
from .show import note


def edit(arguments: Namespace) -> int:
    command = _editor()
    with connect(profile=v.Profile.OWNER) as client:
        found = client.call("policy_list", v.PolicyList(text=True), v.Rules)
    with _copy(found.text) as copy:
        changed = _edit_until_valid(command, copy, found, arguments)
        if not changed.mistakes:
            copy.unlink()
    if changed.mistakes and not arguments.json:
        return exits.USAGE  # already printed
    return policy.report(changed, arguments)


@contextmanager
def _copy(text: str) -> Generator[Path]:
    """A temporary file with the text; it is deleted at the end unless it was changed."""
    descriptor, name = tempfile.mkstemp(prefix="policy-", suffix=".csv")
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
    copy = Path(name)
    try:
        yield copy
    finally:
        if copy.exists():
            if copy.read_bytes() == text.encode():
                copy.unlink()
            else:
                note(f"your edits are kept in {copy}")


def _edit_until_valid(
    command: list[str], copy: Path, found: v.Rules, arguments: Namespace
) -> v.PolicyChanged:
    """Open the editor until the rules are valid or the user stops; then mistakes are returned."""
    while True:
        _run_editor(command, copy)
        text = policy.read(copy)
        if text == found.text:
            return v.PolicyChanged(found.epoch, [], [], [])
        changed = _apply(found.text, text)
        if not changed.mistakes:
            return changed
        if not arguments.json:
            policy.report(changed, arguments)
        if not _asks_to_reopen():
            return changed


def _editor() -> list[str]:
    """The command line of the editor. Raises EINVAL if the variable cannot be parsed."""
    name = next((n for n in ("VISUAL", "EDITOR") if os.environ.get(n, "").strip()), "")
    try:
        return shlex.split(os.environ[name]) if name else ["vi"]
    except ValueError as error:
        message = f"cannot parse {name}={os.environ[name]!a}: {error}"
        raise SyscallError(Errno.EINVAL, message, f"`export {name}=nano`") from error


def _ignore_signal(_number: int, _frame: object) -> None:
    """Handle SIGINT while the editor runs: only the editor reacts to it."""


def _run_editor(command: list[str], path: Path) -> None:
    # ctrl-C goes to the editor and must not end this process. A handler is not inherited.
    before = signal.signal(signal.SIGINT, _ignore_signal)
    try:
        code = subprocess.run([*command, str(path)]).returncode
    except OSError as error:
        hint = "set VISUAL or EDITOR to an editor that is installed"
        raise SyscallError(Errno.ENOENT, f"{command[0]}: {error.strerror}", hint) from error
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        hint = "rules are applied only if the editor exits with 0"
        raise SyscallError(Errno.ECANCELED, f"{command[0]} exited with {code}", hint)


def _apply(before: str, text: str) -> v.PolicyChanged:
    """Apply the text. Raises EBUSY if the rules changed since they were read."""
    with connect(profile=v.Profile.OWNER) as client:
        if client.call("policy_list", v.PolicyList(text=True), v.Rules).text != before:
            message = "the rules changed while the editor was open"
            raise SyscallError(Errno.EBUSY, message, "`llmasos policy edit` opens the new rules")
        return client.call("policy_edit", v.PolicyEdit(text=text), v.PolicyChanged)


def _asks_to_reopen() -> bool:
    """Ask whether to open the editor again; False without a terminal."""
    if not sys.stdin.isatty():
        return False
    print("open the editor again? [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("", "y", "yes") and answer != ""
