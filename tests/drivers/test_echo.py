"""The echo engine keeps the promises of every engine, and its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmasos.drivers import echo
from llmasos.drivers.echo_calls import piece, tokenize
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Finish, Message, Role
from llmasos.kernel.driver import Cause
from tests.drivers import contract, prompt_contract
from tests.drivers.contract import Promise
from tests.drivers.rig import PLENTY, Outcome, Rig

pytestmark = pytest.mark.anyio
HERE = Path(__file__)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(echo, HERE, tmp_path / "log") as rig:
        yield rig


@pytest.mark.parametrize(
    "promise", [*contract.PROMISES, *contract.SENSE_PROMISES], ids=contract.name
)
async def test_promise(promise: Promise, rig: Rig) -> None:
    await promise(rig)


@pytest.mark.parametrize("promise", contract.SMALL_PROMISES, ids=contract.name)
async def test_promise_of_a_small_engine(promise: Promise, tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", **contract.SMALL) as rig:
        await promise(rig)


async def test_prompts_are_fed_as_ordered(tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", slots=4) as rig:
        await contract.prompts_are_fed_as_ordered(rig)


async def test_the_prompts_of_an_engine_that_died_are_lost(tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", **contract.SMALL) as rig:
        await prompt_contract.the_prompts_of_an_engine_that_died_are_lost(rig)


async def test_the_answer_is_the_last_user_message(rig: Rig) -> None:
    messages = [
        Message(Role.SYSTEM, "You are an echo."),
        Message(Role.USER, "first"),
        Message(Role.ASSISTANT, "first"),
        Message(Role.USER, "Grüße, 🦊 und 字!"),
    ]
    prompt = await rig.engine.compose(messages, raw=False, fresh=1)
    outcome = await rig.run(prompt.tokens)
    assert outcome.text == "Grüße, 🦊 und 字!"
    assert outcome.last.finish is Finish.STOP
    assert "\ufffd" not in "".join(step.text for step in outcome.steps)


async def test_the_answer_is_cyclic_when_its_end_is_ignored(rig: Rig) -> None:
    outcome = await rig.run(await rig.prompt("ab, "), max_tokens=5, ignore_eos=True)
    assert outcome.text == "ab, ab, ab,"


async def test_calls_at_once_say_exactly_what_they_say_alone(rig: Rig) -> None:
    texts = [f"message number {index} 🦊" * (index + 1) for index in range(16)]
    numbers = [
        rig.admit(await rig.prompt(text), slot, max_tokens=500) for slot, text in enumerate(texts)
    ]
    for number in numbers:
        rig.engine.grant(number, PLENTY)
    assert [(await rig.end(number)).text for number in numbers] == texts


def test_every_text_has_one_tokenization_that_gives_it_back() -> None:
    text = "plain, naïve, 字字, 🦊🦊a\0\n" * 3
    tokens = tokenize(text)
    assert b"".join(map(piece, tokens)).decode() == text
    assert all(len(piece(token)) <= 3 for token in tokens)


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "abcd", "\0b\x7fd"])
def test_ascii_is_read_at_once_and_alike(text: str) -> None:
    """As the beginning of a text that is read character by character."""
    at_once = tokenize(text)
    whole = len(text) - len(text) % 3
    assert at_once[: whole // 3] == tokenize(text[:whole] + "🦊")[: whole // 3]
    assert b"".join(map(piece, at_once)).decode() == text
    assert [len(piece(token)) for token in at_once] == [3] * (whole // 3) + [len(text) - whole] * (
        whole < len(text)
    )


async def test_a_context_without_room_is_computed_again(tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", slots=4, window=256, parked_bytes=100) as rig:
        await contract.a_context_without_room_is_computed_again(rig)


async def test_the_engine_dies_once_and_rises(tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", die_after=3) as rig:
        number = rig.admit(await rig.prompt("a text that is long enough"))
        rig.engine.grant(number, PLENTY)
        await rig.ear.until(lambda: rig.ear.downs)
        [death] = rig.ear.downs
        assert death.reason == "the echo engine crashed, as its options request"
        assert death.cause is Cause.CRASH
        assert (death.failed, death.deaths) == (False, 1)
        with pytest.raises(DeviceFault):
            await rig.engine.tokenize("hello")
        rig.engine.grant(number, 1)
        await rig.ear.until(lambda: rig.ear.ups == 2)
        assert (await rig.run(await rig.prompt("hello"))).text == "hello"
        assert all(step.finish is None for step in rig.ear.steps(number))


async def test_the_engine_hangs_when_it_is_told(tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", hang_after=2) as rig:
        number = rig.admit(await rig.prompt("a text that is long enough"))
        rig.engine.grant(number, PLENTY)
        await rig.say(number, 2)
        assert list(await rig.engine.tokenize("hello")) == tokenize("hello")
        assert Outcome(rig.ear.steps(number)).tokens == 2


async def test_a_poisonous_prompt_kills_the_engine_whenever_its_answer_begins(
    tmp_path: Path,
) -> None:
    async with Rig(echo, HERE, tmp_path / "log", poison="xyzzy") as rig:
        assert (await rig.run(await rig.prompt("xyzz y"))).text == "xyzz y"
        assert await _killed(rig, "say xyzzy") == (1, 2)
        assert await _killed(rig, "say xyzzy") == (2, 3)


async def _killed(rig: Rig, text: str) -> tuple[int, int]:
    """Deaths and rises after a prompt that says nothing before the engine dies."""
    rises = rig.ear.ups
    number = rig.admit(await rig.prompt(text), max_tokens=1)
    rig.engine.grant(number, PLENTY)
    await rig.ear.until(lambda: rig.ear.ups > rises)
    assert not Outcome(rig.ear.steps(number)).tokens
    return len(rig.ear.downs), rig.ear.ups


async def test_engines_share_the_memory_they_pretend_to_have(tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", memory=echo.MEMORY_MB - 10):
        with pytest.raises(SyscallError, match="20 MB are needed, 10 MB") as caught:
            async with Rig(echo, HERE, tmp_path / "log", memory=20):
                pass
        assert caught.value.errno is Errno.ENOMEM
    async with Rig(echo, HERE, tmp_path / "log", memory=echo.MEMORY_MB, load_s=0.05) as rig:
        assert rig.ear.ups == 1


async def test_the_rate_paces_the_steps(tmp_path: Path) -> None:
    async with Rig(echo, HERE, tmp_path / "log", rate=1000.0) as rig:
        assert (await rig.run(await rig.prompt("hello"))).text == "hello"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("slots", 0),
        ("slots", True),
        ("slots", 1.5),
        ("rate", -1),
        ("rate", "fast"),
        ("width", 17),
        ("colour", 1),
        ("poison", ""),
        ("poison", 3),
        ("memory", -1),
    ],
)
def test_a_bad_option_is_refused(option: str, value: float | str) -> None:
    with pytest.raises(SyscallError) as error:
        echo.check({option: value})
    assert error.value.errno == Errno.EINVAL


def test_it_runs_without_a_file_only() -> None:
    assert echo.probe(Path()).architecture == "echo"
    with pytest.raises(SyscallError):
        echo.probe(HERE)
