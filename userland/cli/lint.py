"""`llmasos policy lint`: lists every mistake in a file of rules. It needs no daemon.

A daemon does not start with mistakes in its rules, so this verb parses the rules itself; no other
verb does. A running kernel is preferred, because it also knows the users.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import anyio

from llmasos.kernel.abi import limits, paths
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.access.decisions import Policy

from . import exits, policy
from .connection import connect
from .show import cell, note, print_json

_MOST_CHARS = limits.RULES * limits.RULE_CHARS  # of a file that is not sent over the socket


def lint(arguments: Namespace) -> int:
    where = paths.find()
    path = Path(arguments.file or where.policy_file)
    if path == where.policy_file and not path.exists():
        mistakes = _missing_file(where)
    else:
        text = policy.read(path, _MOST_CHARS)
        mistakes = [policy.with_path(one, path) for one in _mistakes(text, where.policy_file)]
    if arguments.json:
        print_json({"file": str(path), "mistakes": mistakes})
    else:
        for mistake in mistakes:
            print(cell(mistake))
        note(f"{path}: {len(mistakes) or 'no'} mistake{'s' * (len(mistakes) != 1)}")
    return exits.USAGE if mistakes else exits.OK


def _missing_file(where: paths.Paths) -> list[str]:
    """A missing file is a mistake if the state has a copy: its deny rules would be lost."""
    own, copy = where.policy_file, where.state / where.policy_file.name
    if not copy.exists() or not policy.read(copy, _MOST_CHARS).strip():
        return []
    return [f"{own} is missing: `cp {copy} {own}`, or `touch {own}` to have no rules"]


def _mistakes(text: str, own: Path) -> Sequence[str]:
    """The mistakes that the running kernel reports, or else a kernel that starts now."""
    if len(text) <= limits.POLICY_CHARS:
        try:
            with connect(profile=v.Profile.OWNER) as client:
                request = v.PolicyEdit(text=text, dry=True)
                found = client.call("policy_edit", request, v.PolicyChanged)
            if not found.more:
                return found.mistakes
        except SyscallError:  # not running, not permitted or not able to answer
            pass
    missing_file = (
        own.with_name(f".{own.name}.none") / own.name
    )  # does not exist: `text` replaces the user rules
    return anyio.run(Policy(TABLE, "owner", missing_file).mistakes, text)
