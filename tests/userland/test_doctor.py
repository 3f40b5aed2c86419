"""`llmasos doctor`: what is wrong with a machine is found and named, with what mends it."""

import shutil
import socket
from pathlib import Path

import pytest

from llmasos.userland.cli import exits
from llmasos.userland.cli.doctor_files import modes
from tests.conftest import Machine, documents
from tests.userland.inside import Cli, command


@pytest.fixture
def cli(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """Of a machine without a daemon."""
    return command(machine, monkeypatch, capsys)


def checks(cli: Cli) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in cli("doctor", "--json").json["checks"]}


def test_a_new_machine_has_nothing_wrong(cli: Cli) -> None:
    found = checks(cli)
    assert {one["status"] for one in found.values()} == {"ok"}
    assert {"settings", "models", "network", "modes", "socket"} <= set(found)


def test_a_configured_model_that_does_not_exist_is_found(cli: Cli, machine: Machine) -> None:
    machine.paths.config.mkdir(mode=0o700)
    machine.paths.config_file.write_text('model = "qwen"\n')
    one = checks(cli)["models"]
    assert (one["status"], cli("doctor").code) == ("fail", exits.FAILED)
    assert f"model = 'qwen' ({machine.paths.config_file}): no such model" in one["what"]
    assert "smollm2" in one["what"]
    assert "`llmasos models add qwen FILE`" in one["fix"]
    machine.paths.config_file.write_text('memory_embedder = "nomic"\n')
    assert "memory_embedder = 'nomic'" in checks(cli)["models"]["what"]
    machine.paths.config_file.write_text('model = "echo"\nmemory_embedder = "none"\n')
    assert checks(cli)["models"]["status"] == "ok"


def test_models_whose_file_is_gone_are_found(machine: Machine, tmp_path: Path) -> None:
    machine.start("--mount", "false")
    shown = documents(machine.llmasos("models", "show", "smollm2", "--json"))[0]
    file = tmp_path / "mine.gguf"
    shutil.copy(shown["path"], file)
    machine.llmasos("models", "add", "mine", str(file))
    machine.llmasos("models", "alias", "other", "mine")
    file.unlink()
    for running in (True, False):
        if not running:
            machine.stop()
        done = machine.llmasos("doctor", "--json", check=False)
        found = {one["name"]: one for one in documents(done)[0]["checks"]}["models"]
        assert (found["status"], str(file) in found["what"]) == ("warn", True)
        assert "`llmasos models rm mine`" in found["fix"]
    done = machine.llmasos("doctor", "--json", check=False, LLMASOS_MODEL="other")
    found = {one["name"]: one for one in documents(done)[0]["checks"]}["models"]
    assert (done.returncode, found["status"]) == (exits.FAILED, "fail")  # the next run needs it


def test_a_socket_that_was_left_behind_is_found(cli: Cli, machine: Machine) -> None:
    machine.paths.runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(machine.paths.socket))
    machine.paths.socket.chmod(0o600)
    one = checks(cli)["socket"]
    assert (one["status"], "`llmasos daemon start` replaces it" in one["fix"]) == ("warn", True)
    machine.paths.socket.chmod(0o666)
    assert f"chmod o= {machine.paths.socket}" in checks(cli)["socket"]["fix"]
    machine.paths.socket.unlink()
    machine.paths.socket.touch()
    assert "is not a socket" in checks(cli)["socket"]["what"]


@pytest.mark.parametrize(
    ("name", "mode", "fix"),
    [
        ("state/pages.db", 0o644, "chmod go="), ("state/daemon.log", 0o640, "chmod go="),
        ("config/secrets/openai", 0o604, "chmod go="), ("config/config.toml", 0o664, "chmod go-w"),
        ("config/policy.csv", 0o646, "chmod go-w"),
    ],
)  # fmt: skip
def test_files_that_others_may_read_or_write_are_found(
    cli: Cli, machine: Machine, name: str, mode: int, fix: str
) -> None:
    for folder in (machine.paths.state, machine.paths.config, machine.paths.secrets):
        folder.mkdir(mode=0o700)
    file = machine.paths.state.parent / name
    file.touch()
    file.chmod(mode)
    one = modes()
    assert (one.status, f"{fix} {file}" in one.fix) == ("fail", True)
    file.chmod(0o600)
    assert modes().status == "ok"


def test_certificates_that_are_missing_are_found(
    cli: Cli, machine: Machine, certificates: Path
) -> None:
    machine.paths.config.mkdir(mode=0o700)
    for name in ("machine.pem", "machine.key"):
        shutil.copy(certificates / name, machine.paths.config / name)
    text = 'listen = ":7777"\ntls_cert = "machine.pem"\n'
    machine.paths.config_file.write_text(text)
    assert "tls_key is not set" in checks(cli)["network"]["what"]
    machine.paths.config_file.write_text(text + 'tls_key = "machine.key"\n')
    key = machine.paths.config / "machine.key"
    key.chmod(0o644)
    assert f"chmod 600 {key}" in checks(cli)["network"]["fix"]
    key.chmod(0o600)
    assert checks(cli)["network"]["status"] == "ok"  # relative names are beside the file
    key.unlink()
    assert f"no such file: {key}" in checks(cli)["network"]["what"]


def test_a_machine_that_is_shared_is_not_open_to_others(machine: Machine) -> None:
    machine.start("--mount", "false", "--shared", "true")
    done = machine.llmasos("doctor", "--json", check=False)
    found = {one["name"]: one for one in documents(done)[0]["checks"]}
    assert (found["directories"]["status"], found["socket"]["status"]) == ("ok", "ok")
    machine.paths.runtime.chmod(0o755)
    done = machine.llmasos("doctor", "--json", check=False)
    found = {one["name"]: one for one in documents(done)[0]["checks"]}
    assert found["directories"]["status"] == "fail"
