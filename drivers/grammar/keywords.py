"""The keywords of JSON Schema: the values that each takes, and the unsupported ones.

A keyword that would constrain an answer and is not enforced is refused by name. Any other unknown
keyword is an annotation, as in JSON Schema.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import cast

from llmasos.kernel.abi import limits

from .document import SchemaDocument, SchemaPart, part_error
from .patterns import read

TYPES = ("null", "boolean", "number", "string", "array", "object")
# The type that a keyword implies if `type` is absent.
IMPLIED = {
    **dict.fromkeys(
        ("properties", "required", "additionalProperties", "patternProperties", "propertyNames",
         "minProperties", "maxProperties"), "object",
    ),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"
    ),
}  # fmt: skip
_HINTS = {
    "not": "list what is allowed with enum or anyOf",
    "if": "write the cases as anyOf",
    "dependentSchemas": "write the cases as anyOf",
    "dependentRequired": "write the cases as anyOf",
    "dependencies": "write the cases as anyOf",
    "contains": "describe the items with prefixItems and items",
    "unevaluatedProperties": "remove it: only declared properties are generated",
    "unevaluatedItems": 'use "items": false after prefixItems',
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}


def integer(value: object) -> int | None:
    """The value of a whole number, also of one written as 2.0; else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Decimal) and value.adjusted() < limits.SCHEMA_DIGITS:
        whole = value.to_integral_value()
        return int(whole) if whole == value else None
    return None


def number(value: object) -> bool:
    """Whether a value is a JSON number."""
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def _count(value: object) -> bool:
    found = integer(value)
    return found is not None and 0 <= found < 2**32


def _bound(value: object) -> bool:
    """Whether a bound has at most SCHEMA_DIGITS digits, so that it is exact."""
    if not number(value):
        return False
    found = Decimal(cast("int | Decimal", value))
    digits = len(found.as_tuple().digits)
    return max(digits, abs(found.adjusted())) <= limits.SCHEMA_DIGITS


def _schema(value: object) -> bool:
    return isinstance(value, (dict, bool))


def _schemas(value: object) -> bool:
    return isinstance(value, list) and all(map(_schema, cast("list[object]", value)))


def _map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_schema, cast("dict[str, object]", value).values()))


def _names(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) for name in cast("list[object]", value)
    )


def _type(value: object) -> bool:
    names = cast("list[object]", value) if isinstance(value, list) else [value]
    return bool(names) and all(name in (*TYPES, "integer") for name in names)


def _exclusive(value: object) -> bool:
    return isinstance(value, bool) or _bound(value)


def _text(value: object) -> bool:
    return isinstance(value, str)


_COUNT = (_count, "a whole number from 0 to 4294967295")
_BOUND = (_bound, f"a number of at most {limits.SCHEMA_DIGITS} digits")
_EXCLUSIVE = (_exclusive, _BOUND[1])
_SCHEMA = (_schema, "a schema: an object, true or false")
_SCHEMAS = (_schemas, "a list of schemas")
_MAP = (_map, "an object of schemas")
_TEXT = (_text, "a string")
_TAKES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "$ref": _TEXT,
    "type": (_type, f"one of {', '.join(TYPES)} and integer, or a list of them"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    "allOf": _SCHEMAS, "anyOf": _SCHEMAS, "oneOf": _SCHEMAS, "prefixItems": _SCHEMAS,
    "items": (lambda value: _schema(value) or _schemas(value), _SCHEMA[1]),
    "additionalItems": _SCHEMA, "additionalProperties": _SCHEMA, "propertyNames": _SCHEMA,
    "properties": _MAP, "patternProperties": _MAP, "required": (_names, "a list of names"),
    "minItems": _COUNT, "maxItems": _COUNT, "minLength": _COUNT, "maxLength": _COUNT,
    "minProperties": _COUNT, "maxProperties": _COUNT,
    "minimum": _BOUND, "maximum": _BOUND,
    "exclusiveMinimum": _EXCLUSIVE, "exclusiveMaximum": _EXCLUSIVE,
    "multipleOf": (
        lambda value: _bound(value) and cast("Decimal", value) > 0, "a number over 0",
    ),
    "pattern": _TEXT, "format": _TEXT,
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
}  # fmt: skip


def check_keywords(document: SchemaDocument, part: SchemaPart) -> None:
    """EINVAL for an unsupported keyword or an invalid value."""
    for name, value in part.fields.items():
        if name in _HINTS:
            raise part_error(part, f"{name!r} is not supported", _HINTS[name])
        takes = _TAKES.get(name)
        if takes is not None and not takes[0](value):
            raise part_error(part, f"{name} is {value!r:.80}, not {takes[1]}", "correct the value")
    patterns = [("pattern", part.fields.get("pattern"))]
    patterns += [("patternProperties", name) for name in document.named(part, "patternProperties")]
    for name, pattern in patterns:
        if isinstance(pattern, str):
            _check_pattern(part, name, pattern)


def _check_pattern(part: SchemaPart, name: str, pattern: str) -> None:
    try:
        read(pattern)
    except ValueError as error:
        hint = "write it as alternatives, or list the values with enum"
        raise part_error(part, f"{name} {pattern!r:.120}: {error}", hint) from error
