"""Processes and machines that the tests of userland begin with."""

import json
from collections.abc import Iterator

import pytest

from tests.conftest import Machine


@pytest.fixture
def pid(shared: Machine) -> Iterator[int]:
    """A process that has said something."""
    done = shared.llmasos("run", "-m", "echo", "--keep", "--temperature", "0", "--json", "one two")
    pid: int = json.loads(done.stdout)["pid"]
    yield pid
    shared.llmasos("kill", str(pid), check=False)
    shared.llmasos("wait", str(pid), check=False)


@pytest.fixture
def slow(machine: Machine) -> Machine:
    """A machine whose echo says twenty tokens a second."""
    machine.start("--mount", "false")
    machine.llmasos("mount", "echo", "--set", "rate=20")
    return machine
