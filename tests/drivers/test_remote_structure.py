"""An answer of an endpoint satisfies its schema, or the call says that it does not."""

import json
from typing import Any

import pytest

from llmasos.drivers.remote.structure import closed
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Finish, Sampling
from tests.drivers.endpoint import Answer, Endpoint, Request, one, refuse

pytestmark = pytest.mark.anyio

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
SCHEMA = json.dumps(PERSON)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def says(*pieces: str, reason: str = "stop") -> Answer:
    async def answer(request: Request) -> None:
        request.head()
        for piece in pieces:
            request.text(piece)
        request.finish(reason)

    return answer


@pytest.mark.parametrize(
    "text",
    ['{"name": "Ann", "age": 3}', '\n {"age": 3, "name": "Ann"}\n', '{"age":3,"name":"A","x":1}'],
)
async def test_an_answer_that_satisfies_its_schema_ends_well(text: str) -> None:
    """In any order, and with any spaces: it is JSON."""
    outcome = await one(says(text[:5], text[5:]), schema=SCHEMA)
    assert (outcome.text, outcome.last.finish) == (text, Finish.STOP)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "Ann"}', "/ has no 'age'"),
        ('{"name": "Ann", "age": -1}', "/age is not within minimum 0"),
        ('{"name": 3, "age": 1}', "/name is not of type string"),
        ('{"name": "Ann", "age": 3', "it is not JSON"),
        ('```json\n{"name": "Ann", "age": 3}\n```', "it is not JSON"),
        ("Ann is three.", "it is not JSON"),
        ("", "it is not JSON"),
        ('{"name": "Ann", "age": NaN}', "NaN is not a JSON value"),
        ("[" * 5000, "nested too deeply"),
    ],
)
async def test_an_answer_that_does_not_is_an_error(text: str, words: str) -> None:
    outcome = await one(says(text), schema=SCHEMA, max_tokens=100)
    assert isinstance(outcome.last.error, DeviceFault)
    assert "the answer does not match the schema: " in outcome.last.error.message
    assert words in outcome.last.error.message
    assert outcome.last.error.hint
    assert outcome.text == text  # what came is shown all the same


async def test_a_cut_answer_is_told_by_its_finish() -> None:
    outcome = await one(says('{"name": "An', reason="length"), schema=SCHEMA)
    assert outcome.last.finish is Finish.LENGTH
    outcome = await one(says('{"name"', ': "An', "n"), schema=SCHEMA, max_tokens=2)
    assert outcome.last.finish is Finish.LENGTH
    outcome = await one(says('{"name": "Ann", ', '"age": 3}'), schema=SCHEMA, stop=['"age'])
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.text == '{"name": "Ann", '


async def test_text_held_back_for_a_stop_string_belongs_to_the_answer() -> None:
    outcome = await one(says('{"name": "Ann", "age": 3}'), schema=SCHEMA, stop=["}}"])
    assert (outcome.text, outcome.last.finish) == ('{"name": "Ann", "age": 3}', Finish.STOP)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"items": {"not": {}}}', "refused at /items: 'not' is not supported"),
        ('{"pattern": "a(?=b)"}', "look-ahead"),
        ('{"pattern": "a("}', "not a regular expression"),
        ("{", "not JSON"),
        ("7", "not a JSON object"),
    ],
)
async def test_what_cannot_be_checked_is_refused_before_it_is_sent(schema: str, words: str) -> None:
    async with Endpoint(refuse) as endpoint, endpoint.rig() as rig:
        with pytest.raises(SyscallError, match="schema") as error:
            await rig.engine.check(Sampling(schema=schema))
        assert error.value.errno is Errno.EINVAL
        assert words in error.value.message
        assert endpoint.bodies == []


CLOSED: list[tuple[Any, Any]] = [
    ({"properties": {"a": {}}}, {"properties": {"a": {}}, "additionalProperties": False}),
    ({"properties": {}, "additionalProperties": True}, None),
    ({"allOf": [{"properties": {"a": {}}}]}, None),
    ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, None),
    ({"const": {"properties": {}}}, None),
    ({"items": {"properties": {}}}, {"items": {"properties": {}, "additionalProperties": False}}),
]


@pytest.mark.parametrize(("schema", "sent"), CLOSED)
async def test_only_declared_properties_are_asked_for(schema: Any, sent: Any) -> None:
    """OpenAI refuses a schema that leaves it open."""
    assert closed(schema) == (schema if sent is None else sent)
