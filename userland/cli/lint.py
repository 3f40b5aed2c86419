"""`llmasos policy lint`: lists every mistake in a file of rules. It needs no daemon.

A daemon does not start with mistakes in its rules, so this verb parses the rules itself; no other
verb does. A running kernel is preferred, because it also knows the users.
"""

from argparse import Namespace
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
        mistakes = _mistakes(policy.read(path, _MOST_CHARS), path, where.policy_file)
    if arguments.json:
        print_json({"file": str(path), "mistakes": mistakes})
    else:
        for mistake in mistakes:
            print(cell(mistake))
        note(f"{path}: {len(mistakes) or 'no'} mistake{'s' * (len(mistakes) != 1)}")
    return exits.USAGE if mistakes else exits.OK


def _missing_file(where: paths.Paths) -> list[str]:
    """The mistake, if the user rules are missing but the daemon has a copy of rules it loaded.

    Without the file, deny rules would be lost, so the daemon does not start.
    """
    file, copy = where.policy_file, where.state / where.policy_file.name
    if not copy.exists() or not policy.read(copy, _MOST_CHARS).strip():
        return []
    return [f"{file} is missing: `cp {copy} {file}`, or `touch {file}` to have no rules"]


def _mistakes(text: str, file: Path, user_rules: Path) -> list[str]:
    """The mistakes that the running kernel reports, or else a kernel that starts now."""
    if len(text) <= limits.POLICY_CHARS:
        try:
            with connect(profile=v.Profile.OWNER) as client:
                request = v.PolicyEdit(text=text, dry=True, file=str(file))
                found = client.call("policy_edit", request, v.PolicyChanged)
            if not found.more:
                return found.mistakes
        except SyscallError:  # not running, not permitted or not able to answer
            pass
    # A policy loads its user rules at once and refuses mistakes in them. Only `text` is to be
    # checked, so it gets a path without a file: no rules.
    no_file = user_rules.with_name(f".{user_rules.name}.none") / user_rules.name
    return [*map(str, anyio.run(Policy(TABLE, "owner", no_file).mistakes, text, str(file)))]
