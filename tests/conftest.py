"""Machines to test on: directories of their own, and a daemon that may or may not run there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmasos.userland import start
from tests.system import daemon

LIMIT_S = 60  # of any command: a guard against hangs
# What takes longest begins first: at the end no worker is left alone with a long file. In about the
# order of their durations in a run of `make test`, down to 10 s.
FIRST = (
    "test_bench.py", "test_parked.py", "test_exact.py", "test_openvino.py",
    "test_lookup_engines.py", "test_recall_files.py", "test_recall_survival.py",
    "test_candidates.py", "test_llama.py", "test_cli.py", "test_model_files.py",
    "test_pool_options.py", "test_cli_config.py", "test_poison.py", "test_devices.py",
    "test_life.py", "test_tuning.py", "test_choice.py", "test_recall_daemon.py", "test_planted.py",
    "test_residency.py", "test_invocation.py", "test_index_crash.py", "test_survival_openvino.py",
    "test_secrets.py", "test_embedders.py", "test_unread.py", "test_doctor.py", "test_engines.py",
    "test_failed_flush.py", "test_full_disk.py", "test_evaluator.py", "test_sampler.py",
    "test_recall.py", "test_saved_contexts.py", "test_tools.py", "test_terminal.py",
    "test_cli_mem.py", "test_remote_server.py", "test_bpe.py",
)  # fmt: skip

# Whoever starts the tests in the background leaves SIGINT ignored, and programs that are started
# inherit that: ctrl-C must reach those that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Machine(daemon.Machine):
    """A machine with the command line of its owner. A model is mounted when it is asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.environment["LLMASOS_MOUNT"] = "false"

    def llmasos(
        self, *words: str, stdin: str | bytes = b"", check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command; with `check`, it must succeed."""
        return self.python("-m", "llmasos", *words, stdin=stdin, check=check, **variables)

    def python(
        self, *words: str, stdin: str | bytes = b"", check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program of this machine's owner."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, *words], env={**self.environment, **variables}, input=data,
            capture_output=True, timeout=LIMIT_S,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr.decode()
        return done

    def begin(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        """Run the command beside the test."""
        return subprocess.Popen(
            [sys.executable, "-m", "llmasos", *words], env={**self.environment, **variables},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def down(self) -> None:
        """End whatever daemon runs here, a private one too, without draining."""
        if self.paths.lock.exists():
            pid = int(self.paths.lock.read_text().partition("\n")[0] or 0)
            if b"llmasos.userland.daemon" in _command(pid):  # and not whoever has its number now
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGTERM)
                assert start.wait_for_exit(pid, LIMIT_S)
        self.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turns = {name: turn for turn, name in enumerate(FIRST)}
    items.sort(key=lambda item: turns.get(item.path.name, len(FIRST)))


def documents(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    """What was printed, line by line; keys are sorted."""
    found: list[dict[str, Any]] = []
    for line in done.stdout.decode().splitlines():
        found.append(json.loads(line))
        if "figures" not in found[-1]:  # bench has an order of its own
            assert list(found[-1]) == sorted(found[-1])
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crashes", type=int, default=10, help="at each point of the index, in the long form"
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose daemon is not running yet."""
    machine = Machine(tmp_path)
    yield machine
    machine.down()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that is up, with no model loaded, for tests that leave it as it was."""
    machine = Machine(tmp_path_factory.mktemp("shared"))
    machine.start("--mount", "false")
    yield machine
    machine.down()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """machine.pem and machine.key for localhost, and another pair that nobody knows."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl, which makes certificates, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("machine", "stranger"):
        line = [
            program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "1", "-subj", f"/CN={name}",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"),
        ]  # fmt: skip
        subprocess.run(line, check=True, capture_output=True, timeout=60)
    return folder
