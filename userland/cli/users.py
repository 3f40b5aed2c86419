"""`llmasos users`: the users of this machine and their roles."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from . import exits, policy
from .connection import connect
from .questions import confirmed
from .show import iso, note, print_json, table


def add(arguments: Namespace) -> int:
    request = v.UserAdd(arguments.name, arguments.uid, v.UserRole(arguments.role))
    with connect(profile=v.Profile.OWNER) as client:
        user = client.call("user_add", request, v.UserInfo)
        stat = client.call("stat", v.Nothing(), v.Stat)
    _show_one(user, arguments)
    if arguments.json:
        return exits.OK
    if user.uid is None:
        note(f"{user.name} needs a key: `llmasos keys create --user {user.name}`")
    # Over TCP only a key authenticates: a user of the operating system comes to the socket.
    if not stat.shared and (user.uid is not None or not stat.listens):
        note(
            "only the owner can connect to the socket: `llmasos daemon restart --shared true` "
            "admits other users"
        )
    return exits.OK


def list_(arguments: Namespace) -> int:
    with connect() as client:
        users = client.call("user_list", v.Nothing(), v.Users).users
    if arguments.json:
        print_json({"users": users})
    else:
        _show(users)
    return exits.OK


def rm(arguments: Namespace) -> int:
    question = f"Remove {arguments.name} with all keys, processes and pages? This cannot be undone."
    with connect(profile=v.Profile.OWNER) as client:
        known = {user.name for user in client.call("user_list", v.Nothing(), v.Users).users}
        machine_owner = client.call("stat", v.Nothing(), v.Stat).owner
        # The kernel refuses to remove its owner or an unknown user: no confirmation is needed.
        exists = arguments.name in known and arguments.name != machine_owner
        if exists and not confirmed(question, yes=arguments.yes):
            note("nothing removed")
            return exits.FAILED
        client.call("user_remove", v.UserRemove(arguments.name), v.Nothing)
        rules = _rules_naming(client, arguments.name)
    if arguments.json:
        print_json({"name": arguments.name, "removed": True, "rules": rules})
        return exits.OK
    note(f"removed {arguments.name} with all keys, processes and pages")
    if rules:
        note(f"these rules remain and would apply to a new user {arguments.name}:")
    for rule in rules:
        note(f"  {rule}")
    return exits.OK


def _rules_naming(client: BlockingClient, name: str) -> list[str]:
    """The rules of policy.csv that name a user; they remain when the user is removed."""
    user_rules = policy.rules(client, own=True).rules
    return [rule.text for rule in user_rules if rule.text.split(", ")[1] == f"u:{name}"]


def role(arguments: Namespace) -> int:
    request = v.UserChange(arguments.name, v.UserRole(arguments.role))
    with connect(profile=v.Profile.OWNER) as client:
        user = client.call("user_role", request, v.UserInfo)
    _show_one(user, arguments)
    return exits.OK


def _show_one(user: v.UserInfo, arguments: Namespace) -> None:
    if arguments.json:
        print_json(user)
    else:
        _show([user])


def _show(users: Sequence[v.UserInfo]) -> None:
    rows = [
        (u.name, "-" if u.uid is None else u.uid, u.role, iso(u.created)[:10], u.keys,
         u.connections)
        for u in users
    ]  # fmt: skip
    table(("USER", "UID", "ROLE", "CREATED", "KEYS", "CONNECTIONS"), rows)
