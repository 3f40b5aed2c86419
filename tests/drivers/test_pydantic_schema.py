"""Each pydantic field type: what its schema lets a model write is what pydantic reads.

The grammar is walked byte by byte, without a model. For each type some values have to be written
and read, and some that pydantic refuses must not be written.
"""

import datetime
import enum
import ipaddress
import pathlib
import random
import re
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, Union

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from tests.drivers.schemas import accepts, written


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2**53 + 1


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int


class Pair(NamedTuple):
    x: int
    y: str = "a"


ShortName = Annotated[str, Field(min_length=1, max_length=2)]
LowerName = Annotated[str, Field(pattern="^[a-z]+$")]


class Settings(TypedDict):
    a: int
    b: NotRequired[str]


Pet = Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007
LONG = 2**53 + 1

# A name, the type, JSON that is allowed, JSON that is not.
TYPES: list[tuple[str, Any, list[str], list[str]]] = [
    ("str", str, ['"a"', '""', '"é🦊\\n\\""'], ["1", "null", '"a', '"\t"', '"\\ud800"']),
    ("constr", pydantic.constr(min_length=2, max_length=3), ['"🦊é"', '"abc"'], ['"a"', '"abcd"']),
    ("pattern", pydantic.constr(pattern=r"^\d{3}-[a-z]+$"), ['"123-ab"'], ['"12-ab"', '"123-"']),
    ("int", int, ["0", "-7", str(LONG)], ["1.5", "-0", "01", '"1"', "1" * 40]),
    ("conint", pydantic.conint(ge=1, lt=10, multiple_of=3), ["3", "9"], ["0", "4", "12", "-3"]),
    ("big", Annotated[int, Field(ge=LONG, le=LONG + 1)], [str(LONG)], [str(LONG - 1)]),
    ("float", float, ["0", "-1.5", "2.5e3", "1E-7"], ['"a"', "NaN", ".5", "1." + "3" * 60]),
    ("confloat", pydantic.confloat(gt=0, le=1.5), ["0.001", "1.5", "1"], ["0", "-1", "1.51", "2"]),
    ("half", Annotated[float, Field(multiple_of=0.5)], ["1.5", "2", "-0.5"], ["0.3"]),
    ("finite", pydantic.FiniteFloat, ["1.5"], ["Infinity"]),
    ("bool", bool, ["true", "false"], ["1", '"true"', "True"]),
    ("Decimal", Decimal, ["1.25", '"1.25"', "-3"], ["null"]),
    ("condecimal", pydantic.condecimal(ge=0, le=Decimal("9.99")), ["9.99"], ["10", "-0.01"]),
    ("date", datetime.date, ['"2024-02-29"', '"1999-12-31"'],
     ['"2023-02-29"', '"1900-02-29"', '"2024-13-01"', '"0000-01-01"', '"2024-1-1"']),
    ("datetime", datetime.datetime, ['"2024-02-29T23:59:59Z"', '"2024-01-01T00:00:00.5+02:00"'],
     ['"2024-01-01"', '"2024-01-01T24:00:00Z"', '"2024-01-01T10:00:61Z"']),
    ("aware", pydantic.AwareDatetime, ['"2024-01-01T00:00:00Z"'], ['"2024-01-01T00:00:00"']),
    ("past", pydantic.PastDate, ['"1999-12-31"'], ['"1999"']),
    ("time", datetime.time, ['"10:30:00Z"', '"10:30:00.25-01:30"'], ['"25:00:00Z"', '"10"']),
    ("timedelta", datetime.timedelta, ['"P3DT4H"', '"PT1.5S"', '"P2W"'],
     ['"3 days"', '"P"', '"PT"']),
    ("UUID", uuid.UUID, ['"01234567-89ab-4def-8123-456789abcdef"'], ['"01234567"', '"x"']),
    ("UUID4", pydantic.UUID4, ['"01234567-89ab-4def-8123-456789abcdef"'],
     ['"01234567-89ab-1def-8123-456789abcdef"']),
    ("AnyUrl", pydantic.AnyUrl, ['"ftp://a.example/x?y=1#z"', '"mailto:a@b.example"'],
     ['"no url"', '""']),
    ("HttpUrl", pydantic.HttpUrl, ['"https://example.com:8080/a/b"', '"http://localhost"'],
     ['"example.com"', '"https://"']),
    ("Enum", Colour, ['"red"', '"blue"'], ['"green"', '"RED"', "1"]),
    ("IntEnum", Level, ["1", str(LONG)], ["2", str(LONG - 1), '"1"']),
    ("Literal", Literal["a", 1, True, None], ['"a"', "1", "true", "null"], ["false", "2", '"b"']),
    ("Optional", Optional[int], ["1", "null"], ['"a"']),  # noqa: UP045
    ("Union", Union[int, str], ["1", '"a"'], ["null", "[]"]),  # noqa: UP007
    ("discriminated", Pet, ['{"kind": "cat", "lives": 9}', '{"kind": "dog", "name": "Rex"}'],
     ['{"kind": "cat", "name": "Rex"}', '{"kind": "cow", "lives": 1}']),
    ("list", list[int], ["[]", "[1, 2]"], ['["a"]', "1", "[1,]"]),
    ("conlist", pydantic.conlist(int, min_length=1, max_length=2), ["[1]", "[1,2]"],
     ["[]", "[1,2,3]"]),
    ("deque", deque[int], ["[1]"], ["[null]"]),
    ("Sequence", Sequence[int], ["[1]"], ["{}"]),
    ("set", set[int], ["[]", "[3, 1]"], ['["a"]', "1"]),
    ("frozenset", frozenset[str], ['["a", "b"]'], ["[1]"]),
    ("set of enum", set[Colour], ["[]", '["blue", "red"]'], ['["red", "red"]', '["green"]']),
    ("tuple", tuple[int, str], ['[1, "a"]'], ["[1]", '["a", 1]', '[1, "a", 2]']),
    ("tuple of any length", tuple[int, ...], ["[]", "[1, 2, 3]"], ['["a"]']),
    ("empty tuple", tuple[()], ["[]"], ["[1]"]),
    ("NamedTuple", Pair, ["[1]", '[1, "b"]'], ["[]", '[1, "b", 2]']),
    ("dict", dict[str, int], ["{}", '{"a": 1, "b c": 2}'], ['{"a": "b"}', '{a: 1}', "[]"]),
    ("dict of literals", dict[Literal["a", "b"], int], ['{"a": 1, "b": 2}', "{}"], ['{"c": 1}']),
    ("dict of enum", dict[Colour, int], ['{"red": 1}'], ['{"green": 1}']),
    ("dict of short names", dict[ShortName, int],
     ['{"ab": 1, "c": 2}'], ['{"abc": 1}', '{"": 1}']),
    ("dict by pattern", dict[LowerName, int],
     ['{"ab": 1}', "{}"], ['{"A": 1}', '{"ab": "x"}']),
    ("Mapping", Mapping[str, float], ['{"a": 1.5}'], ['{"a": null}']),
    ("defaultdict", defaultdict[str, list[int]], ['{"a": [1]}'], ['{"a": 1}']),
    ("Counter", Counter[str], ['{"a": 2}'], ['{"a": 0.5}']),
    ("TypedDict", Settings, ['{"a": 1}', '{"a": 1, "b": "c"}'], ["{}", '{"b": "c"}']),
    ("model", Cat, ['{"kind": "cat", "lives": 9}'], ["{}", '{"kind": "cat", "lives": 9, "x": 1}']),
    ("recursive model", Tree,
     ['{"value": 1}', '{"value": 1, "children": [{"value": 2, "children": []}]}'],
     ['{"value": 1, "children": [1]}', '{"children": []}']),
    ("model with extras", Open, ['{"a": 1}', '{"a": 1, "b": [null]}'], ['{"b": 1}']),
    ("closed model", Closed, ['{"a": 1}'], ['{"a": 1, "b": 1}']),
    ("bytes", bytes, ['"abc"'], ["1"]),
    ("Base64Bytes", pydantic.Base64Bytes, ['"YWJj"'], ["1"]),
    ("Path", pathlib.Path, ['"/tmp/a"'], ["1"]),
    ("IPv4Address", ipaddress.IPv4Address, ['"192.0.2.255"'], ['"192.0.2.256"', '"1.2.3"']),
    ("IPv6Address", ipaddress.IPv6Address, ['"2001:db8::1"', '"::"', '"::1"'], ['"1::2::3"']),
    ("IPv4Interface", ipaddress.IPv4Interface, ['"192.0.2.1/24"'], ['"192.0.2.1/33"']),
    ("SecretStr", pydantic.SecretStr, ['"x"'], ["1"]),
    ("Json", pydantic.Json[int], ['"1"'], ["1"]),
    ("Any", Any, ["1", '{"a": [null, true]}'], ["x"]),
    ("object", object, ["[]"], ["]"]),
    ("JsonValue", pydantic.JsonValue, ['{"a": [1]}'], ["x"]),
    ("None", type(None), ["null"], ["1"]),
    ("re.Pattern", re.Pattern, ['"a+"'], ["1"]),
    ("ByteSize", pydantic.ByteSize, ["1024", '"10 MB"'], ["-1", "1.5"]),
    ("annotated", Annotated[int, Field(ge=0, le=255, description="x", examples=[1])],
     ["0", "255"], ["256", "-1"]),
]  # fmt: skip


def model_of(found: Any) -> type[BaseModel]:
    return pydantic.create_model("Model", x=(found, ...))


@pytest.mark.parametrize(
    ("found", "good", "bad"), [row[1:] for row in TYPES], ids=[row[0] for row in TYPES]
)
def test_a_field_is_what_pydantic_reads(found: Any, good: list[str], bad: list[str]) -> None:
    model = model_of(found)
    schema = model.model_json_schema()
    for text in good:
        assert accepts(schema, f'{{"x": {text}}}'), text
        model.model_validate_json(f'{{"x": {text}}}')
    for text in bad:
        assert not accepts(schema, f'{{"x": {text}}}'), text


# Their schemas say less than pydantic asks for.
VAGUE = ("Base64Bytes", "HttpUrl", "Json", "past", "re.Pattern")
RANDOM = [row for row in TYPES if row[0] not in VAGUE]


@pytest.mark.parametrize("found", [row[1] for row in RANDOM], ids=[row[0] for row in RANDOM])
def test_whatever_is_written_is_read(found: Any) -> None:
    """Texts drawn from the grammar, which know nothing of the type."""
    model = model_of(found)
    for seed in range(3):
        text = written(model.model_json_schema(), random.Random(seed))
        try:
            model.model_validate_json(text)
        except pydantic.ValidationError as error:
            pytest.fail(f"{text}: {error}")


def test_the_list_of_types_is_complete() -> None:
    """A name stands once, so no type hides another."""
    names = [row[0] for row in TYPES]
    assert len(names) == len(set(names))
    assert all(row[2] and row[3] for row in TYPES)
