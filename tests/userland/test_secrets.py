"""Keys are kept where only their owner reads them, go to their endpoint, and are shown nowhere."""

import json
import os
import pty
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from llmasos.kernel.abi import limits, secrets
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland.cli import exits
from tests.conftest import LIMIT_S, Machine, documents
from tests.files import containing

KEY = "sk-a-key-that-nobody-may-see"


# --- the verbs --------------------------------------------------------------------------------
def test_a_secret_is_kept_in_a_file_of_its_owner_alone(machine: Machine) -> None:
    done = machine.llmasos("secrets", "set", "mine", stdin=KEY + "\n")
    assert KEY.encode() not in done.stdout + done.stderr
    path = machine.paths.secrets / "mine"
    assert path.read_text() == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    machine.llmasos("secrets", "set", "mine", stdin="another")
    machine.llmasos("secrets", "set", "also", stdin=KEY)
    assert path.read_text() == "another"
    listed = machine.llmasos("secrets", "list")
    assert listed.stdout == b"also\nmine\n"
    machine.llmasos("secrets", "rm", "mine")
    assert documents(machine.llmasos("secrets", "list", "--json"))[0]["secrets"] == ["also"]
    assert sorted(os.listdir(machine.paths.secrets)) == ["also"]
    # Files are all that it takes.
    assert not machine.paths.socket.exists()


def test_what_a_killed_writer_left_behind_does_not_stay(tmp_path: Path) -> None:
    left = tmp_path / ".mine.new"
    left.write_text(KEY)
    secrets.put(tmp_path, "mine", "another", keyring=False)
    assert os.listdir(tmp_path) == ["mine"]
    assert secrets.read(tmp_path, "mine") == "another"


@pytest.mark.parametrize(
    "typed", ["", "\n", "two words", "two\nlines", "naïve", "x" * (limits.SECRET_BYTES + 1), "a\0b"]
)
def test_what_cannot_be_a_key_is_refused_unrepeated(machine: Machine, typed: str) -> None:
    done = machine.llmasos("secrets", "set", "mine", stdin=typed, check=False)
    assert done.returncode == exits.FAILED
    assert b"EINVAL" in done.stderr
    assert not typed.strip() or typed.encode() not in done.stderr
    assert not machine.paths.secrets.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "x" * 65, "-"])
def test_a_name_is_no_path(machine: Machine, name: str) -> None:
    for verb in ("set", "rm"):
        done = machine.llmasos("secrets", verb, "--", name, stdin=KEY, check=False)
        assert done.returncode == exits.FAILED
    assert not machine.paths.secrets.exists()


def test_forgetting_what_is_not_there_is_not_found(machine: Machine) -> None:
    assert machine.llmasos("secrets", "rm", "x", check=False).returncode == exits.NOT_FOUND


def test_on_a_terminal_nothing_is_echoed(machine: Machine) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "llmasos", "secrets", "set", "mine"], env=machine.environment,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    ) as child:  # fmt: skip
        os.close(theirs)
        shown = os.read(ours, 1000)
        while b"mine: " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, KEY.encode() + b"\n")
        assert child.wait(LIMIT_S) == 0
    try:
        while more := os.read(ours, 1000):
            shown += more
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert KEY.encode() not in shown
    assert (machine.paths.secrets / "mine").read_text() == KEY


KEYRING = """
import json, os
FILE = os.environ["KEYRING_FILE"]
def _all():
    return json.load(open(FILE)) if os.path.exists(FILE) else {}
def _write(found):
    with open(FILE, "w") as file:
        json.dump(found, file)
def get_password(service, name):
    return _all().get(f"{service}/{name}")
def set_password(service, name, value):
    _write({**_all(), f"{service}/{name}": value})
def delete_password(service, name):
    _write({key: value for key, value in _all().items() if key != f"{service}/{name}"})
"""


def test_a_keyring_holds_it_where_one_is_installed(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "keyring.py").write_text(KEYRING)
    kept = tmp_path / "kept.json"
    machine.environment |= {"PYTHONPATH": str(tmp_path), "KEYRING_FILE": str(kept)}
    machine.llmasos("secrets", "set", "mine", "--keyring", stdin=KEY)
    assert json.loads(kept.read_text()) == {"llmasos/mine": KEY}
    assert (machine.paths.secrets / "mine").read_bytes() == b""
    code = "from llmasos.kernel.abi import paths, secrets\n"
    code += "print(secrets.read(paths.find().secrets, 'mine'))"
    assert machine.python("-c", code).stdout.decode().strip() == KEY
    assert machine.llmasos("secrets", "list").stdout == b"mine\n"
    machine.llmasos("secrets", "rm", "mine")
    assert json.loads(kept.read_text()) == {}


def test_without_a_keyring_that_is_said(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "keyring.py").write_text("raise ImportError")
    line = ["secrets", "set", "mine", "--keyring"]
    done = machine.llmasos(*line, stdin=KEY, check=False, PYTHONPATH=str(tmp_path))
    assert done.returncode == exits.FAILED
    assert b"llmasos[keyring]" in done.stderr
    assert not machine.paths.secrets.exists()


# --- an endpoint as a model -------------------------------------------------------------------
class Parrot(BaseHTTPRequestHandler):
    """It repeats what it was asked, to whoever has the key, and blurts the key out to others."""

    models: ClassVar = ["parrot-1"]

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.models]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = asked["messages"][-1]["content"]
        if self.headers["authorization"] != f"Bearer {KEY}" or said == "fail":
            self._send(401, {"error": {"message": f"{self.headers['authorization']} is wrong"}})
            return
        self.send_response(200)
        self.end_headers()
        for word in said.split(" "):
            self._event({"choices": [{"delta": {"content": f"{word} "}}]})
        self._event({"choices": [{"text": "", "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: object) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

    def _send(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Not on our stderr."""


@pytest.fixture
def parrot() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Parrot) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_an_endpoint_is_a_model_and_its_key_is_nowhere(machine: Machine, parrot: str) -> None:
    """P-10 has two sides: clients come unchanged, and engines elsewhere are taken as they are."""
    machine.environment["LLMASOS_MOUNT"] = "false"
    machine.llmasos("secrets", "set", "mine", stdin=KEY)
    line = ["models", "add", "far", parrot, "--set", "secret=mine", "--set", "slots=3"]
    added = documents(machine.llmasos(*line, "--json"))[0]
    assert added["url"] == parrot
    assert added["options"] == {"secret": "mine", "slots": 3}
    said = [machine.llmasos("run", "-m", "far", "one two three")]
    assert said[0].stdout == b"one two three \n"
    said.append(machine.llmasos("run", "-m", "far", "fail", check=False))
    assert said[1].returncode == exits.ENGINE
    assert b"answered 401: Bearer [key] is wrong" in said[1].stderr
    verbs = ("models show far", "models list", "devices", "logs", "daemon logs", "ps -a")
    said += [machine.llmasos(*words.split(), "--json") for words in verbs]
    said += [machine.llmasos("models", "list"), machine.llmasos("models", "show", "far")]
    assert parrot.encode() in said[-2].stdout
    assert b"secret=mine, slots=3" in said[-1].stdout
    device = json.loads(said[4].stdout)["devices"][0]
    assert device["placement"] == f"remote: {parrot.removesuffix('/v1')}, model parrot-1"
    assert device["slots"] == 3
    machine.llmasos("daemon", "stop")
    places = [machine.paths.state, machine.paths.config, machine.paths.cache]
    holders = [path for place in places for path in containing(place, KEY.encode())]
    assert holders == [machine.paths.secrets / "mine"]
    assert all(KEY.encode() not in done.stdout + done.stderr for done in said)


@pytest.fixture
def choice(parrot: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint of several models."""
    monkeypatch.setattr(Parrot, "models", ["parrot-1", "parrot-2", "cockatoo"])
    return parrot


def test_which_model_of_an_endpoint_is_meant_has_to_be_said(shared: Machine, choice: str) -> None:
    line = ["models", "add", "far", choice]
    done = shared.llmasos(*line, check=False)
    assert done.returncode == exits.USAGE
    told = done.stderr.decode()
    assert f"{choice} has 3 models: parrot-1, parrot-2, cockatoo" in told
    assert "--set model=NAME" in told
    done = shared.llmasos(*line, "--set", "model=parrot", check=False)
    assert done.returncode == exits.ENGINE
    assert b"no model 'parrot'; it lists parrot-1, parrot-2, cockatoo" in done.stderr
    assert b"far" not in shared.llmasos("models", "list").stdout
    added = documents(shared.llmasos(*line, "--set", "model=cockatoo", "--json"))[0]
    assert added["options"] == {"model": "cockatoo"}
    shared.llmasos("models", "rm", "far")


@pytest.mark.parametrize(
    ("answer", "model"), [("2", "parrot-2"), ("cockatoo", "cockatoo"), ("4", "")]
)
def test_at_a_terminal_the_model_is_asked_for(
    shared: Machine, choice: str, answer: str, model: str
) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "llmasos", "models", "add", "far", choice], env=shared.environment,
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        _, told = child.communicate(timeout=LIMIT_S)
    os.close(ours)
    assert b"   2 parrot-2\n   3 cockatoo\nwhich model? (number or name) " in told
    assert child.returncode == (exits.OK if model else exits.USAGE)
    if model:
        assert f"model={model}".encode() in shared.llmasos("models", "show", "far").stdout
        shared.llmasos("models", "rm", "far")
    else:
        assert b"is not in the list" in told


class Listener(BaseHTTPRequestHandler):
    """An endpoint that keeps what it was sent."""

    keys: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.keys.append(self.headers["authorization"])
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Not on our stderr."""


@pytest.fixture
def listener() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        Listener.keys.clear()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_secret_of_one_url_is_never_sent_to_another(
    machine: Machine, parrot: str, listener: str
) -> None:
    machine.environment["LLMASOS_MOUNT"] = "false"
    machine.llmasos("secrets", "set", "mine", stdin=KEY)
    assert machine.llmasos("secrets", "list").stdout == b"mine\n"
    own = ["--set", "secret=mine"]
    machine.llmasos("models", "add", "far", parrot, *own)  # binds it
    place = parrot.removesuffix("/v1")
    assert machine.llmasos("secrets", "list").stdout.decode() == f"mine  {place}\n"
    added = machine.llmasos("models", "add", "thief", listener, *own, check=False)
    assert added.returncode == exits.DENIED
    assert f"secret mine is for {place}" in added.stderr.decode()
    hint = f"`llmasos secrets set mine --url {listener.removesuffix('/v1')}`"
    assert hint in added.stderr.decode()
    machine.llmasos("models", "add", "thief", listener, "--no-check")
    mounted = machine.llmasos("mount", "thief", *own, check=False)
    assert mounted.returncode == exits.DENIED
    # Whatever the tables say: it is looked at for each request.
    machine.llmasos("secrets", "set", "other", "--url", parrot, stdin=KEY)
    machine.llmasos("models", "add", "near", parrot, "--set", "secret=other")
    machine.llmasos("secrets", "set", "other", "--url", listener, stdin=KEY)
    done = machine.llmasos("run", "-m", "near", "hello", check=False)
    assert done.returncode == exits.ENGINE
    assert b"secret other is for http://127.0.0.1" in done.stderr
    assert machine.llmasos("run", "-m", "far", "hello").stdout == b"hello \n"
    assert not any(key for key in Listener.keys)


def test_a_new_key_keeps_its_url_and_a_url_that_is_none_keeps_no_key(tmp_path: Path) -> None:
    secrets.put(tmp_path, "mine", KEY, keyring=False, url="https://API.example.com/v1")
    assert secrets.bound(tmp_path, "mine") == "https://api.example.com:443"
    secrets.put(tmp_path, "mine", "another", keyring=False)
    assert secrets.bound(tmp_path, "mine") == "https://api.example.com:443"
    for url in ("ftp://host", "host", "https://", "https://me@host", "https://host:x"):
        with pytest.raises(SyscallError):
            secrets.put(tmp_path, "also", KEY, keyring=False, url=url)
    assert secrets.names(tmp_path) == ["mine"]
    for url in ("https://api.example.com", "https://api.example.com:443/other"):
        secrets.check_bound(tmp_path, "mine", url)
    for url in (
        "http://api.example.com", "https://api.example.com:8443", "https://example.com",
        "https://api.example.com.evil.com",
    ):  # fmt: skip
        with pytest.raises(SyscallError, match="is not sent to"):
            secrets.check_bound(tmp_path, "mine", url)
    secrets.remove(tmp_path, "mine")
    assert os.listdir(tmp_path) == []


def test_a_mount_s_options_go_over_the_image_s(machine: Machine, parrot: str) -> None:
    machine.start("--mount", "false")
    machine.llmasos("models", "add", "far", parrot, "--set", "slots=3", "--set", "window=512")
    line = ["mount", "far", "--set", "slots=2", "--json"]
    device = documents(machine.llmasos(*line))[-1]
    assert (device["slots"], device["window"]) == (2, 512)
    machine.stop()
    machine.start("--mount", "false")  # it is there again, without a file
    done = machine.llmasos("run", "-m", "far", "x", check=False)
    assert b"401" in done.stderr
    machine.llmasos("unmount", "far")
    machine.llmasos("models", "rm", "far")
    assert machine.llmasos("models", "show", "far", check=False).returncode == exits.NOT_FOUND


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ftp://host/v1"], exits.FAILED),
        (["https://me:word@host/v1"], exits.FAILED),
        (["http://host.example/v1", "--set", "secret=mine"], exits.FAILED),
        (["https://host/v1", "--set", "colour=red"], exits.FAILED),
        (["https://host/v1", "--set", "url=https://other/v1"], exits.FAILED),
        (["https://host/v1", "--set", f"secret={KEY}"], exits.NOT_FOUND),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_added(
    shared: Machine, words: list[str], code: int
) -> None:
    done = shared.llmasos("models", "add", "far", *words, check=False)
    assert done.returncode == code, done.stderr
    assert b"word@" not in done.stderr
    assert KEY.encode() not in done.stderr
    assert b"far" not in shared.llmasos("models", "list").stdout


def test_an_endpoint_that_is_not_there_is_told_at_the_mount(machine: Machine) -> None:
    machine.start("--mount", "false")
    line = ["models", "add", "far", "http://127.0.0.1:1/v1", "--set", "retries=0"]
    done = machine.llmasos(*line, check=False)
    assert done.returncode == exits.ENGINE
    assert b"cannot connect to http://127.0.0.1:1" in done.stderr
    assert b"far" not in machine.llmasos("models", "list").stdout
    machine.llmasos(*line, "--no-check")
    done = machine.llmasos("mount", "far", check=False)
    assert done.returncode == exits.ENGINE
    assert b"cannot connect to http://127.0.0.1:1" in done.stderr
