"""P-13: a database that cannot be read costs its owner, and nobody else."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.waiting import until

START = ("--mount", "false")


def spoil(path: Path) -> None:
    """Overwrite a database, as a bad disk would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no database" * 1000)


def spoil_inside(path: Path) -> None:
    """Overwrite all but its first page: it opens, and cannot be read."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def doctor(machine: Machine) -> dict[str, str]:
    """What `llmasos doctor` says of the databases."""
    line = [sys.executable, "-m", "llmasos", "doctor", "--json"]
    done = subprocess.run(line, env=machine.environment, capture_output=True, check=False)
    checks: list[dict[str, str]] = json.loads(done.stdout)["checks"]
    return next(one for one in checks if one["name"] == "databases")


def damages(line: BlockingClient) -> list[v.Damage]:
    return line.call("stat", v.Nothing(), v.Stat).damages


def test_another_owner_does_not_notice(machine: Machine) -> None:
    spoiled = {"owners/bob/pages.db": "bob", "owners/eve/mail.db": "eve"}
    for name in spoiled:
        spoil(machine.paths.state / name)
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        line.call("write_mem", v.WriteMem(pid, "a page"), v.Written)
        line.call("send", v.Send(pid, "a message"), v.Sent)
        # The files of owners that nobody uses are looked at after the start.
        until(lambda: {one.file: one.owner for one in damages(line)} == spoiled or None)
    said = doctor(machine)
    assert said["status"] == "fail"
    assert all(name in said["what"] for name in spoiled)
    machine.stop()


@pytest.mark.parametrize("how", [spoil, spoil_inside])
def test_the_owner_of_damaged_pages_is_told_what_helps(
    machine: Machine, how: Callable[[Path], None]
) -> None:
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        owner = line.call("stat", v.Nothing(), v.Stat).owner
        kept = line.call("spawn", v.Spawn("echo", keep=True), v.Spawned).pid
        other = line.call("spawn", v.Spawn("echo", keep=False), v.Spawned).pid
        line.call("write_mem", v.WriteMem(kept, "a page"), v.Written)
        machine.stop()  # with its log copied into it
    path = machine.paths.state / "owners" / owner / "pages.db"
    how(path)
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        for call, request, kind in (
            ("read_mem", v.ReadMem(kept, 0), v.Pages),
            ("write_mem", v.WriteMem(kept, "another"), v.Written),
            ("spawn", v.Spawn("echo"), v.Spawned),
            ("wait", v.Wait(other, 1), v.Exit),
        ):
            with pytest.raises(SyscallError) as caught:
                line.call(call, request, kind)
            assert caught.value.errno is Errno.EIO
            assert str(path) in caught.value.message
            assert f"mv {path} {path}.damaged" in caught.value.hint
        listed = line.call("ps", v.Ps(ended=True), v.Processes).processes
        assert {one.pid for one in listed} == {kept, other}
        line.call("kill", v.Kill(kept, v.Signal.TERM), v.Nothing)
        assert [one.file for one in damages(line)] == [f"owners/{owner}/pages.db"]
    machine.stop()
    path.rename(f"{path}.damaged")
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        assert damages(line) == []
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        assert pid > other
        line.call("write_mem", v.WriteMem(pid, "anew"), v.Written)
    machine.stop()


def refused(machine: Machine) -> str:
    """What a daemon says that does not start."""
    line = [sys.executable, "-m", "llmasos.userland.daemon", "run", *START]
    done = subprocess.run(line, env=machine.environment, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


def test_what_a_machine_cannot_do_without_is_named(machine: Machine) -> None:
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo", keep=True), v.Spawned).pid
        line.call("write_mem", v.WriteMem(pid, "a page"), v.Written)
    machine.stop()
    path = machine.paths.state / "processes.db"
    whole = path.read_bytes()
    spoil(path)
    assert f"mv {path} {path}.damaged" in refused(machine)
    path.rename(f"{path}.damaged")
    for _ in range(2):  # its pages are not taken for pages of nobody
        said = refused(machine)
        assert "1 process has pages" in said
        assert f"mv {machine.paths.state}/owners {machine.paths.state}/owners.old" in said
    path.write_bytes(whole)
    machine.start(*START)
    with BlockingClient(machine.paths.socket) as line:
        assert [p.text for p in line.call("read_mem", v.ReadMem(pid), v.Pages).pages] == ["a page"]
    machine.stop()


def test_what_a_machine_can_do_without_is_set_aside(machine: Machine) -> None:
    machine.start(*START)
    machine.stop()
    for name in ("suspects.db", "counters.db"):
        spoil(machine.paths.state / name)
    for _ in range(2):  # until somebody removes them
        machine.start(*START)
        with BlockingClient(machine.paths.socket) as line:
            line.call("spawn", v.Spawn("echo"), v.Spawned)
            files = [one.file for one in damages(line)]
            assert files == ["counters.db.1.damaged", "suspects.db.1.damaged"], files
        machine.stop()
    assert (machine.paths.state / "counters.db").exists()
