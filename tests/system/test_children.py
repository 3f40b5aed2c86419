"""Fork over a real socket: children go on from what was said, and go their own ways."""

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.raw import raw
from tests.system.test_life import ENDLESS, GREEDY, info, kill, messages, spawn, turn


def fork(line: BlockingClient, pid: int, count: int = 1, **fields: object) -> list[int]:
    return line.call("fork", v.Fork(pid, count, **fields), v.Forked).pids  # type: ignore[arg-type]


def test_children_continue_from_the_parents_context(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        parent = spawn(line, system="Be brief.", app="story", nice=2)
        turn(line, parent, "one two")
        before = messages(line, parent)
        pids = fork(line, parent, 3)
        for pid in pids:
            child = info(line, pid)
            assert (child.parent, child.app, child.nice) == (parent, "story", 2)
            assert (child.state, child.context) == (v.State.READY, info(line, parent).context)
            assert messages(line, pid) == before
            said, reply = turn(line, pid, f"I am {pid}")
            assert said == f"I am {pid}"
            assert reply.usage.prompt_tokens > 10
            assert messages(line, pid) == [*before, ("user", said), ("assistant", said)]
        assert messages(line, parent) == before
        grand = fork(line, pids[0], app="critic", nice=-4)[0]
        assert (info(line, grand).app, info(line, grand).nice) == ("critic", -4)
        assert messages(line, grand) == messages(line, pids[0])
        with pytest.raises(SyscallError, match="no process"):
            info(line, grand + 1)


def test_an_acknowledged_fork_survives_kill_9(machine: Machine) -> None:
    """P-08: a fork is durable when it is acknowledged."""
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        parent = spawn(line)
        turn(line, parent, "remember")
        before = messages(line, parent)
        pids = fork(line, parent, 8)
        machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert all(messages(line, pid) == before for pid in pids)
        assert turn(line, pids[-1], "go on")[0] == "go on"


def test_the_turn_in_flight_is_not_part_of_a_fork(machine: Machine) -> None:
    machine.start("--mount", "false")
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        line.call("mount", v.Mount("echo", {"rate": 100}), v.DeviceInfo)
        parent = spawn(line)
        turn(line, parent, "said")
        before = messages(line, parent)
        request = v.Generate(parent, [v.Message(v.Role.USER, "go on ")], sampling=ENDLESS)
        stream = line.stream("generate", request, v.Delta, v.Generated)
        items = iter(stream)
        next(items)
        (child,) = fork(other, parent)
        assert messages(other, child) == before
        assert turn(other, child, "meanwhile")[0] == "meanwhile"
        kill(other, parent, v.Signal.INT)
        list(items)
        assert len(messages(other, parent)) == len(before) + 2


def test_the_dead_and_the_unknown_are_not_forked(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        ended = spawn(line)
        kill(line, ended)
        for pid in (ended, ended + 1000):
            with pytest.raises(SyscallError) as caught:
                fork(line, pid)
            assert caught.value.errno is Errno.ESRCH
        line.call("wait", v.Wait(ended), v.Exit)
        with pytest.raises(SyscallError) as caught:
            fork(line, ended)
        assert caught.value.errno is Errno.ESRCH
        for count in (0, 65):
            with pytest.raises(SyscallError) as caught:
                fork(line, spawn(line), count)
            assert caught.value.errno is Errno.EINVAL
        alive = spawn(line)
        with raw(machine.paths.socket) as client:
            assert client.refused("fork", pid=alive, nice=20)["errno"] == Errno.EINVAL


def test_children_may_end_with_the_connection_that_forked_them(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        parent = spawn(line)
        turn(line, parent, "hello")
        with BlockingClient(machine.paths.socket) as other:
            bound = fork(other, parent, 3, keep=False)
            kept = fork(other, parent, 1)
        while any(one.pid in bound for one in line.call("ps", v.Ps(), v.Processes).processes):
            pass
        assert messages(line, kept[0]) == messages(line, parent)


def test_forks_of_a_real_model_share_what_was_read(machine: Machine) -> None:
    machine.both_engines()
    machine.start()
    with BlockingClient(machine.paths.socket) as line:
        parent = spawn(line, "smollm2", system="You answer in one short sentence.")
        turn(line, parent, "Name a colour.")
        pids = fork(line, parent, 4)
        streams = [
            line.stream(
                "generate",
                v.Generate(pid, [v.Message(v.Role.USER, "Another one.")], sampling=GREEDY),
                v.Delta, v.Generated,
            )
            for pid in pids
        ]  # fmt: skip
        said = ["".join(delta.text for delta in stream) for stream in streams]
        assert all(said)
        for stream in streams:
            assert stream.reply is not None
            assert stream.reply.usage.prompt_tokens > 30
