"""P-04: STOP never ends a call, however many are stopped and however little room there is."""

import os
import signal
from collections.abc import Iterator

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import EngineFailed
from llmasos.userland.client import BlockingClient, BlockingStream
from tests.system.daemon import Machine
from tests.system.test_life import kill, spawn, turn

Call = BlockingStream[v.Delta, v.Generated]
TEXT = "a text that is long enough to be stopped in its midst, "


class Talk:
    """A call on a connection of its own, stopped as soon as it has said something."""

    def __init__(self, line: BlockingClient, pid: int, text: str, sampling: v.Sampling) -> None:
        request = v.Generate(pid, [v.Message(v.Role.USER, text)], sampling=sampling)
        self.stream = line.stream("generate", request, v.Delta, v.Generated)
        self._deltas: Iterator[v.Delta] = iter(self.stream)
        self.text = next(self._deltas).text

    def end(self) -> v.Generated:
        self.text += "".join(delta.text for delta in self._deltas)
        assert self.stream.reply is not None
        return self.stream.reply


def stopped(
    line: BlockingClient, model: str, text: str, sampling: v.Sampling, calls: int = 6
) -> tuple[list[int], list[Talk]]:
    """One after the other is stopped; each needs a slot that a stopped one has to leave."""
    pids = [spawn(line, model) for _ in range(calls)]
    talks: list[Talk] = []
    for pid in pids:
        talks.append(Talk(line, pid, text, sampling))
        kill(line, pid, v.Signal.STOP)
    return pids, talks


@pytest.mark.parametrize("room", [0, 100, 10**9])
def test_more_calls_than_there_is_room_for_are_stopped_and_go_on(
    machine: Machine, room: int
) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        options: dict[str, bool | int | float | str] = {"slots": 2, "rate": 100}
        line.call("mount", v.Mount("echo", {**options, "parked_bytes": room}), v.DeviceInfo)
        sampling = v.Sampling(temperature=0, max_tokens=200)
        pids, talks = stopped(line, "echo", TEXT * 4, sampling)
        for pid in pids:
            kill(line, pid, v.Signal.CONT)
        for talk in talks:
            assert talk.end().finish is v.Finish.STOP
            assert talk.text == TEXT * 4
        [device] = line.call("devices", v.ListDevices(), v.Devices).devices
        assert (device.busy, device.waiting, device.restarts) == (0, 0, 0)


def test_a_parked_call_continues_when_its_engine_was_killed(machine: Machine) -> None:
    machine.limits(RESTART_FIRST_S=0.01)
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        options: dict[str, bool | int | float | str] = {
            "slots": 1, "window": 512, "deterministic": True,
        }  # fmt: skip
        line.call("mount", v.Mount("smollm2", options), v.DeviceInfo)
        sampling = v.Sampling(temperature=0, max_tokens=200, ignore_eos=True)
        whole, _ = turn(line, spawn(line, "smollm2"), "Count to a hundred.", sampling)
        pids, talks = stopped(line, "smollm2", "Count to a hundred.", sampling, 2)
        [device] = line.call("devices", v.ListDevices(), v.Devices).devices
        os.kill(device.os_pid, signal.SIGKILL)
        with pytest.raises(EngineFailed, match="was killed by SIGKILL"):  # it had the slot
            talks[1].end()
        for pid in pids:
            kill(line, pid, v.Signal.CONT)
        assert talks[0].end().finish is v.Finish.LENGTH
        assert talks[0].text == whole


def test_a_real_model_goes_on_as_if_it_had_not_been_stopped(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        options: dict[str, bool | int | float | str] = {
            "slots": 2, "window": 256, "deterministic": True, "parked_bytes": 300_000,
        }  # fmt: skip
        line.call("mount", v.Mount("smollm2", options), v.DeviceInfo)
        sampling = v.Sampling(temperature=0, max_tokens=16, ignore_eos=True)
        whole, _ = turn(line, spawn(line, "smollm2"), "Count to a hundred.", sampling)
        pids, talks = stopped(line, "smollm2", "Count to a hundred.", sampling, 4)
        for pid in reversed(pids):
            kill(line, pid, v.Signal.CONT)
        for talk in talks:
            assert talk.end().finish is v.Finish.LENGTH
            assert talk.text == whole
