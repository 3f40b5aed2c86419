"""Errors of the command line: for people, as JSON, and what needs a daemon that does not run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland.cli import exits, main, table
from llmasos.userland.cli.table import VERBS
from llmasos.userland.client import BlockingClient
from tests.conftest import Machine, documents
from tests.drivers.gguf_files import File
from tests.system.test_tls import port

FIELDS = {"errno", "number", "message", "hint"}
# Arguments of the verbs that do not start a daemon and cannot do without one.
LOOK = {
    "ps": "", "top": "--once", "fork": "1", "kill": "1", "nice": "1 1", "wait": "1", "rm": "1",
    "prune": "-y",
    "attach": "1", "mem": "1", "mem why": "1:0", "mem search": "1 x", "mem read": "1 0",
    "mem write": "1 x", "mem pin": "1 0", "mem evict": "1 0", "mem map": "1 2", "mem unmap": "1 0",
    "mem share": "1 2 0", "mem forget": "-y 1 0", "mem export": "1", "mem fsck": "", "send": "1 x",
    "recv": "1", "logs": "", "devices": "", "unmount": "echo",
    "devices restart": "echo", "poison list": "", "poison lift": "--all", "daemon stop": "",
    "daemon status": "",
}  # fmt: skip
ALONE = {  # they need none, or are the daemon
    "daemon start", "daemon restart", "daemon run", "daemon logs", "config list", "config get",
    "config set", "config unset", "config path", "doctor", "bench",
    "version", "secrets set", "secrets list", "secrets rm", "policy lint",
}  # fmt: skip


def failure(text: str) -> dict[str, object]:
    """The one object on stderr."""
    found: dict[str, object] = json.loads(text)
    assert set(found) == FIELDS
    assert found["message"]
    return found


@pytest.mark.parametrize("words", [verb.name for verb in VERBS.values() if not verb.takes_settings])
def test_wrong_usage_is_one_object_on_stderr(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words == "daemon run":  # it becomes another program
        line = [sys.executable, "-m", "llmasos", "daemon", "run", "--json", "--no-such-option"]
        done = subprocess.run(line, capture_output=True, text=True)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code = main([*words.split(), "--json", "--no-such-option"])
        out, err = capsys.readouterr()
    assert (code, out) == (exits.USAGE, "")
    said = failure(err)
    assert (said["errno"], said["number"]) == ("EINVAL", 22)
    assert str(said["hint"]).startswith("`llmasos ")


@pytest.mark.parametrize(
    "line", [["nothing", "--json"], ["models", "nothing", "--json"], ["run", "--json"]]
)
def test_verbs_that_do_not_exist_and_missing_texts_are_json_too(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == exits.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert failure(err)["errno"] == "EINVAL"


def test_json_after_two_dashes_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing", "--", "--json"]) == exits.USAGE
    assert capsys.readouterr().err.startswith("llmasos: unknown verb 'nothing'\n  `llmasos --help`")


def test_people_read_the_verb_and_how_its_help_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["wait", "x"]) == exits.USAGE
    said = capsys.readouterr().err
    assert said.startswith("llmasos wait: argument PID: 'x' is not a valid number from 1 to ")
    assert said.endswith("\n  `llmasos wait --help` shows the usage\n")


def test_what_the_kernel_refuses_is_one_object(shared: Machine) -> None:
    done = shared.llmasos("models", "show", "nothing", "--json", check=False)
    assert (done.returncode, done.stdout) == (exits.NOT_FOUND, b"")
    said = failure(done.stderr.decode())
    assert (said["errno"], said["number"]) == ("ENOENT", 2)
    assert "`llmasos models list`" in str(said["hint"])


def test_an_endpoint_that_does_not_answer_can_be_added_by_the_hint(shared: Machine) -> None:
    url = f"http://127.0.0.1:{port()}/v1"
    line = ["models", "add", "far", url, "--set", "model=a b", "--set", "slots=2"]
    done = shared.llmasos(*line, check=False)
    assert done.returncode == exits.ENGINE
    look, add = re.findall("`([^`]*)`", done.stderr.decode())
    assert look == f"curl {url}/models"
    program, *words = shlex.split(add)
    assert program == "llmasos"
    shared.llmasos(*words)
    shown = shared.llmasos("models", "show", "far").stdout.decode()
    assert [row.split()[0] for row in shown.splitlines()] == [
        "name", "driver", "licence", "architecture", "url", "options",
    ]  # fmt: skip
    assert "model=a b, slots=2" in shown
    assert all(len(row.split()) > 1 for row in shown.splitlines())
    assert shared.llmasos("models", "rm", "far").stderr == b"removed far\n"


def test_what_stays_of_a_model_that_is_removed_is_said(shared: Machine, tmp_path: Path) -> None:
    shared.llmasos("models", "alias", "parrot", "echo")
    said = shared.llmasos("models", "rm", "parrot").stderr.decode()
    assert said == "removed parrot; the model echo remains\n"
    file = File().write(tmp_path)
    shared.llmasos("models", "add", "small", str(file))
    said = shared.llmasos("models", "rm", "small").stderr.decode()
    assert said == f"removed small; the file remains: {file}\n"


def test_a_kind_of_event_that_does_not_exist_is_wrong_usage(
    shared: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table.EVENTS == v.EVENTS
    assert main(["logs", "--kind", "nope"]) == exits.USAGE
    said = capsys.readouterr().err
    assert all(kind in said for kind in table.EVENTS)
    with BlockingClient(shared.paths.socket) as line:
        request = v.Watch(0, follow=False, kinds=["nope"])
        with pytest.raises(SyscallError, match="want one of begin, end, call"):
            list(line.stream("watch", request, v.Events, v.Nothing))


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--host"], "--host has no value"), (["--host="], "--host has no value"),
        (["--key-file"], "--key-file has no value"), (["--host", "ps"], "a verb is missing"),
        (["--host", "box:1", "--ca"], "--ca has no value"),
    ],
)  # fmt: skip
def test_an_option_without_its_value_or_its_verb_is_named(
    words: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == exits.USAGE
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"llmasos: {wrong}\n")) == ("", True)
    assert len(err.splitlines()) == 2


def test_each_pid_that_failed_is_an_object(shared: Machine, pid: int) -> None:
    done = shared.llmasos("kill", "-STOP", "9998", str(pid), "9999", "--json", check=False)
    assert done.returncode == exits.NOT_FOUND
    errors = [failure(line) for line in done.stderr.decode().splitlines()]
    assert [error["message"] for error in errors] == [
        "there is no process 9998", "there is no process 9999",
    ]  # fmt: skip
    (told,) = documents(done)
    assert told["sent"] == [pid]
    assert [one["pid"] for one in told["failed"]] == [9998, 9999]
    assert all({*FIELDS, "pid"} == set(one) for one in told["failed"])


def test_a_file_that_cannot_be_opened_is_an_object(shared: Machine, tmp_path: Path) -> None:
    done = shared.llmasos("run", "-m", "echo", "--schema", str(tmp_path / "x"), "hi", "--json",
                          check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (exits.NOT_FOUND, b"")
    assert str(tmp_path / "x") in str(failure(done.stderr.decode())["message"])


def test_an_answer_in_json_says_nothing_beside(machine: Machine) -> None:
    """What people are told on stderr stands in the document: programs read JSON, or nothing."""
    machine.environment["LLMASOS_MOUNT"] = "false"
    done = machine.llmasos("run", "-m", "echo", "--keep", "-v", "--json", "hi")  # starts a daemon
    assert done.stderr == b""
    assert documents(done)[0]["pid"]


# --- what starts a daemon ---------------------------------------------------------------------
def test_the_table_says_of_every_verb_whether_it_starts_a_daemon() -> None:
    starts = {verb.name for verb in VERBS.values() if verb.starts}
    assert starts | set(LOOK) | ALONE == set(VERBS)
    assert not starts & (set(LOOK) | ALONE)
    nouns = {"models", "users", "keys", "policy"}
    assert {words for words in VERBS if words.split()[0] in nouns} - {"policy lint"} <= starts


@pytest.mark.parametrize(("verb", "arguments"), LOOK.items())
def test_who_is_about_what_runs_never_starts_a_daemon(
    verb: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("RUNTIME", "STATE", "CONFIG"):
        monkeypatch.setenv(f"LLMASOS_{name}_DIR", str(tmp_path / name.lower()))
    assert main([*verb.split(), *arguments.split(), "--json"]) == exits.NO_DAEMON
    said = failure(capsys.readouterr().err)
    assert (said["errno"], said["hint"]) == ("ECONNREFUSED", "`llmasos daemon start`")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["models alias parrot echo", "policy list", "users list"])
def test_who_is_about_what_is_kept_starts_one(machine: Machine, line: str) -> None:
    machine.environment["LLMASOS_MOUNT"] = "false"
    done = machine.llmasos(*line.split())
    assert b"started a private daemon" in done.stderr
    refused = machine.llmasos(*line.split(), check=False, LLMASOS_AUTOSTART="0",
                              LLMASOS_RUNTIME_DIR=f"{machine.paths.runtime}2")  # fmt: skip
    assert refused.returncode == exits.NO_DAEMON
    assert not os.path.exists(f"{machine.paths.runtime}2")


@pytest.mark.parametrize("verb", ["run", "models list", "policy test"])
def test_the_help_says_that_a_daemon_is_started(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--help"]) == 0
    assert "starts a private daemon" in " ".join(capsys.readouterr().out.split())
    assert main(["ps", "--help"]) == 0
    assert "private daemon" not in capsys.readouterr().out
