"""`llmasos mem forget`: pages erased for good, when somebody at the terminal or -y says so."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel import values as v
from llmasos.kernel.errors import SyscallError
from llmasos.userland.line import Line

from . import exits
from .ask import confirmed
from .door import connect
from .mem import count
from .pages import numbered
from .show import complain, document, note
from .talk import clean


def forget(arguments: Namespace) -> int:
    if bool(arguments.pages) is bool(arguments.key):
        raise exits.Usage("name pages, or a key", "as in `llmasos mem forget 3 0-4`")
    pid: int = arguments.pid
    key = clean(arguments.key or "", "the key")
    ranges: Sequence[tuple[int, int]] = arguments.pages
    question = f"Erase {_what(pid, ranges, key)}, for everybody who has it? It cannot be undone."
    if not confirmed(question, yes=arguments.yes):
        note("nothing was forgotten")
        return exits.FAILED
    requests = [v.Forget(pid, first, last + 1 - first) for first, last in ranges]
    with connect() as line:
        done, failed = _forgotten(line, requests or [v.Forget(pid, key=key)])
    pages, pids = sum(one.pages for one in done), sorted({n for one in done for n in one.processes})
    left = "; ".join(dict.fromkeys(one.note for one in done if one.note))
    if arguments.json:
        document({"pid": pid, "pages": pages, "processes": pids, "note": left})
    elif pages:
        whose = ", ".join(map(str, pids))
        print(f"forgot {count(pages, 'page')} of process{'es' * (len(pids) != 1)} {whose}")
    if left:
        note(left)
    return exits.code(failed[0]) if failed else exits.OK


def _what(pid: int, ranges: Sequence[tuple[int, int]], key: str) -> str:
    named = ", ".join(numbered(*one) for one in ranges)
    return f"page {named} of process {pid}" if named else f"key {key!r} of process {pid}"


def _forgotten(
    line: Line, requests: Sequence[v.Forget]
) -> tuple[list[v.Forgotten], list[SyscallError]]:
    """Every request gets its turn: what is gone cannot be undone, and is told."""
    done: list[v.Forgotten] = []
    failed: list[SyscallError] = []
    for request in requests:
        try:
            done.append(line.call("forget", request, v.Forgotten))
        except SyscallError as error:
            failed.append(error)
            complain(error)
    return done, failed
