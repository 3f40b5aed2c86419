"""P-08: a background job that fails does not take the kernel down, is visible, and runs again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland.client import BlockingClient
from tests.conftest import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """With the command line."""
    machine = Machine(tmp_path)
    yield machine
    machine.down()


def events(line: BlockingClient, last: str, times: int) -> list[str]:
    """The notes of jobs, until the wanted one has come so many times."""
    notes: list[str] = []
    stream = line.stream("watch", v.Watch(since=0, kinds=["job"]), v.Events, v.Nothing)
    for batch in stream:
        notes += [event.note for event in batch.events]
        if notes.count(last) == times:
            return notes
    raise AssertionError(notes)


@pytest.mark.parametrize("job", ["garbage", "mount", "idle exit"])
def test_a_job_that_fails_runs_again(machine: Machine, job: str) -> None:
    machine.environment["LLMASOS_FAIL_AT"] = f"job.{job}:2"
    machine.start("--model", "echo", "--private", "--idle-exit-s", "3600")
    with BlockingClient(machine.paths.socket) as line:
        first, *_ = events(line, f"{job} running", 2)
        assert first.startswith(f"{job} waiting RuntimeError at points.py:")
    with BlockingClient(machine.paths.socket) as line:
        stat = line.call("stat", v.Nothing(), v.Stat)
        [seen] = stat.jobs_failed
        assert seen.name == job
        assert seen.failures == 2
        assert stat.job_failures == 2
        assert stat.jobs_running > 1
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid  # the machine serves
        assert pid > 0
    assert f"background job {job} failed" in machine.log
    assert "RuntimeError: LLMASOS_FAIL_AT names" in machine.log
    status = json.loads(machine.llmasos("daemon", "status", "--json").stdout)
    assert status["job_failures"] == 2
    assert f"{job} failed" in machine.llmasos("daemon", "status").stdout.decode()


def test_doctor_names_a_job_that_waits(machine: Machine) -> None:
    machine.environment["LLMASOS_FAIL_AT"] = "job.garbage:1000"
    machine.start("--mount", "false")
    done = machine.llmasos("doctor", "--json", check=False)
    [finding] = [c for c in json.loads(done.stdout)["checks"] if c["name"] == "jobs"]
    assert finding["status"] == "warn"
    assert "garbage failed" in finding["what"]
    assert "next try in" in finding["what"]
    assert "llmasos daemon logs" in finding["fix"]


def test_a_call_that_fails_outside_its_handler_ends_and_nothing_else_does(
    machine: Machine,
) -> None:
    machine.environment["LLMASOS_FAIL_AT"] = "job.call:1"
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        with pytest.raises(SyscallError, match="EIO: spawn failed inside the kernel"):
            line.call("spawn", v.Spawn("echo"), v.Spawned)
        assert line.call("spawn", v.Spawn("echo"), v.Spawned).pid > 0  # on the same connection
        stat = line.call("stat", v.Nothing(), v.Stat)
        assert [(one.name, one.state) for one in stat.jobs_failed] == [("call", "failed")]
    assert machine.stop() == 0  # nothing is waited for in vain


def test_a_load_that_fails_inside_the_kernel_is_an_error_and_can_be_asked_again(
    machine: Machine,
) -> None:
    machine.environment["LLMASOS_FAIL_AT"] = "job.load:1"
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        with pytest.raises(SyscallError, match="EIO: loading echo failed inside the kernel"):
            line.call("mount", v.Mount("echo"), v.DeviceInfo)
        assert line.call("mount", v.Mount("echo"), v.DeviceInfo).state == "up"
