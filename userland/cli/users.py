"""`llmasos users`: who may come to this machine, and in which role."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel import values as v
from llmasos.userland.line import Line

from . import exits, policy
from .ask import confirmed
from .door import connect
from .show import document, iso, note, table


def add(arguments: Namespace) -> int:
    request = v.UserAdd(arguments.name, arguments.uid, v.UserRole(arguments.role))
    with connect(profile=v.Profile.OWNER) as line:
        user = line.call("user_add", request, v.UserInfo)
        stat = line.call("stat", v.Nothing(), v.Stat)
    _one(user, arguments)
    if arguments.json:
        return exits.OK
    if user.uid is None:
        note(f"{user.name} comes by key: `llmasos keys create --user {user.name}` makes one")
    if not (stat.shared or stat.listens):
        note("this machine is private: nobody else gets in before `llmasos daemon run --shared`")
    return exits.OK


def list_(arguments: Namespace) -> int:
    with connect() as line:
        users = line.call("user_list", v.Nothing(), v.Users).users
    if arguments.json:
        document({"users": users})
    else:
        _show(users)
    return exits.OK


def rm(arguments: Namespace) -> int:
    question = f"Remove {arguments.name}, with all keys, processes and pages? It cannot be undone."
    with connect(profile=v.Profile.OWNER) as line:
        known = {user.name for user in line.call("user_list", v.Nothing(), v.Users).users}
        owner = line.call("stat", v.Nothing(), v.Stat).owner
        # The kernel refuses the owner, and who is not there: there is nothing to ask about.
        asks = arguments.name in known and arguments.name != owner
        if asks and not confirmed(question, yes=arguments.yes):
            note("nobody was removed")
            return exits.FAILED
        line.call("user_remove", v.UserRemove(arguments.name), v.Nothing)
        left = _rows_about(line, arguments.name)
    if arguments.json:
        document({"name": arguments.name, "removed": True, "rules": left})
        return exits.OK
    note(f"{arguments.name} may come no more, and has no keys and no processes left")
    if left:
        note(f"another {arguments.name} would have these rules:")
    for row in left:
        note(f"  {row}")
    return exits.OK


def _rows_about(line: Line, name: str) -> list[str]:
    """Own rules that name a user; they stay when the user goes."""
    own = policy.rules(line, own=True).rules
    return [rule.text for rule in own if rule.text.split(", ")[1] == f"u:{name}"]


def role(arguments: Namespace) -> int:
    request = v.UserChange(arguments.name, v.UserRole(arguments.role))
    with connect(profile=v.Profile.OWNER) as line:
        user = line.call("user_role", request, v.UserInfo)
    _one(user, arguments)
    return exits.OK


def _one(user: v.UserInfo, arguments: Namespace) -> None:
    if arguments.json:
        document(user)
    else:
        _show([user])


def _show(users: Sequence[v.UserInfo]) -> None:
    rows = [
        (u.name, "-" if u.uid is None else u.uid, u.role, iso(u.created)[:10], u.keys,
         u.connections)
        for u in users
    ]  # fmt: skip
    table(("USER", "UID", "ROLE", "CREATED", "KEYS", "CONNECTIONS"), rows)
