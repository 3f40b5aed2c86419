"""What the remote engine sends, the vectors that it takes, and the options of a mount."""

import base64
import math
import struct
from typing import Any

import pytest

from llmasos.drivers import remote
from llmasos.drivers.remote import options, payload
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Message, Role, Sampling, pack_bias
from llmasos.kernel.driver import Option, Prompt
from tests.drivers.default_model import MODEL
from tests.drivers.endpoint import Answer, Endpoint, Request, refuse, statuses

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- what is sent -----------------------------------------------------------------------------
async def body(dialect: str, sampling: Sampling, *, raw: bool = False) -> dict[str, Any]:
    prompt = Prompt((), (), [Message(Role.USER, "hi")], raw, 3)
    chosen = options.settings({"url": "http://127.0.0.1/v1", "model": "m", "dialect": dialect})
    _, sent = payload.request(chosen, prompt, sampling, 7)
    return sent


async def test_only_what_openai_knows_is_sent_to_it() -> None:
    sampling = Sampling(seed=3)
    assert set(await body("openai", sampling)) == {
        "model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p",
        "seed",
    }  # fmt: skip
    assert {"top_k", "min_p", "repeat_penalty", "cache_prompt"} <= set(
        await body("llama", sampling)
    )
    full = Sampling(seed=3, stop=list("abcdef"), bias=pack_bias({5: -100.0}), logprobs=2,
                    frequency_penalty=1.0, schema='{"type": "object"}')  # fmt: skip
    sent = await body("openai", full)
    assert sent["stop"] == list("abcd")
    assert sent["logit_bias"] == {"5": -100.0}
    assert (sent["logprobs"], sent["top_logprobs"], sent["frequency_penalty"]) == (True, 2, 1.0)
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (await body("openai", Sampling(logprobs=2), raw=True))["prompt"] == "hi"


@pytest.mark.parametrize(
    "asked", [{"top_k": 3}, {"min_p": 0.2}, {"repeat_penalty": 1.3}, {"ignore_eos": True},
              {"grammar": 'root ::= "a"'}, {"lookup": True}],
)  # fmt: skip
async def test_what_a_dialect_cannot_do_is_refused_by_name(asked: dict[str, Any]) -> None:
    async with Endpoint(refuse) as endpoint, endpoint.rig() as rig:
        with pytest.raises(SyscallError, match=next(iter(asked))) as error:
            await rig.engine.check(Sampling(**asked))
        assert error.value.errno == Errno.ENOTSUP
        await rig.engine.check(Sampling(repeat_penalty=limits.REPEAT_PENALTY))  # `run` says it
        with pytest.raises(SyscallError) as error:
            await rig.engine.tokenize("hello")
        assert error.value.errno == Errno.ENOTSUP


async def test_sizes_are_estimated_where_they_are_not_known() -> None:
    async with Endpoint(refuse) as endpoint, endpoint.rig() as rig:
        texts = ["", "a word " * 2_000, "字" * 900]
        messages = [Message(Role.USER, text) for text in texts]
        prompt = await rig.engine.compose(messages, raw=False, fresh=3)
        assert prompt.tokens == ()
        assert prompt.size == 3_500 + 900 + 3 * 4
        assert ["".join(cut.text for cut in cuts) for cuts in prompt.cuts] == texts
        assert all(0 < c.tokens <= limits.PAGE_TOKENS for cuts in prompt.cuts for c in cuts)


# --- vectors ----------------------------------------------------------------------------------
def vectors(*values: object, **more: object) -> Answer:
    async def answer(request: Request) -> None:
        data = [{"index": place, "embedding": value} for place, value in enumerate(values)]
        request.json({"data": data[::-1], **more})

    return answer


async def test_vectors_have_length_1_and_the_order_of_the_texts() -> None:
    answer = vectors([3, 4], [0, -2], usage={"prompt_tokens": 6})
    async with Endpoint(answer) as endpoint, endpoint.rig() as rig:
        found = await rig.engine.embed(["one", "two"])
        assert (found.dimensions, found.tokens) == (2, 6)
        unpacked = [struct.unpack("<2f", one) for one in found.vectors]
        assert unpacked[0] == pytest.approx((0.6, 0.8))
        assert unpacked[1] == pytest.approx((0.0, -1.0))


async def test_vectors_in_base64_are_read() -> None:
    packed = [base64.b64encode(struct.pack("<2f", *pair)).decode() for pair in ([3, 4], [0, -2])]
    async with Endpoint(vectors(*packed)) as endpoint, endpoint.rig() as rig:
        found = await rig.engine.embed(["one", "two"])
        assert struct.unpack("<2f", found.vectors[0]) == pytest.approx((0.6, 0.8))


@pytest.mark.parametrize(
    "values",
    [([1.0],), ([1], [1, 2]), ([0, 0], [1, 0]), (["x"], [1]), ([], []), ([1e400], [1]),
     ([1.7e308, 1.7e308], [1, 1]), ([1], [1], [1]), (None, [1]), ("AAA", [1]),
     ("!!!!", [1]), ("AAAAAAA=", [1])],
)  # fmt: skip
async def test_vectors_that_are_none_are_refused(values: tuple[object, ...]) -> None:
    async with Endpoint(vectors(*values)) as endpoint, endpoint.rig() as rig:
        with pytest.raises(DeviceFault):
            await rig.engine.embed(["one", "two"])


@pytest.mark.parametrize("status", [404, 501])
async def test_an_endpoint_without_vectors_is_enotsup(status: int) -> None:
    async with Endpoint(statuses(status)) as endpoint, endpoint.rig() as rig:
        with pytest.raises(SyscallError) as error:
            await rig.engine.embed(["one"])
        assert error.value.errno == Errno.ENOTSUP


# --- options ----------------------------------------------------------------------------------
URL = "https://api.example.com/v1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "not http://HOST or https://HOST"),
        ({"url": "ftp://host/v1"}, "not http://HOST or https://HOST"),
        ({"url": "https://me:word@host/v1"}, "keys must not be part of a url"),
        ({"url": "https://host/v1?key=1"}, "keys must not be part of a url"),
        ({"url": "https://host:port/v1"}, "invalid url"),
        ({"url": "https://hö/v1"}, "not printable ASCII"),
        ({"url": "http://example.com/v1", "secret": "mine"}, "unencrypted to example.com"),
        ({"url": "HTTP://example.com/v1", "secret": "mine"}, "unencrypted to example.com"),
        ({"url": URL, "slots": 0}, "slots is 0"),
        ({"url": URL, "slots": True}, "slots is True"),
        ({"url": URL, "dialect": "latin"}, "dialect is 'latin'"),
        ({"url": URL, "first_s": 0}, "first_s is 0"),
        ({"url": URL, "stall_s": math.nan}, "stall_s is nan"),
        ({"url": URL, "model": ""}, "model is ''"),
        ({"url": URL, "colour": 1}, "unknown option 'colour'"),
        ({"url": URL, "secret": "not a name!"}, "invalid name of a secret"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Option], words: str) -> None:
    with pytest.raises(SyscallError, match=words) as error:
        remote.check(options)
    assert error.value.errno == Errno.EINVAL
    assert "word@" not in str(error.value)
    assert "not a name" not in str(error.value)


def test_a_good_url_is_taken() -> None:
    for url in (URL, URL + "/", "http://127.0.0.1:8080/v1", "http://[::1]:80", "http://host/v1"):
        remote.check({"url": url})


def test_it_runs_no_files() -> None:
    with pytest.raises(SyscallError):
        remote.probe(MODEL)
