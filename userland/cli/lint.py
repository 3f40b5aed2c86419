"""`llmasos policy lint`: every mistake in a file of rules. It needs no daemon.

A daemon with mistakes in its rules does not start, so this has to read them itself. It is the only
verb that does: a kernel that runs knows its users too, and is asked.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import anyio

from llmasos.kernel import limits, paths
from llmasos.kernel import values as v
from llmasos.kernel.abi import TABLE
from llmasos.kernel.errors import SyscallError
from llmasos.kernel.policy import Policy

from . import exits, policy
from .door import connect
from .show import cell, document, note

_MOST_CHARS = limits.RULES * limits.RULE_CHARS  # of a file that need not go over the socket


def lint(arguments: Namespace) -> int:
    where = paths.find()
    path = Path(arguments.file or where.policy_file)
    if path == where.policy_file and not path.exists():
        mistakes = _vanished(where)
    else:
        text = policy.read(path, _MOST_CHARS)
        mistakes = [policy.placed(one, path) for one in _mistakes(text, where.policy_file)]
    if arguments.json:
        document({"file": str(path), "mistakes": mistakes})
    else:
        for mistake in mistakes:
            print(cell(mistake))
        note(f"{path}: {len(mistakes) or 'no'} mistake{'s' * (len(mistakes) != 1)}")
    return exits.USAGE if mistakes else exits.OK


def _vanished(where: paths.Paths) -> list[str]:
    """No file is no mistake, unless there was one: its denies would be gone."""
    own, copy = where.policy_file, where.state / where.policy_file.name
    if not copy.exists() or not policy.read(copy, _MOST_CHARS).strip():
        return []
    return [f"{own} has vanished: `cp {copy} {own}`, or `touch {own}` if no rules are meant"]


def _mistakes(text: str, own: Path) -> Sequence[str]:
    """As the kernel that runs sees them, or as one would that starts now."""
    if len(text) <= limits.POLICY_CHARS:
        try:
            with connect(profile=v.Profile.OWNER) as line:
                request = v.PolicyEdit(text=text, dry=True)
                found = line.call("policy_edit", request, v.PolicyChanged)
            if not found.more:
                return found.mistakes
        except SyscallError:  # it runs not, or is another's, or cannot answer now: no need to
            pass
    nothing = own.with_name(f".{own.name}.none") / own.name  # the text stands for the own file
    return anyio.run(Policy(TABLE, "owner", nothing).mistakes, text)
