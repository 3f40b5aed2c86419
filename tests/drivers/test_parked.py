"""A parked call continues in the next process of its engine, with its context or without it."""

import os
import signal
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.drivers.local.driver import LocalEngine
from llmasos.drivers.local.shared_memory import Region
from llmasos.drivers.openvino import mount as openvino
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Finish
from llmasos.kernel.driver import Option
from tests.drivers import cut_model, q8_model
from tests.drivers.rig import PLENTY, Outcome, Rig, check_end

pytestmark = pytest.mark.anyio
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed"
)
ENGINES = [
    pytest.param(llama, id="llama"),
    pytest.param(openvino, id="openvino", marks=needs_openvino),
]
OPTIONS: dict[str, Option] = {"slots": 3, "window": 512, "deterministic": True}
STORY = "Tell me a story about a fox. " * 6
DRAWN: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "temperature": 0.9, "seed": 7}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def model(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> Path:
    return await q8_model.make(cut_model.path(), tmp_path_factory.mktemp("cut"))


@pytest.fixture(scope="module", params=ENGINES)
async def rig(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("parked")
    file = folder / "model.gguf"
    os.link(model, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CRASHES", 1000)
        patch.setattr(limits, "RESTART_FIRST_S", 0.01)
        patch.setattr(limits, "RESTART_LAST_S", 0.01)
        async with Rig(request.param, file, folder / "log", **OPTIONS) as rig:
            yield rig


def shared() -> int:
    """The descriptor of the shared memory of the engine: this process has one only."""
    [found] = [
        int(fd.name)
        for fd in Path("/proc/self/fd").iterdir()
        if fd.is_symlink() and "llmasos-contexts" in os.readlink(fd)
    ]
    return found


def used() -> int:
    return os.fstat(shared()).st_blocks * 512


async def parked(rig: Rig, tokens: Sequence[int], said: int = 6, **sampling: Any) -> int:
    """A call that was parked after some tokens, and whose context is in shared memory."""
    number = rig.admit(tokens, **{**DRAWN, **sampling})
    rig.engine.grant(number, len(tokens) + said)
    await rig.say(number, said)
    rig.engine.park(number, keep=True)
    await copied(rig, number)
    return number


async def copied(rig: Rig, number: int) -> None:
    """The engine copies a slice with each step, and reports before the next one."""
    await rig.run(await rig.prompt("Hello!"), slot=2, max_tokens=16, ignore_eos=True)
    assert region(rig, number) is not None


def region(rig: Rig, number: int) -> Region | None:
    engine = rig.engine
    assert isinstance(engine, LocalEngine)
    return dict(engine.parked.items())[number].region


async def kill(rig: Rig) -> None:
    """Kill the process, and wait for the next one."""
    ups = rig.ear.ups
    os.kill(rig.facts.os_pid, signal.SIGKILL)
    await rig.ear.until(lambda: rig.ear.ups > ups)


async def go_on(rig: Rig, number: int, slot: int = 1) -> Outcome:
    rig.engine.unpark(number, slot)
    rig.engine.grant(number, PLENTY)
    outcome = await rig.end(number)
    check_end(outcome)
    assert (outcome.last.error, outcome.last.finish) == (None, Finish.LENGTH)
    return outcome


def probabilities(outcome: Outcome) -> list[tuple[int, float, str]]:
    found = [one for step in outcome.steps for one in step.logprobs]
    return [(one.token, one.logprob, one.text) for one in found]


async def test_parked_calls_continue_after_a_kill_without_computing_again(rig: Rig) -> None:
    samplings: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0, "repeat_penalty": 1.3},
        {"logprobs": 2},
        {"grammar": 'root ::= ("fox" | " and " | " the ")+', "stop": ["foxfoxfoxfoxfoxfox"]},
    ]
    tokens = await rig.prompt(STORY)
    wholes = [await rig.run(tokens, **{**DRAWN, **sampling}) for sampling in samplings]
    numbers = [await parked(rig, tokens, **sampling) for sampling in samplings]
    downs = len(rig.ear.downs)
    await kill(rig)
    assert rig.ear.downs[downs].kept == set(numbers)
    for number, whole in zip(numbers, wholes, strict=True):
        outcome = await go_on(rig, number)
        assert outcome.text == whole.text
        assert (outcome.fed, outcome.recomputed, outcome.tokens) == (len(tokens), 0, 24)
        assert probabilities(outcome) == probabilities(whole)
    assert used() == 0


async def test_a_call_that_is_parked_twice_outlives_two_processes(rig: Rig) -> None:
    tokens = await rig.prompt(STORY)
    whole = await rig.run(tokens, **DRAWN)
    number = await parked(rig, tokens)
    await kill(rig)
    rig.engine.unpark(number, 0)
    rig.engine.grant(number, 5)
    await rig.say(number, 11)
    rig.engine.park(number, keep=True)
    await copied(rig, number)
    await kill(rig)
    outcome = await go_on(rig, number)
    assert (outcome.text, outcome.recomputed) == (whole.text, 0)


async def test_a_call_whose_context_is_damaged_is_computed_again(rig: Rig) -> None:
    tokens = await rig.prompt(STORY)
    whole = await rig.run(tokens, **DRAWN)
    damages = {"checksum is wrong": 50_000, "header is damaged": 0}
    numbers = [await parked(rig, tokens) for _ in damages]
    for number, place in zip(numbers, damages.values(), strict=True):
        found = region(rig, number)
        assert found is not None
        byte = os.pread(shared(), 1, found.offset + place)[0]
        os.pwrite(shared(), bytes([byte ^ 1]), found.offset + place)
    await kill(rig)
    for number, reason in zip(numbers, damages, strict=True):
        outcome = await go_on(rig, number)
        assert outcome.text == whole.text
        assert outcome.recomputed == len(tokens) + 5
        assert f"call {number}: its saved context is not loaded: its {reason}" in log(rig)


def log(rig: Rig) -> str:
    return rig.log.read_text()


async def test_a_context_of_another_file_is_computed_again(rig: Rig) -> None:
    tokens = await rig.prompt(STORY)
    whole = await rig.run(tokens, **DRAWN)
    number = await parked(rig, tokens)
    file = rig.log.parent / "model.gguf"
    (rig.log.parent / "other").write_bytes(file.read_bytes())
    os.replace(rig.log.parent / "other", file)
    await kill(rig)
    outcome = await go_on(rig, number)
    assert (outcome.text, outcome.recomputed) == (whole.text, len(tokens) + 5)
    assert f"call {number}: its saved context is not loaded: it is of another file" in log(rig)


async def test_a_call_whose_context_was_not_kept_continues_too(rig: Rig) -> None:
    tokens = await rig.prompt(STORY)
    whole = await rig.run(tokens, **DRAWN)
    number = rig.admit(tokens, **DRAWN)
    rig.engine.grant(number, len(tokens) + 6)
    await rig.say(number, 6)
    rig.engine.park(number, keep=False)
    await rig.run(await rig.prompt("Hello!"), slot=2)
    await kill(rig)
    outcome = await go_on(rig, number)
    assert (outcome.text, outcome.recomputed) == (whole.text, len(tokens) + 5)


async def test_a_purge_frees_the_context_at_once(rig: Rig) -> None:
    tokens = await rig.prompt(STORY)
    whole = await rig.run(tokens, **DRAWN)
    number = await parked(rig, tokens, domain="erased")
    assert used() > 0
    rig.engine.purge("erased")
    await rig.run(await rig.prompt("Hello!"), slot=2)
    assert used() == 0
    await kill(rig)
    outcome = await go_on(rig, number)
    assert (outcome.text, outcome.recomputed) == (whole.text, len(tokens) + 5)
    again = await rig.run(tokens, slot=1, domain="erased", **DRAWN)
    assert again.fed == len(tokens)


async def test_a_purge_while_the_engine_is_down_frees_the_context(rig: Rig) -> None:
    tokens = await rig.prompt(STORY)
    number = await parked(rig, tokens, domain="erased")
    downs, ups = len(rig.ear.downs), rig.ear.ups
    os.kill(rig.facts.os_pid, signal.SIGKILL)
    await rig.ear.until(lambda: len(rig.ear.downs) > downs)
    assert used() > 0
    rig.engine.purge("erased")
    assert used() == 0
    await rig.ear.until(lambda: rig.ear.ups > ups)
    assert (await go_on(rig, number)).recomputed == len(tokens) + 5


async def test_a_call_that_ends_frees_its_context(rig: Rig) -> None:
    tokens = await rig.prompt(STORY)
    alive, dead = await parked(rig, tokens), await parked(rig, tokens)
    rig.engine.cancel(alive)
    assert (await rig.end(alive)).last.finish is Finish.CANCELLED
    downs = len(rig.ear.downs)
    os.kill(rig.facts.os_pid, signal.SIGKILL)
    await rig.ear.until(lambda: len(rig.ear.downs) > downs)
    assert rig.ear.downs[-1].kept == {dead}
    rig.engine.cancel(dead)
    outcome = await rig.end(dead)
    assert outcome.last.finish is Finish.CANCELLED
    check_end(outcome)
    assert used() == 0


async def test_the_memory_of_an_engine_ends_with_it(model: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with Rig(llama, model, tmp_path / "log", **OPTIONS) as rig:
        await parked(rig, await rig.prompt(STORY))
    assert len(os.listdir("/proc/self/fd")) == before
