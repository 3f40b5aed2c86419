"""The remote engine keeps the promises of every engine on llama.cpp's own server."""

import contextlib
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.drivers import remote
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Finish, Sampling, pack_bias
from llmasos.kernel.driver import Option
from tests.drivers import contract, cut_model
from tests.drivers.contract import Promise
from tests.drivers.default_model import MODEL
from tests.drivers.rig import Rig, check_end

pytestmark = pytest.mark.anyio
LLAMA: dict[str, Option] = {"dialect": "llama", "slots": 8, "window": 512}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- a real server ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server whose model is cheap to compute."""
    yield from serve(cut_model.path(), 8)


@pytest.fixture(scope="module")
def sensible() -> Iterator[str]:
    """A server of the embedded model as it is."""
    yield from serve(MODEL, 1)


def serve(model: Path, slots: int) -> Iterator[str]:
    """llama.cpp's own server: slots of 512 tokens, one thread."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    module = "llmasos.userland.bench.llama_server"
    line = [sys.executable, "-m", module, str(model), str(port), str(slots), "1", "512"]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            wait_healthy(f"http://127.0.0.1:{port}/health", child)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.kill()


def wait_healthy(url: str, child: "subprocess.Popen[bytes]") -> None:
    """Its list of models is there before its model is; this is not."""
    for _ in range(600):
        assert child.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
    pytest.fail("the server did not come up")


@pytest.mark.parametrize("promise", contract.PROMISES, ids=contract.name)
async def test_promise(promise: Promise, server: str) -> None:
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        await promise(rig)


@pytest.mark.parametrize("promise", contract.SMALL_PROMISES, ids=contract.name)
async def test_promise_of_a_small_engine(promise: Promise, server: str) -> None:
    small = {**LLAMA, "slots": 4, "window": 256}
    async with Rig(remote, Path(), Path(), url=server, **small) as rig:
        await promise(rig)


@pytest.mark.parametrize("promise", contract.SENSE_PROMISES, ids=contract.name)
async def test_promise_of_a_model_that_makes_sense(promise: Promise, sensible: str) -> None:
    async with Rig(remote, Path(), Path(), url=sensible, **{**LLAMA, "slots": 1}) as rig:
        await promise(rig)


async def test_what_the_server_says_of_itself_is_taken(server: str) -> None:
    async with Rig(remote, Path(), Path(), url=server, dialect="llama") as rig:
        facts = rig.facts
        assert (facts.slots, facts.window, facts.vocab) == (8, 512, 49152)
        assert {"tokenize", "exact_usage", "grammar"} <= facts.capabilities
        assert not {"embed", "park"} & facts.capabilities
        with pytest.raises(SyscallError) as error:
            await rig.engine.embed(["hello"])
        assert error.value.errno == Errno.ENOTSUP
        with pytest.raises(SyscallError) as error:
            await rig.engine.check(Sampling(bias=pack_bias({49152: 1.0})))
        assert error.value.errno == Errno.EINVAL


async def test_usage_is_what_was_told(server: str) -> None:
    """Characters of several tokens, too: the server counts them as it goes."""
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        prompt = await rig.ask("Say: 🦊🦊🦊 and 字字字", raw=False)
        outcome = await rig.run(prompt, max_tokens=30, ignore_eos=True)
        assert outcome.tokens == 30
        assert outcome.fed == prompt.size


async def test_a_grammar_is_obeyed_and_a_bad_one_refused(sensible: str) -> None:
    async with Rig(remote, Path(), Path(), url=sensible, **LLAMA) as rig:
        yes = Sampling(grammar='root ::= "yes" | "no"')
        await rig.engine.check(yes)
        outcome = await rig.run(await rig.ask(), grammar=yes.grammar)
        assert outcome.text in ("yes", "no")
        schema = json.dumps({"type": "object", "properties": {"n": {"enum": [7]}},
                             "required": ["n"], "additionalProperties": False})  # fmt: skip
        await rig.engine.check(Sampling(schema=schema))
        for raw in (False, True):
            outcome = await rig.run(await rig.ask("Say 7. ", raw=raw), schema=schema, max_tokens=80)
            assert json.loads(outcome.text) == {"n": 7}
        for bad in (Sampling(grammar="root ::= nope"), Sampling(schema="[")):
            with pytest.raises(SyscallError) as error:
                await rig.engine.check(bad)
            assert error.value.errno == Errno.EINVAL


async def test_logprobs_spell_characters_of_several_tokens(server: str) -> None:
    """This server tells one probability for all tokens of a character."""
    grammar = 'root ::= "a 🦊 字 END b"'
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        prompt = await rig.ask("Go.")
        outcome = await rig.run(prompt, max_tokens=40, logprobs=1, grammar=grammar, stop=["END"])
        told = [one for step in outcome.steps for one in step.logprobs]
        assert outcome.text == "a 🦊 字 "
        assert b"".join(bytes(one.bytes) or one.text.encode() for one in told).decode() == (
            outcome.text
        )


@pytest.mark.parametrize("raw", [False, True])
async def test_logprobs_come_with_their_tokens(server: str, raw: bool) -> None:
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        outcome = await rig.run(await rig.ask("One, two,", raw=raw), max_tokens=4, logprobs=3)
        told = [one for step in outcome.steps for one in step.logprobs]
        assert len(told) == outcome.tokens == 4
        assert "".join(one.text for one in told) == outcome.text
        for one in told:
            assert [other.logprob for other in one.top] == sorted(
                (other.logprob for other in one.top), reverse=True
            )
            assert one.top[0].token == one.token >= 0
            assert one.logprob <= 0


async def test_the_openai_dialect_speaks_with_the_same_server(sensible: str) -> None:
    async with Rig(remote, Path(), Path(), url=sensible) as rig:
        assert rig.facts.slots == limits.SLOTS
        assert not {"tokenize", "exact_usage", "seed"} & rig.facts.capabilities
        prompt = await rig.ask()
        outcome = await rig.run(prompt, max_tokens=24)
        assert "Paris" in outcome.text
        assert outcome.fed == prompt.size
        check_end(outcome, exact=False)
        raw = await rig.run(await rig.ask("One, two,", raw=True), max_tokens=5)
        assert raw.last.finish is Finish.LENGTH
        assert raw.tokens == 5
