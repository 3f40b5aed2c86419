"""Verbs about processes: ps, fork, kill, nice, attach."""

import time
from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel import values as v
from llmasos.kernel.errors import SyscallError
from llmasos.userland.line import Line

from . import exits
from .columns import Column, fitted
from .door import connect
from .show import complain, document, failure, note, span, speak

_Info = Column[v.ProcessInfo]


def processes(line: Line, *, ended: bool = False) -> list[v.ProcessInfo]:
    """All of them; a reply holds PS_ROWS."""
    found: list[v.ProcessInfo] = []
    after: int | None = 0
    while after is not None:
        reply = line.call("ps", v.Ps(ended=ended, after=after), v.Processes)
        found += reply.processes
        after = reply.next
    return found


def show_processes(found: Sequence[v.ProcessInfo], *, whole: bool = False) -> None:
    """What each of them is, by its conversation."""
    fitted(_columns(time.time(), 0), found, whole=whole)


def show_loads(found: Sequence[v.ProcessInfo]) -> None:
    """The same with how fast they are before whose they are."""
    fitted(_columns(time.time(), 10), found)


def _columns(now: float, load: int) -> list[Column[v.ProcessInfo]]:
    """`load` is taken from the rank of the columns about tokens."""
    return [
        _Info("PID", lambda one: one.pid),
        _Info("PARENT", lambda one: one.parent or "-", 1),
        _Info("OWNER", lambda one: one.owner, 2),
        _Info("STATE", _state),
        _Info("KEPT", lambda one: "yes" if one.kept else "no", 3),
        _Info("AGE", lambda one: span(now - one.created)),
        _Info("NI", lambda one: one.nice, max(1, 13 - load)),
        _Info("MODEL", lambda one: one.model, 4),
        _Info("CONTEXT", _context, max(1, 11 - load)),
        _Info("TOKENS", lambda one: one.generated, max(1, 14 - load)),
        _Info("TOK/S", lambda one: f"{one.rate:.1f}" if one.rate else "-", max(1, 12 - load)),
        _Info("APP", lambda one: one.app, 5),
        _Info("TITLE", lambda one: one.title or "-"),
    ]


def _state(one: v.ProcessInfo) -> str:
    return f"{one.state} {one.code}" if one.code is not None else one.state


def _context(one: v.ProcessInfo) -> object:
    return f"{one.context}/{one.window}" if one.window else one.context


def ps(arguments: Namespace) -> int:
    with connect() as line:
        found = processes(line, ended=arguments.all)
    if arguments.json:
        document({"processes": found})
    elif arguments.quiet:
        for one in found:
            print(one.pid)
    else:
        show_processes(found, whole=arguments.long)
    return exits.OK


def fork(arguments: Namespace) -> int:
    request = v.Fork(arguments.pid, arguments.count, arguments.app, arguments.nice)
    with connect() as line:
        forked = line.call("fork", request, v.Forked)
    if arguments.json:
        document(forked)
    else:
        for pid in forked.pids:
            print(pid)
    return exits.OK


def kill(arguments: Namespace) -> int:
    """Every pid gets its signal; the exit code is the first failure's."""
    signal = v.Signal(arguments.signal)
    sent: list[int] = []
    failed: dict[int, SyscallError] = {}
    with connect() as line:
        for pid in arguments.pids:
            try:
                line.call("kill", v.Kill(pid, signal), v.Nothing)
                sent.append(pid)
            except SyscallError as error:
                failed[pid] = error
                complain(error)
    if arguments.json:
        wrong = [{"pid": pid, **failure(error)} for pid, error in failed.items()]
        document({"signal": signal, "sent": sent, "failed": wrong})
    return next((exits.code(error) for error in failed.values()), exits.OK)


def nice(arguments: Namespace) -> int:
    with connect() as line:
        line.call("nice", v.Renice(arguments.pid, arguments.nice), v.Nothing)
    if arguments.json:
        document({"pid": arguments.pid, "nice": arguments.nice})
    return exits.OK


def attach(arguments: Namespace) -> int:
    with connect() as line:
        stream = line.stream("attach", v.Attach(arguments.pid), v.Output, v.Exit)
        try:
            for output in stream:
                if arguments.json:
                    document(output)
                else:
                    speak(output.text)
        except KeyboardInterrupt:
            note(f"\ndetached; process {arguments.pid} goes on")
            return exits.OK
    end = stream.reply
    if end is not None and arguments.json:
        document(end)
    elif end is not None:
        note(f"\nprocess {end.pid} ended with {end.code} ({end.reason})")
    return exits.OK
