"""Calls that kill their engine: bystanders are answered, the killer is refused."""

import json
import os
import signal
import subprocess
import sys

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient, BlockingStream
from tests.system.daemon import Machine
from tests.system.test_life import ENDLESS, kill, messages, spawn, turn

POISON = "xyzzy"
SHORT = v.Sampling(max_tokens=8, seed=1)
Call = BlockingStream[v.Delta, v.Generated]


def ask(line: BlockingClient, pid: int, text: str, sampling: v.Sampling = ENDLESS) -> Call:
    request = v.Generate(pid, [v.Message(v.Role.USER, text)], sampling=sampling)
    return line.stream("generate", request, v.Delta, v.Generated)


def ends(stream: Call) -> Errno | None:
    try:
        list(stream)
    except SyscallError as error:
        return error.errno
    return None


def test_bystanders_are_answered_and_a_poison_is_refused_for_good(machine: Machine) -> None:
    machine.start("--mount", "false")
    options: dict[str, bool | int | float | str] = {"poison": POISON, "rate": 200}
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        line.call("mount", v.Mount("echo", options), v.DeviceInfo)
        pids = [spawn(line) for _ in range(8)]
        deadly = spawn(line)
        streams = [ask(line, pid, f"bystander {pid} ") for pid in pids]
        for stream in streams:
            next(iter(stream))  # all of them are in the engine
        killer = ask(other, deadly, f"say {POISON} please")
        assert [ends(stream) for stream in (*streams, killer)] == [Errno.EIO] * 9

        # Again, all at once: the poison runs alone, so it takes nobody along.
        again = [ask(line, pid, f"bystander {pid} ", v.Sampling(max_tokens=40)) for pid in pids]
        killer = ask(other, deadly, f"say {POISON} please")
        assert [ends(stream) for stream in again] == [None] * 8
        with pytest.raises(SyscallError, match="died") as caught:
            list(killer)
        assert caught.value.errno is Errno.EIO
        assert "refused until" in caught.value.hint
        device = line.call("devices", v.Nothing(), v.Devices).devices[0]
        assert device.restarts == 2

        for _ in range(2):
            with pytest.raises(SyscallError, match="while this call was alone in it") as caught:
                list(ask(other, deadly, f"say {POISON} please"))
            assert caught.value.errno is Errno.EPOISON
            assert "change its prompt" in caught.value.hint
        assert messages(line, deadly) == []
        assert turn(line, deadly, "something else")[0] == "something else"
        line.call("unmount", v.Unmount("echo"), v.Nothing)
        line.call("mount", v.Mount("echo", options), v.DeviceInfo)
        fresh = spawn(line)  # the conversation of the first has gone on
        assert ends(ask(line, fresh, f"say {POISON} please")) is Errno.EPOISON
    machine.shoot()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert ends(ask(line, spawn(line), f"say {POISON} please")) is Errno.EPOISON
        assert turn(line, spawn(line), "all is well")[0] == "all is well"


def test_a_suspect_is_cleared_when_it_ends(machine: Machine) -> None:
    machine.start("--mount", "false")
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        line.call("mount", v.Mount("echo", {"die_after": 30, "rate": 500}), v.DeviceInfo)
        pids = [spawn(line) for _ in range(3)]
        assert [ends(s) for s in [ask(line, pid, "round ") for pid in pids]] == [Errno.EIO] * 3
        sampling = v.Sampling(temperature=0, max_tokens=20, ignore_eos=True)
        again = [ask(line, pid, "round ", sampling) for pid in pids]
        assert [ends(stream) for stream in again] == [None] * 3
        # Cleared: it shares the engine again.
        side = [
            ask(one, pid, "round ") for one, pid in ((line, spawn(line)), (other, spawn(other)))
        ]
        for stream in side:
            next(iter(stream))
        device = line.call("devices", v.Nothing(), v.Devices).devices[0]
        assert device.busy == 2
        for process in line.call("ps", v.Ps(), v.Processes).processes:
            kill(line, process.pid)


def die(line: BlockingClient, other: BlockingClient, death: signal.Signals) -> None:
    """The engine ends under a call that counts to a million."""
    stream = ask(line, spawn(line, "smollm2"), "Count to a million.")
    next(iter(stream))
    device = other.call("devices", v.Nothing(), v.Devices).devices[0]
    os.kill(device.os_pid, death)
    assert ends(stream) is Errno.EIO


def test_a_real_engine_that_crashes_twice_under_a_call_refuses_it_until_it_is_let_in(
    machine: Machine,
) -> None:
    machine.start()
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        for _ in range(2):
            die(line, other, signal.SIGSEGV)
        refused = ask(line, spawn(line, "smollm2"), "Count to a million.")
        with pytest.raises(SyscallError, match="SIGSEGV") as caught:
            list(refused)
        assert caught.value.errno is Errno.EPOISON
        assert turn(line, spawn(line, "smollm2"), "Count to ten.", SHORT)[0]
        [poison] = other.call("poison_list", v.Nothing(), v.Poisons).poisons
        assert (poison.model, poison.refused) == ("smollm2", True)
        assert f"`llmasos poison lift {poison.id}`" in caught.value.hint
        lifted = other.call("poison_lift", v.PoisonLift(poison.id), v.Poisons).poisons
        assert lifted == [poison]
        assert turn(line, spawn(line, "smollm2"), "Count to a million.", SHORT)[0]


def test_an_engine_that_is_killed_from_outside_refuses_nobody(machine: Machine) -> None:
    machine.limits(RESTART_FIRST_S=0.01)
    machine.start()
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        for _ in range(3):
            die(line, other, signal.SIGKILL)
            assert other.call("poison_list", v.Nothing(), v.Poisons).poisons == []
        assert turn(line, spawn(line, "smollm2"), "Count to a million.", SHORT)[0]
        events = list(other.stream("watch", v.Watch(0, follow=False, kinds=["device"]), v.Events,
                                   v.Nothing))  # fmt: skip
        notes = [event.note for batch in events for event in batch.events]
        assert sum("was killed by SIGKILL, from outside" in note for note in notes) == 3


def test_poison_is_listed_and_lifted_on_the_command_line(machine: Machine) -> None:
    machine.start("--mount", "false")
    options: dict[str, bool | int | float | str] = {"poison": POISON}
    with BlockingClient(machine.paths.socket) as line:
        line.call("mount", v.Mount("echo", options), v.DeviceInfo)
        pid = spawn(line)
        for _ in range(2):
            assert ends(ask(line, pid, f"say {POISON} please")) is Errno.EIO
        with pytest.raises(SyscallError) as caught:
            list(ask(line, pid, f"say {POISON} please"))
        assert caught.value.errno is Errno.EPOISON
        listed = json.loads(command(machine, "poison", "list", "--json").stdout)["poisons"]
        assert [(one["model"], one["refused"]) for one in listed] == [("echo", True)]
        assert "refused" in command(machine, "poison", "list").stdout
        assert "expected an ID or --all" in command(machine, "poison", "lift", code=2).stderr
        assert (
            "no quarantined call"
            in command(machine, "poison", "lift", "ffffffffffff", code=3).stderr
        )
        words = caught.value.hint.split("`")[1].split()  # as printed
        assert words[:3] == ["llmasos", "poison", "lift"]
        assert "released call" in command(machine, *words[1:]).stderr
        line.call("unmount", v.Unmount("echo"), v.Nothing)  # that one would die again
        line.call("mount", v.Mount("echo"), v.DeviceInfo)
        assert ends(ask(line, pid, f"say {POISON} please", SHORT)) is None
        assert "no call is quarantined" in command(machine, "poison", "lift", "--all").stderr


def command(machine: Machine, *words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "llmasos", *words]
    done = subprocess.run(line, env=machine.environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def test_a_call_whose_engine_crashed_once_may_be_asked_again(machine: Machine) -> None:
    machine.start()
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        stream = ask(line, spawn(line, "smollm2"), "Count.")
        next(iter(stream))
        device = other.call("devices", v.Nothing(), v.Devices).devices[0]
        os.kill(device.os_pid, signal.SIGSEGV)
        with pytest.raises(SyscallError) as caught:
            list(stream)
        assert "runs alone" in caught.value.hint
        for _ in range(2):
            pid = spawn(line, "smollm2")
            assert turn(line, pid, "Count.", v.Sampling(max_tokens=8, seed=1))[0]
