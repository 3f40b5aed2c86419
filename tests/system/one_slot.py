"""A machine with one slot, and calls that run on it or wait for the slot."""

import threading
from collections.abc import Iterator

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.waiting import DEADLINE_S

QUESTION = "What is the word?"  # which each call asks


class Asked(threading.Thread):
    """A generate on a connection of its own: what it said and how it ended."""

    def __init__(self, machine: Machine, pid: int, sampling: v.Sampling) -> None:
        super().__init__()
        self._socket, self._pid, self._sampling = machine.paths.socket, pid, sampling
        self.said = ""
        self.reply: v.Generated | None = None
        self.error: SyscallError | None = None
        self.start()

    def run(self) -> None:
        request = v.Generate(self._pid, [v.Message(v.Role.USER, QUESTION)], sampling=self._sampling)
        with BlockingClient(self._socket) as line:
            stream = line.stream("generate", request, v.Delta, v.Generated)
            try:
                for delta in stream:
                    self.said += delta.text
                self.reply = stream.reply
            except SyscallError as error:
                self.error = error

    def wait(self) -> None:
        self.join(DEADLINE_S)
        assert not self.is_alive()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with one slot."""
    machine = Machine(tmp_path_factory.mktemp("one-slot"))
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        options: dict[str, bool | int | float | str] = {"slots": 1, "rate": 200}
        line.call("mount", v.Mount("echo", options), v.DeviceInfo)
    yield machine
    machine.down()


@pytest.fixture
def line(box: Machine) -> Iterator[BlockingClient]:
    with BlockingClient(box.paths.socket) as line:
        yield line


def waiting(line: BlockingClient) -> int:
    return sum(one.waiting for one in line.call("devices", v.Nothing(), v.Devices).devices)
