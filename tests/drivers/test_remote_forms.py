"""The forms in which endpoints answer: all that carry an answer are read."""

import json
from typing import Any

import pytest

from llmasos.drivers.remote.events import EventStream
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Finish
from tests.drivers.endpoint import Answer, Request, fault, one

pytestmark = pytest.mark.anyio
BOM = "\ufeff"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def raw(data: str | bytes, **headers: str) -> Answer:
    async def answer(request: Request) -> None:
        request.head(200, **headers)
        request.write(data)

    return answer


def delta(**fields: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": fields}]})


END = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = json.dumps({"choices": [], "usage": {"completion_tokens": 1}})
YES = delta(content="yes")


@pytest.mark.parametrize(
    "data",
    [
        f"data: {YES}\n\ndata: {END}\n\ndata: [DONE]\n\n",
        f"{BOM}data: {YES}\n\ndata: {END}\n\ndata: [DONE]\n\n",
        f"\n \ndata: {YES}\n\ndata: {END}\n\n",
        f"data:{YES}\n\ndata:{END}\n\ndata:[DONE]\n\n",  # no space
        f"data: {YES}\r\n\r\ndata: {END}\r\n\r\ndata: [DONE]\r\n\r\n",
        f"data: {YES}\r\rdata: {END}\r\r",
        f": a comment\n\ndata: {YES}\n\n:\n\ndata: {END}\n\n",
        f"event: message\nid: 7\nretry: 100\ndata: {YES}\n\ndata: {END}\n\n",
        f"x-request-id: 7\ndata: {YES}\n\ndata: {END}\n\n",  # fields that are unknown
        f"data: {YES}\n\ndata: {END}\n\n",  # [DONE] is missing
        f"data: {YES}\n\ndata: {END}",  # the last event has no end
        f"data: {YES}\n\ndata: [DONE]\n\n",  # no reason
        f"data: {YES}\n\ndata: {END}\n\ndata: [DONE]",
        f"data:\n\ndata: {YES}\n\ndata: {END}\n\n",  # an empty event
        "data: " + YES.replace(", ", ",\ndata: ") + f"\n\ndata: {END}\n\n",  # of two lines
        f'event: ping\ndata: {{"type": "ping"}}\n\ndata: {YES}\n\ndata: {END}\n\n',
        f"data: {{}}\n\ndata: {YES}\n\ndata: {END}\n\n",
        f'data: {{"object": "trace", "value": [1]}}\n\ndata: {YES}\n\ndata: {END}\n\n',
        f'data: {{"choices": null, "usage": null}}\n\ndata: {YES}\n\ndata: {END}\n\n',
        f'data: {{"choices": []}}\n\ndata: {YES}\n\ndata: {END}\n\n',
        f"data: {USAGE}\n\ndata: {YES}\n\ndata: {END}\n\n",
        f"data: {delta(role='assistant', content=None)}\n\ndata: {YES}\n\ndata: {END}\n\n",
        f"data: {delta(content='')}\n\ndata: {YES}\n\ndata: {END}\n\n",
        f"data: {delta(content=[{'type': 'text', 'text': 'yes'}])}\n\ndata: {END}\n\n",
        f"data: {delta(content=['y', {'type': 'text', 'text': 'es'}, {'type': 'image_url'}])}\n\n"
        f"data: {END}\n\n",
        f"data: {delta(tool_calls=[{'index': 0}])}\n\ndata: {YES}\n\ndata: {END}\n\n",
        f"data: {delta(reasoning_content='hm')}\n\ndata: {YES}\n\ndata: {END}\n\n",
        'data: {"choices": [{"text": "yes", "finish_reason": "stop"}]}\n\n',
        f'data: {{"error": null, {YES[1:]}\n\ndata: {END}\n\n',
    ],
)  # fmt: skip
async def test_a_stream_in_any_form_is_read(data: str) -> None:
    outcome = await one(raw(data))
    assert (outcome.text, outcome.last.finish, outcome.last.error) == ("yes", Finish.STOP, None)


def document(content: object, **more: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"object": "chat.completion", "choices": [{"message": message, **more}]}


USED = {"usage": {"completion_tokens": 2}}


@pytest.mark.parametrize(
    ("body", "text", "finish"),
    [
        (document("yes no", finish_reason="stop") | USED, "yes no", Finish.STOP),
        (document("yes no", finish_reason="length") | USED, "yes no", Finish.LENGTH),
        (document("yes no"), "yes no", Finish.STOP),
        (document([{"type": "text", "text": "yes"}, {"type": "text", "text": " no"}]), "yes no",
         Finish.STOP),
        (document(None, finish_reason="tool_calls"), "", Finish.STOP),
        ({"choices": [{"text": "yes no", "finish_reason": "stop"}]}, "yes no", Finish.STOP),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [0, 2])
async def test_a_whole_answer_instead_of_a_stream_is_read(
    body: dict[str, Any], text: str, finish: Finish, form: int
) -> None:
    data = json.dumps(body, indent=form or None)
    outcome = await one(raw(f"{BOM if form else ''}{data}\n", content_type="application/json"))
    assert (outcome.text, outcome.last.finish) == (text, finish)
    assert outcome.tokens == (2 if "usage" in body else len(text) > 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"error": {"message": "no such model"}}', "no such model"),
        ('{"error": "no such model"}', "no such model"),
        ('[{"error": {"message": "no such model"}}]', "no such model"),
        ('{"object": "error", "message": "no such model"}', "no such model"),
        ('data: {"type": "error", "message": "no such model"}\n\n', "no such model"),
        ('event: error\ndata: {"error": {"message": "no such model"}}\n\n', "no such model"),
        ('{"choices": []}', "an answer without choices"),
        ('{"hello": 1}', "an answer without choices"),
        ('{"choices": [{"message"', "not JSON"),
        ("[1, 2]", "not an event of an answer"),
        ("data: 7\n\n", "not an event of an answer"),
        ("Service unavailable\n", "not a stream of events"),
        ("   ", "the stream ended early"),
    ],
)
async def test_an_error_in_any_form_is_said(data: str, words: str) -> None:
    assert words in await fault(raw(data))
    assert words in await fault(raw(BOM + data))


@pytest.mark.parametrize(
    "body", ['{"error": {"message": "no"}}', f'{BOM}{{"message": "no"}}', '[{"error": "no"}]', "no"]
)
async def test_a_refused_request_says_why(body: str) -> None:
    async def answer(request: Request) -> None:
        request.head(400)
        request.write(body)

    assert "answered 400: no" in await fault(answer)


async def test_any_success_is_one() -> None:
    async def answer(request: Request) -> None:
        request.head(201)
        request.write(f"data: {YES}\n\ndata: {END}\n\n")

    assert (await one(answer)).text == "yes"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_events_do_not_depend_on_how_bytes_come(size: int) -> None:
    data = f"{BOM}data: a\r\n\r\n: x\r\n\r\ndata: b\ndata: ü\n\ndata: c\r\rdata: d".encode()
    events = EventStream()
    found: list[bytes] = []
    for at in range(0, len(data), size):
        found += events.feed(data[at : at + size])
    assert [*found, *events.end()] == [b"a", "b\nü".encode(), b"c", b"d"]


async def test_a_document_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOTE_BODY_BYTES", 1000)
    long = json.dumps(document("x" * 2000))
    assert "an answer of more than 1000 bytes" in await fault(raw(long))
