"""`llmasos keys`: keys, with which users authenticate without an account of the operating system.

A key is printed once, when it is created; the kernel stores only a hash of it.
"""

import time
from argparse import Namespace

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from . import exits
from .connection import connect
from .show import iso, jsonable, minute, note, print_json, table

_TIMES = ("expires", "used", "revoked")  # Unix seconds; in other values these names are not times


def create(arguments: Namespace) -> int:
    request = v.KeyCreate(arguments.user, arguments.expires)
    with connect(profile=v.Profile.OWNER) as client:
        created = client.call("key_create", request, v.KeyCreated)
    if arguments.json:
        print_json(_with_iso_times(created))
        return exits.OK
    print(created.key)
    expiry = "it never expires"
    if created.expires is not None:
        expiry = f"it expires at {minute(created.expires)} UTC"
    note(f"key {created.id} of {created.user}; store it now, it is not shown again; {expiry}")
    return exits.OK


def list_(arguments: Namespace) -> int:
    owner: str = arguments.user or ""
    with connect(profile=v.Profile.OWNER) as client:
        keys = _all(client, owner)
    if arguments.json:
        print_json({"keys": [_with_iso_times(key) for key in keys]})
        return exits.OK
    if not keys:
        note(f"no keys of {owner}" if owner else "no keys")
        return exits.OK
    now = time.time()
    rows = [
        (k.id, k.user, iso(k.created)[:10], "-" if k.used is None else minute(k.used),
         _state(k, now))
        for k in keys
    ]  # fmt: skip
    table(("ID", "USER", "CREATED", "USED (UTC)", "STATE"), rows)
    return exits.OK


def _all(client: BlockingClient, owner: str) -> list[v.KeyInfo]:
    """All keys; one reply holds at most KEYS_ROWS."""
    found: list[v.KeyInfo] = []
    after: int | None = 0
    while after is not None:
        reply = client.call("key_list", v.KeyList(owner, after), v.Keys)
        found += reply.keys
        after = reply.more
    return found


def revoke(arguments: Namespace) -> int:
    id = _id(arguments.id)
    with connect(profile=v.Profile.OWNER) as client:
        client.call("key_revoke", v.KeyRevoke(id), v.Nothing)
    if arguments.json:
        print_json({"id": id, "revoked": True})
    else:
        note(f"revoked key {id}; its connections are closed")
    return exits.OK


def _id(text: str) -> str:
    """The id of a key; the secret part of a whole key is dropped."""
    words = text.split("_")
    return words[1] if words[0] == "llmasos" and len(words) > 2 else text


def _state(key: v.KeyInfo, now: float) -> str:
    if key.revoked is not None:
        return f"revoked {minute(key.revoked)}"
    if key.expires is None:
        return "valid"
    return f"{'until' if now < key.expires else 'expired'} {minute(key.expires)}"


def _with_iso_times(key: v.KeyInfo | v.KeyCreated) -> dict[str, object]:
    """The JSON fields, with times in ISO 8601."""
    found: dict[str, object] = jsonable(key)
    for name in _TIMES:
        seconds = getattr(key, name, None)
        if seconds is not None:
            found[name] = iso(seconds)
    return found
