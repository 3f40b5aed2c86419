"""A disk that takes no flush: nothing is acknowledged, and one command goes on from there."""

from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.cli import exits
from llmasos.userland.client import BlockingClient
from tests.conftest import Machine, documents

# The system's call fails for files whose path ends as the file FAILS says, as on a bad disk.
FAULT = """
import errno, os
really = os.fdatasync

def fdatasync(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    try:
        with open(FAILS) as file:
            ends = file.read()
    except FileNotFoundError:
        ends = ""
    if ends and path.endswith(ends):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    really(descriptor)

os.fdatasync = fdatasync
"""


@pytest.fixture
def fails(machine: Machine, tmp_path: Path) -> Path:
    """The file that says of which paths the flush fails."""
    path, folder = tmp_path / "fails", tmp_path / "fault"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"FAILS = {str(path)!r}\n{FAULT}")
    machine.environment["PYTHONPATH"] = str(folder)
    return path


def test_a_failed_flush_is_told_with_the_command_that_goes_on(
    machine: Machine, fails: Path
) -> None:
    machine.start("--mount", "false", "--memory-embedder", "none")
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        line.call("write_mem", v.WriteMem(pid, "acknowledged"), v.Written)
        fails.write_text("/pages.db-wal")
        refusals: list[SyscallError] = []
        for text in ("lost, perhaps", "after it"):
            with pytest.raises(SyscallError) as caught:
                line.call("write_mem", v.WriteMem(pid, text), v.Written)
            refusals.append(caught.value)
        fails.unlink()  # the next flush would succeed, and say nothing of what is lost
        with pytest.raises(SyscallError) as caught:
            line.call("write_mem", v.WriteMem(pid, "after it"), v.Written)
        refusals.append(caught.value)
        assert {one.errno for one in refusals} == {Errno.EIO}
        assert len({one.message for one in refusals}) == 1
        assert "pages.db to disk (Input/output error): it is read-only now" in refusals[0].message
        assert {one.hint for one in refusals} == {
            "`llmasos daemon restart` opens it again, once the disk works"
        }
        [damage] = line.call("stat", v.Nothing(), v.Stat).damages
        assert (Path(damage.file).name, damage.owner) == ("pages.db", line.welcome.owner)
        assert "daemon restart" in damage.advice
        texts = line.call("read_mem", v.ReadMem(pid), v.Pages).pages
        assert "acknowledged" in [page.text for page in texts]  # reading goes on
        line.call("send", v.Send(pid, "another database"), v.Sent)
    done = machine.llmasos("doctor", "--json", check=False)
    [check] = [one for one in documents(done)[0]["checks"] if one["name"] == "databases"]
    assert (check["status"], "daemon restart" in check["fix"]) == ("fail", True)
    status = machine.llmasos("daemon", "status").stdout.decode()
    assert f"{damage.file}: cannot flush" in status
    assert machine.log.count("cannot flush") == 1
    machine.llmasos("daemon", "restart")
    assert machine.reap() == 0
    machine.llmasos("mem", "write", str(pid), "written again")
    kept = documents(machine.llmasos("mem", str(pid), "--json"))[0]["pages"]
    assert {"acknowledged", "written again"} <= {page["text"] for page in kept}
    assert documents(machine.llmasos("daemon", "status", "--json"))[0]["damages"] == []


def test_a_failed_flush_of_the_kernel_s_own_is_told_too(machine: Machine, fails: Path) -> None:
    machine.start("--mount", "false", "--memory-embedder", "none")
    lines = {"users.db": ["users", "add", "bob"], "processes.db": ["run", "-m", "echo", "x"]}
    for name, line in lines.items():
        fails.write_text(f"/{name}-wal")
        done = machine.llmasos(*line, check=False)
        assert done.returncode == exits.ENGINE
        assert b"`llmasos daemon restart`" in done.stderr
    fails.unlink()
    found = documents(machine.llmasos("daemon", "status", "--json"))[0]["damages"]
    assert [(one["file"], one["owner"]) for one in found] == [(name, "") for name in lines]
    machine.llmasos("daemon", "restart")
    assert machine.reap() == 0
    machine.llmasos(*lines["processes.db"])
    machine.llmasos("users", "add", "eve")
