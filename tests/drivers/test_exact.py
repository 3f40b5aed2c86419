"""A deterministic engine: the same tokens and the same scores, whatever runs beside a call.

Both engines keep the same promises. The short form tries, on a model of a few blocks, Q8_0 on both
and a type that llama.cpp has to cut into pieces; the long form tries every type that `tune` offers,
each type that OpenVINO is made for, and whether a call of the whole model is the same in company.
"""

import random
from collections.abc import AsyncIterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import anyio
import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.drivers.local.quantisation import OFFERED
from llmasos.drivers.openvino import mount as openvino
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from tests.drivers import cut_model, q8_model
from tests.drivers.default_model import MODEL
from tests.drivers.rig import PLENTY, STORY, Outcome, Rig

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]
SHORT = ("Q8_0", "Q4_K_M")
ON_OPENVINO = ("Q8_0", "Q4_0", "F16")
COMPANY = 16
SLOTS = 33
NO_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="it is not installed")


def engines(*short: str, whole: bool = False) -> pytest.MarkDecorator:
    """Engines of these quantisations, Q8_0 on OpenVINO, too; in the long form every other one and
    the whole model."""
    # Equal in all tests, so that pytest runs those of one engine together.
    quick = [(llama, "cut", name) for name in short] + [(openvino, "cut", "Q8_0")]
    models = ("cut", "whole") if whole else ("cut",)
    every = [(llama, model, name) for model in models for name in OFFERED]
    every += [(openvino, model, name) for model in models for name in ON_OPENVINO]
    others = [one for one in every if one not in quick]
    params = [_param(one) for one in quick]
    params += [_param(one, pytest.mark.long) for one in others]
    return pytest.mark.parametrize("exact", params, indirect=True, scope="module")


def _param(one: tuple[ModuleType, str, str], *marks: pytest.MarkDecorator) -> Any:
    driver, model, quantisation = one
    name = driver.__name__.split(".")[-2]
    missing = [NO_OPENVINO] if driver is openvino else []
    return pytest.param(one, id=f"{name}-{model}-{quantisation}", marks=[*marks, *missing])


@pytest.fixture(scope="module")
async def exact(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Rig]:
    directory = tmp_path_factory.mktemp("exact")
    driver, model, quantisation = request.param
    file = MODEL if model == "whole" else cut_model.path()
    path = await q8_model.make(file, directory, quantisation)
    rig = Rig(driver, path, directory / "log", slots=SLOTS, window=1024, deterministic=True)
    async with rig:
        yield rig


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def said(outcome: Outcome) -> list[tuple[int, float]]:
    """Tokens and their exact log probabilities."""
    assert outcome.last.error is None
    return [(one.token, one.logprob) for step in outcome.steps for one in step.logprobs]


def fed_of(rig: Rig, number: int) -> int:
    """Prompt tokens of a call that are computed."""
    return sum(step.fed for step in rig.ear.steps(number))


async def fed_more(rig: Rig, number: int, fed: int) -> None:
    """Wait until more prompt tokens of a call are computed than these."""
    await rig.ear.until(lambda: fed_of(rig, number) > fed)


def ways(index: int) -> dict[str, Any]:
    """Half of the calls are greedy, half are drawn by a seed."""
    wild = {"temperature": 1.2, "top_p": 0.9, "seed": index} if index % 2 else {"temperature": 0.0}
    return {"max_tokens": 10, "ignore_eos": True, "logprobs": 0, **wild}


async def together(rig: Rig, prompts: list[Any], domain: str) -> list[Outcome]:
    numbers = [
        rig.admit(tokens, slot, domain=domain and f"{domain}", **ways(slot))
        for slot, tokens in enumerate(prompts)
    ]
    for number in numbers:
        rig.engine.grant(number, PLENTY)
    with anyio.fail_after(300):
        return [await rig.end(number) for number in numbers]


async def prompts(rig: Rig, begin: str) -> list[Any]:
    """Of every length, so that no two end in the same step."""
    texts = [f"{begin}{'word ' * (5 * index)}{chr(65 + index)}?" for index in range(COMPANY)]
    return [await rig.prompt(text, raw=True) for text in texts]


@engines(*SHORT, whole=True)
async def test_a_call_is_the_same_alone_and_among_fifteen_others(exact: Rig) -> None:
    asked = await prompts(exact, "Tell ")
    company = await together(exact, asked, "")
    for index in range(0, COMPANY, 3):  # greedy ones and drawn ones
        alone = await exact.run(asked[index], slot=(index + 5) % COMPANY, **ways(index))
        assert said(alone) == said(company[index])


@engines("Q8_0")
async def test_a_shared_beginning_changes_nothing(exact: Rig) -> None:
    asked = await prompts(exact, 2 * STORY)
    company = await together(exact, asked, "shared by all")
    assert sum(outcome.steps[0].cached > 0 for outcome in company) >= COMPANY - 1
    for index in range(0, COMPANY, 5):
        alone = await exact.run(asked[index], slot=index, **ways(index))
        assert alone.fed == len(asked[index])
        assert said(alone) == said(company[index])


@engines("Q8_0")
async def test_a_long_prompt_beside_a_call_changes_nothing(exact: Rig) -> None:
    tokens = await exact.prompt("Why is the sky blue?", raw=True)
    long = (await exact.prompt("word " * 400, raw=True))[:400]
    alone = await exact.run(tokens, slot=0, **ways(1))
    other = exact.admit(long, 3, max_tokens=4)
    exact.engine.grant(other, PLENTY)
    beside = await exact.run(tokens, slot=7, **ways(1))
    await exact.end(other)
    assert said(beside) == said(alone)


@engines("Q8_0")
async def test_a_long_context_is_the_same_alone_and_in_company(exact: Rig) -> None:
    """From 512 cells on llama.cpp would compute a lone row in another order."""
    [first, *others] = await prompts(exact, "Say ")
    long = [*first, *(await exact.prompt("sun moon star " * 250, raw=True))][:600]
    alone = await exact.run(long, slot=2, **ways(0))
    talkers = [
        exact.admit(tokens, 3 + slot, max_tokens=99, ignore_eos=True)
        for slot, tokens in enumerate(others[:8])
    ]
    for number in talkers:
        exact.engine.grant(number, PLENTY)
    beside = await exact.run(long, slot=2, **ways(0))
    assert all(exact.ear.steps(number)[-1].finish is None for number in talkers)
    for number in talkers:
        exact.engine.cancel(number)
        await exact.end(number)
    assert said(beside) == said(alone)


@engines("Q8_0")
async def test_it_says_that_it_is_deterministic(exact: Rig) -> None:
    assert exact.facts.deterministic
    assert "deterministic" in exact.facts.capabilities


@engines("Q8_0")
async def test_any_number_of_neighbours_changes_nothing(exact: Rig) -> None:
    """From none to 32: OpenVINO and llama.cpp choose kernels by the rows of a step."""
    asked = (await prompts(exact, "Count "))[1]
    alone = said(await exact.run(asked, slot=0, **ways(1)))
    endless: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}
    talkers: list[int] = []
    for neighbours in (1, 2, 3, 8, 15, 16, 32):
        while len(talkers) < neighbours:
            other = [token + len(talkers) for token in asked]
            talkers.append(exact.admit(other, slot=1 + len(talkers), **endless))
            exact.engine.grant(talkers[-1], PLENTY)
        for number in talkers:
            await exact.say(number, 1)
        assert said(await exact.run(asked, slot=0, **ways(1))) == alone
    assert all(exact.ear.steps(number)[-1].finish is None for number in talkers)
    for number in talkers:
        exact.engine.cancel(number)
        await exact.end(number)


@engines("Q8_0")
async def test_any_pieces_of_a_prompt_change_nothing(exact: Rig) -> None:
    """Whatever is granted at a time, beside other prompts and answers."""
    prompt = (await exact.prompt(3 * STORY, raw=True))[:197]
    alone = said(await exact.run(prompt, slot=0, **ways(1)))
    chance = random.Random(7)
    for _ in range(4):
        beside = exact.admit(prompt[1:], 1, max_tokens=900, ignore_eos=True)
        exact.engine.grant(beside, PLENTY)
        number = exact.admit(prompt, slot=2, **ways(1))
        fed = granted = 0
        while fed < len(prompt):
            more = fed - granted + chance.choice((1, 2, 31, 33, 64, 100))
            exact.engine.grant(number, more)
            await fed_more(exact, number, fed)
            fed, granted = fed_of(exact, number), granted + more
        exact.engine.grant(number, PLENTY)
        assert said(await exact.end(number)) == alone
        exact.engine.cancel(beside)
        await exact.end(beside)


@engines("Q8_0")
@pytest.mark.parametrize("length", [2, 33, 65, 97, 128, 129, 130, 257])
async def test_a_prefix_of_any_length_changes_nothing(exact: Rig, length: int) -> None:
    """Also one after which a single token is left."""
    tokens = await exact.prompt(6 * STORY, raw=True)
    domain = f"prefix of {length}"
    await exact.run(tokens[:300], slot=1, domain=domain, max_tokens=1)
    shared = await exact.run(tokens[:length], slot=2, domain=domain, **ways(1))
    again = await exact.run(tokens[:length], slot=2, domain=domain, **ways(1))
    alone = await exact.run(tokens[:length], slot=3, **ways(1))
    assert alone.fed == length
    assert said(shared) == said(again) == said(alone)
    assert length < 257 or shared.fed < length


@engines("Q8_0")
async def test_forks_say_what_processes_of_their_own_would(exact: Rig) -> None:
    """Children begin with the tokens of their parent, its answer included, all at once."""
    prompt = (await exact.prompt(3 * STORY, raw=True))[:150]
    parent = await exact.run(prompt, slot=0, domain="a family", **ways(0))
    answer = [token for token, _ in said(parent)]
    children = [[*prompt, *answer, *range(500, 500 + 20 * child)] for child in range(1, 9)]
    forks = await together(exact, children, "a family")
    assert all(fork.steps[0].cached for fork in forks)
    for index in (0, 3, 7):
        alone = await exact.run(children[index], slot=20, **ways(index))
        assert said(alone) == said(forks[index])


@engines("Q8_0")
@pytest.mark.parametrize("keep", [True, False], ids=["saved", "dropped"])
async def test_a_context_that_was_parked_comes_back_bit_for_bit(exact: Rig, keep: bool) -> None:
    """P-04: also where saved contexts have no room, whatever is computed beside it."""
    prompt = await exact.prompt(f"{STORY}Tell me a long story about a fox.")
    wanted: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "logprobs": 1}
    whole = said(await exact.run(prompt, **wanted))
    for stop_at in (1, 2, 9):
        number = exact.admit(prompt, slot=0, **wanted)
        exact.engine.grant(number, len(prompt) + stop_at)
        await exact.say(number, stop_at)
        exact.engine.park(number, keep=keep)
        beside = exact.admit(await exact.prompt("Count."), slot=0, max_tokens=60, ignore_eos=True)
        exact.engine.grant(beside, PLENTY)
        exact.engine.grant(number, PLENTY)
        exact.engine.unpark(number, 3)
        assert said(await exact.end(number)) == whole
        exact.engine.cancel(beside)
        await exact.end(beside)


@pytest.mark.parametrize("option", ["flash", "unified"])
def test_what_would_change_bits_is_refused(option: str) -> None:
    with pytest.raises(SyscallError) as caught:
        llama.check({"deterministic": True, option: True})
    assert caught.value.errno is Errno.EINVAL
    assert option in caught.value.message


def test_a_piece_is_shorter_than_a_batch() -> None:
    assert limits.PIECE_TOKENS <= limits.BATCH_TOKENS
