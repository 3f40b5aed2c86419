"""Vectors: of length 1, the same for the same text whatever else runs, near where meanings are."""

from array import array
from collections.abc import AsyncIterator

import anyio
import pytest

from llmasos.drivers.llama import mount as llama
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.driver import Vectors
from tests.drivers import cut_model
from tests.drivers.default_model import MODEL
from tests.drivers.rig import DEADLINE_S, PLENTY, Rig

pytestmark = pytest.mark.anyio
DIMENSIONS = 576


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    log = tmp_path_factory.mktemp("embed") / "log"
    async with Rig(llama, cut_model.path(), log, slots=4, window=512) as rig:
        yield rig


@pytest.fixture(scope="module")
async def sensible(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """The embedded model as it is."""
    log = tmp_path_factory.mktemp("sensible") / "log"
    async with Rig(llama, MODEL, log, slots=1, window=512) as rig:
        yield rig


def numbers(vector: bytes) -> list[float]:
    values = array("f")
    values.frombytes(vector)
    return values.tolist()


def near(found: Vectors, one: int, other: int) -> float:
    pairs = zip(numbers(found.vectors[one]), numbers(found.vectors[other]), strict=True)
    return sum(a * b for a, b in pairs)


async def test_vectors_have_length_1_and_similar_texts_are_near(sensible: Rig) -> None:
    texts = [
        "The cat sat on the mat.",
        "A kitten was sitting on a rug.",
        "The stock market fell sharply today.",
    ]
    found = await sensible.engine.embed(texts)
    assert found.dimensions == DIMENSIONS
    assert [len(vector) for vector in found.vectors] == [4 * DIMENSIONS] * 3
    for index in range(3):
        assert near(found, index, index) == pytest.approx(1, abs=1e-5)
    assert near(found, 0, 1) > near(found, 0, 2)
    assert near(found, 0, 1) > near(found, 1, 2)
    sizes = [len(await sensible.engine.tokenize(text)) for text in texts]
    assert found.tokens == sum(sizes)


async def test_the_same_text_has_the_same_vector_beside_answers(rig: Rig) -> None:
    text = "A long story about a fox. " * 30  # more than one piece
    alone = await rig.engine.embed([text, "Hello."])
    number = rig.admit(await rig.prompt(), max_tokens=300, ignore_eos=True)
    rig.engine.grant(number, PLENTY)
    await rig.say(number, 1)
    beside = await rig.engine.embed([text, "Hello."])
    assert beside == alone
    rig.engine.cancel(number)
    await rig.end(number)


async def test_an_answer_is_the_same_beside_vectors(rig: Rig) -> None:
    prompt = await rig.prompt()
    whole = await rig.run(prompt, max_tokens=40, ignore_eos=True)
    number = rig.admit(prompt, max_tokens=40, ignore_eos=True)
    rig.engine.grant(number, PLENTY)
    await rig.engine.embed(["one", "two", "three " * 100])
    assert (await rig.end(number)).text == whole.text


async def test_answers_go_on_between_the_pieces_of_a_text(rig: Rig) -> None:
    number = rig.admit(await rig.prompt(), max_tokens=400, ignore_eos=True)
    rig.engine.grant(number, PLENTY)
    await rig.say(number, 1)
    before = len(rig.ear.steps(number))
    await rig.engine.embed(["word " * 450])
    assert len(rig.ear.steps(number)) >= before + 2  # four pieces
    rig.engine.cancel(number)
    await rig.end(number)


async def test_a_text_over_the_window_is_named(rig: Rig) -> None:
    with pytest.raises(SyscallError, match=r"text 2 of 3 has 701 tokens.* at most 512") as error:
        await rig.engine.embed(["short", "word " * 700, "short"])
    assert error.value.errno is Errno.E2BIG
    assert error.value.hint


async def test_who_leaves_leaves_the_rest_uncomputed(rig: Rig) -> None:
    with anyio.move_on_after(0):
        await rig.engine.embed(["word " * 450] * 64)
    with anyio.fail_after(DEADLINE_S):
        assert (await rig.engine.embed(["Hello."])).tokens == 2


async def test_many_at_once_each_get_their_own(rig: Rig) -> None:
    words = ["fox", "cat", "owl", "bee"]
    alone = [await rig.engine.embed([word]) for word in words]
    together: dict[str, Vectors] = {}

    async def one(word: str) -> None:
        together[word] = await rig.engine.embed([word])

    async with anyio.create_task_group() as group:
        for word in words:
            group.start_soon(one, word)
    assert [together[word] for word in words] == alone


async def test_an_engine_that_is_down_has_no_vectors(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rig = Rig(llama, MODEL, tmp_path_factory.mktemp("down") / "log")
    with pytest.raises(DeviceFault):
        await rig.engine.embed(["Hello."])
