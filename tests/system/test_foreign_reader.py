"""P-08: another program reads the databases, then kill -9: what was acknowledged is there."""

from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Denied
from llmasos.userland.client import BlockingClient
from tests.system import foreign
from tests.system.daemon import Machine

START = ("--mount", "false")


def write_some(line: BlockingClient, mark: str) -> tuple[int, dict[str, object]]:
    """One of each: what the kernel should say of it after a restart."""
    pid = line.call("spawn", v.Spawn("echo", app=mark), v.Spawned).pid
    for number in range(3):
        line.call("write_mem", v.WriteMem(pid, f"{mark} page {number}"), v.Written)
    line.call("send", v.Send(pid, f"{mark} message"), v.Sent)
    user = line.call("user_add", v.UserAdd(mark), v.UserInfo).name
    key = line.call("key_create", v.KeyCreate(user), v.KeyCreated).id
    return pid, {
        "app": mark,
        "pages": [f"{mark} page {number}" for number in range(3)],
        "mail": f"{mark} message",
        "user": user,
        "keys": [key],
    }


def look_around(line: BlockingClient) -> None:
    """What opens databases by other ways than the kernel's own connections."""
    for _ in line.stream("watch", v.Watch(0, follow=False), v.Events, v.Nothing):
        pass
    line.call("policy_simulate", v.PolicySimulate(""), v.Simulated)
    line.call("fsck", v.Fsck(rebuild=True), v.Checked)
    pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
    line.call("write_mem", v.WriteMem(pid, "to be forgotten"), v.Written)
    line.call("forget", v.Forget(pid, 0), v.Forgotten)
    line.call("kill", v.Kill(pid, v.Signal.KILL), v.Nothing)
    line.call("wait", v.Wait(pid, 5), v.Exit)
    line.call("stat", v.Nothing(), v.Stat)


def map_by_another_name(line: BlockingClient, pid: int, database: Path) -> None:
    """To open and close it, if only to see what it is, would drop the locks of the kernel."""
    link = database.parents[1] / f"{database.name}.txt"
    link.hardlink_to(database)
    with pytest.raises(Denied, match="belongs to LLMasOS"):
        line.call("mmap", v.Mmap(pid, f"/files{link}"), v.Mapped)
    link.unlink()


def found(line: BlockingClient, pid: int, user: str) -> dict[str, object]:
    [process] = line.call("ps", v.Ps(pid=pid), v.Processes).processes
    pages = line.call("read_mem", v.ReadMem(pid, 0), v.Pages).pages
    users = [one.name for one in line.call("user_list", v.Nothing(), v.Users).users]
    return {
        "app": process.app,
        "pages": [page.text for page in pages],
        "mail": line.call("recv", v.Recv(pid, 0.0), v.Mail).body,
        "user": user if user in users else "",
        "keys": [key.id for key in line.call("key_list", v.KeyList(user), v.Keys).keys],
    }


def test_a_reader_beside_the_daemon_costs_no_acknowledged_write(machine: Machine) -> None:
    machine.start(*START)
    with BlockingClient(machine.paths.socket, profile=v.Profile.OWNER) as line:
        written = [write_some(line, "first")]
        paths = foreign.databases(machine.paths.state)
        assert {path.name for path in paths} >= {
            "processes.db", "pages.db", "mail.db", "users.db", "counters.db", "00000001.db",
        }  # fmt: skip
        logs = {path: path.with_name(f"{path.name}-wal").stat().st_ino for path in paths}
        for mark in ("second", "third"):
            look_around(line)
            map_by_another_name(line, written[0][0], machine.paths.state / "users.db")
            assert foreign.unlocked(paths, machine.pid) == []
            foreign.read(paths)
            written.append(write_some(line, mark))
        after = {path: path.with_name(f"{path.name}-wal").stat().st_ino for path in paths}
        assert after == logs
    machine.shoot()
    machine.start(*START)
    with BlockingClient(machine.paths.socket, profile=v.Profile.OWNER) as line:
        for pid, expected in written:
            assert found(line, pid, str(expected["user"])) == expected
    machine.stop()
