"""A daemon is started for whoever needs one: one, however many ask, and only if it is allowed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.kernel.abi import paths
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland import start
from llmasos.userland.client import BlockingClient
from tests.conftest import LIMIT_S, Machine

NO_MODEL = {"LLMASOS_MOUNT": "false"}
CLIENT = """
import os
from llmasos.kernel.abi import paths
from llmasos.userland import start
print(start.ensure(paths.find(), "--private"))
"""


@pytest.fixture
def mine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that this process belongs to."""
    for name, value in {**machine.environment, **NO_MODEL}.items():
        monkeypatch.setenv(name, value)
    return machine


def os_pid(machine: Machine) -> int:
    with BlockingClient(machine.paths.socket) as line:
        return line.call("stat", v.Nothing(), v.Stat).os_pid


def test_eight_clients_who_race_give_one_daemon(machine: Machine) -> None:
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT], env={**machine.environment, **NO_MODEL},
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(8)
    ]  # fmt: skip
    said = [client.communicate(timeout=LIMIT_S)[0].strip() for client in clients]
    assert sorted(said) == ["False"] * 7 + ["True"]
    assert machine.paths.log.read_text().count("ready") == 1


def test_a_started_daemon_is_private_detached_and_closed_to_others(mine: Machine) -> None:
    assert start.ensure(mine.paths, "--private")
    with BlockingClient(mine.paths.socket) as line:
        stat = line.call("stat", v.Nothing(), v.Stat)
    assert stat.private
    assert os.getsid(stat.os_pid) != os.getsid(0)
    assert mine.paths.runtime.stat().st_mode & 0o777 == 0o700
    assert mine.paths.state.stat().st_mode & 0o777 == 0o700
    assert mine.paths.log.stat().st_mode & 0o777 == 0o600
    assert not start.ensure(mine.paths, "--private")


def test_a_daemon_that_cannot_come_up_is_told_with_the_end_of_its_log(mine: Machine) -> None:
    mine.paths.config.mkdir()
    mine.paths.config_file.write_text("nonsense = 1\n")
    with pytest.raises(SyscallError) as caught:
        start.ensure(mine.paths)
    assert caught.value.errno is Errno.ECONNREFUSED
    assert "nonsense" in caught.value.message


def test_a_directory_that_cannot_be_made_is_told(mine: Machine) -> None:
    mine.paths.state.write_text("in the way")
    with pytest.raises(SyscallError, match=str(mine.paths.state)) as caught:
        start.ensure(mine.paths)
    assert caught.value.errno is Errno.EEXIST
    assert "LLMASOS_STATE_DIR" in caught.value.hint


def test_directories_may_be_relative_to_where_the_client_stands(
    mine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMASOS_RUNTIME_DIR", "runtime")
    assert start.ensure(paths.find(), "--private")
    assert start.answers(mine.paths)


def test_a_socket_that_nobody_listens_at_is_replaced(mine: Machine) -> None:
    start.ensure(mine.paths)
    pid = os_pid(mine)
    os.kill(pid, signal.SIGKILL)
    assert start.wait_for_exit(pid, LIMIT_S)
    assert mine.paths.socket.exists()
    assert start.ensure(mine.paths)
    assert os_pid(mine) != pid


def test_a_daemon_that_is_leaving_is_waited_for(mine: Machine) -> None:
    start.ensure(mine.paths)
    pid = os_pid(mine)
    with BlockingClient(mine.paths.socket) as line:
        line.call("shutdown", v.Shutdown(), v.Nothing)
    while start.answers(mine.paths):
        pass  # its door closes at once
    assert start.ensure(mine.paths)
    assert os_pid(mine) != pid
