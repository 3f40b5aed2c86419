"""What a person sees of forks, of loads that last, and of calls that are refused as poison."""

import json

from llmasos.kernel.abi.errors import Errno
from llmasos.userland.cli import exits
from tests.conftest import Machine
from tests.userland.test_terminal import on_a_terminal
from tests.waiting import until

LOAD = ("mount", "echo", "--set", "load_s=1.2")


def test_a_load_that_lasts_is_one_line_on_stderr(machine: Machine) -> None:
    machine.start("--mount", "false")
    done = machine.llmasos(*LOAD)
    assert done.stderr.decode() == "load echo ...\n"
    assert b"echo" in done.stdout
    machine.llmasos("unmount", "echo")
    soon = machine.llmasos("mount", "echo")
    assert soon.stderr == b""


def test_a_load_that_lasts_is_redrawn_on_a_terminal(machine: Machine) -> None:
    machine.start("--mount", "false")
    seen = on_a_terminal(machine, *LOAD, TERM="xterm")
    shares = [piece.split("%")[0] for piece in seen.split("load echo ")[1:]]
    assert len(shares) > 1
    assert shares == sorted(shares, key=int)
    assert "\r\x1b[K" in seen
    assert "load echo" not in seen.rpartition("\x1b[K")[2]  # it is gone at the end


def test_a_spawn_tells_of_its_load_and_of_nothing_else(machine: Machine) -> None:
    def unloaded() -> bool:
        devices = json.loads(machine.llmasos("devices", "--json").stdout)["devices"]
        return not any(one["state"] == "up" for one in devices)

    machine.start("--mount", "false", "--idle-unload-s", "0.1")
    machine.llmasos(*LOAD)
    until(unloaded)  # the spawn loads it again, as it was mounted
    done = machine.llmasos("run", "-m", "echo", "--temperature", "0", "hello")
    assert done.stdout == b"hello\n"
    assert done.stderr == b"load echo ...\n"


def test_pinned_and_deterministic_are_said_by_options(machine: Machine) -> None:
    machine.start("--mount", "false", "--idle-unload-s", "0.1")
    machine.llmasos("mount", "echo", "--pin")
    devices = json.loads(machine.llmasos("devices", "--json").stdout)["devices"]
    assert [(one["name"], one["pinned"]) for one in devices] == [("echo", True)]
    assert b"up, pinned" in machine.llmasos("devices").stdout
    machine.llmasos("unmount", "echo")
    refused = machine.llmasos("mount", "echo", "--deterministic", check=False)
    assert b"deterministic" in refused.stderr  # echo has no such option


def test_forked_pids_are_printed_one_a_line_and_can_be_talked_to(machine: Machine) -> None:
    machine.start("--mount", "false")
    run = ("run", "-m", "echo", "--keep", "--temperature", "0", "--json")
    pid = json.loads(machine.llmasos(*run, "one two").stdout)["pid"]
    words = machine.llmasos("fork", str(pid), "-n", "3", "--app", "critic").stdout.decode()
    children = [int(line) for line in words.splitlines()]
    assert len(children) == len(set(children)) == 3
    listed = json.loads(machine.llmasos("ps", "--json").stdout)["processes"]
    assert {one["pid"] for one in listed if one["app"] == "critic"} == set(children)
    chat = machine.llmasos("chat", "--pid", str(children[1]), "--temperature", "0", stdin="three\n")
    assert chat.stdout == b"three\n"
    forked = json.loads(machine.llmasos("fork", str(pid), "--json", "--nice", "7").stdout)
    assert forked["model"] == "echo"
    assert len(forked["pids"]) == 1
    assert machine.llmasos("fork", "9999", check=False).returncode == exits.NOT_FOUND
    assert machine.llmasos("fork", str(pid), "-n", "65", check=False).returncode == exits.USAGE


def test_a_poison_is_refused_with_what_to_do(machine: Machine) -> None:
    machine.start("--mount", "false")
    machine.llmasos("mount", "echo", "--set", "poison=xyzzy")
    run = ("run", "-m", "echo", "say xyzzy")
    for _ in range(2):
        died = machine.llmasos(*run, check=False)
        assert (died.returncode, b"EIO" in died.stderr) == (exits.ENGINE, True)
    refused = machine.llmasos(*run, check=False)
    assert refused.returncode == exits.ENGINE
    assert Errno.EPOISON.name.encode() in refused.stderr
    assert b"change its prompt" in refused.stderr
