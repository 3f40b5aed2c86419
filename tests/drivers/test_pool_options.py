"""The pool of KV blocks of OpenVINO: its size, and calls that share it."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmasos.drivers import model_files
from llmasos.drivers.local import gguf
from llmasos.drivers.local import options as local
from llmasos.drivers.openvino import mount as openvino
from llmasos.drivers.openvino import options
from llmasos.drivers.openvino.blocks import BLOCK_TOKENS, SPARE_BLOCKS
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Finish
from llmasos.kernel.driver import Option
from tests.drivers import cut_model, q8_model
from tests.drivers.rig import Rig

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed"),
]
WINDOW = 512
SHAPE: dict[str, Option] = {"slots": 4, "window": WINDOW}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def cut(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> Path:
    return await q8_model.make(cut_model.path(), tmp_path_factory.mktemp("cut"))


def block_bytes(path: Path) -> int:
    return BLOCK_TOKENS * options.cell_bytes(gguf.read(path))


def blocks(path: Path, **values: Option) -> int:
    return options.settings(path, gguf.read(path), {**SHAPE, **values}).blocks


@pytest.fixture(scope="module")
async def rig(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """Four slots in a pool of one window."""
    pool = block_bytes(cut) * (WINDOW // BLOCK_TOKENS + SPARE_BLOCKS)
    log = tmp_path_factory.mktemp("pool") / "log"
    async with Rig(openvino, cut, log, **SHAPE, pool_bytes=pool) as rig:
        yield rig


async def test_one_call_takes_the_whole_pool(rig: Rig) -> None:
    assert (rig.facts.cells, rig.facts.block_tokens) == (WINDOW, BLOCK_TOKENS)
    outcome = await rig.run(await rig.prompt(), max_tokens=WINDOW, ignore_eos=True)
    assert (outcome.last.finish, outcome.last.error) == (Finish.LENGTH, None)
    rig.engine.clear(0)


async def test_calls_share_the_pool_until_it_is_full(rig: Rig) -> None:
    prompt = (await rig.prompt("fox " * 300))[:300]
    assert (await rig.run(prompt, 0)).last.error is None
    full = await rig.run(prompt, 1)
    assert full.last.error is not None
    assert "KV blocks of 32 tokens" in full.last.error.message
    rig.engine.clear(0)
    rig.engine.clear(1)
    assert (await rig.run(prompt, 1)).last.error is None
    rig.engine.clear(1)


async def test_a_slot_in_use_is_not_cleared(rig: Rig) -> None:
    prompt = await rig.prompt()
    whole = await rig.run(prompt, 2, ignore_eos=True)
    number = rig.admit(prompt, 3, ignore_eos=True)
    rig.engine.grant(number, len(prompt) + 4)
    await rig.say(number, 4)
    rig.engine.clear(3)
    rig.engine.grant(number, 100)
    assert (await rig.end(number)).text == whole.text
    for slot in (2, 3):
        rig.engine.clear(slot)


async def test_the_saved_context_of_a_parked_call_is_dropped_and_computed_again(rig: Rig) -> None:
    prompt = await rig.prompt()
    whole = await rig.run(prompt, 0, ignore_eos=True)
    number = rig.admit(prompt, 1, ignore_eos=True)
    rig.engine.grant(number, len(prompt) + 4)
    await rig.say(number, 4)
    rig.engine.park(number, keep=True)
    rig.engine.park(number, keep=False)
    rig.engine.unpark(number, 2)
    rig.engine.grant(number, 10_000)
    outcome = await rig.end(number)
    assert outcome.recomputed > len(prompt)
    assert outcome.text == whole.text


def test_the_default_pool_is_for_all_slots_and_contexts_and_half_of_the_free_memory_at_most(
    cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "available_bytes", lambda: None)
    saved = (limits.PARKED_BYTES + limits.KEPT_BYTES) // block_bytes(cut)
    assert blocks(cut) == 4 * WINDOW // BLOCK_TOKENS + SPARE_BLOCKS + saved
    weights = gguf.read(cut).facts.bytes
    monkeypatch.setattr(local, "available_bytes", lambda: 2 * weights + 400 * block_bytes(cut))
    assert blocks(cut) == 200
    monkeypatch.setattr(local, "available_bytes", lambda: 2 * weights)
    assert blocks(cut) == WINDOW // BLOCK_TOKENS + SPARE_BLOCKS


def test_a_pool_that_does_not_hold_a_window_is_refused_with_what_it_needs(cut: Path) -> None:
    least = WINDOW // BLOCK_TOKENS + SPARE_BLOCKS
    with pytest.raises(SyscallError, match=f"holds 3 blocks of 32 tokens.* need {least}") as error:
        blocks(cut, pool_bytes=3 * block_bytes(cut))
    assert error.value.errno is Errno.EINVAL
    assert f"pool_bytes={least * block_bytes(cut)} or more" in error.value.hint
    assert blocks(cut, pool_bytes=least * block_bytes(cut)) == least


def test_a_pool_larger_than_the_free_memory_is_refused_with_the_numbers(cut: Path) -> None:
    header = gguf.read(cut)
    chosen = options.settings(cut, header, {**SHAPE, "pool_bytes": 2**49})
    with pytest.raises(SyscallError, match=r"MB for a pool of \d+ tokens\), \d+ MB are free") as no:
        options.check_memory(chosen, header)
    assert no.value.errno is Errno.ENOMEM
    assert no.value.hint == "mount it with a smaller pool_bytes or window"


def test_an_option_of_openvino_alone_requests_it() -> None:
    model_files.check({"pool_bytes": 10**9})
    with pytest.raises(SyscallError, match="unknown option 'pool_bytes'"):
        model_files.check({"pool_bytes": 10**9, "engine": "llama"})
    with pytest.raises(SyscallError, match="unknown option 'flash'"):
        model_files.check({"pool_bytes": 10**9, "flash": True})
