"""A file is requantised whole or not at all, whoever dies meanwhile."""

import asyncio
import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio
import psutil
import pytest

from llmasos.drivers import model_files
from llmasos.drivers.llama import workspace
from llmasos.drivers.local import gguf
from llmasos.drivers.local.quantisation import FILE_TYPES, OFFERED
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Progress, TuneCandidate
from llmasos.kernel.driver import Tuning
from tests.drivers import cut_model

pytestmark = pytest.mark.anyio
DEADLINE_S = 60  # a guard against hangs
WHOLE = "import runpy; runpy.run_module('llmasos.drivers.llama.requantise', run_name='__main__')"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def asked(cache: Path, quantisation: str = "Q8_0") -> Tuning:
    log = cache.parent / "log"
    return Tuning(cut_model.path(), cache, "x", quantisation, measure=False, log=log)


async def made(
    cache: Path, report: Callable[[Progress], None] = lambda _: None
) -> Sequence[TuneCandidate]:
    return await model_files.tune(asked(cache), report)


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


async def test_a_file_is_requantised_and_its_header_says_so(cache: Path) -> None:
    heard: list[Progress] = []
    original, new = await made(cache, heard.append)
    target = cache / "x-Q8_0.gguf"
    assert left(cache) == [target.name]
    size = cut_model.path().stat().st_size
    assert original == TuneCandidate("Q4_1", size)
    assert new == TuneCandidate(
        "Q8_0", target.stat().st_size, "Q4_1", chosen=True, why="as requested"
    )
    assert gguf.probe(target).quantisation == "Q8_0"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [one.done for one in heard] == sorted(one.done for one in heard)
    assert heard[-1] == Progress("quantise", 1, "Q8_0")
    inode = target.stat().st_ino
    await made(cache)  # it is there: nothing to do
    assert target.stat().st_ino == inode


async def test_a_quantisation_that_does_not_exist_is_refused_with_those_that_do(
    cache: Path,
) -> None:
    with pytest.raises(SyscallError, match="Q9_9") as caught:
        await model_files.tune(asked(cache, "Q9_9"), lambda _: None)
    assert caught.value.errno is Errno.EINVAL
    assert "Q4_K_M" in caught.value.hint
    assert left(cache) == []


def test_what_is_offered_exists() -> None:
    assert set(OFFERED) <= set(FILE_TYPES)
    assert len(set(FILE_TYPES.values())) == len(FILE_TYPES)


# --- deaths -----------------------------------------------------------------------------------
def child_of(kernel: int) -> psutil.Process:
    children = psutil.Process(kernel).children()
    return next(one for one in children if "llmasos.drivers.llama.requantise" in _line(one))


def _line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:  # or it has ended and nobody has asked how
        return []


async def interrupted(cache: Path, act: Callable[[asyncio.Task[object]], object]) -> object:
    """Act at the first word of progress; returns what came of the tuning."""
    begun = asyncio.Event()
    task: asyncio.Task[object] = asyncio.ensure_future(made(cache, lambda _: begun.set()))
    with anyio.fail_after(DEADLINE_S):
        await begun.wait()
        assert any(name.endswith(".part") for name in left(cache))
        act(task)
        return (await asyncio.gather(task, return_exceptions=True))[0]


async def test_a_killed_tuning_leaves_nothing(cache: Path) -> None:
    outcome = await interrupted(cache, lambda _: child_of(os.getpid()).kill())
    assert isinstance(outcome, DeviceFault)
    assert "was killed by SIGKILL" in outcome.message
    assert left(cache) == []


async def test_a_cancelled_tuning_leaves_nothing(cache: Path) -> None:
    outcome = await interrupted(cache, lambda task: task.cancel())
    assert isinstance(outcome, asyncio.CancelledError)
    assert left(cache) == []
    with pytest.raises(StopIteration):
        child_of(os.getpid())


def test_a_tuning_does_not_outlive_its_kernel(cache: Path) -> None:
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom llmasos.drivers import model_files\n"
        "from llmasos.kernel.driver import Tuning\n"
        "path, cache, log = map(Path, sys.argv[1:])\n"
        "asked = Tuning(path, cache, 'x', 'Q8_0', False, log)\n"
        "asyncio.run(model_files.tune(asked, lambda _: print('going', flush=True)))\n"
    )
    words = [str(cut_model.path()), str(cache), str(cache.parent / "log")]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == b"going\n"
        child = child_of(kernel.pid)
        kernel.kill()
    gone, alive = psutil.wait_procs([child], DEADLINE_S)
    assert not alive, gone
    assert left(cache) == []


async def test_what_a_dead_tuning_left_is_removed_and_a_living_one_s_is_not(cache: Path) -> None:
    dead, living = cache / ".1.part", cache / ".2.part"
    for folder in (dead, living):
        folder.mkdir(parents=True)
        (folder / "Q8_0.gguf").touch()
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    async with workspace.workspace(cache) as own:
        assert left(cache) == sorted([living.name, own.name])
    os.close(lock)
    workspace.sweep(cache)
    assert left(cache) == []


# --- no room ----------------------------------------------------------------------------------
@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of ours may become larger than 20 MB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
async def test_a_file_that_cannot_be_written_to_its_end_leaves_nothing(cache: Path) -> None:
    with pytest.raises(DeviceFault, match=r"cannot convert .* to Q8_0"):
        await made(cache)
    assert left(cache) == []


def test_a_full_disk_is_refused_with_the_numbers(cache: Path) -> None:
    cache.mkdir()
    code = f"from llmasos.kernel.abi import limits; limits.FREE_BYTES = 10**15; {WHOLE}"
    line = [sys.executable, "-c", code, str(cut_model.path()), str(cache / "x.gguf"), "Q8_0"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = json.loads(child.stdout.readline())
        child.wait(DEADLINE_S)
    assert said["errno"] == Errno.ENOSPC
    assert "1000000054 MB are needed" in said["message"]
    assert left(cache) == []


async def test_a_cache_that_cannot_be_made_is_a_fault_with_its_words(cache: Path) -> None:
    cache.touch()
    with pytest.raises(DeviceFault, match="File exists"):
        await made(cache)
