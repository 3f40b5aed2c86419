"""A JSON schema as it was sent: read, and looked at for what the grammar library does not see.

The library compiles a schema that no finite text can satisfy, and an answer under it would never
end; and it names no place in a schema that it refuses. Both are found here.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from llmasos.kernel.errors import Errno, SyscallError

Schema = dict[str, Any]
_NODES = 20_000  # looked at in search of an end
_SEARCH_S = 1.0  # for the place in a refused schema
_SHARED = ("$defs", "definitions", "$schema")  # what a part takes along from the whole
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_PARTS = ("items", "additionalProperties", "not", "if", "then", "else", "contains")


def read(text: str) -> Schema:
    """EINVAL with the place of what is wrong."""
    try:
        found: object = json.loads(text)
        schema = _object(found)
        endless = not _End(schema).reached(schema)
    except RecursionError:
        raise refusal("is nested too deeply", "make it flatter") from None
    except ValueError as error:
        raise refusal(f"is no JSON: {error}", "give the schema as JSON text") from None
    if endless:
        words = "can never be satisfied: what it requires requires itself, without end"
        raise refusal(words, 'let the inner one be left out, or be null by "anyOf"')
    return schema


def _object(found: object) -> Schema:
    if found is True:
        return {}
    if not isinstance(found, dict):
        raise refusal("is no JSON object", '{"type": "object"} allows any object, {} anything')
    return cast("Schema", found)


def refusal(words: str, hint: str) -> SyscallError:
    return SyscallError(Errno.EINVAL, f"the schema {words}", hint)


def place(schema: Schema, words: str, complain: Callable[[Schema], str]) -> str:
    """The JSON pointer of the smallest part about which there is the same complaint."""
    shared = {name: schema[name] for name in _SHARED if name in schema}
    path, parts, until = "", list(_parts(schema)), time.monotonic() + _SEARCH_S
    while parts and time.monotonic() < until:
        step, part = parts.pop(0)
        if complain({**shared, **part}) == words:
            path, parts = path + step, list(_parts(part))
    return path or "/"


def _parts(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas in a schema, and their pointers from it."""
    for name, value in schema.items():
        if name in _PARTS and isinstance(value, dict):
            yield f"/{name}", cast("Schema", value)
        elif name in _MAPS or name in _LISTS:
            for key, one in _named(value):
                if isinstance(one, dict):
                    yield f"/{name}/{key}", cast("Schema", one)


def _named(value: object) -> Iterator[tuple[str, object]]:
    match value:
        case dict():
            for key, one in cast("Schema", value).items():
                yield key.replace("~", "~0").replace("/", "~1"), one
        case list():
            for index, one in enumerate(cast("list[object]", value)):
                yield str(index), one
        case _:
            return


class _End:
    """Whether some finite value satisfies a schema. When in doubt: yes."""

    def __init__(self, whole: Schema) -> None:
        self._whole = whole
        self._open = set[str]()  # references on the way to here
        self._left = _NODES

    def reached(self, schema: object) -> bool:
        self._left -= 1
        if not isinstance(schema, dict) or self._left < 0:
            return True
        node = cast("Schema", schema)
        return (
            self._reference(node)
            and all(map(self.reached, _list(node, "allOf")))
            and self._some(_list(node, "anyOf"))
            and self._some(_list(node, "oneOf"))
            and self._properties(node)
            and self._items(node)
        )

    def _some(self, ways: list[Any]) -> bool:
        return not ways or any(map(self.reached, ways))

    def _reference(self, node: Schema) -> bool:
        name = node.get("$ref")
        if not isinstance(name, str) or not name.startswith("#"):
            return True
        if name in self._open:
            return False
        self._open.add(name)
        reached = self.reached(self._target(name))
        self._open.discard(name)
        return reached

    def _target(self, name: str) -> object:
        """What a reference names; None: the library will say that it is not there."""
        found: Any = self._whole
        for step in name.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            found = cast("Schema", found).get(key) if isinstance(found, dict) else None
        return found

    def _properties(self, node: Schema) -> bool:
        found: object = node.get("properties")
        if node.get("type") != "object" or not isinstance(found, dict):
            return True
        properties = cast("Schema", found)
        names = [name for name in _list(node, "required") if isinstance(name, str)]
        return all(self.reached(properties.get(name)) for name in names)

    def _items(self, node: Schema) -> bool:
        least = node.get("minItems")
        if node.get("type") != "array" or not isinstance(least, int) or least < 1:
            return True
        first = _list(node, "prefixItems")[:least]
        rest = [node.get("items")] if len(first) < least else []
        return all(map(self.reached, [*first, *rest]))


def _list(node: Schema, name: str) -> list[Any]:
    value = node.get(name)
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
