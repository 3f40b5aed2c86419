"""A state directory on a read-only or nearly full disk: what is wrong, what helps, no traceback."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos.userland.cli import exits
from tests.conftest import Machine

MB = 1024 * 1024
NO_MODEL = {"LLMASOS_MOUNT": "false", "LLMASOS_MEMORY_EMBEDDER": "none"}
Mount = Callable[[str], None]


@pytest.fixture
def mount(machine: Machine, tmp_path: Path) -> Iterator[Mount]:
    """Mount a small disk with the state directory, or mount it again with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    line = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)]
    if subprocess.run(line, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    (disk / "state").mkdir(0o700)
    machine.environment |= {"LLMASOS_STATE_DIR": str(disk / "state"), **NO_MODEL}
    yield lambda options: _run("mount", "-o", f"remount,{options}", str(disk))
    machine.llmasos("daemon", "stop", check=False)
    _run("umount", str(disk))


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


def refused(machine: Machine, *words: str) -> str:
    """The command fails with an explanation; returns it."""
    done = machine.llmasos(*words, check=False)
    text = done.stderr.decode()
    assert done.returncode == exits.FAILED, text
    assert "Traceback" not in text
    return text


def daemon(machine: Machine) -> str:
    """The same of a daemon in the foreground."""
    line = ("-m", "llmasos.userland.daemon", "run")
    done = machine.python(*line, check=False)
    text = done.stderr.decode()
    assert done.returncode == exits.FAILED, text
    assert "Traceback" not in text
    return text


def fill(machine: Machine, left: int) -> None:
    state = Path(machine.environment["LLMASOS_STATE_DIR"])
    room = os.statvfs(state)
    with (state.parent / f"filler.{left}").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - left)


def test_a_read_only_disk_is_named(machine: Machine, mount: Mount) -> None:
    state = machine.environment["LLMASOS_STATE_DIR"]
    machine.llmasos("daemon", "start")
    machine.llmasos("daemon", "stop")
    mount("ro")
    for text in (refused(machine, "daemon", "start"), daemon(machine)):
        assert "EROFS" in text
        assert f"findmnt -T {state}" in text
    assert "is on a read-only file system" in machine.llmasos("doctor", check=False).stdout.decode()
    mount("rw")
    machine.llmasos("daemon", "start")


def test_a_new_machine_needs_room(machine: Machine, mount: Mount) -> None:
    fill(machine, 30 * MB)
    for text in (refused(machine, "daemon", "start"), daemon(machine)):
        assert "ENOSPC: 31.5 MB free at" in text
        assert "df -h" in text


def test_a_machine_on_a_nearly_full_disk_starts_and_frees(machine: Machine, mount: Mount) -> None:
    machine.llmasos("daemon", "start")
    machine.python("-c", SPAWN)
    machine.llmasos("daemon", "stop")
    fill(machine, 30 * MB)
    machine.llmasos("daemon", "start")
    assert (
        "writes are refused, except removals" in machine.llmasos("daemon", "logs").stdout.decode()
    )
    done = machine.python("-c", SPAWN, check=False)
    assert "ENOSPC" in done.stderr.decode()
    machine.llmasos("kill", "1")
    machine.llmasos("wait", "1", check=False)
    assert machine.llmasos("ps", "-a").stdout.decode().count("\n") == 1  # the heading
    machine.llmasos("daemon", "stop")
    fill(machine, 0)
    for text in (refused(machine, "daemon", "start"), daemon(machine)):
        assert "ENOSPC: 0.0 MB free at" in text


SPAWN = """
from llmasos.kernel.abi import paths, values as v
from llmasos.userland.client import BlockingClient
with BlockingClient(paths.find().socket) as line:
    line.call("spawn", v.Spawn("echo"), v.Spawned)
"""
