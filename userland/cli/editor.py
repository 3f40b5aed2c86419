"""`llmasos policy edit`: the own rules in an editor, and in force when they have no mistake.

The editor gets a copy. What was typed is never lost: the copy stays unless it came into force.
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

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError

from . import exits, policy
from .door import connect
from .show import note


def edit(arguments: Namespace) -> int:
    words = _editor()
    with connect(profile=v.Profile.OWNER) as line:
        found = line.call("policy_list", v.PolicyList(text=True), v.Rules)
    with _copy(found.text) as copy:
        changed = _edited(words, copy, found, arguments)
        if not changed.mistakes:
            copy.unlink()
    if changed.mistakes and not arguments.json:
        return exits.USAGE  # they are told already
    return policy.tell(changed, arguments)


@contextmanager
def _copy(text: str) -> Generator[Path]:
    """A file that stays when something was typed into it, unless it was removed."""
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
                note(f"your text stays in {copy}")


def _edited(words: list[str], copy: Path, found: v.Rules, arguments: Namespace) -> v.PolicyChanged:
    """What came of it; with mistakes, when the person gave up."""
    while True:
        _open(words, copy)
        text = policy.read(copy)
        if text == found.text:
            return v.PolicyChanged(found.epoch, [], [], [])
        changed = _replaced(found.text, text)
        if not changed.mistakes:
            return changed
        if not arguments.json:
            policy.tell(changed, arguments)
        if not _again():
            return changed


def _editor() -> list[str]:
    """The person's editor and its options. EINVAL when nobody could tell what that is."""
    name = next((n for n in ("VISUAL", "EDITOR") if os.environ.get(n, "").strip()), "")
    try:
        return shlex.split(os.environ[name]) if name else ["vi"]
    except ValueError as error:
        words = f"{name} is {os.environ[name]!a}: {error}"
        raise SyscallError(Errno.EINVAL, words, f"mend it, as in `export {name}=nano`") from error


def _leave_it(_number: int, _frame: object) -> None:
    """A signal that is for the editor alone."""


def _open(words: list[str], path: Path) -> None:
    # ctrl-C is the editor's: it must not take the text along. A handler is not inherited.
    before = signal.signal(signal.SIGINT, _leave_it)
    try:
        code = subprocess.run([*words, str(path)]).returncode
    except OSError as error:
        hint = "set VISUAL or EDITOR to an editor that is installed"
        raise SyscallError(Errno.ENOENT, f"{words[0]}: {error.strerror}", hint) from error
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        hint = "an editor that ends with 0 has saved"
        raise SyscallError(Errno.ECANCELED, f"{words[0]} ended with {code}", hint)


def _replaced(before: str, text: str) -> v.PolicyChanged:
    """A change that somebody made meanwhile would be lost: EBUSY."""
    with connect(profile=v.Profile.OWNER) as line:
        if line.call("policy_list", v.PolicyList(text=True), v.Rules).text != before:
            words = "the rules have changed while the editor was open"
            raise SyscallError(Errno.EBUSY, words, "`llmasos policy edit` again")
        return line.call("policy_edit", v.PolicyEdit(text=text), v.PolicyChanged)


def _again() -> bool:
    """Whether a person wants the editor back. A script does not."""
    if not sys.stdin.isatty():
        return False
    print("open the editor again? [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("", "y", "yes") and answer != ""
