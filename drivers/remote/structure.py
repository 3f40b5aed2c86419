"""Checks an endpoint's answer against its schema.

An endpoint may ignore a schema. The check does not use a library: a pattern with exponential
backtracking must not block the kernel.
"""

from functools import lru_cache
from typing import cast

from llmasos.drivers.grammar import answer, compiler
from llmasos.drivers.grammar.document import SchemaDocument
from llmasos.kernel.abi import limits

_DATA = ("const", "enum", "default", "examples")
_OPEN = ("allOf", "anyOf", "oneOf", "$ref", "patternProperties")  # may declare more properties


@lru_cache(maxsize=limits.GRAMMARS)
def read(text: str) -> SchemaDocument:
    """The parsed schema. EINVAL with the path of an unsupported keyword. May take seconds."""
    return compiler.checkable(text)


def problem(text: str, given: str) -> str:
    """Why an answer does not match the schema; empty: it matches. May take seconds."""
    return answer.problem(read(text), given)


def closed(value: object) -> object:
    """A copy of the schema with additionalProperties=false wherever properties are declared.

    OpenAI rejects a schema without it, and it is what authors mean.
    """
    if isinstance(value, list):
        return [closed(one) for one in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, object]", value)
    if "allOf" in found:  # parts of a combination must not forbid each other's properties
        return found
    result = {name: one if name in _DATA else closed(one) for name, one in found.items()}
    if isinstance(found.get("properties"), dict) and not any(name in found for name in _OPEN):
        result.setdefault("additionalProperties", False)
    return result
