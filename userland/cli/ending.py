"""`llmasos wait`, `rm` and `prune`: processes that end, and what is left of them.

Each takes many processes and does what it can: what failed is reported one by one, and the exit
code is the first failure's.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland.line import Line

from . import exits
from .ask import confirmed
from .columns import Column, fitted
from .door import connect
from .processes import processes
from .show import complain, document, failure, note, span

_Info = Column[v.ProcessInfo]


class Done(NamedTuple):
    pids: list[int]
    failed: dict[int, SyscallError]

    @property
    def code(self) -> int:
        return next((exits.code(error) for error in self.failed.values()), exits.OK)


def each(pids: Sequence[int], act: Callable[[int], object]) -> Done:
    """Every process gets its turn, once."""
    done = Done([], {})
    for pid in dict.fromkeys(pids):
        try:
            act(pid)
            done.pids.append(pid)
        except SyscallError as error:
            if error.errno in (Errno.EPIPE, Errno.ECONNREFUSED):
                raise  # there is nobody to ask for the others
            done.failed[pid] = error
            complain(error)
    return done


# --- wait -------------------------------------------------------------------------------------
def wait(arguments: Namespace) -> int:
    """The exit code is that of the first process whose is not 0, or of the first failure."""
    timeout: float | None = arguments.timeout
    deadline = None if timeout is None else time.monotonic() + timeout
    codes: list[int] = []

    def one(pid: int) -> None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            end = line.call("wait", v.Wait(pid, left), v.Exit)
        except SyscallError as error:
            if error.errno is not Errno.ETIMEDOUT:
                raise
            words = f"process {pid} has not ended within {timeout:g} s"  # the time was for all
            raise SyscallError(error.errno, words, error.hint) from None
        codes.append(end.code & 0xFF)
        if arguments.json:
            document(end)
        else:
            note(f"process {end.pid} ended with {end.code} ({end.reason})")

    with connect() as line:
        done = each(arguments.pids, one)
    return next((code for code in codes if code), done.code)


# --- rm ---------------------------------------------------------------------------------------
def rm(arguments: Namespace) -> int:
    signal = v.Signal.KILL if arguments.force else v.Signal.TERM
    with connect() as line:
        done = each(arguments.pids, lambda pid: remove(line, pid, signal))
    _show(done, arguments)
    return done.code


def remove(line: Line, pid: int, signal: v.Signal = v.Signal.TERM) -> None:
    """End a process, and wait until it and its pages are gone. ESRCH."""
    try:
        line.call("kill", v.Kill(pid, signal), v.Nothing)
    except SyscallError as error:
        if error.errno is not Errno.ESRCH:
            raise
    line.call("wait", v.Wait(pid), v.Exit)  # ESRCH if it was not there at all


def _show(done: Done, arguments: Namespace) -> None:
    if arguments.json:
        failed = [{"pid": pid, **failure(error)} for pid, error in done.failed.items()]
        document({"removed": done.pids, "failed": failed})
    else:
        for pid in done.pids:
            print(pid)


# --- prune ------------------------------------------------------------------------------------
def prune(arguments: Namespace) -> int:
    """Ended processes; with --kept also conversations that nobody is in the midst of."""
    now = time.time()
    with connect() as line:
        found = [one for one in processes(line, ended=True) if _unused(one, arguments, now)]
        if not found:
            note("there is nothing to remove")
        elif not (arguments.json or (arguments.yes and not arguments.dry_run)):
            _tell(found, now)
        if arguments.dry_run or not found:
            _planned(found, arguments)
            return exits.OK
        question = f"Remove {_count(found)}, with all pages? It cannot be undone."
        if not confirmed(question, yes=arguments.yes):
            note("nothing was removed")
            return exits.FAILED
        # While the question stood there somebody may have gone on with one of them.
        still = {one.pid for one in processes(line, ended=True) if _unused(one, arguments, now)}
        done = each([one.pid for one in found if one.pid in still], lambda pid: remove(line, pid))
    _show(done, arguments)
    return done.code


def _unused(one: v.ProcessInfo, arguments: Namespace, now: float) -> bool:
    ended = one.state is v.State.ENDED
    if not ended and not (arguments.kept and one.kept and one.state is v.State.READY):
        return False
    return arguments.older_than is None or now - _since(one) >= arguments.older_than


def _since(one: v.ProcessInfo) -> float:
    """When it ended, or was used last."""
    return one.ended or one.used or one.created


def _tell(found: Sequence[v.ProcessInfo], now: float) -> None:
    fitted((
        _Info("PID", lambda one: one.pid),
        _Info("STATE", lambda one: one.state),
        _Info("UNUSED", lambda one: span(now - _since(one))),
        _Info("APP", lambda one: one.app, 1),
        _Info("TITLE", lambda one: one.title or "-"),
    ), found)  # fmt: skip


def _count(found: Sequence[v.ProcessInfo]) -> str:
    ended = sum(one.state is v.State.ENDED for one in found)
    kept = len(found) - ended
    parts = [f"{ended} ended process{'es' * (ended != 1)}"] * bool(ended)
    parts += [f"{kept} kept conversation{'s' * (kept != 1)}"] * bool(kept)
    return " and ".join(parts)


def _planned(found: Sequence[v.ProcessInfo], arguments: Namespace) -> None:
    """With --dry-run, or when there is nothing: no process was touched."""
    if arguments.json:
        document({"removed": [], "failed": [], "would_remove": [one.pid for one in found]})
