"""JSON schemas mean what their authors mean, and what is not supported is refused by name."""

import json
import random
import time
from typing import Any

import jsonschema
import pytest

from llmasos.drivers.grammar import compiler
from llmasos.drivers.grammar.check import Check
from llmasos.drivers.grammar.document import SchemaDocument, loads
from llmasos.kernel.abi.errors import Errno, SyscallError
from tests.drivers.schemas import accepts, written

BIG = 2**53 + 1


def refused(schema: Any) -> SyscallError:
    with pytest.raises(SyscallError) as error:
        accepts(schema, "")
    assert error.value.errno is Errno.EINVAL
    assert error.value.hint
    return error.value


def problem(schema: Any, text: str) -> str:
    document = SchemaDocument(schema if isinstance(schema, str) else json.dumps(schema))
    return Check(document, compiler.matches).problem(loads(text), document.root)


# --- what a schema allows -----------------------------------------------------------------------
A, B = {"a": {"type": "integer"}}, {"b": {"type": "string"}}
ITEM = {"$defs": {"item": {"type": "integer"}}}
ANCHOR = {"$defs": {"x": {"$anchor": "here", "type": "integer"}}}
ODD = {"$defs": {"a b%/~c": {"type": "integer"}}}
URI = "https://example.com/s"
ROWS: list[tuple[Any, list[str], list[str]]] = [
    # Only declared properties, wherever they are declared.
    ({"properties": A}, ["{}", '{"a": 1}'], ['{"b": 1}', '{"a": 1, "b": 1}', "1"]),
    ({"properties": A, "additionalProperties": True}, ['{"a": 1, "b": 1}'], ['{"a": "x"}']),
    ({"properties": A, "additionalProperties": {"type": "null"}}, ['{"a": 1, "b": null}'],
     ['{"a": 1, "b": 1}', '{"a": null}']),
    ({"allOf": [{"properties": A}, {"properties": B}]}, ['{"a": 1, "b": "x"}'], ['{"c": 1}']),
    ({"allOf": [{"$ref": "#/$defs/base"}], "properties": B, "$defs": {"base": {"properties": A}}},
     ['{"b": "x", "a": 1}'], ['{"b": "x", "c": 1}']),
    ({"properties": A, "anyOf": [{"required": ["a"]}, {"properties": B, "required": ["b"]}]},
     ['{"a": 1}', '{"a": 1, "b": "x"}'], ["{}", '{"c": 1}']),
    ({"type": "object"}, ["{}", '{"x": [1]}'], ["[]"]),
    ({"type": "object", "required": ["x"]}, ['{"x": [1]}', '{"x": 1, "y": 2}'], ["{}"]),
    # Numbers.
    ({"const": BIG}, [str(BIG)], [str(BIG - 1), f"{BIG}.0"]),
    ({"enum": [BIG, -BIG, 10**40]}, [str(BIG), str(-BIG), str(10**40)], [str(BIG + 1)]),
    ({"type": "integer", "minimum": BIG, "maximum": BIG + 1}, [str(BIG), str(BIG + 1)],
     [str(BIG - 1), str(BIG + 2)]),
    ({"type": "integer", "exclusiveMinimum": BIG}, [str(BIG + 1)], [str(BIG)]),
    ({"type": "integer", "maximum": -BIG}, [str(-BIG)], [str(-BIG + 1), "0"]),
    ({"type": "number", "minimum": 0.1, "exclusiveMaximum": 0.3}, ["0.1", "0.29999", "0.2"],
     ["0.3", "0.09", "0", "-0.2"]),
    ({"type": "number", "exclusiveMinimum": -1.25, "maximum": 0}, ["-1.2499", "0", "-1", "0.0"],
     ["-1.25", "-1.251", "0.01"]),
    ({"type": "number", "exclusiveMinimum": 9007199254740993}, ["9007199254740993.1"],
     ["9007199254740993"]),
    ({"minimum": 5, "exclusiveMinimum": True, "type": "integer"}, ["6"], ["5"]),
    ({"type": "integer", "minimum": 1.5, "maximum": 3.5}, ["2", "3"], ["1", "4"]),
    ({"type": "integer", "multipleOf": 7, "minimum": -20}, ["-14", "0", "21"], ["-21", "1"]),
    ({"type": "number", "multipleOf": 0.01}, ["0.07", "-1.5", "3"], ["0.001"]),
    ({"type": "integer", "multipleOf": 1000000}, ["0", "-3000000"], ["1", "100000"]),
    ({"type": "integer", "multipleOf": 0.5}, ["3"], ["0.5"]),
    ({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "type": "integer"}, ["12"], ["4", "6"]),
    ({"const": 1.50}, ["1.5"], ["1.51", "1"]),
    ({"const": 1e3}, ["1000.0"], ["1001"]),
    # Texts.
    ({"type": "string", "minLength": 2, "maxLength": 2}, ['"🦊é"', '"\\n\\\\"'], ['"🦊"', '"abc"']),
    ({"format": "frobnicate", "type": "string"}, ['"x"'], ["1"]),
    ({"format": "email", "type": "string"}, ['"a.b@c.example"'], ['"a"', '"a@b"']),
    ({"format": "date", "maxLength": 10}, ['"2024-02-29"'], ['"2024-02-30"', '"x"']),
    ({"pattern": "b+", "type": "string"}, ['"abba"', '"b\\n"'], ['"a"']),
    ({"pattern": "^(?=.*[0-9])(?=.*[a-z]).{3,}$"}, ['"a1x"', '"2\\"z"'], ['"abc"', '"a1"']),
    ({"pattern": "^(?!.*secret)[a-z]+$"}, ['"abc"', '"secre"'], ['"secret"', '"asecretb"', '"A"']),
    ({"pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}, ['"1.5"', '"-0"'], ['"-"', '""', '"x"']),
    ({"pattern": r"^[^/\s]\w/$"}, ['"ab/"'], ['"/b/"']),
    ({"const": 'a"\\é\n'}, ['"a\\"\\\\é\\n"'], ['"a"']),
    # Lists.
    ({"prefixItems": [{"type": "integer"}, {"type": "string"}]}, ['[1, "a"]', "[1]", "[]"],
     ['[1, "a", 2]', '["a"]']),
    ({"prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "minItems": 2},
     ['[1, "a"]', '[1, "a", "b"]'], ["[1]", "[1, 2]"]),
    ({"items": [{"type": "integer"}], "additionalItems": {"type": "null"}}, ["[1, null]"],
     ["[1, 1]"]),
    ({"items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, ["[1,2]", "[1,2,3]"],
     ["[1]", "[1,2,3,4]"]),
    ({"items": False}, ["[]"], ["[1]"]),
    ({"items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 2}, ["[3,1]", "[1,2,3]"],
     ["[1]", "[1,1]", "[1,2,1]"]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[1]"], ["[1,1]"]),
    # Objects.
    ({"properties": {**A, **B}, "minProperties": 1, "maxProperties": 1}, ['{"a": 1}', '{"b": "x"}'],
     ["{}", '{"a": 1, "b": "x"}']),
    ({"properties": A, "required": ["a"], "additionalProperties": True, "maxProperties": 2},
     ['{"a": 1}', '{"a": 1, "b": 2}'], ["{}", '{"a": 1, "b": 2, "c": 3}']),
    ({"additionalProperties": {"type": "integer"}, "minProperties": 2}, ['{"a": 1, "b": 2}'],
     ['{"a": 1}']),
    ({"patternProperties": {"^x": {"type": "integer"}, "^y": {"type": "null"}}},
     ['{"x": 1, "y1": null}'], ['{"z": 1}', '{"x": null}']),
    ({"properties": {"x": {"minimum": 5}}, "patternProperties": {"^x": {"type": "integer"}}},
     ['{"x": 5, "x2": 1}'], ['{"x": 1}', '{"x": 5.5}']),
    ({"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": {"type": "null"}},
     ['{"x": 1, "y": null}'], ['{"x": null}', '{"y": 1}']),
    ({"properties": {"a": False, "b": True}}, ["{}", '{"b": [1]}'], ['{"a": 1}']),
    ({"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
     ['{"a": 1}'], ['{"c": 1}']),
    ({"const": {"a": [1, None], "b": {}}}, ['{"a": [1, null], "b": {}}'], ['{"a": [1]}']),
    # Types and combinations.
    (True, ["null"], ["nul"]),
    ({}, ['[null, {"a": true}]'], ["]"]),
    ({"type": ["integer", "null"], "minimum": 3}, ["3", "null"], ["2", '"x"']),
    ({"type": "string", "nullable": True}, ['"x"', "null"], ["1"]),
    ({"anyOf": [{"type": "integer"}, {"type": "number", "minimum": 0.5}]}, ["0", "1.5"], ["0.1"]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    ({"oneOf": [{"properties": A, "required": ["a"]}, {"properties": B, "required": ["b"]}]},
     ['{"a": 1}', '{"b": "x"}'], ["{}"]),
    ({"oneOf": [{"const": 1}, {"enum": [2, "x"]}]}, ["1", '"x"'], ["3"]),
    ({"oneOf": [{"type": "array", "maxItems": 0}, {"minItems": 1, "items": {"type": "null"}}]},
     ["[]", "[null]"], ["[1]"]),
    ({"allOf": [{"enum": [1, 2, 3]}, {"minimum": 2}]}, ["2", "3"], ["1", "4"]),
    ({"enum": [1, True, "1"]}, ["1", "true", '"1"'], ["false", "1.0"]),
    ({"type": "integer", "enum": [1, "a"]}, ["1"], ['"a"']),
    # References.
    ({"$ref": "#/$defs/item", **ITEM}, ["1"], ['"a"']),
    ({"$ref": "#here", **ANCHOR}, ["1"], ['"a"']),
    ({"$ref": "#/%24defs/x", **ANCHOR}, ["1"], ['"a"']),
    ({"$ref": "#/$defs/a%20b%25~1~0c", **ODD}, ["1"], ['"a"']),
    ({"$ref": "#/$defs/item", "minimum": 3, **ITEM}, ["3"], ["2"]),
    ({"$id": URI, "$ref": f"{URI}#/$defs/item", **ITEM}, ["1"], ['"a"']),
    ({"$id": URI, "$ref": "item.json",
      "$defs": {"x": {"$id": "item.json", "$ref": "#in", "$defs": {"y": {"$anchor": "in",
                                                                       "type": "null"}}}}},
     ["null"], ["1"]),
    ({"$id": "urn:example:tree", "properties": {"next": {"$ref": "#"}}},
     ['{"next": {"next": {}}}'], ['{"next": 1}']),
    ({"definitions": {"x": {"$id": "#old", "type": "integer"}}, "$ref": "#old"}, ["1"], ["null"]),
    ({"properties": {"a": {"type": "null"}, "b": {"$ref": "#/properties/a"}}}, ['{"b": null}'],
     ['{"b": 1}']),
    ({"prefixItems": [{"type": "null"}, {"$ref": "#/prefixItems/0"}]}, ["[null, null]"],
     ["[null, 1]"]),
    ({"$defs": {"e": {"anyOf": [{"type": "integer"},
                                {"type": "array", "items": {"$ref": "#/$defs/e"}}]}},
      "$ref": "#/$defs/e"}, ["[[1], 2, []]"], ['["a"]']),
    # Annotations.
    ({"type": "integer", "title": "t", "description": "d", "default": "x", "examples": [{}],
      "deprecated": True, "readOnly": True, "$comment": "c", "x-mine": 1, "contentEncoding": "a",
      "frobnicate": {"type": "string"}, "if_": 1}, ["1"], ['"x"']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), ROWS)
def test_a_schema_allows_what_its_author_means(
    schema: Any, good: list[str], bad: list[str]
) -> None:
    for text in good:
        assert accepts(schema, text), text
        assert problem(schema, text) == ""
    for text in bad:
        assert not accepts(schema, text), text


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"type": "number"}, {}])
def test_numbers_end(schema: Any) -> None:
    """However long a model goes on with digits."""
    for begin in ("1", "-1", "0.1", "1e1"):
        longest = begin
        while accepts(schema, longest + "1") and len(longest) < 1000:
            longest += "1"
        assert len(longest) < 50


@pytest.mark.parametrize("kind", ["integer", "number"])
def test_random_bounds_are_exact(kind: str) -> None:
    dice = random.Random(5)
    for _ in range(40):
        digits = dice.choice([1, 2, 3, 17, 20])
        scale = 10 ** dice.choice([0, 0, 1, 3]) if kind == "number" else 1

        def value(digits: int = digits) -> int:
            return dice.randint(-(10**digits), 10**digits)

        def text(scaled: int, scale: int = scale) -> str:
            sign, scaled = "-" if scaled < 0 else "", abs(scaled)
            part = str(scaled % scale).rjust(len(str(scale)) - 1, "0").rstrip("0")
            return f"{sign}{scaled // scale}" + (f".{part}" if part and scale > 1 else "")

        low, high = sorted([value(), value()])
        names = (
            dice.choice(["minimum", "exclusiveMinimum"]),
            dice.choice(["maximum", "exclusiveMaximum"]),
        )
        if low + 1 >= high:
            continue
        schema = f'{{"type": "{kind}", "{names[0]}": {text(low)}, "{names[1]}": {text(high)}}}'
        for found in (low - 1, low, low + 1, high - 1, high, high + 1, 0, value()):
            above = low <= found if names[0] == "minimum" else low < found
            below = found <= high if names[1] == "maximum" else found < high
            assert accepts(schema, text(found)) == (above and below), (schema, text(found))


@pytest.mark.parametrize(
    ("schema", "same", "others"),
    [
        ({"type": "array"}, '[[1, {"a": 1}], [1.0, {"a": 1}]]', '[1, true, "1", null, [1], {}]'),
        ({"items": {"enum": list(range(65))}}, "[1, 64, 1]", "[1, 64]"),
        ({"items": {"type": "string"}}, '["a", "a"]', '["a", "A"]'),
        ({"prefixItems": [{"enum": [1, 2]}, {"enum": [1, 2]}]}, "[1, 1]", "[1, 2]"),
        ({"items": {"type": ["boolean", "integer"]}}, "[true, 1, true]", "[true, 1, false, 0]"),
    ],
)
def test_items_that_no_grammar_can_compare_are_compared_in_the_complete_answer(
    schema: Any, same: str, others: str
) -> None:
    schema = {**schema, "uniqueItems": True}
    assert accepts(schema, same)
    assert accepts(schema, others)
    assert problem(schema, same) == "/ has the same item twice"
    assert problem(schema, others) == ""


def test_a_long_list_is_compared_in_time() -> None:
    schema = {"type": "array", "uniqueItems": True}
    assert problem(schema, json.dumps(list(range(20_000)))) == ""
    assert problem(schema, json.dumps([*range(20_000), 7])) == "/ has the same item twice"


# --- what is refused ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("schema", "place", "words"),
    [
        ({"properties": {"a": {"not": {"type": "null"}}}}, "/properties/a", "'not'"),
        ({"if": {}, "then": {}}, "/", "'if'"),
        ({"dependentSchemas": {}}, "/", "'dependentSchemas'"),
        ({"dependentRequired": {}}, "/", "'dependentRequired'"),
        ({"dependencies": {}}, "/", "'dependencies'"),
        ({"items": {"contains": {}}}, "/items", "'contains'"),
        ({"unevaluatedProperties": False}, "/", "'unevaluatedProperties'"),
        ({"unevaluatedItems": False}, "/", "'unevaluatedItems'"),
        ({"$dynamicRef": "#x"}, "/", "'$dynamicRef'"),
        ({"$recursiveRef": "#"}, "/", "'$recursiveRef'"),
        ({"propertyNames": {"pattern": "a"}, "properties": A}, "/", "'propertyNames'"),
        ({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {}}}}, "/$defs/a", "'not'"),
        ({"pattern": "a(?=b)"}, "/", "look-ahead (?= at character 2"),
        ({"pattern": "(?<=a)b"}, "/", "look-behind (?<= at character 1"),
        ({"pattern": "(?<!a)b"}, "/", "look-behind (?<!"),
        ({"pattern": "^(?!a)b|c"}, "/", "look-ahead (?!"),
        ({"pattern": r"(a)\1"}, "/", r"backreference \1 at character 4"),
        ({"pattern": r"(?P<x>a)(?P=x)"}, "/", "backreference (?P="),
        ({"pattern": "a("}, "/", "not a regular expression"),
        ({"pattern": "^a{3}$", "maxLength": 2}, "/", "nothing can match it"),
        ({"format": "date", "maxLength": 5}, "/", "nothing can match it"),
        ({"items": {"multipleOf": 3e-20}}, "/items", "multipleOf"),
        ({"type": "integer", "multipleOf": 0.123456789}, "/", "multiples of 123456789 are not"),
        ({"type": "integer", "multipleOf": 7, "minimum": BIG}, "/", "cannot be exact"),
        ('{"minimum": 1e400}', "/", "minimum is"),
        ({"multipleOf": 0}, "/", "multipleOf is 0"),
        ({"minLength": -1}, "/", "minLength is -1"),
        ({"required": "a"}, "/", "required is 'a'"),
        ({"anyOf": {}}, "/", "anyOf is {}"),
        ({"properties": {"a": 1}}, "/", "properties is"),
        ({"$ref": "#/$defs/missing"}, "/", "'#/$defs/missing' does not exist"),
        ({"$ref": "#nowhere"}, "/", "'#nowhere' does not exist"),
        ({"$ref": "other.json#/a"}, "/", "'other.json#/a' does not exist"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "/", "alternatives 0 and 1 overlap"),
        ({"oneOf": [{"properties": A}, {"properties": {**A, **B}}]}, "/", "0 and 1 overlap"),
        ({"oneOf": [{"properties": A, "required": ["a"]},
                    {"properties": {**A, **B}, "required": ["a", "b"]}]}, "/", "overlap"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(schema: Any, place: str, words: str) -> None:
    message = refused(schema).message
    assert message.startswith(f"the schema is refused at {place}: ")
    assert words in message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "at /allOf/1, no type satisfies all"),
        ({"$ref": "#"}, "requires itself"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "can never"),
        ({"const": 1, "type": "string"}, "at /, no value of enum or const"),
        ({"minItems": 3, "maxItems": 2, "type": "array"}, "minItems 3 is over maxItems 2"),
        ({"minLength": 3, "maxLength": 2, "type": "string"}, "minLength 3 is over maxLength 2"),
        ({"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 4}, "no multiple of 5"),
        ({"required": ["a", "b"], "maxProperties": 1}, "2 properties are required"),
        ({"items": {"enum": [1]}, "uniqueItems": True, "minItems": 2}, "1 different items exist"),
    ],
)
def test_what_no_value_satisfies_is_refused(schema: Any, words: str) -> None:
    message = refused(schema).message
    assert "can never be satisfied" in message
    assert words in message


def test_unused_definitions_refuse_nothing() -> None:
    assert accepts({"type": "null", "$defs": {"a": {"not": {}}}}, "null")


# --- against another implementation -------------------------------------------------------------
def a_schema(dice: random.Random, depth: int = 2) -> Any:
    def some(*choices: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for choice in choices:
            found |= choice if dice.random() < 0.5 else {}
        return found

    inner = [a_schema(dice, depth - 1) for _ in range(3)] if depth else [{"type": "null"}] * 3
    names = dice.sample(["a", "b", "c"], 2)
    kinds: list[dict[str, Any]] = [
        {"type": "integer", **some({"minimum": dice.randint(-5, 5)}, {"exclusiveMaximum": 9})},
        {"type": "number", **some({"maximum": 1.5}, {"multipleOf": 0.25}, {"minimum": -2})},
        {"type": "string", **some({"minLength": 1}, {"maxLength": 3}, {"pattern": "^[ab]*$"})},
        {"enum": [1, "a", None, [1], {"a": True}, 1.5]},
        {"type": ["boolean", "null"]},
        {"type": "array", "items": inner[0], **some({"minItems": 1}, {"maxItems": 2})},
        {"type": "array", "prefixItems": inner[:2], "items": inner[2]},
        {"type": "object", "properties": dict(zip(names, inner, strict=False)),
         **some({"required": [names[0]]}, {"additionalProperties": inner[2]},
                {"maxProperties": 2}, {"minProperties": 1})},
        {"type": "object", "additionalProperties": inner[0], "propertyNames": {"maxLength": 2}},
        {"anyOf": inner[:2]},
        {"allOf": [{"properties": {"a": inner[0]}}, {"properties": {"b": inner[1]}}],
         "type": "object"},
    ]  # fmt: skip
    return dice.choice(kinds)


def test_what_is_written_satisfies_another_implementation() -> None:
    """And the check agrees with it, also about values that were written for other schemas."""
    dice = random.Random(11)
    schemas: list[Any] = []
    texts: list[str] = []
    while len(texts) < 60:
        schema = a_schema(dice)
        try:
            text = written(schema, dice)
        except SyscallError as error:
            assert "can never be satisfied" in error.message
            continue
        jsonschema.validate(json.loads(text), schema)
        schemas.append(schema)
        texts.append(text)
    wrong = 0
    for schema in schemas:
        judge: Any = jsonschema.Draft202012Validator(schema)
        for text in dice.sample(texts, 8):
            found = problem(schema, text)
            assert judge.is_valid(json.loads(text)) == (found == ""), (schema, text, found)
            wrong += found != ""
    assert wrong > 50


@pytest.mark.parametrize(
    ("schema", "text", "words"),
    [
        ({"properties": {"a/b": {"type": "integer"}}}, '{"a/b": "x"}', "/a~1b is not of type int"),
        ({"items": {"items": {"maximum": 3}}}, "[[1], [2, 4]]", "/1/1 is not within maximum 3"),
        ({"required": ["name"]}, "{}", "/ has no 'name'"),
        ({"uniqueItems": True}, "[1, 2, 1.0]", "/ has the same item twice"),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, '"x"', "none of the 2 alternatives"),
        ({"pattern": "^(a+)+$"}, json.dumps("a" * 5000 + "b"), "/ does not match '^(a+)+$'"),
        ({"const": True}, "1", "/ is not True"),
        ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, "3", "2 of the alternatives of oneOf"),
    ],
)
def test_a_check_names_the_place(schema: Any, text: str, words: str) -> None:
    begin = time.process_time()  # however busy the machine is
    assert words in problem(schema, text)
    assert time.process_time() - begin < 5


def test_properties_may_stand_in_any_order_in_what_is_checked() -> None:
    """And undeclared ones are allowed there, as JSON Schema says."""
    schema = {"properties": {**A, **B}, "required": ["a", "b"]}
    assert problem(schema, '{"b": "x", "a": 1, "c": 2}') == ""
