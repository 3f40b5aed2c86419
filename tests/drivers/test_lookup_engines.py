"""Both engines on this machine keep the promises of prompt lookup."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.drivers.openvino import mount as openvino
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Sampling
from llmasos.kernel.driver import Option
from tests.drivers import cut_model, lookup_contract, q8_model
from tests.drivers.contract import name
from tests.drivers.lookup_contract import Promise
from tests.drivers.rig import Rig

pytestmark = pytest.mark.anyio
MISSING = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
ENGINES = [pytest.param(llama, id="llama"), pytest.param(openvino, id="openvino", marks=MISSING)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def file_for(driver: ModuleType) -> Path:
    """A file of a type that the engine is made for."""
    return cut_model.path() if driver is llama else q8_model.cut()


@pytest.fixture(scope="module", params=ENGINES)
async def rig(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Rig]:
    driver: ModuleType = request.param
    folder = tmp_path_factory.mktemp("lookup")
    model = file_for(driver)
    async with Rig(driver, model, folder / "log", slots=8, window=512) as rig:
        yield rig


@pytest.mark.parametrize("promise", lookup_contract.PROMISES, ids=name)
async def test_promise_of_lookup(promise: Promise, rig: Rig) -> None:
    assert "lookup" in rig.facts.capabilities
    await promise(rig)


@pytest.mark.parametrize("driver", ENGINES)
async def test_a_deterministic_mount_has_no_lookup(
    driver: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("exact")
    options: dict[str, Option] = {"slots": 2, "window": 512, "deterministic": True}
    async with Rig(driver, file_for(driver), folder / "log", **options) as exact:
        assert "lookup" not in exact.facts.capabilities
        with pytest.raises(SyscallError, match="does not support lookup") as refused:
            await exact.engine.check(Sampling(lookup=True))
        assert refused.value.errno is Errno.ENOTSUP
        plain, quick = [
            await exact.run(await exact.prompt(lookup_contract.REPEATED, raw=True), lookup=lookup)
            for lookup in (False, None)
        ]
        assert quick.text == plain.text
        assert lookup_contract.drafted(quick) == (0, 0)
