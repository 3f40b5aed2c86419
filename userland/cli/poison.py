"""`llmasos poison`: lists and releases calls that are quarantined for crashing their engine."""

from argparse import Namespace

from llmasos.kernel.abi import values as v

from . import exits
from .connection import connect
from .show import iso, jsonable, minute, note, print_json, table


def list_(arguments: Namespace) -> int:
    with connect() as client:
        found = client.call("poison_list", v.Nothing(), v.Poisons).poisons
    if arguments.json:
        print_json({"poisons": [_with_iso_times(one) for one in found]})
        return exits.OK
    if not found:
        note("no call is quarantined")
        return exits.OK
    rows = [
        (one.id, one.model, one.owner, "refused" if one.refused else "runs exclusively",
         minute(one.until), one.reason)
        for one in found
    ]  # fmt: skip
    table(("ID", "MODEL", "OWNER", "CALL", "UNTIL (UTC)", "WHY"), rows)
    return exits.OK


def lift(arguments: Namespace) -> int:
    if bool(arguments.id) == arguments.all:
        raise exits.UsageError("expected an ID or --all", "`llmasos poison list` lists them")
    with connect() as client:
        found = client.call(
            "poison_lift", v.PoisonLift(arguments.id, arguments.all), v.Poisons
        ).poisons
    if arguments.json:
        print_json({"poisons": [_with_iso_times(one) for one in found]})
    elif not found:
        note("no call is quarantined")
    for one in () if arguments.json else found:
        note(f"released call {one.id} of {one.owner}")
    return exits.OK


def _with_iso_times(one: v.PoisonInfo) -> dict[str, object]:
    found: dict[str, object] = jsonable(one)
    return {**found, "since": iso(one.since), "until": iso(one.until)}
