"""`llmasos config` and `daemon restart`: what runs, what comes next, and how a run ended."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.kernel.abi import lastrun
from llmasos.userland.cli import exits
from tests.conftest import Machine, documents


def settings(machine: Machine) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in documents(machine.llmasos("config", "list", "--json"))[0]
            ["settings"]}  # fmt: skip


def test_set_writes_the_file_and_a_restart_brings_it_into_force(machine: Machine) -> None:
    machine.llmasos("daemon", "start", "--mount", "false", "--slots=3")
    first = documents(machine.llmasos("daemon", "status", "--json"))[0]
    machine.paths.config.mkdir(mode=0o700, exist_ok=True)
    machine.paths.config_file.write_text("# mine\nthreads = 1 # one\n")
    done = machine.llmasos("config", "set", "window", "1024")
    assert b"window is 1024 after `llmasos daemon restart`" in done.stderr
    assert machine.paths.config_file.read_text() == "# mine\nthreads = 1 # one\nwindow = 1024\n"
    now = settings(machine)
    assert (now["window"]["value"], now["window"]["next"], now["window"]["restart"]) == (
        2048, 1024, True,
    )  # fmt: skip
    assert (now["slots"]["value"], now["slots"]["origin"]) == (3, "flag")
    assert (now["model"]["restart"], now["model"]["origin"]) == (False, "default")
    narrow = machine.llmasos("config", "list", COLUMNS="80").stdout.decode().splitlines()
    assert narrow[0].split() == ["SETTING", "VALUE", "AFTER", "A", "RESTART", "FROM", "WHAT"]
    assert max(map(len, narrow)) <= 80
    shown = machine.llmasos("config", "list")
    assert re.search(rb"window +2048 +1024 +default", shown.stdout)
    assert b"`llmasos daemon restart` applies" in shown.stderr
    again = documents(machine.llmasos("daemon", "restart", "--json"))[0]
    assert (again["before"], again["os_pid"] != first["os_pid"]) == (first["os_pid"], True)
    now = settings(machine)
    assert (now["window"]["value"], now["window"]["restart"]) == (1024, False)
    assert now["window"]["origin"] == str(machine.paths.config_file)
    assert (now["slots"]["value"], now["slots"]["origin"]) == (3, "flag")  # flags are kept
    assert machine.llmasos("config", "get", "window").stdout == b"1024\n"
    assert again["last_run"].startswith("was stopped by ")
    machine.llmasos("config", "unset", "window")
    assert machine.paths.config_file.read_text() == "# mine\nthreads = 1 # one\n"
    assert settings(machine)["window"]["next"] == 2048


def test_another_configuration_directory_than_that_of_the_daemon_is_reported(
    machine: Machine, tmp_path: Path
) -> None:
    machine.llmasos("daemon", "start", "--mount", "false")
    theirs = f"the daemon uses the configuration directory {machine.paths.config}, "
    for words in ("list", "get window", "set window 1024", "unset window"):
        done = machine.llmasos("config", *words.split(), LLMASOS_CONFIG_DIR=str(tmp_path / "other"))
        assert f"{theirs}this command {tmp_path / 'other'}" in done.stderr.decode()
    assert theirs not in machine.llmasos("config", "list").stderr.decode()
    for directory, status in ((machine.paths.config, "ok"), (tmp_path / "other", "warn")):
        done = machine.llmasos("doctor", "--json", check=False, LLMASOS_CONFIG_DIR=str(directory))
        found = documents(done)[0]
        [one] = [one for one in found["checks"] if one["name"] == "configuration"]
        assert (one["status"], theirs in one["what"]) == (status, status == "warn")


def test_a_restart_that_makes_no_sense_leaves_the_daemon_alone(machine: Machine) -> None:
    machine.llmasos("daemon", "start", "--mount", "false")
    before = documents(machine.llmasos("daemon", "status", "--json"))[0]["os_pid"]
    done = machine.llmasos("daemon", "restart", "--window", "3", "--json", check=False)
    assert (done.returncode, json.loads(done.stderr)["errno"]) == (exits.FAILED, "EINVAL")
    assert documents(machine.llmasos("daemon", "status", "--json"))[0]["os_pid"] == before


def test_a_restart_starts_what_does_not_run(machine: Machine) -> None:
    told = documents(machine.llmasos("daemon", "restart", "--mount", "false", "--json"))[0]
    assert (told["before"], told["private"]) == (None, False)


def test_without_a_daemon_the_next_one_is_told_of(machine: Machine) -> None:
    found = machine.llmasos("config", "list")
    assert b"no daemon is running" in found.stderr
    assert documents(machine.llmasos("config", "list", "--json"))[0]["running"] is False
    assert machine.llmasos("config", "get", "idle-exit-s").stdout == b"900.0\n"
    assert machine.llmasos("config", "get", "model", LLMASOS_MODEL="qwen").stdout == b"qwen\n"
    told = machine.llmasos("config", "set", "model", "a b", LLMASOS_MODEL="qwen")
    assert b"LLMASOS_MODEL overrides the file" in told.stderr
    assert machine.llmasos("config", "get", "model").stdout == b"a b\n"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["set", "windoe", "3"], exits.NOT_FOUND, "windoe"),
        (["set", "window", "3"], exits.FAILED, "256"),
        (["set", "tune", "perhaps"], exits.FAILED, "tune"),
        (["get", "windoe"], exits.NOT_FOUND, "windoe"),
        (["unset", "window"], exits.NOT_FOUND, "not set"),
    ],
)
def test_what_makes_no_sense_is_refused_and_not_written(
    machine: Machine, words: list[str], code: int, why: str
) -> None:
    done = machine.llmasos("config", *words, "--json", check=False)
    assert (done.returncode, done.stdout) == (code, b"")
    assert why in json.loads(done.stderr)["message"]
    assert not machine.paths.config_file.exists()


def test_a_mistake_in_the_file_can_be_mended(machine: Machine) -> None:
    machine.paths.config.mkdir()
    machine.paths.config_file.write_text("window = 3\nwindoe = 4\n")
    assert machine.llmasos("config", "list", check=False).returncode == exits.FAILED
    machine.llmasos("config", "set", "window", "512", check=False)  # the other one is told
    machine.llmasos("config", "unset", "windoe")
    assert machine.llmasos("config", "get", "window").stdout == b"512\n"


def test_a_link_to_the_file_stays_one(machine: Machine) -> None:
    machine.paths.config.mkdir()
    real = machine.paths.state.parent / "dotfiles.toml"
    real.write_text("window = 512\n")
    real.chmod(0o644)
    machine.paths.config_file.symlink_to(real)
    machine.llmasos("config", "set", "window", "1024")
    assert machine.paths.config_file.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("window = 1024\n", 0o644)


# --- how a run ended --------------------------------------------------------------------------
def status(machine: Machine) -> str:
    found: str = documents(machine.llmasos("daemon", "status", "--json"))[0]["last_run"]
    return found


def test_the_daemon_tells_how_its_last_run_ended(machine: Machine) -> None:
    machine.start("--mount", "false")
    assert status(machine) == ""
    machine.shoot()
    down = machine.llmasos("daemon", "status", check=False)
    assert (down.returncode, b"the last run was killed or crashed (pid" in down.stderr) == (4, True)
    machine.start("--mount", "false")
    assert status(machine).startswith("was killed or crashed (pid")
    assert "WARNING the last run was killed or crashed" in machine.log
    assert b"last_run " in machine.llmasos("daemon", "status").stdout
    machine.stop()
    machine.start("--mount", "false")
    assert status(machine).startswith("was stopped by SIGTERM at 20")
    assert "INFO the last run was stopped by SIGTERM" in machine.log
    machine.llmasos("daemon", "stop")
    machine.reap()
    machine.start("--mount", "false")
    assert re.match(r"was stopped by [a-z]\S* at 20", status(machine))
    boots = documents(machine.llmasos("logs", "--kind", "boot", "--json"))
    assert "the last run was killed" in " ".join(one["note"] for one in boots)


def test_a_daemon_that_runs_at_another_place_is_not_said_to_have_crashed(machine: Machine) -> None:
    machine.start("--mount", "false")
    there = machine.paths.runtime
    other = f"{there}-other"
    pid = documents(machine.llmasos("daemon", "status", "--json"))[0]["os_pid"]
    down = machine.llmasos("daemon", "status", check=False, LLMASOS_RUNTIME_DIR=other)
    assert (down.returncode, b"crashed" in down.stderr) == (exits.NO_DAEMON, False)
    assignment, program, *words = down.stderr.decode().splitlines()[-1].strip(" `").split()
    name, _, value = assignment.partition("=")
    assert (name, program) == ("LLMASOS_RUNTIME_DIR", "llmasos")
    again = documents(machine.llmasos(*words, "--json", LLMASOS_RUNTIME_DIR=value))[0]
    assert again["os_pid"] == pid
    found = machine.llmasos("doctor", "--json", check=False, LLMASOS_RUNTIME_DIR=other).stdout
    (check,) = [one for one in json.loads(found)["checks"] if one["name"] == "daemon"]
    assert (check["status"], str(there) in check["what"]) == ("warn", True)
    machine.stop()
    assert (
        b"was stopped by"
        in machine.llmasos("daemon", "status", check=False, LLMASOS_RUNTIME_DIR=other).stderr
    )


def test_a_loss_of_power_is_told_from_a_crash(machine: Machine) -> None:
    machine.start("--mount", "false")
    machine.shoot()
    file = machine.paths.state / lastrun.NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot": "another"}))
    machine.start("--mount", "false")
    assert status(machine).startswith("ended with the system: a power loss, a crash or a reboot")
    machine.shoot()
    file.write_bytes(b"\0" * 100)  # what a loss of power may leave of it
    machine.start("--mount", "false")
    assert status(machine) == ""
    machine.stop()
    assert json.loads(file.read_text())["why"] == "was stopped by SIGTERM"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_cannot_go_on_says_so(machine: Machine) -> None:
    with pytest.raises(AssertionError):
        machine.start("--mount", "false", "--listen", "nowhere")
    machine.reap()
    machine.start("--mount", "false")
    assert status(machine).startswith("failed with SyscallError at ")


# --- files that settings name -----------------------------------------------------------------
def test_relative_names_of_files_are_below_the_file_or_the_directory(machine: Machine) -> None:
    machine.paths.config.mkdir()
    machine.paths.config_file.write_text('tls_cert = "tls/cert.pem"\ntls_key = "~/key.pem"\n')
    found = settings(machine)
    assert found["tls_cert"]["value"] == str(machine.paths.config / "tls" / "cert.pem")
    assert str(found["tls_key"]["value"]).endswith("/key.pem")
    assert str(found["tls_key"]["value"]).startswith("/")
    folder = machine.paths.state.parent / "here"
    folder.mkdir()
    words = ["daemon", "start", "--mount", "false", "--tls-cert", "own.pem"]
    line = [sys.executable, "-m", "llmasos", *words]
    subprocess.run(line, cwd=folder, env=machine.environment, check=True, capture_output=True)
    assert settings(machine)["tls_cert"]["value"] == str(folder / "own.pem")
    machine.llmasos("daemon", "restart")
    assert settings(machine)["tls_cert"]["value"] == str(folder / "own.pem")
