"""`llmasos keys`: what users come with whom the operating system does not vouch for.

A key is printed once, when it is made; the kernel keeps only a hash of it.
"""

import time
from argparse import Namespace

from llmasos.kernel import values as v
from llmasos.userland.line import Line

from . import exits
from .door import connect
from .show import document, iso, minute, note, plain, table

_TIMES = ("expires", "used", "revoked")  # Unix seconds; elsewhere such names are no times


def create(arguments: Namespace) -> int:
    request = v.KeyCreate(arguments.user, arguments.expires)
    with connect(profile=v.Profile.OWNER) as line:
        made = line.call("key_create", request, v.KeyCreated)
    if arguments.json:
        document(_plain(made))
        return exits.OK
    print(made.key)
    end = "it never expires"
    if made.expires is not None:
        end = f"it expires at {minute(made.expires)} UTC"
    note(f"key {made.id} of {made.user}, shown this once: keep it now; {end}")
    return exits.OK


def list_(arguments: Namespace) -> int:
    whose: str = arguments.user or ""
    with connect(profile=v.Profile.OWNER) as line:
        keys = _all(line, whose)
    if arguments.json:
        document({"keys": [_plain(key) for key in keys]})
        return exits.OK
    if not keys:
        note(f"{whose or 'nobody'} has {'no' if whose else 'a'} key")
        return exits.OK
    now = time.time()
    rows = [
        (k.id, k.user, iso(k.created)[:10], "-" if k.used is None else minute(k.used),
         _state(k, now))
        for k in keys
    ]  # fmt: skip
    table(("ID", "USER", "CREATED", "USED (UTC)", "STATE"), rows)
    return exits.OK


def _all(line: Line, whose: str) -> list[v.KeyInfo]:
    """All of them; a reply holds KEYS_ROWS."""
    found: list[v.KeyInfo] = []
    after: int | None = 0
    while after is not None:
        reply = line.call("key_list", v.KeyList(whose, after), v.Keys)
        found += reply.keys
        after = reply.more
    return found


def revoke(arguments: Namespace) -> int:
    id = _id(arguments.id)
    with connect(profile=v.Profile.OWNER) as line:
        line.call("key_revoke", v.KeyRevoke(id), v.Nothing)
    if arguments.json:
        document({"id": id, "revoked": True})
    else:
        note(f"key {id} is revoked; its connections close")
    return exits.OK


def _id(text: str) -> str:
    """Of a whole key only its id goes further."""
    words = text.split("_")
    return words[1] if words[0] == "llmasos" and len(words) > 2 else text


def _state(key: v.KeyInfo, now: float) -> str:
    if key.revoked is not None:
        return f"revoked {minute(key.revoked)}"
    if key.expires is None:
        return "valid"
    return f"{'until' if now < key.expires else 'expired'} {minute(key.expires)}"


def _plain(key: v.KeyInfo | v.KeyCreated) -> dict[str, object]:
    """As JSON, with each of its times as one."""
    found: dict[str, object] = plain(key)
    for name in _TIMES:
        seconds = getattr(key, name, None)
        if seconds is not None:
            found[name] = iso(seconds)
    return found
