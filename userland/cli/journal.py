"""`llmasos logs`: the journal, from the past or as it is written."""

from argparse import Namespace
from collections import deque
from collections.abc import Iterable

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno

from . import exits
from .door import connect
from .show import cell, document, iso

_TAIL = 10


def logs(arguments: Namespace) -> int:
    follow, since = arguments.follow, arguments.since
    if follow and since is None and arguments.lines is None:
        arguments.lines = _TAIL  # as tail -f does
    since = since or 0
    request = v.Watch(since=since, follow=follow, pid=arguments.pid, kinds=arguments.kind)
    with connect() as line:
        if arguments.lines is not None:
            past = v.Watch(since=since, follow=False, pid=arguments.pid, kinds=arguments.kind)
            cursor = since or 0
            last: deque[v.Event] = deque(maxlen=arguments.lines)
            for batch in line.stream("watch", past, v.Events, v.Nothing):
                last.extend(batch.events)
                cursor = batch.cursor
            _show(last, arguments)
            request = v.Watch(cursor, follow, arguments.pid, arguments.kind)
        if follow or arguments.lines is None:
            for batch in line.stream("watch", request, v.Events, v.Nothing):
                _show(batch.events, arguments)
    return exits.OK


def _show(events: Iterable[v.Event], arguments: Namespace) -> None:
    for event in events:
        if arguments.json:
            document(event)
        else:
            print(_line(event), flush=arguments.follow)


def _line(event: v.Event) -> str:
    when = iso(event.time) if event.time else "-"
    known = {int(errno) for errno in Errno}
    outcome = ""
    if event.errno:
        outcome = Errno(event.errno).name if event.errno in known else str(event.errno)
    words = [
        f"pid {event.pid}" if event.pid else "", event.syscall, event.object,
        f"(call {event.call})" if event.call else "", outcome, event.note,
    ]  # fmt: skip
    return f"{event.seq:>7}  {when}  {event.kind:8} {cell(' '.join(filter(None, words)))}"
