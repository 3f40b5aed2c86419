"""The OpenVINO engine keeps the promises of every engine, on a file of the type it is made for."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmasos.drivers.openvino import mount as openvino
from tests.drivers import confined, contract, deaths, prompt_contract, q8_model
from tests.drivers.contract import Promise
from tests.drivers.default_model import MODEL
from tests.drivers.rig import Rig

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def rig(q8: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    log = tmp_path_factory.mktemp("openvino") / "log"
    async with Rig(openvino, q8, log, slots=8, window=512) as rig:
        yield rig


@pytest.fixture(scope="module")
async def sensible(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """The embedded model as it is."""
    folder = tmp_path_factory.mktemp("sensible")
    model = await q8_model.make(MODEL, folder)
    async with Rig(openvino, model, folder / "log", slots=1, window=512) as rig:
        yield rig


@pytest.fixture(scope="module")
async def small(q8: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    log = tmp_path_factory.mktemp("small") / "log"
    async with Rig(openvino, q8, log, **contract.SMALL) as rig:
        yield rig


@pytest.mark.parametrize("promise", contract.PROMISES, ids=contract.name)
async def test_promise_on_openvino(promise: Promise, rig: Rig) -> None:
    await promise(rig)


@pytest.mark.parametrize("promise", contract.SMALL_PROMISES, ids=contract.name)
async def test_promise_of_a_small_engine_on_openvino(promise: Promise, small: Rig) -> None:
    await promise(small)


@pytest.mark.parametrize("promise", contract.SENSE_PROMISES, ids=contract.name)
async def test_promise_of_sense_on_openvino(promise: Promise, sensible: Rig) -> None:
    await promise(sensible)


async def test_the_model_answers_on_openvino(sensible: Rig) -> None:
    assert "Paris" in (await sensible.run(await sensible.prompt())).text


async def test_prompts_are_fed_as_ordered_on_openvino(small: Rig) -> None:
    await contract.prompts_are_fed_as_ordered(small)


async def test_the_prompts_of_an_openvino_that_died_are_lost(small: Rig) -> None:
    await prompt_contract.the_prompts_of_an_engine_that_died_are_lost(small)


# --- deaths -----------------------------------------------------------------------------------
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_dead_openvino_is_reported_and_comes_back(
    death: signal.Signals, small: Rig
) -> None:
    await deaths.a_dead_engine_is_reported_and_comes_back(death, small)


async def test_a_hanging_openvino_is_killed(
    q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmasos.drivers.process.GRACE_S", 0.2)
    options = {**contract.SMALL, "hang_s": deaths.HANG_S}
    async with Rig(openvino, q8, tmp_path / "log", **options) as rig:
        await deaths.a_hanging_engine_is_killed(rig)


async def test_an_openvino_that_dies_too_often_has_failed_and_comes_back(
    q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths.shorten_pauses(monkeypatch)
    async with Rig(openvino, q8, tmp_path / "log", **contract.SMALL) as rig:
        await deaths.an_engine_that_dies_too_often_has_failed_and_comes_back(rig, monkeypatch)


# --- nothing but its own work -----------------------------------------------------------------
ROOT = Path(__file__).resolve().parents[2]
LINUX_ON_X86 = (sys.platform, platform.machine()) == ("linux", "x86_64")
FORBIDDEN = [
    "open('made', 'w')",
    "import os; os.mkdir('made')",
    "import socket; socket.socket()",
    "import openvino",  # sends a usage event, where the package openvino_telemetry is installed
]


@pytest.mark.skipif(not LINUX_ON_X86, reason="the filter is one for Linux on x86-64")
async def test_openvino_makes_no_file_and_no_connection(
    q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system ends the child at the first attempt (tests/drivers/confined.py)."""
    site = confined.site(tmp_path / "site")
    (site / "openvino_telemetry.py").write_text("import socket; socket.socket()")
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{ROOT}")
    for attempt in FORBIDDEN:  # the filter is there
        done = subprocess.run([sys.executable, "-c", attempt], cwd=tmp_path, check=False)
        assert done.returncode == -signal.SIGSYS
    options = {**contract.SMALL, "threads": 2, "parked_bytes": 10**9}
    async with Rig(openvino, q8, tmp_path / "log", **options) as rig:
        pid = rig.facts.os_pid
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
        outcome = await rig.run(await rig.prompt("fox " * 200), max_tokens=20, logprobs=2)
        assert outcome.last.error is None
        answer = await rig.run(await rig.prompt(), grammar='root ::= "yes"', temperature=0.7)
        assert answer.text == "yes"
        await rig.engine.embed(["a text"])
        assert (rig.ear.downs, rig.facts.os_pid) == ([], pid)
