"""P-08: no number of deaths, and no want of descriptors, puts a device out of service for good."""

import json
import os
import resource
import signal
from collections.abc import Callable

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_life import spawn, turn
from tests.system.test_poison import command

FEW = {"CRASHES": 1, "RESTART_FIRST_S": 0.01}
KILLS = [pytest.param(2, FEW, id="2"), pytest.param(6, {}, id="6", marks=pytest.mark.long)]


class Events:
    """What the journal says of one device, as it comes."""

    def __init__(self, line: BlockingClient, path: str) -> None:
        self._stream = iter(line.stream("watch", v.Watch(since=0, kinds=["device"]), v.Events,
                                        v.Nothing))  # fmt: skip
        self._path = path
        self._waiting: list[str] = []

    def until(self, state: str) -> str:
        """The next event with this state; the others are dropped."""
        while True:
            while self._waiting:
                note = self._waiting.pop(0)
                if note.split()[0] == state:
                    return note
            batch = next(self._stream)
            self._waiting += [event.note for event in batch.events if event.object == self._path]


def recall(line: BlockingClient) -> v.RecallInfo:
    found = line.call("devices", v.ListDevices(), v.Devices).recall
    assert found is not None
    return found


def device(line: BlockingClient) -> v.DeviceInfo:
    [found] = line.call("devices", v.ListDevices(), v.Devices).devices
    return found


def kill_in_a_row(kills: int, events: Events, os_pid: Callable[[], int]) -> None:
    """Each time it is up; the last time it has failed."""
    for left in reversed(range(kills)):
        events.until("up")
        os.kill(os_pid(), signal.SIGKILL)
        assert "SIGKILL, from outside" in events.until("restarting" if left else "failed")


@pytest.mark.parametrize(("kills", "limits"), KILLS)
def test_an_engine_that_is_killed_in_a_row_comes_back(
    machine: Machine, kills: int, limits: dict[str, float]
) -> None:
    machine.limits(**limits, DEMAND_S=0.0)
    machine.start()
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        events = Events(other, "/dev/image/smollm2")
        pid = spawn(line, "smollm2")
        kill_in_a_row(kills, events, lambda: device(line).os_pid)
        # Whoever needs it does not wait for the next pause.
        assert turn(line, pid, "Count to ten.", v.Sampling(max_tokens=4, seed=1))[0]
        assert (device(line).state, device(line).restarts) == ("up", kills)
        assert line.call("poison_list", v.Nothing(), v.Poisons).poisons == []


def test_a_failed_engine_says_so_and_is_restarted_by_one_command(machine: Machine) -> None:
    machine.limits(CRASHES=0, RESTART_FIRST_S=250.0)
    machine.start("--model", "echo")
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        line.call("unmount", v.Unmount("echo"), v.Nothing)
        line.call("mount", v.Mount("echo", {"die_after": 3}), v.DeviceInfo)
        pid = spawn(line)
        with pytest.raises(SyscallError, match="EIO: the engine of echo died") as caught:
            turn(line, pid, "a text that is long enough")
        assert "`llmasos devices restart echo`" in caught.value.hint
        with pytest.raises(SyscallError, match=r"EIO: .* failed once, .* again in 2\d\d s"):
            turn(line, pid, "and now")
        shown = command(machine, "devices")
        assert "failed" in shown.stdout
        assert "echo: restarts in 2" in shown.stderr
        assert "recall: off" in shown.stderr
        [check] = [
            one
            for one in json.loads(command(machine, "doctor", "--json", code=1).stdout)["checks"]
            if one["name"] == "daemon"
        ]
        assert check["status"] == "fail"
        assert "`llmasos devices restart echo`" in check["fix"]
        found = device(line)
        assert (found.state, found.restarts) == ("failed", 1)
        assert 200 < found.retry_s <= 250
        assert "as its options request" in found.note
        again = command(machine, *check["fix"].split("`")[1].split()[1:])  # as printed
        assert again.stderr == "restarted echo\n"
        assert turn(other, pid, "hello")[0] == "hello"
        assert (device(line).state, device(line).retry_s) == ("up", 0.0)
        with pytest.raises(SyscallError, match="ENOENT: other is not mounted") as caught:
            line.call("restart", v.Restart("other"), v.Restarted)
        assert "`llmasos devices`" in caught.value.hint  # it may be no model at all
        with pytest.raises(SyscallError, match="ENOTSUP: there is no recall process"):
            line.call("restart", v.Restart(v.RECALL), v.Restarted)
        assert recall(line).state == "off"


@pytest.mark.usefixtures("meaning")
@pytest.mark.parametrize(("kills", "limits"), KILLS)
def test_a_recall_process_that_is_killed_in_a_row_comes_back(
    machine: Machine, kills: int, limits: dict[str, float]
) -> None:
    machine.limits(**limits, DEMAND_S=3600.0)
    machine.start("--model", "echo")
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        events = Events(other, f"/dev/{v.RECALL}")
        pid = spawn(line)
        turn(line, pid, "The old car needs oil.")
        search(line, pid)
        kill_in_a_row(kills, events, lambda: recall(line).os_pid)
        events.until("up")  # by itself, after the pause
        assert recall(line).restarts == kills
        os_pid = recall(line).os_pid
        again = line.call("restart", v.Restart(v.RECALL), v.Restarted)
        assert (again.device, again.restarts) == (v.RECALL, kills + 1)
        assert again.os_pid not in (0, os_pid)
        assert recall(line).state == "up"
        assert not search(line, pid).startswith("recall is lexical only")


def search(line: BlockingClient, pid: int) -> str:
    """Why meaning was not used, if it was not."""
    return line.call("search_mem", v.SearchMem(pid, "Which oil?"), v.Hits).note


# --- descriptors ------------------------------------------------------------------------------
def starve(machine: Machine) -> None:
    """No file can be opened from now on: what is open stays open."""
    _, hard = resource.prlimit(machine.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{machine.pid}/fd"))
    resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, (used, hard))


def feed(machine: Machine) -> None:
    _, hard = resource.prlimit(machine.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(machine.pid, resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.usefixtures("meaning")
def test_without_descriptors_calls_get_the_numbers_and_with_them_all_is_well(
    machine: Machine,
) -> None:
    machine.start("--model", "echo", "--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line)
        turn(line, pid, "hello")  # what it needs is open
        # Up before the descriptors are counted: a start opens some for a moment.
        line.call("restart", v.Restart(v.RECALL), v.Restarted)
        starve(machine)
        assert turn(line, pid, "hello again")[0] == "hello again"
        for call in (
            lambda: line.call("mount", v.Mount("smollm2"), v.DeviceInfo),
            lambda: line.call("mmap", v.Mmap(pid, f"/files{__file__}"), v.Mapped),
            lambda: line.call("image_add", v.ImageAdd("new", __file__), v.ImageInfo),
            lambda: list(line.stream("watch", v.Watch(0, follow=False), v.Events, v.Nothing)),
        ):
            with pytest.raises(SyscallError, match=r"all \d+ file descriptors .* are in use"):
                call()
        assert line.call("stat", v.Nothing(), v.Stat).connections == 1
        feed(machine)
        assert line.call("restart", v.Restart(v.RECALL), v.Restarted).os_pid
        with BlockingClient(machine.paths.socket) as other:
            assert turn(other, spawn(other), "all is well")[0] == "all is well"
            other.call("mount", v.Mount("smollm2"), v.DeviceInfo)


def test_an_engine_that_died_for_want_of_descriptors_comes_back(machine: Machine) -> None:
    machine.limits(RESTART_FIRST_S=0.01, CRASHES=2, DEMAND_S=0.0)
    machine.start()
    with (
        BlockingClient(machine.paths.socket) as line,
        BlockingClient(machine.paths.socket) as other,
    ):
        events = Events(other, "/dev/image/smollm2")
        pid = spawn(line, "smollm2")
        events.until("up")
        starve(machine)
        os.kill(device(line).os_pid, signal.SIGKILL)
        assert "file descriptors of this process are in use" in events.until("failed")
        with pytest.raises(SyscallError, match="file descriptors of this process") as caught:
            while True:  # it may be tried once more for this call
                turn(line, pid, "Count.")
        assert caught.value.errno is Errno.EIO
        feed(machine)
        assert turn(line, pid, "Count.", v.Sampling(max_tokens=4, seed=1))[0]
