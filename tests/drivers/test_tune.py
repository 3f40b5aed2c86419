"""A file is requantised whole or not at all, whoever dies meanwhile."""

import asyncio
import fcntl
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.drivers.llama import options, quality, tuning
from llmasos.drivers.llama.context import LlamaContext
from llmasos.drivers.llama.model import load
from llmasos.drivers.local import gguf
from llmasos.drivers.local.context import Run
from llmasos.drivers.local.quantisation import FILE_TYPES, OFFERED
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Progress
from llmasos.kernel.driver import Tuning
from tests.drivers import cut_model

pytestmark = pytest.mark.anyio
DEADLINE_S = 60  # a guard against hangs
WHOLE = "import runpy; runpy.run_module('llmasos.drivers.llama.requantise', run_name='__main__')"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def asked(cache: Path, quantisation: str = "Q8_0") -> Tuning:
    target = cache / f"x-{quantisation}.gguf"
    return Tuning(cut_model.path(), target, quantisation, measure=False, log=cache.parent / "log")


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


async def test_a_file_is_requantised_and_its_header_says_so(cache: Path) -> None:
    heard: list[Progress] = []
    before, after = await llama.tune(asked(cache), heard.append)
    target = cache / "x-Q8_0.gguf"
    assert left(cache) == [target.name]
    assert (before.quantisation, after.quantisation) == ("Q4_1", "Q8_0")
    assert (before.bytes, after.bytes) == (cut_model.path().stat().st_size, target.stat().st_size)
    assert (after.perplexity, after.prefill, after.decode) == (0, 0, 0)
    assert gguf.probe(target).quantisation == "Q8_0"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [one.done for one in heard] == sorted(one.done for one in heard)
    assert (heard[-1].stage, heard[-1].done) == ("quantise", 1)
    made = target.stat().st_ino
    await llama.tune(asked(cache), heard.append)  # it is there: nothing to do
    assert target.stat().st_ino == made


async def test_a_quantisation_that_does_not_exist_is_refused_with_those_that_do(
    cache: Path,
) -> None:
    with pytest.raises(SyscallError, match="Q9_9") as caught:
        await llama.tune(asked(cache, "Q9_9"), lambda _: None)
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
    tuning: Awaitable[object] = llama.tune(asked(cache), lambda _: begun.set())
    task = asyncio.ensure_future(tuning)
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
        "import asyncio, sys\nfrom pathlib import Path\nfrom llmasos.drivers.llama import mount\n"
        "from llmasos.kernel.driver import Tuning\n"
        "asked = Tuning(*map(Path, sys.argv[1:3]), 'Q8_0', False, Path(sys.argv[3]))\n"
        "asyncio.run(mount.tune(asked, lambda _: print('going', flush=True)))\n"
    )
    target = asked(cache).target
    words = [str(cut_model.path()), str(target), str(cache.parent / "log")]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == b"going\n"
        child = child_of(kernel.pid)
        kernel.kill()
    gone, alive = psutil.wait_procs([child], DEADLINE_S)
    assert not alive, gone
    assert left(cache) == []


async def test_what_a_dead_tuning_left_is_removed_and_a_living_one_s_is_not(cache: Path) -> None:
    cache.mkdir()
    dead, living = cache / ".x.1.part", cache / ".x.2.part"
    dead.touch()
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tuning.sweep(cache)
        assert left(cache) == [living.name]
    tuning.sweep(cache)
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
        await llama.tune(asked(cache), lambda _: None)
    assert left(cache) == []


def test_a_full_disk_is_refused_with_the_numbers(cache: Path) -> None:
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
        await llama.tune(asked(cache), lambda _: None)


# --- figures ----------------------------------------------------------------------------------
def test_perplexity_is_the_exponential_of_the_mean_loss_of_second_halves() -> None:
    """Held against the slow way: one token after the other."""
    window = 32
    # One thread: for single tokens two only wait for each other.
    on = {
        "slots": 1,
        "window": 256,
        "threads": 1,
        "gpu_layers": 0,
    }  # a GPU rounds rows alone otherwise: 5 %
    settings = options.settings(cut_model.path(), gguf.read(cut_model.path()), on)
    model = load(settings)
    context = LlamaContext(model, settings)
    text = quality.PASSAGE.read_text(encoding="utf-8")
    tokens = model.vocab.tokenize(text, special=False).tolist()[: 3 * window]
    losses: list[float] = []
    for begin in range(0, 3 * window, window):
        context.keep(0, 0)
        for at in range(window - 1):
            index = context.decode([Run(0, at, [tokens[begin + at]], asks=1)])[0]
            scores = context.logits(index).astype(np.float64)
            scores -= scores.max()
            if at >= window // 2:
                losses.append(np.log(np.exp(scores).sum()) - scores[tokens[begin + at + 1]])
    slow = math.exp(sum(losses) / len(losses))
    assert quality.perplexity(model, settings, window, lambda _: None) == pytest.approx(slow, 0.03)


def test_the_passage_fills_the_windows() -> None:
    settings = options.settings(cut_model.path(), gguf.read(cut_model.path()), {})
    text = quality.PASSAGE.read_text(encoding="utf-8")
    assert len(load(settings).vocab.tokenize(text, special=False)) >= 3 * quality.WINDOW
