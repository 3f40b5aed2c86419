"""The OpenVINO engine answers where llama.cpp is not built yet, if it knows the vocabulary."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.drivers.openvino import mount as openvino
from llmasos.kernel.abi.errors import SyscallError
from tests.drivers import contract
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
    async with Rig(openvino, q8, log, slots=1, window=512) as rig:
        yield rig


@pytest.fixture
def no_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started now cannot import llama.cpp."""
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('not built yet')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


SAMPLINGS: list[dict[str, Any]] = [
    {}, {"temperature": 0.9, "seed": 4}, {"grammar": 'root ::= "yes" | "no"'},
]  # fmt: skip


@pytest.mark.usefixtures("no_llama")
async def test_openvino_answers_without_llama(q8: Path, rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="not built yet"):
        async with Rig(llama, q8, tmp_path / "llama.log", **contract.SMALL):
            pass
    async with Rig(openvino, q8, tmp_path / "log", slots=1, window=512) as alone:
        prompt = await alone.prompt()
        assert prompt == await rig.prompt()
        for sampling in SAMPLINGS:
            outcome = await alone.run(prompt, **sampling)
            assert outcome.text == (await rig.run(prompt, **sampling)).text


def with_unproven_words(model: Path, folder: Path) -> Path:
    """The file with a pre-tokenizer that is offered by llama.cpp only."""
    data, target = bytearray(model.read_bytes()), folder / "unproven.gguf"
    at = data.index(b"smollm", data.index(b"tokenizer.ggml.pre"))
    data[at : at + 6] = b"refact"
    target.write_bytes(data)
    return target


async def test_a_vocabulary_that_is_not_proven_is_that_of_llama(
    q8: Path, rig: Rig, tmp_path: Path
) -> None:
    model = with_unproven_words(q8, tmp_path)
    async with Rig(openvino, model, tmp_path / "log", slots=1, window=512) as other:
        assert await other.prompt() == await rig.prompt()
    assert "llama.cpp's: its pre-tokenizer is 'refact'" in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("no_llama")
async def test_a_vocabulary_that_only_llama_knows_needs_it(q8: Path, tmp_path: Path) -> None:
    model = with_unproven_words(q8, tmp_path)
    with pytest.raises(SyscallError, match=r"need llama.cpp .*'refact'.* not built yet"):
        async with Rig(openvino, model, tmp_path / "log", **contract.SMALL):
            pass
