"""The OpenVINO engine keeps the promises of every engine, on a file of the type it is made for."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.drivers.openvino import mount as openvino
from llmasos.kernel.driver import Tuning
from tests.drivers import contract, cut_model, prompt_contract
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


async def q8(model: Path, directory: Path) -> Path:
    """The file in Q8_0."""
    target, log = directory / f"{model.stem}-Q8_0.gguf", directory / "tune.log"
    await llama.tune(Tuning(model, target, "Q8_0", measure=False, log=log), lambda _: None)
    return target


@pytest.fixture(scope="module")
async def cut(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> Path:
    return await q8(cut_model.path(), tmp_path_factory.mktemp("cut"))


@pytest.fixture(scope="module")
async def rig(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    log = tmp_path_factory.mktemp("openvino") / "log"
    async with Rig(openvino, cut, log, slots=8, window=512) as rig:
        yield rig


@pytest.fixture(scope="module")
async def sensible(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """The embedded model as it is."""
    folder = tmp_path_factory.mktemp("sensible")
    async with Rig(openvino, await q8(MODEL, folder), folder / "log", slots=1, window=512) as rig:
        yield rig


@pytest.fixture(scope="module")
async def small(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    log = tmp_path_factory.mktemp("small") / "log"
    async with Rig(openvino, cut, log, **contract.SMALL) as rig:
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


async def test_prompts_are_fed_as_ordered_on_openvino(cut: Path, tmp_path: Path) -> None:
    async with Rig(openvino, cut, tmp_path / "log", **contract.SMALL) as rig:
        await contract.prompts_are_fed_as_ordered(rig)


async def test_the_prompts_of_an_openvino_that_died_are_lost(cut: Path, tmp_path: Path) -> None:
    async with Rig(openvino, cut, tmp_path / "log", **contract.SMALL) as rig:
        await prompt_contract.the_prompts_of_an_engine_that_died_are_lost(rig)
