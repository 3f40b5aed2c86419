"""`llmasos logs`: prints past events of the journal and follows new ones."""

from argparse import Namespace
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno

from . import exits
from .connection import connect
from .show import cell, iso, print_json

_TAIL = 10


def logs(arguments: Namespace) -> int:
    """--since gives a time; --after and the `since` of a request are event numbers."""
    follow, lines = arguments.follow, arguments.lines
    has_start = arguments.after is not None or arguments.since is not None
    if follow and lines is None and not has_start:
        lines = _TAIL  # the default of tail -f
    # With a number of lines, past events are read to the end and the last ones printed; --follow
    # goes on after them. Without, one stream prints all past events and, with --follow, new ones.
    request = v.Watch(
        since=arguments.after or 0, follow=follow, pid=arguments.pid, kinds=arguments.kind,
        not_before=arguments.since,
    )  # fmt: skip
    with connect() as client:
        if lines is not None:
            last: deque[v.Event] = deque(maxlen=lines)
            cursor = request.since or 0
            past = replace(request, follow=False)
            for batch in client.stream("watch", past, v.Events, v.Nothing):
                last.extend(batch.events)
                cursor = batch.cursor
            _show(last, arguments)
            request = replace(request, since=cursor)
        if follow or lines is None:
            for batch in client.stream("watch", request, v.Events, v.Nothing):
                _show(batch.events, arguments)
    return exits.OK


def _show(events: Iterable[v.Event], arguments: Namespace) -> None:
    for event in events:
        if arguments.json:
            print_json(event)
        else:
            print(_line(event), flush=arguments.follow)


def _line(event: v.Event) -> str:
    when = iso(event.time) if event.time else "-"
    known = {int(errno) for errno in Errno}
    outcome = ""
    if event.errno:
        outcome = Errno(event.errno).name if event.errno in known else str(event.errno)
    parts = [
        f"pid {event.pid}" if event.pid else "", event.syscall, event.object,
        f"(call {event.call})" if event.call else "", outcome, event.note,
    ]  # fmt: skip
    return f"{event.seq:>7}  {when}  {event.kind:8} {cell(' '.join(filter(None, parts)))}"
