"""A kernel on another machine: the command line and the SDK are pointed at it, with a key."""

import json
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from llmasos import LLMasOS
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland import remote
from llmasos.userland.cli import exits, main
from llmasos.userland.cli.invocation import Invocation
from llmasos.userland.cli.table import VERBS
from tests.conftest import Machine, documents
from tests.system.raw import raw
from tests.system.test_tls import flags, port


class Box(NamedTuple):
    """A machine that listens, and what a client elsewhere needs."""

    machine: Machine
    host: str
    ca: Path
    key: Path


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[Box]:
    folder, number = tmp_path_factory.mktemp("box"), port()
    machine = Machine(folder)
    machine.start(*flags(certificates, number))
    with raw(machine.paths.socket, "owner") as root:
        root.call("user_add", name="alice", role="operator")
        key = folder / "key"
        key.write_text(root.call("key_create", user="alice")["key"] + "\n")
        key.chmod(0o600)
    yield Box(machine, f"localhost:{number}", certificates / "machine.pem", key)
    machine.down()


@pytest.fixture
def elsewhere(box: Box, machine: Machine) -> Machine:
    """Another machine, without a daemon, that is pointed at the box."""
    machine.environment |= {
        remote.HOST: box.host, remote.CA: str(box.ca), remote.KEY_FILE: str(box.key),
    }  # fmt: skip
    return machine


def test_the_environment_names_the_machine_and_the_key(elsewhere: Machine, box: Box) -> None:
    done = elsewhere.llmasos("run", "-m", "echo", "--temperature", "0", "--keep", "one two")
    assert done.stdout == b"one two\n"
    (process,) = documents(elsewhere.llmasos("ps", "--json"))[0]["processes"]
    assert (process["owner"], process["title"]) == ("alice", "one two")
    status = documents(elsewhere.llmasos("daemon", "status", "--json"))[0]
    assert (status["os_pid"], status["socket"]) == (box.machine.pid, box.host)
    assert elsewhere.llmasos("rm", str(process["pid"])).stdout.strip()
    assert not elsewhere.paths.socket.exists()  # no daemon was started here


def test_flags_go_before_the_environment(elsewhere: Machine, box: Box) -> None:
    wrong = {remote.HOST: "localhost:1", remote.KEY_FILE: "", remote.KEY: "nonsense"}
    line = ["--host", box.host, "ps", f"--key-file={box.key}", "--ca", str(box.ca), "--json"]
    elsewhere.environment |= wrong
    assert documents(elsewhere.llmasos(*line))[0]["processes"] == []
    refused = elsewhere.llmasos("ps", "--json", check=False)
    assert refused.returncode == exits.NO_DAEMON
    assert "--listen" in json.loads(refused.stderr)["hint"]


def test_a_key_may_stand_in_a_variable(elsewhere: Machine, box: Box) -> None:
    elsewhere.environment |= {remote.KEY_FILE: "", remote.KEY: box.key.read_text().strip()}
    assert documents(elsewhere.llmasos("users", "list", "--json"))[0]["users"]


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        ({remote.KEY_FILE: ""}, exits.DENIED, "key"),
        ({remote.KEY_FILE: "/nonexistent"}, exits.NOT_FOUND, "/nonexistent"),
        ({remote.CA: ""}, exits.DENIED, "certificate"),
        ({remote.CA: "/nonexistent"}, exits.FAILED, "/nonexistent"),
        ({remote.HOST: "nowhere"}, exits.FAILED, "not HOST:PORT"),
        ({remote.HOST: "http://localhost:80"}, exits.FAILED, "not HOST:PORT"),
        ({remote.HOST: "localhost:99999"}, exits.FAILED, "not HOST:PORT"),
    ],
)
def test_what_is_wrong_is_named(
    elsewhere: Machine, change: dict[str, str], code: int, why: str
) -> None:
    elsewhere.environment |= change
    done = elsewhere.llmasos("ps", "--json", check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    assert why in json.loads(done.stderr)["message"]


def test_a_key_that_others_may_read_is_refused(
    elsewhere: Machine, box: Box, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(box.key.read_text())
    key.chmod(0o644)
    elsewhere.environment[remote.KEY_FILE] = str(key)
    done = elsewhere.llmasos("ps", check=False)
    assert (done.returncode, f"`chmod 600 {key}`" in done.stderr.decode()) == (exits.DENIED, True)


def test_no_flag_takes_a_key() -> None:
    """What stands among the arguments can be read by everybody on the machine."""
    given = Invocation()
    given.begin(["ps", "--key", "llmasos_secret"])
    assert given.remote == {}
    assert not any("--key" in one.flags for words, verb in VERBS.items() for one in verb.options
                   if words.split()[0] != "mem")  # fmt: skip


@pytest.mark.parametrize("words", [w for w, verb in VERBS.items() if verb.local])
def test_what_is_about_this_machine_is_not_asked_elsewhere(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--host", "localhost:1", "--json"]) == exits.USAGE
    assert "omit --host" in json.loads(capsys.readouterr().err)["hint"]


def test_a_host_after_two_dashes_is_text() -> None:
    given = Invocation()
    assert given.begin(["run", "--host=a:1", "--", "--host", "b:2"]) == [
        "run", "--", "--host", "b:2",
    ]  # fmt: skip
    assert given.remote == {"host": "a:1"}
    assert main(["ps", "--host"]) == exits.USAGE


def test_local_verbs_stay_local_with_a_host_in_the_environment(elsewhere: Machine) -> None:
    started = documents(elsewhere.llmasos("daemon", "start", "--mount", "false", "--json"))[0]
    assert started["socket"] == str(elsewhere.paths.socket)
    assert documents(elsewhere.llmasos("config", "list", "--json"))[0]["running"] is True


def test_a_file_there_is_named_from_the_root(elsewhere: Machine) -> None:
    done = elsewhere.llmasos("mem", "map", "1", "notes.md", check=False)
    assert (done.returncode, b"on another machine" in done.stderr) == (exits.FAILED, True)
    there = elsewhere.llmasos("mem", "map", "1", "/no/such/file/here", check=False)
    assert b"no process 1" in there.stderr  # the kernel there was asked


# --- the SDK ----------------------------------------------------------------------------------
def test_the_sdk_is_pointed_at_it_too(
    box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMASOS_RUNTIME_DIR", str(tmp_path))
    trusted = ssl.create_default_context(cafile=str(box.ca))
    with LLMasOS(box.key.read_text().strip(), host=box.host, tls=trusted) as client:
        assert client.welcome is not None
        assert client.welcome.owner == "alice"
    monkeypatch.setenv(remote.HOST, box.host)
    monkeypatch.setenv(remote.CA, str(box.ca))
    monkeypatch.setenv(remote.KEY_FILE, str(box.key))
    with LLMasOS(app="test") as client:
        assert client.stat().os_pid == box.machine.pid
    with pytest.raises(SyscallError) as caught:
        LLMasOS(host="localhost:1")
    assert caught.value.errno is Errno.ECONNREFUSED
    assert os.listdir(tmp_path) == []  # nothing was started here


def test_who_asks_this_machine_does_not_load_tls(shared: Machine) -> None:
    code = "from llmasos.userland.cli import main\nmain(['ps'])\nimport sys\n"
    code += "print('ssl' in sys.modules)"
    assert shared.python("-c", code).stdout.endswith(b"False\n")
    assert sys.modules["ssl"]


def test_addresses() -> None:
    assert remote.parse_address("box.example.com:7000") == ("box.example.com", 7000)
    assert remote.parse_address("tls://[::1]:7000") == ("::1", 7000)
    assert remote.Remote("::1", 7000).address == "tls://[::1]:7000"
    for text in ("box", "box:", ":7000", "box:x", "https://box:7000", "a@box:7000", "box:7000/x"):
        with pytest.raises(SyscallError, match="HOST:PORT"):
            remote.parse_address(text)
