"""`llmasos send` and `recv`: messages to processes and from them, over a real socket."""

import json
import re
import signal

import pytest

from llmasos.userland.cli import exits
from tests.conftest import LIMIT_S, Machine
from tests.userland.inside import Cli, command

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def cli(
    shared: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    return command(shared, monkeypatch, capsys)


def test_messages_are_sent_and_received(cli: Cli, pid: int, shared: Machine) -> None:
    assert cli("send", str(pid), "hello", "there").out == ""
    assert "1 message waits" in cli("daemon", "status").out
    assert cli("send", str(pid), "again", "--json").json["waiting"] == 2
    assert "2 messages wait" in cli("daemon", "status").out
    first = cli("recv", str(pid))
    assert first.out == "hello there\n"
    assert re.fullmatch(rf"\[\w+, {TIME}\]\n", first.err)
    second = cli("recv", str(pid), "--json").json
    assert (second["body"], second["sender"], second["waiting"]) == ("again", 0, 0)
    none, within = f"no message waits for process {pid}\n", "within 0.01 s\n  `llmasos recv "
    for patience, words in {"0": none, "0.01": within, "1s": "within 1 s"}.items():
        late = cli("recv", str(pid), "--timeout", patience)
        assert (late.code, late.out) == (exits.TIMEOUT, "")
        assert words in late.err
        assert patience == "0" or f"`llmasos recv {pid}` waits" in late.err
    follow = shared.begin("recv", str(pid), "--follow", "--json")
    assert follow.stdout is not None
    for body in ("one\ntwo", "three"):
        shared.llmasos("send", str(pid), stdin=body)
        assert json.loads(follow.stdout.readline())["body"] == body
    follow.send_signal(signal.SIGINT)
    follow.communicate(timeout=LIMIT_S)
    assert follow.returncode == exits.INTERRUPTED


def test_whoever_waits_hears_that_the_process_has_ended(shared: Machine, pid: int) -> None:
    waiting = shared.begin("recv", str(pid), "--follow")
    assert waiting.stderr is not None
    shared.llmasos("send", str(pid), "x")
    waiting.stderr.read(1)
    shared.llmasos("kill", str(pid))
    waiting.communicate(timeout=LIMIT_S)
    assert waiting.returncode == exits.NOT_FOUND
