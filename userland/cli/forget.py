"""`llmasos mem forget`: erases pages permanently, after confirmation or with -y."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland.client import BlockingClient

from . import exits
from .connection import connect
from .generation import clean
from .mem import count
from .pages import numbered
from .questions import confirmed
from .show import note, print_error, print_json


def forget(arguments: Namespace) -> int:
    if bool(arguments.pages) is bool(arguments.key):
        raise exits.UsageError("expected pages or a key", "as in `llmasos mem forget 3 0-4`")
    pid: int = arguments.pid
    key = clean(arguments.key or "", "the key")
    ranges: Sequence[tuple[int, int]] = arguments.pages
    target = _description(pid, ranges, key)
    question = f"Erase {target} in every process that has it? This cannot be undone."
    if not confirmed(question, yes=arguments.yes):
        note("nothing forgotten")
        return exits.FAILED
    requests = [v.Forget(pid, first, last + 1 - first) for first, last in ranges]
    with connect() as client:
        done, failed = _forget(client, requests or [v.Forget(pid, key=key)])
    pages, pids = sum(one.pages for one in done), sorted({n for one in done for n in one.processes})
    notes = "; ".join(dict.fromkeys(one.note for one in done if one.note))
    if arguments.json:
        print_json({"pid": pid, "pages": pages, "processes": pids, "note": notes})
    elif pages:
        listed = ", ".join(map(str, pids))
        print(f"forgot {count(pages, 'page')} of process{'es' * (len(pids) != 1)} {listed}")
    if notes:
        note(notes)
    return exits.code(failed[0]) if failed else exits.OK


def _description(pid: int, ranges: Sequence[tuple[int, int]], key: str) -> str:
    named = ", ".join(numbered(*one) for one in ranges)
    return f"page {named} of process {pid}" if named else f"key {key!r} of process {pid}"


def _forget(
    client: BlockingClient, requests: Sequence[v.Forget]
) -> tuple[list[v.Forgotten], list[SyscallError]]:
    """Send every request, even after a failure: erased pages must be reported."""
    done: list[v.Forgotten] = []
    failed: list[SyscallError] = []
    for request in requests:
        try:
            done.append(client.call("forget", request, v.Forgotten))
        except SyscallError as error:
            failed.append(error)
            print_error(error)
    return done, failed
