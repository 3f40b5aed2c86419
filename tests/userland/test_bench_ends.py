"""The daemon of a benchmark ends with it, however the benchmark ends."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0  # a guard against hangs
MEASURES = """
from llmasos.userland.bench.rig import daemon, terminable
with terminable(), daemon(mount=False) as rig:
    print("ready", flush=True)
    input()
"""
PROGRAMS = {"rig": ["-c", MEASURES], "story": ["-u", "benchmarks/story.py"]}


@contextmanager
def benchmark(name: str, cache: Path) -> Generator[subprocess.Popen[bytes]]:
    """The program, after its first line of output."""
    program = subprocess.Popen(
        [sys.executable, *PROGRAMS[name]], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "LLMASOS_CACHE_DIR": str(cache)},
    )  # fmt: skip
    try:
        assert program.stdout is not None
        assert program.stdout.readline()
        yield program
    finally:
        program.kill()
        program.communicate()


def daemon_of(program: subprocess.Popen[bytes]) -> int:
    children = psutil.Process(program.pid).children()
    [daemon] = [one for one in children if "llmasos.userland.daemon" in one.cmdline()]
    return int(daemon.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_daemon_ends_with_its_benchmark(name: str, number: int, tmp_path: Path) -> None:
    with benchmark(name, tmp_path / "cache") as program:
        handle = os.pidfd_open(daemon_of(program))
        try:
            program.send_signal(number)
            assert select.select([handle], [], [], DEADLINE_S)[0]
        finally:
            os.close(handle)
        program.wait(DEADLINE_S)
    if number == signal.SIGTERM:
        assert list((tmp_path / "cache").glob("bench-*")) == []
