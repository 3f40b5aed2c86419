"""`llmasos poison`: calls that crashed their engine, and how to let them run again."""

from argparse import Namespace

from llmasos.kernel import values as v

from . import exits
from .door import connect
from .show import document, iso, minute, note, plain, table


def list_(arguments: Namespace) -> int:
    with connect() as line:
        found = line.call("poison_list", v.Nothing(), v.Poisons).poisons
    if arguments.json:
        document({"poisons": [_plain(one) for one in found]})
        return exits.OK
    if not found:
        note("nothing is held against any call")
        return exits.OK
    rows = [
        (one.id, one.model, one.owner, "refused" if one.refused else "runs alone",
         minute(one.until), one.reason)
        for one in found
    ]  # fmt: skip
    table(("ID", "MODEL", "OWNER", "CALL", "UNTIL (UTC)", "WHY"), rows)
    return exits.OK


def lift(arguments: Namespace) -> int:
    if bool(arguments.id) == arguments.all:
        raise exits.Usage("an ID is wanted, or --all", "`llmasos poison list` shows them")
    with connect() as line:
        found = line.call(
            "poison_lift", v.PoisonLift(arguments.id, arguments.all), v.Poisons
        ).poisons
    if arguments.json:
        document({"poisons": [_plain(one) for one in found]})
    elif not found:
        note("nothing is held against any call")
    for one in () if arguments.json else found:
        note(f"call {one.id} of {one.owner} may run again")
    return exits.OK


def _plain(one: v.PoisonInfo) -> dict[str, object]:
    found: dict[str, object] = plain(one)
    return {**found, "since": iso(one.since), "until": iso(one.until)}
