"""Processes that have ended and that nobody waits for are removed after a set time."""

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_life import info, kill, spawn, turn


def removed(line: BlockingClient, since: int) -> int:
    """Wait until the journal tells that a process was removed: its pid."""
    request = v.Watch(since=since, kinds=["process"])
    for batch in line.stream("watch", request, v.Events, v.Nothing):
        for event in batch.events:
            if event.note.startswith("removed"):
                return event.pid
    raise AssertionError("the journal has ended")


def test_what_nobody_waits_for_is_removed_with_its_pages(machine: Machine) -> None:
    machine.start("--mount", "false", "--collect-after-s", "0.2")
    with BlockingClient(machine.paths.socket) as line:
        alive, ended = spawn(line), spawn(line)
        turn(line, ended, "hello")
        kill(line, ended)
        assert removed(line, 0) == ended
    with BlockingClient(machine.paths.socket) as line:
        with pytest.raises(SyscallError) as caught:
            info(line, ended)
        assert caught.value.errno is Errno.ESRCH
        assert info(line, alive).state is v.State.READY
        assert line.call("fsck", v.Fsck(), v.Checked).pages == 0


def test_what_ended_before_a_restart_is_removed_after_it(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        kill(line, pid)
        assert info(line, pid).state is v.State.ENDED
    machine.stop()
    machine.start("--mount", "false", "--collect-after-s", "0.001")
    with BlockingClient(machine.paths.socket) as line:
        assert removed(line, 0) == pid


def test_zero_keeps_them(machine: Machine) -> None:
    machine.start("--mount", "false", "--collect-after-s", "0")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        kill(line, pid)
        assert info(line, pid).state is v.State.ENDED
