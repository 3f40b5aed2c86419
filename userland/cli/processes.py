"""Verbs about processes: ps, fork, kill, wait, nice, attach."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from . import exits
from .columns import Column, fitted
from .connection import connect
from .show import error_fields, note, print_error, print_json, span, write_text

_Info = Column[v.ProcessInfo]


def processes(client: BlockingClient, *, ended: bool = False) -> list[v.ProcessInfo]:
    """All processes; one reply holds at most PS_ROWS."""
    found: list[v.ProcessInfo] = []
    after: int | None = 0
    while after is not None:
        reply = client.call("ps", v.Ps(ended=ended, after=after), v.Processes)
        found += reply.processes
        after = reply.next
    return found


def show_processes(found: Sequence[v.ProcessInfo], *, full: bool = False) -> None:
    """Print the table of processes."""
    fitted(_columns(time.time(), 0), found, whole=full)


def show_loads(found: Sequence[v.ProcessInfo]) -> None:
    """Print the table with the columns on tokens ranked before owner, app and model."""
    fitted(_columns(time.time(), 10), found)


def _columns(now: float, rank_offset: int) -> list[Column[v.ProcessInfo]]:
    """The columns. `rank_offset` is subtracted from the rank of those on tokens."""
    return [
        _Info("PID", lambda one: one.pid),
        _Info("PARENT", lambda one: one.parent or "-", 1),
        _Info("OWNER", lambda one: one.owner, 2),
        _Info("STATE", _state),
        _Info("KEPT", lambda one: "yes" if one.kept else "no", 3),
        _Info("AGE", lambda one: span(now - one.created)),
        _Info("NI", lambda one: one.nice, max(1, 13 - rank_offset)),
        _Info("MODEL", lambda one: one.model, 4),
        _Info("CONTEXT", _context, max(1, 11 - rank_offset)),
        _Info("TOKENS", lambda one: one.generated, max(1, 14 - rank_offset)),
        _Info(
            "TOK/S", lambda one: f"{one.rate:.1f}" if one.rate else "-", max(1, 12 - rank_offset)
        ),
        _Info("APP", lambda one: one.app, 5),
        _Info("TITLE", lambda one: one.title or "-"),
    ]


def _state(one: v.ProcessInfo) -> str:
    return f"{one.state} {one.code}" if one.code is not None else one.state


def _context(one: v.ProcessInfo) -> object:
    return f"{one.context}/{one.window}" if one.window else one.context


def ps(arguments: Namespace) -> int:
    with connect() as client:
        found = processes(client, ended=arguments.all)
    if arguments.json:
        print_json({"processes": found})
    elif arguments.quiet:
        for one in found:
            print(one.pid)
    else:
        show_processes(found, full=arguments.long)
    return exits.OK


def fork(arguments: Namespace) -> int:
    request = v.Fork(arguments.pid, arguments.count, arguments.app, arguments.nice)
    with connect() as client:
        forked = client.call("fork", request, v.Forked)
    if arguments.json:
        print_json(forked)
    else:
        for pid in forked.pids:
            print(pid)
    return exits.OK


class Done(NamedTuple):
    """The result of one call for each of several processes."""

    pids: list[int]
    failed: dict[int, SyscallError]

    @property
    def code(self) -> int:
        """The exit code: that of the first failure."""
        return next((exits.code(error) for error in self.failed.values()), exits.OK)

    def failures(self) -> list[dict[str, object]]:
        """The failures as they are printed in JSON."""
        return [{"pid": pid, **error_fields(error)} for pid, error in self.failed.items()]


def each(pids: Sequence[int], act: Callable[[int], object]) -> Done:
    """Run `act` once for every process and collect the failures."""
    done = Done([], {})
    for pid in dict.fromkeys(pids):
        try:
            act(pid)
            done.pids.append(pid)
        except SyscallError as error:
            if error.errno in (Errno.EPIPE, Errno.ECONNREFUSED):
                raise  # the kernel is gone: the others would fail too
            done.failed[pid] = error
            print_error(error)
    return done


def kill(arguments: Namespace) -> int:
    signal = v.Signal(arguments.signal)
    with connect() as client:
        done = each(arguments.pids, lambda pid: client.call("kill", v.Kill(pid, signal), v.Nothing))
    if arguments.json:
        print_json({"signal": signal, "sent": done.pids, "failed": done.failures()})
    return done.code


def wait(arguments: Namespace) -> int:
    """The exit code is the first nonzero one of the processes, else that of the first failure."""
    timeout: float | None = arguments.timeout
    deadline = None if timeout is None else time.monotonic() + timeout
    codes: list[int] = []

    def one(pid: int) -> None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            exit_ = client.call("wait", v.Wait(pid, left), v.Exit)
        except SyscallError as error:
            if error.errno is not Errno.ETIMEDOUT:
                raise
            message = (
                f"process {pid} has not ended within {timeout:g} s"  # the timeout covers all pids
            )
            raise SyscallError(error.errno, message, error.hint) from None
        codes.append(exit_.code & 0xFF)
        if arguments.json:
            print_json(exit_)
        else:
            note(f"process {exit_.pid} ended with {exit_.code} ({exit_.reason})")

    with connect() as client:
        done = each(arguments.pids, one)
    return next((code for code in codes if code), done.code)


def nice(arguments: Namespace) -> int:
    with connect() as client:
        client.call("nice", v.Renice(arguments.pid, arguments.nice), v.Nothing)
    if arguments.json:
        print_json({"pid": arguments.pid, "nice": arguments.nice})
    return exits.OK


def attach(arguments: Namespace) -> int:
    with connect() as client:
        stream = client.stream("attach", v.Attach(arguments.pid), v.Output, v.Exit)
        try:
            for output in stream:
                if arguments.json:
                    print_json(output)
                else:
                    write_text(output.text)
        except KeyboardInterrupt:
            note(f"\ndetached; process {arguments.pid} continues")
            return exits.OK
    end = stream.reply
    if end is not None and arguments.json:
        print_json(end)
    elif end is not None:
        note(f"\nprocess {end.pid} ended with {end.code} ({end.reason})")
    return exits.OK
