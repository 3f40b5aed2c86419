"""What an answer of an endpoint has to be: its schema is read here, and the answer checked.

An endpoint may take a schema for a wish. The check is ours and not a library's, since a pattern
must not be able to hold the kernel.
"""

from functools import lru_cache
from typing import cast

from llmasos.drivers.grammar import answer, compiler
from llmasos.drivers.grammar.document import Document
from llmasos.kernel import limits

_DATA = ("const", "enum", "default", "examples")
_OPEN = ("allOf", "anyOf", "oneOf", "$ref", "patternProperties")  # more properties may be in these


@lru_cache(maxsize=limits.GRAMMARS)
def read(text: str) -> Document:
    """EINVAL with the place of what is not supported. May take seconds."""
    return compiler.checkable(text)


def problem(text: str, given: str) -> str:
    """What is wrong with an answer; empty: nothing. May take seconds."""
    return answer.problem(read(text), given)


def closed(value: object) -> object:
    """A schema as endpoints want it: where properties are declared, there are no others.

    OpenAI refuses a schema that does not say so, and it is what the author means.
    """
    if isinstance(value, list):
        return [closed(one) for one in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, object]", value)
    if "allOf" in found:  # what is combined cannot be closed by itself
        return found
    made = {name: one if name in _DATA else closed(one) for name, one in found.items()}
    if isinstance(found.get("properties"), dict) and not any(name in found for name in _OPEN):
        made.setdefault("additionalProperties", False)
    return made
