"""The engine's process ends with its kernel, and only with it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.drivers import cut_model

_KERNEL = """
import asyncio, sys
from pathlib import Path
from llmasos.drivers.llama import mount as llama

class Ear:
    def loading(self, done): pass
    def up(self, facts):
        print(facts.os_pid, flush=True)
    def stepped(self, steps): ...
    def down(self, reason, *, final): ...

async def main():
    engine = llama.engine(Path(sys.argv[1]), {"slots": 1, "window": 256}, Path(sys.argv[2]))
    await engine.start(Ear())
    await asyncio.Event().wait()

asyncio.run(main())
"""
_DEADLINE_S = 30.0


def ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], _DEADLINE_S)[0])


def test_the_child_dies_with_a_killed_kernel(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KERNEL, str(cut_model.path()), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout is not None
        child = int(kernel.stdout.readline())
        pidfd = os.pidfd_open(child)
        try:
            # Meant for the kernel: the child stays.
            os.kill(child, signal.SIGINT)
            os.kill(child, signal.SIGTERM)
            assert Path(f"/proc/{child}/oom_score_adj").read_text().strip() == "300"
            assert not select.select([pidfd], [], [], 0)[0]
            kernel.kill()
            assert ended(pidfd)
        finally:
            os.close(pidfd)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_the_child_ends_when_its_kernel_is_gone_before_it_looks() -> None:
    command = [sys.executable, "-m", "llmasos.drivers.llama.child", "0", "1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=_DEADLINE_S)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "engine",
    [
        "llama",
        pytest.param(
            "openvino",
            marks=pytest.mark.skipif(find_spec("openvino") is None, reason="it is not installed"),
        ),
    ],
)
def test_the_bare_loop_does_the_work_it_was_given(engine: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([[10, 11, 12, 13], [20, 21, 22]]))
    module = f"llmasos.drivers.{engine}.bare"
    command = [sys.executable, "-m", module, "--model", str(cut_model.path())]
    command += ["--sequences", "2", "--new", "4", "--prompts", str(prompts), "--window", "256"]
    done = subprocess.run(
        [*command, "--repeats", "2"], capture_output=True, check=True, timeout=_DEADLINE_S
    )
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert (first["tokens"], first["prompt_tokens"], first["sequences"]) == (8, 7, 2)
    assert first["text_sha256"] == second["text_sha256"]
    steps = ["--random-steps", "3"]
    done = subprocess.run([*command, *steps], capture_output=True, check=True, timeout=_DEADLINE_S)
    resident = json.loads(done.stdout)
    assert min(resident["before_mb"], resident["after_mb"]) > 0
