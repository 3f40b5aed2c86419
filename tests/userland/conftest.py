"""Processes and machines that the tests of userland begin with."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cache import CACHE
from tests.conftest import Machine
from tests.drivers import cut_model


@pytest.fixture
def pid(shared: Machine) -> Iterator[int]:
    """A process that has said something."""
    done = shared.llmasos("run", "-m", "echo", "--keep", "--temperature", "0", "--json", "one two")
    pid: int = json.loads(done.stdout)["pid"]
    yield pid
    shared.llmasos("kill", str(pid), check=False)
    shared.llmasos("wait", str(pid), check=False)


@pytest.fixture
def slow(machine: Machine) -> Machine:
    """A machine whose echo says twenty tokens a second."""
    machine.start("--mount", "false")
    machine.llmasos("mount", "echo", "--set", "rate=20")
    return machine


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Daemons of benchmarks compute a small model on one thread: other tests compute, too.

    They embed pages and use OpenVINO only where the benchmark asks for it.
    """
    settings = {
        "LLMASOS_THREADS": "1",
        "LLMASOS_MEMORY_EMBEDDER": "none",
        "LLMASOS_ENGINE": "llama",
    }
    (tmp_path / "sitecustomize.py").write_text(f"import os\nos.environ |= {settings}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(cut_model.folder())]))
    monkeypatch.setenv("LLMASOS_CACHE_DIR", str(CACHE))
