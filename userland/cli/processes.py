"""Verbs about processes: ps, fork, kill, nice, wait, attach."""

import time
from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel import values as v
from llmasos.kernel.errors import SyscallError
from llmasos.userland.line import Line

from . import exits
from .door import connect
from .show import complain, document, failure, note, span, speak, table

_HEAD = ("PID", "STATE", "NI", "MODEL", "CONTEXT", "TOKENS", "TOK/S", "AGE", "APP")


def processes(line: Line, *, ended: bool = False) -> list[v.ProcessInfo]:
    """All of them; a reply holds PS_ROWS."""
    found: list[v.ProcessInfo] = []
    after: int | None = 0
    while after is not None:
        reply = line.call("ps", v.Ps(ended=ended, after=after), v.Processes)
        found += reply.processes
        after = reply.next
    return found


def show_processes(found: Sequence[v.ProcessInfo]) -> None:
    now = time.time()
    table(_HEAD, [_row(one, now) for one in found])


def _row(one: v.ProcessInfo, now: float) -> tuple[object, ...]:
    state = f"{one.state} {one.code}" if one.code is not None else one.state
    context = f"{one.context}/{one.window}" if one.window else one.context
    rate = f"{one.rate:.1f}" if one.rate else "-"
    age = span(now - one.created)
    return one.pid, state, one.nice, one.model, context, one.generated, rate, age, one.app


def ps(arguments: Namespace) -> int:
    with connect() as line:
        found = processes(line, ended=arguments.all)
    if arguments.json:
        document({"processes": found})
    else:
        show_processes(found)
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


def wait(arguments: Namespace) -> int:
    with connect() as line:
        end = line.call("wait", v.Wait(arguments.pid, arguments.timeout), v.Exit)
    if arguments.json:
        document(end)
    else:
        note(f"process {end.pid} ended with {end.code} ({end.reason})")
    return end.code & 0xFF


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
