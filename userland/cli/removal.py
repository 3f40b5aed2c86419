"""`llmasos rm` and `prune`: end processes and remove them with their pages."""

import time
from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from . import exits
from .columns import Column, fitted
from .connection import connect
from .processes import Done, each, processes
from .questions import confirmed
from .show import note, print_json, span

_Info = Column[v.ProcessInfo]


# --- rm ---------------------------------------------------------------------------------------
def rm(arguments: Namespace) -> int:
    signal = v.Signal.KILL if arguments.force else v.Signal.TERM
    with connect() as client:
        done = each(arguments.pids, lambda pid: remove(client, pid, signal))
    _show(done, arguments)
    return done.code


def remove(client: BlockingClient, pid: int, signal: v.Signal = v.Signal.TERM) -> None:
    """End a process and wait until it and its pages are removed. Raises ESRCH."""
    try:
        client.call("kill", v.Kill(pid, signal), v.Nothing)
    except SyscallError as error:
        if error.errno is not Errno.ESRCH:
            raise
    client.call("wait", v.Wait(pid), v.Exit)  # ESRCH if it never existed


def _show(done: Done, arguments: Namespace) -> None:
    if arguments.json:
        print_json({"removed": done.pids, "failed": done.failures()})
    else:
        for pid in done.pids:
            print(pid)


# --- prune ------------------------------------------------------------------------------------
def prune(arguments: Namespace) -> int:
    """Remove ended processes; with --kept also kept conversations that are not in use."""
    now = time.time()
    with connect() as client:
        found = [one for one in processes(client, ended=True) if _unused(one, arguments, now)]
        if not found:
            note("nothing to remove")
        elif not (arguments.json or (arguments.yes and not arguments.dry_run)):
            _print_candidates(found, now)
        if arguments.dry_run or not found:
            _print_plan(found, arguments)
            return exits.OK
        question = f"Remove {_count(found)} with all pages? This cannot be undone."
        if not confirmed(question, yes=arguments.yes):
            note("nothing removed")
            return exits.FAILED
        # A process may have been used again while the question was open.
        still = {one.pid for one in processes(client, ended=True) if _unused(one, arguments, now)}
        done = each([one.pid for one in found if one.pid in still], lambda pid: remove(client, pid))
    _show(done, arguments)
    return done.code


def _unused(one: v.ProcessInfo, arguments: Namespace, now: float) -> bool:
    ended = one.state is v.State.ENDED
    if not ended and not (arguments.kept and one.kept and one.state is v.State.READY):
        return False
    return arguments.older_than is None or now - _last_used(one) >= arguments.older_than


def _last_used(one: v.ProcessInfo) -> float:
    """The time when it ended or was last used."""
    return one.ended or one.used or one.created


def _print_candidates(found: Sequence[v.ProcessInfo], now: float) -> None:
    fitted((
        _Info("PID", lambda one: one.pid),
        _Info("STATE", lambda one: one.state),
        _Info("UNUSED", lambda one: span(now - _last_used(one))),
        _Info("APP", lambda one: one.app, 1),
        _Info("TITLE", lambda one: one.title or "-"),
    ), found)  # fmt: skip


def _count(found: Sequence[v.ProcessInfo]) -> str:
    ended = sum(one.state is v.State.ENDED for one in found)
    kept = len(found) - ended
    parts = [f"{ended} ended process{'es' * (ended != 1)}"] * bool(ended)
    parts += [f"{kept} kept conversation{'s' * (kept != 1)}"] * bool(kept)
    return " and ".join(parts)


def _print_plan(found: Sequence[v.ProcessInfo], arguments: Namespace) -> None:
    """Print the result of --dry-run, or of an empty selection: nothing is removed."""
    if arguments.json:
        print_json({"removed": [], "failed": [], "would_remove": [one.pid for one in found]})
