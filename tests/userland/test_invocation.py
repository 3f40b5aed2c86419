"""The command line as it is started: descriptors, locale, directories, `--`, stdin, file names."""

import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland.cli import arguments, exits
from llmasos.userland.cli.table import VERBS
from tests.conftest import LIMIT_S, Machine

PYTHON_DEFAULTS = ("PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL", "LC_CTYPE", "LANG")


def run(
    machine: Machine, *words: str, close: Sequence[int] = (), **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """The command, with some descriptors closed, in an environment that is given here."""

    def before() -> None:
        for number in close:
            os.close(number)

    kept = {k: v for k, v in machine.environment.items() if k not in PYTHON_DEFAULTS}
    return subprocess.run(
        [sys.executable, "-m", "llmasos", *words], env={**kept, **variables}, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, preexec_fn=before,
    )  # fmt: skip


# --- `--` -------------------------------------------------------------------------------------
POSITIONAL = {
    name: verb for name, verb in VERBS.items()
    if not verb.rest and any(not one.flags[0].startswith("-") for one in verb.options)
}  # fmt: skip
NUMBERS = {"pid", "pids", "nice", "value", "page"}


@pytest.mark.parametrize("name", sorted(POSITIONAL))
def test_two_dashes_end_the_options_of_every_verb(name: str) -> None:
    """A text that looks like an option is a text, and a number stays a number."""
    verb = POSITIONAL[name]
    texts = [one for one in verb.options if not one.flags[0].startswith("-")]
    if not any("type" in one.settings or "choices" in one.settings for one in texts):
        read = arguments.parse(verb, ["--", *(["--json"] * len(texts))])
        values = [getattr(read, one.settings.get("dest", one.flags[0])) for one in texts]
        several = [one.settings.get("nargs") in ("*", "+") for one in texts]
        assert values == [["--json"] if many else "--json" for many in several]
        assert read.json is False
    else:
        with pytest.raises(exits.UsageError, match=r"--no-such|unrecognized"):
            arguments.parse(verb, ["--", *(["--no-such"] * (len(texts) + 1))])


def test_what_stands_before_two_dashes_is_read_as_ever(shared: Machine) -> None:
    line = ["run", "-m", "echo", "--temperature", "0", "--", "--json", "-x", "--", "4"]
    assert shared.llmasos(*line).stdout == b"--json -x -- 4\n"


# --- descriptors ------------------------------------------------------------------------------
@pytest.mark.parametrize("closed", [(0,), (2,), (0, 2)])
def test_a_closed_stdin_or_stderr_changes_nothing(shared: Machine, closed: tuple[int, ...]) -> None:
    done = run(shared, "ps", close=closed)
    assert done.returncode == 0
    assert done.stdout.startswith(b"PID")


def test_a_closed_stdout_is_an_error_and_nothing_goes_into_a_socket(shared: Machine) -> None:
    done = run(shared, "ps", close=[1])
    assert done.returncode == 1
    assert b"standard output is closed" in done.stderr
    assert b"Traceback" not in done.stderr


def test_with_all_closed_it_still_has_an_exit_code(shared: Machine) -> None:
    done = run(shared, "ps", close=range(3))
    assert done.returncode == 1


# --- locale -----------------------------------------------------------------------------------
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX", "LANG": "C"}])
def test_texts_are_utf_8_without_pythons_utf_8_mode(
    shared: Machine, locale: dict[str, str]
) -> None:
    line = ["run", "-m", "echo", "--temperature", "0", "Grüße, 世界"]
    done = run(shared, *line, close=(), PYTHONUTF8="0", **locale)
    assert done.stdout.decode() == "Grüße, 世界\n", done.stderr


# --- directories ------------------------------------------------------------------------------
def test_a_user_without_a_home_needs_none_when_the_directories_are_named(
    shared: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # in no password database
    for name in ("RUNTIME", "STATE", "CACHE", "CONFIG"):
        variable = f"LLMASOS_{name}_DIR"
        monkeypatch.setenv(variable, shared.environment[variable])
    assert paths.find() == shared.paths


def test_without_a_home_the_variable_to_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("LLMASOS_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(SyscallError, match="54321 has no entry") as caught:
        paths.find()
    assert "LLMASOS_STATE_DIR" in caught.value.hint


@pytest.mark.parametrize("value", ["", "relative/dir", "."])
def test_a_relative_temporary_directory_is_ignored(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A daemon and its clients would look for the socket below their working directories."""
    for name in ("LLMASOS_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", value)
    assert paths.default_runtime(Path("/state")).parent == Path("/tmp")


@pytest.mark.parametrize("value", ["", "relative/dir", "."])
def test_relative_xdg_directories_are_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """As the XDG Base Directory Specification says."""
    for name in list(os.environ):
        if name.startswith("LLMASOS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/someone")
    names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    for name in names:
        monkeypatch.setenv(name, value)
    found = paths.find()
    assert found.state == Path("/home/someone/.local/state/llmasos")
    assert found.cache == Path("/home/someone/.cache/llmasos")
    assert found.config == Path("/home/someone/.config/llmasos")
    assert found.runtime == paths.default_runtime(found.state)
    assert found.runtime.parent == paths.temporary().parent


# --- two environments, one state --------------------------------------------------------------
def test_a_client_finds_the_daemon_of_its_state_in_another_environment(machine: Machine) -> None:
    state = {k: v for k, v in machine.environment.items() if k != "LLMASOS_RUNTIME_DIR"}
    runtime = machine.paths.state.parent / "xdg"
    runtime.mkdir(mode=0o700)
    temporary = machine.paths.state.parent / "tmp"
    temporary.mkdir(mode=0o700)
    state["TMPDIR"] = str(temporary)

    def llmasos(*words: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "llmasos", *words], env={**state, **more}, timeout=LIMIT_S,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip

    login, cron = {"XDG_RUNTIME_DIR": str(runtime)}, dict[str, str]()
    state.pop("XDG_RUNTIME_DIR", None)
    for first, second in ((login, cron), (cron, login)):
        assert llmasos("daemon", "start", "--mount", "false", **first).returncode == 0
        done = llmasos("ps", **second)
        assert done.returncode == 0, done.stderr
        assert llmasos("doctor", **second).returncode == 0
        named = str(machine.paths.runtime)
        refused = llmasos("daemon", "start", **second, LLMASOS_RUNTIME_DIR=named)
        assert refused.returncode != 0
        assignment, program, *words = re.findall(r"`(LLMASOS_.*stop)`", refused.stderr.decode())[
            0
        ].split()
        name, _, value = assignment.partition("=")
        assert program == "llmasos"
        assert value.startswith(str(runtime if first is login else temporary))
        assert llmasos(*words, **second, **{name: value}).returncode == 0


def test_the_socket_of_ones_own_state_comes_before_another_at_the_usual_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What stands at the usual place may be left behind, or belong to a daemon of another state."""
    monkeypatch.delenv("LLMASOS_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("LLMASOS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    usual, noted = paths.default_runtime(tmp_path), tmp_path / "noted"
    for directory in (usual, noted):
        directory.mkdir(mode=0o700)
        (directory / "kernel.sock").touch()
    assert paths.find().runtime == usual
    paths.find().state_lock.write_text(f"1\n{noted}\n")
    assert paths.find().runtime == noted
    monkeypatch.setenv("LLMASOS_RUNTIME_DIR", str(usual))
    assert paths.find().runtime == usual
    monkeypatch.delenv("LLMASOS_RUNTIME_DIR")
    (noted / "kernel.lock").write_text("1\n/elsewhere\n")  # another state's daemon came after ours
    assert paths.find().runtime == usual
    (noted / "kernel.lock").write_text(f"1\n{tmp_path}\n")
    assert paths.find().runtime == noted
    (noted / "kernel.sock").unlink()  # as a daemon does that stops
    assert paths.find().runtime == usual


def test_a_state_in_an_unusual_place_has_a_socket_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LLMASOS_RUNTIME_DIR", raising=False)
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    for xdg, usual in ((str(tmp_path), tmp_path / "llmasos"), ("", paths.temporary())):
        monkeypatch.setenv("XDG_RUNTIME_DIR", xdg)
        assert paths.default_runtime(home / ".local/state/llmasos") == usual
        first, second = paths.default_runtime(tmp_path / "a"), paths.default_runtime(tmp_path / "b")
        assert len({usual, first, second, paths.default_runtime(Path("/a"))}) == 4
        assert {usual.parent} == {first.parent, second.parent}
    assert paths.is_temporary(first)  # is checked for others who made it
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert paths.default_runtime(tmp_path / "link") == first


def test_the_daemon_of_another_state_is_not_asked(machine: Machine) -> None:
    """Neither silently, nor by the commands that the refusal names."""
    machine.start("--mount", "false")
    other = {"LLMASOS_STATE_DIR": f"{machine.paths.state} of another"}
    program = "from llmasos import LLMasOS; LLMasOS().ps()"
    for refused in (
        machine.llmasos("run", "-m", "echo", "hello", check=False, **other),
        machine.llmasos("daemon", "start", check=False, **other),
        machine.llmasos("daemon", "stop", check=False, **other),
        machine.python("-c", program, check=False, **other),
    ):
        assert refused.returncode != 0
        assert f"has its state in {machine.paths.state}, not in".encode() in refused.stderr
    assert b"has its state in" in machine.llmasos("doctor", check=False, **other).stdout
    second = machine.llmasos("daemon", "run", check=False, **other)
    (stop,) = re.findall("`(.* daemon stop)`", second.stderr.decode())
    assert f"LLMASOS_STATE_DIR={machine.paths.state} " in stop
    start, ask = re.findall("`([^`]*)`", refused.stderr.decode())
    environment = {**machine.environment, **other, "LLMASOS_MOUNT": "false"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["XDG_RUNTIME_DIR"] = str(machine.paths.runtime.parent)
    try:
        for command in (start, ask, stop):
            subprocess.run(["sh", "-c", command], env=environment, check=True, timeout=LIMIT_S)
        assert machine.reap() == 0
        rest = {k: v for k, v in environment.items() if k != "LLMASOS_RUNTIME_DIR"}
        found = subprocess.run(
            [sys.executable, "-m", "llmasos", "daemon", "status", "--json"], env=rest,
            check=True, capture_output=True, timeout=LIMIT_S,
        )  # fmt: skip
        assert json.loads(found.stdout)["private"] is False
    finally:
        subprocess.run(
            ["sh", "-c", "env -u LLMASOS_RUNTIME_DIR llmasos daemon stop"], env=environment,
            check=True, timeout=LIMIT_S,
        )  # fmt: skip


# --- stdin and files --------------------------------------------------------------------------
def test_a_prompt_beside_an_open_pipe_says_what_it_waits_for(shared: Machine) -> None:
    line = [sys.executable, "-m", "llmasos", "run", "-m", "echo", "--temperature", "0", "one"]
    with subprocess.Popen(
        line, env=shared.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, bufsize=0,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        said = child.stderr.readline()
        assert b"waiting for the end of stdin" in said
        assert b"`< /dev/null`" in said
        child.stdin.write(b"two")
        child.stdin.close()
        assert child.stdout.read() == b"one\n\ntwo\n"
        assert child.wait(LIMIT_S) == 0


def test_orders_of_a_chat_are_typed_and_not_piped(shared: Machine) -> None:
    done = shared.llmasos("chat", "-m", "echo", "--temperature", "0", stdin="/quit\n/etc/passwd\n")
    assert done.stdout == b"/quit\n/etc/passwd\n"


def test_a_byte_order_mark_is_no_part_of_a_text(shared: Machine, tmp_path: Path) -> None:
    line = ["run", "-m", "echo", "--temperature", "0"]
    assert shared.llmasos(*line, stdin="\ufeffone").stdout == b"one\n"
    chat = shared.llmasos("chat", *line[1:], stdin="\ufeffone\n")
    assert chat.stdout == b"one\n"
    rules = tmp_path / "rules.csv"
    rules.write_text("\ufeffp, u:alice, ps, /proc, allow\n", encoding="utf-8")
    assert shared.llmasos("policy", "lint", str(rules)).returncode == 0
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.toml").write_text("\ufeffmodel = 'echo'\n", encoding="utf-8")
    told = shared.llmasos("config", "get", "model", LLMASOS_CONFIG_DIR=str(config))
    assert b"echo" in told.stdout + told.stderr  # what runs was not started with it


@pytest.mark.parametrize("words", [("mem", "map", "1"), ("models", "add", "odd")])
def test_a_file_whose_name_is_not_utf_8_is_refused_by_name(
    shared: Machine, tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.gguf"
    Path(os.fsdecode(path)).write_text("text")
    done = shared.llmasos(*words, os.fsdecode(path), check=False)
    assert done.returncode == 1
    assert b"not valid UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_schema_in_a_file_with_an_odd_name_is_read(shared: Machine, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.json")
    Path(path).write_text("{", encoding="utf-8")
    done = shared.llmasos("run", "-m", "echo", "--schema", path, "x", check=False)
    assert b"No such file" not in done.stderr
    assert b"Traceback" not in done.stderr
