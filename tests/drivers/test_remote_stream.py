"""No endpoint can make the remote engine break its promises, whatever it streams."""

import asyncio
import math
from collections.abc import Mapping

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Finish
from tests.drivers.endpoint import HOUR_S, Request, fault, one

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- endpoints that misbehave -----------------------------------------------------------------
async def test_an_endpoint_that_hangs_before_its_headers_is_left() -> None:
    async def hang(request: Request) -> None:
        await asyncio.sleep(HOUR_S)

    assert "no token within 0.2 s" in await fault(hang, options={"first_s": 0.2})


async def test_comments_and_empty_pieces_are_no_tokens() -> None:
    async def chat(request: Request) -> None:
        request.head()
        request.text("")
        await request.gone()

    assert "no token within 0.2 s" in await fault(chat, options={"first_s": 0.2})


async def test_an_endpoint_that_hangs_mid_stream_is_left() -> None:
    async def hang(request: Request) -> None:
        request.head()
        request.text("one")
        await request.gone()

    assert "no data for 0.2 s after 1 tokens" in await fault(hang, options={"stall_s": 0.2})


async def test_a_stream_cut_in_a_chunk_is_a_fault() -> None:
    async def cut(request: Request) -> None:
        request.head(transfer_encoding="chunked")
        event = b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'
        request.write(b"%x\r\n%s\r\n" % (len(event), event))
        request.write(b"100\r\ndata: {")

    assert "the connection failed" in await fault(cut)


async def test_a_stream_without_an_end_is_a_fault() -> None:
    async def cut(request: Request) -> None:
        request.head()
        request.text("half of")

    assert "the stream ended early, after 1 tokens" in await fault(cut)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>hello</html>\n\n", "not a stream of events"),
        (b"data: {\n\n", "not JSON"),
        (b"data: \xff\xfe\n\n", "not valid UTF-8"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "not JSON"),
        (b'data: {"choices": 7}\n\n', "not an event of an answer"),
        (b"data: 7\n\n", "not an event of an answer"),
        (b'data: {"choices":[{"delta":{"content":[1]}}]}\n\n', "content that is not text"),
        (b'data: {"error":{"message":"out of\\nluck"}}\n\n', "out of luck"),
        (b'data: {"choices":[{"delta":{},"finish_reason":"content_filter"}]}\n\n', "filter"),
        (b"data: " + b"x" * (limits.REMOTE_LINE_BYTES + 1), "a line of more than"),
        (b"data: x\n" * (limits.REMOTE_LINE_BYTES + 1), "a line of more than"),
        (b"\x1f\x8b\x08garbage\n", "not a stream of events"),
        (b"", "the stream ended early"),
    ],
)
async def test_garbage_is_a_fault_that_says_so(data: bytes, words: str) -> None:
    async def garble(request: Request) -> None:
        request.head(content_encoding="gzip" if data.startswith(b"\x1f") else "identity")
        request.write(data)

    assert words in await fault(garble)


async def test_a_whole_answer_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOTE_ANSWER_BYTES", 10_000)

    async def pad(request: Request) -> None:
        request.head()
        request.write(b": padding\n" * 2_000)

    assert "an answer of more than 10000 bytes" in await fault(pad)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [(-5, 2), (10**30, 8), ("many", 2), (None, 2), (True, 2), (0, 2), (3, 3), (2.5, 2), (10**9, 8)],
)
async def test_usage_is_believed_no_further_than_what_was_seen(usage: object, tokens: int) -> None:
    """Two pieces of seven bytes together: at most seven tokens, and the end."""

    async def lie(request: Request) -> None:
        request.head()
        request.text("one")
        request.text(" two")
        request.finish(usage=usage)

    expected = tokens if usage != 10**30 else 2  # beyond every count
    assert (await one(lie)).tokens == expected


async def test_usage_is_never_over_max_tokens() -> None:
    async def lie(request: Request) -> None:
        request.head()
        request.text("a long word, and more", timings={"predicted_n": 10**6})
        request.finish("length", usage=1000)

    assert (await one(lie, max_tokens=3)).tokens == 3


async def test_an_endless_answer_is_cut_at_max_tokens() -> None:
    hung_up = asyncio.Event()

    async def babble(request: Request) -> None:
        request.head()
        try:
            while True:
                request.text("bla ")
                await request.writer.drain()
        except ConnectionError:
            hung_up.set()

    outcome = await one(babble, max_tokens=20)
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.text == "bla " * 20
    with anyio.fail_after(30):
        await hung_up.wait()


async def test_pieces_that_are_too_long_count_as_several_tokens() -> None:
    async def pour(request: Request) -> None:
        request.head()
        for _ in range(10):
            request.text("x" * 100_000)
        request.finish()

    outcome = await one(pour, max_tokens=100)
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.tokens == 100
    assert len(outcome.text) == 100 * limits.REMOTE_TOKEN_CHARS


async def test_halves_of_a_character_are_joined_and_never_shown() -> None:
    async def split(request: Request) -> None:
        request.head()
        request.text("a\ud83e")
        request.text("\udd8a \ud83e")
        request.text("z")
        request.finish()

    outcome = await one(split)
    assert outcome.text == "a🦊 \ufffdz"


async def test_a_stop_string_across_pieces_ends_the_call() -> None:
    async def chat(request: Request) -> None:
        request.head()
        for piece in ("one EN", "D two", " three"):
            request.text(piece)
        await request.gone()

    outcome = await one(chat, stop=["END"])
    assert (outcome.text, outcome.last.finish) == ("one ", Finish.STOP)


async def test_hidden_thoughts_are_counted_and_not_shown() -> None:
    async def think(request: Request) -> None:
        request.head()
        for _ in range(3):
            request.event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
        request.text("42")
        request.finish()

    outcome = await one(think)
    assert (outcome.text, outcome.tokens) == ("42", 4)


async def test_an_answer_is_whole_when_only_its_usage_is_missing() -> None:
    async def finish(request: Request) -> None:
        request.head()
        request.text("done")
        request.event({"choices": [{"text": "", "finish_reason": "stop"}]})
        request.write("rubbish\n\n")

    outcome = await one(finish)
    assert (outcome.text, outcome.last.finish) == ("done", Finish.STOP)


async def test_both_forms_of_logprobs_are_read_without_trust() -> None:
    async def chat(request: Request) -> None:
        request.head()
        request.event({"choices": [{"text": "a", "logprobs": {
            "tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.0, "a": -0.5}],
        }}]})  # fmt: skip
        request.event({"choices": [{"text": "b", "logprobs": {"content": [
            {"token": "b\ud83e", "logprob": "x", "id": -4, "top_logprobs": [7, None]}, "junk",
        ]}}]})  # fmt: skip
        request.finish()

    told = [x for step in (await one(chat, logprobs=2)).steps for x in step.logprobs]
    assert (told[0].text, told[0].logprob, told[0].token) == ("a", -0.5, -1)
    assert [other.text for other in told[0].top] == ["a", "b"]
    assert all(math.isfinite(x.logprob) for x in told)


def pieces(*tokens: Mapping[str, object], text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}, "logprobs": {"content": list(tokens)}}]}


async def test_logprobs_spell_the_text_that_was_shown() -> None:
    """A character of two tokens comes with its last byte; a stop string cuts both."""
    first = {"token": "\\xf0\\x9f", "bytes": [0xF0, 0x9F], "logprob": -1}
    second = {"token": "\\xa6\\x8a", "bytes": [0xA6, 0x8A], "logprob": -1, "top_logprobs": [first]}

    async def chat(request: Request) -> None:
        request.head()
        request.event(pieces({"token": "a", "logprob": -1}, first, text="a"))
        request.event(pieces(second, {"token": " EN", "logprob": -1}, text="🦊 EN"))
        request.event(pieces({"token": "D b", "logprob": -1}, text="D b"))
        await request.gone()

    outcome = await one(chat, stop=["END"], logprobs=1)
    told = [x for step in outcome.steps for x in step.logprobs]
    assert outcome.text == "a🦊 "
    assert b"".join(bytes(x.bytes) or x.text.encode() for x in told) == outcome.text.encode()
    assert [x.bytes for x in told] == [[], [0xF0, 0x9F], [0xA6, 0x8A], []]
    assert told[2].top[0].bytes == [0xF0, 0x9F]
    assert [len(step.logprobs) for step in outcome.steps if step.text] == [1, 2]


@pytest.mark.parametrize("junk", [[-1], [256], ["a"], "ab", {"a": 1}, [1] * 10_000, None])
async def test_bytes_of_tokens_are_read_without_trust(junk: object) -> None:
    async def chat(request: Request) -> None:
        request.head()
        request.event(pieces({"token": "ab", "logprob": -1, "bytes": junk}, text="ab"))
        request.finish()

    told = [x for step in (await one(chat, logprobs=0)).steps for x in step.logprobs]
    assert [(x.text, x.bytes) for x in told] == [("ab", [])]


async def test_the_bytes_of_older_completions_are_read() -> None:
    async def chat(request: Request) -> None:
        request.head()
        names = ["bytes:\\xf0\\x9f", "bytes:\\xa6\\x8a"]
        logprobs = {"tokens": names, "token_logprobs": [-1, -2]}
        request.event({"choices": [{"text": "🦊", "logprobs": logprobs}]})
        request.finish()

    told = [x for step in (await one(chat, logprobs=0)).steps for x in step.logprobs]
    assert bytes(told[0].bytes + told[1].bytes).decode() == "🦊"
