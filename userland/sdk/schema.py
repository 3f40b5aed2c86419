"""The `schema` of a call: a pydantic model, a dataclass, another type, or a JSON schema.

Pydantic is not imported: its models bring their own schema and parser. Fields of a dataclass may be
numbers, texts, None, lists, tuples, dicts, Literal, Enum, dates, UUIDs, unions of these and other
dataclasses.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

from llmasos.kernel.abi.errors import Errno, SyscallError

Schema = str | Mapping[str, Any] | type[Any]

_PLAIN: dict[Any, str] = {
    str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null",
}  # fmt: skip
_TEXTS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    datetime: ("date-time", datetime.fromisoformat),
    date: ("date", date.fromisoformat),
    time: ("time", time.fromisoformat),
    UUID: ("uuid", UUID),
}


def schema_text(schema: Schema) -> str:
    """The JSON schema as text. EINVAL for a type that has no JSON schema."""
    if isinstance(schema, str):
        return schema
    if isinstance(schema, Mapping):
        return json.dumps(schema)
    if _is_pydantic(schema):
        return json.dumps(schema.model_json_schema())
    writer = _SchemaWriter()
    written = writer.of(schema, _name(schema))
    return json.dumps({**written, "$defs": writer.definitions} if writer.definitions else written)


def parser(schema: Schema | None) -> Callable[[str], Any] | None:
    """A function that parses an answer's text; it raises ValueError for one that does not match."""
    if schema is None:
        return None
    if isinstance(schema, str | Mapping):
        return json.loads
    if _is_pydantic(schema):
        made: Callable[[str], Any] = schema.model_validate_json
        return made
    return partial(_parsed, schema)


def _is_pydantic(schema: Any) -> bool:
    return hasattr(schema, "model_json_schema") and hasattr(schema, "model_validate_json")


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))


def _bare(hint: Any) -> Any:
    """The type without Annotated and NewType."""
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif hasattr(hint, "__supertype__"):  # NewType
            hint = hint.__supertype__
        else:
            return hint


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Field name -> type, and whether the field is required."""
    hints = typing.get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    return {
        field.name: (
            hints[field.name],
            field.default is missing and field.default_factory is missing,
        )
        for field in dataclasses.fields(kind)
        if field.init
    }


class _SchemaWriter:
    """Converts types to JSON schemas. Each dataclass appears once, in the definitions."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def of(self, hint: Any, path: str) -> dict[str, Any]:
        hint = _bare(hint)
        if hint in _PLAIN:
            return {"type": _PLAIN[hint]}
        if hint is Any:
            return {}
        if hint in _TEXTS:
            return {"type": "string", "format": _TEXTS[hint][0]}
        if _is_enum(hint):
            return {"enum": [one.value for one in hint]}
        if dataclasses.is_dataclass(hint):
            return {"$ref": f"#/$defs/{self._defined(hint)}"}
        return self._generic(hint, path)

    def _generic(self, hint: Any, path: str) -> dict[str, Any]:
        origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
        if origin is typing.Literal:
            return {"enum": list(inner)}
        if _is_union(hint):
            return {"anyOf": [self.of(one, path) for one in inner]}
        if origin is tuple and not (len(inner) == 2 and inner[1] is ...):
            parts = [self.of(one, path) for one in inner]
            return {"type": "array", "prefixItems": parts, "items": False,
                    "minItems": len(parts), "maxItems": len(parts)}  # fmt: skip
        if origin in (list, set, frozenset, tuple):
            return {"type": "array", "items": self.of(inner[0], path) if inner else {}}
        if origin is dict and (not inner or _bare(inner[0]) is str):
            values = self.of(inner[1], path) if inner else {}
            return {"type": "object", "additionalProperties": values}
        raise SyscallError(
            Errno.EINVAL, f"{path}: the type {_name(hint)} has no JSON schema",
            "use numbers, texts, lists, dicts with texts as keys, Literal, Enum or dataclasses",
        )  # fmt: skip

    def _defined(self, kind: Any) -> str:
        name = self._names.get(kind)
        if name is None:
            number = sum(other.startswith(kind.__name__) for other in self.definitions)
            name = self._names[kind] = kind.__name__ + (str(number) if number else "")
            self.definitions[name] = {}  # a type may contain itself
            fields = _fields(kind)
            self.definitions[name] = {
                "type": "object",
                "properties": {
                    one: self.of(hint, f"{name}.{one}") for one, (hint, _) in fields.items()
                },
                "required": [one for one, (_, needed) in fields.items() if needed],
                "additionalProperties": False,
            }
        return name


def _parsed(hint: Any, text: str) -> Any:
    return _value(hint, json.loads(text), "the answer")


def _value(hint: Any, value: Any, path: str) -> Any:
    """Convert a JSON value to the type. ValueError when it does not match."""
    hint = _bare(hint)
    if hint is Any:
        return value
    if _is_union(hint):
        return _one_of(hint, value, path)
    if hint in _PLAIN:
        return _scalar(hint, value, path)
    if hint in _TEXTS and isinstance(value, str):
        return _TEXTS[hint][1](value)
    if _is_enum(hint):
        return hint(value)
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast("Any", hint), value, path)
    return _collection(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    """An int is accepted as a float; a bool is not accepted as a number."""
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise _wrong(hint, value, path)


def _one_of(hint: Any, value: Any, path: str) -> Any:
    for one in typing.get_args(hint):
        try:
            return _value(one, value, path)
        except ValueError:
            continue
    raise _wrong(hint, value, path)


def _object(kind: Any, value: Any, path: str) -> Any:
    if not issubclass(type(value), dict):
        raise _wrong(kind, value, path)
    members: dict[str, Any] = value
    fields = _fields(kind)
    missing = [name for name, (_, needed) in fields.items() if needed and name not in members]
    surplus = [name for name in members if name not in fields]
    if missing or surplus:
        what = f"{missing[0]!r} is missing" if missing else f"unknown field {surplus[0]!r}"
        raise ValueError(f"{path}: {what}")
    return kind(**{
        name: _value(fields[name][0], one, f"{path}.{name}") for name, one in members.items()
    })  # fmt: skip


def _collection(hint: Any, value: Any, path: str) -> Any:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Literal and value in inner:
        return value
    if origin is dict and isinstance(value, dict):
        kind = inner[1] if inner else Any
        members = typing.cast("dict[str, Any]", value).items()
        return {key: _value(kind, one, f"{path}.{key}") for key, one in members}
    if origin in (list, set, frozenset, tuple) and issubclass(type(value), list):
        items: list[Any] = value
        constructor: Any = origin
        return constructor(_items(origin, inner, items, path))
    raise _wrong(hint, value, path)


def _items(origin: Any, inner: tuple[Any, ...], values: list[Any], path: str) -> list[Any]:
    if origin is tuple and inner and inner[-1] is not ...:
        if len(values) != len(inner):
            raise ValueError(f"{path}: {len(values)} items instead of {len(inner)}")
        kinds = list(inner)
    else:
        kinds = [inner[0] if inner else Any] * len(values)
    pairs = enumerate(zip(kinds, values, strict=True))
    return [_value(kind, one, f"{path}[{n}]") for n, (kind, one) in pairs]


def _wrong(hint: Any, value: Any, path: str) -> ValueError:
    return ValueError(f"{path}: {value!r:.60} is not of type {_name(hint)}")
