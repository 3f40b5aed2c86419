"""Parses a JSON schema: its parts, their positions, and the targets of its references.

Numbers are exact: an integer is an int, any other number a Decimal. There is one SchemaPart object
per position, so parts can be compared and used as keys.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import cast
from urllib.parse import unquote, urljoin

from llmasos.kernel.abi.errors import Errno, SyscallError

# The values of these keywords are data, not schemas.
_DATA = frozenset({"const", "enum", "default", "examples", "example"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


class SchemaPart:
    """A value in a schema and its position."""

    __slots__ = ("base", "pointer", "value")

    def __init__(self, pointer: str, value: object, base: str) -> None:
        self.pointer = pointer  # JSON pointer from the root
        self.value = value
        self.base = base  # base URI of the references in it

    @property
    def fields(self) -> Mapping[str, object]:
        """Its keywords; empty if it is not an object."""
        value = self.value
        return cast("dict[str, object]", value) if isinstance(value, dict) else {}

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    @property
    def place(self) -> str:
        """Its position in messages."""
        return self.pointer or "/"

    def list(self, name: str) -> list[object]:
        value = self.fields.get(name)
        return cast("list[object]", value) if isinstance(value, list) else []


def schema_error(problem: str, hint: str) -> SyscallError:
    """EINVAL for a schema."""
    return SyscallError(Errno.EINVAL, f"the schema {problem}", hint)


def part_error(
    part: SchemaPart, problem: str, hint: str = "change or remove that part"
) -> SyscallError:
    """EINVAL for a part of a schema, with its position."""
    return schema_error(f"is refused at {part.place}: {problem}", hint)


def step_text(step: str | int) -> str:
    """A name or an index, escaped for a JSON pointer."""
    return str(step).replace("~", "~0").replace("/", "~1")


def loads(text: str) -> object:
    """Parse JSON with exact numbers. ValueError: not JSON; RecursionError: nested too deeply."""

    def constant(name: str) -> object:
        raise ValueError(f"{name} is not a JSON value")

    found: object = json.loads(
        text.removeprefix("\ufeff"), parse_float=Decimal, parse_constant=constant
    )
    return found


class SchemaDocument:
    """A parsed schema."""

    def __init__(self, text: str) -> None:
        """EINVAL when it is not JSON, or neither an object nor true."""
        try:
            value = loads(text)
        except RecursionError:
            raise schema_error("is nested too deeply", "reduce the nesting") from None
        except ValueError as error:
            raise schema_error(f"is not JSON: {error}", "pass the schema as JSON") from None
        if value is not True and not _is_object(value):
            hint = '{"type": "object"} allows any object, {} any value'
            raise schema_error("is not a JSON object", hint)
        self._parts: dict[str, SchemaPart] = {}
        self._maps: dict[tuple[str, str], Mapping[str, SchemaPart]] = {}
        self._resources: dict[str, SchemaPart] = {}
        self._anchors: dict[tuple[str, str], SchemaPart] = {}
        self.root = self._part("", value, "")
        self._resources.setdefault("", self.root)
        self._register()

    # --- parts ----------------------------------------------------------------------------------
    def child(self, part: SchemaPart, *steps: str | int) -> SchemaPart:
        """The part below `part`. KeyError, IndexError or TypeError: there is none."""
        for step in steps:
            pointer = f"{part.pointer}/{step_text(step)}"
            known = self._parts.get(pointer)
            if known is None:
                value = cast("dict[str | int, object]", part.value)[step]
                known = self._part(pointer, value, part.base)
            part = known
        return part

    def children(self, part: SchemaPart, name: str) -> list[SchemaPart]:
        """The schemas of a keyword with a list of schemas."""
        return [self.child(part, name, index) for index in range(len(part.list(name)))]

    def named(self, part: SchemaPart, name: str) -> Mapping[str, SchemaPart]:
        """The schemas of a keyword with an object of schemas."""
        known = self._maps.get((part.pointer, name))
        if known is None:
            found = part.fields.get(name)
            names = cast("dict[str, object]", found) if isinstance(found, dict) else {}
            known = {key: self.child(part, name, key) for key in names}
            self._maps[part.pointer, name] = known
        return known

    def child_or_none(self, part: SchemaPart, name: str) -> tuple[SchemaPart, ...]:
        """The schema of a keyword; empty if it is absent."""
        return (self.child(part, name),) if name in part.fields else ()

    def items(self, part: SchemaPart) -> tuple[tuple[SchemaPart, ...], tuple[SchemaPart, ...]]:
        """The schemas of the first items, and that of all others, in the syntax of any draft."""
        if isinstance(part.fields.get("items"), list):
            first, rest = "items", "additionalItems"
        else:
            first, rest = "prefixItems", "items"
        return tuple(self.children(part, first)), self.child_or_none(part, rest)

    def _part(self, pointer: str, value: object, base: str) -> SchemaPart:
        part = self._parts[pointer] = SchemaPart(pointer, value, base)
        name = part.fields.get("$id")
        if isinstance(name, str) and not name.startswith("#"):
            part.base = _join(base, name.removesuffix("#"))
        return part

    # --- references -----------------------------------------------------------------------------
    def _register(self) -> None:
        """Register every $id and $anchor."""
        open_parts = [(self.root, False)]
        while open_parts:
            part, named = open_parts.pop()
            if isinstance(part.value, dict) and not named:
                self._name(part)
            for step in self._steps(part, named):
                inside = self.child(part, step)
                open_parts.append((inside, not named and step in NAMED))

    def _steps(self, part: SchemaPart, named: bool) -> Iterator[str | int]:
        if part.is_list:
            yield from range(len(cast("list[object]", part.value)))
        for name, value in part.fields.items():
            if isinstance(value, (dict, list)) and (named or name not in _DATA):
                yield name

    def _name(self, part: SchemaPart) -> None:
        name = part.fields.get("$id")
        if isinstance(name, str):
            if name.startswith("#"):  # an anchor in drafts 6 and 7
                self._anchors.setdefault((part.base, name[1:]), part)
            else:
                self._resources.setdefault(part.base, part)
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = part.fields.get(keyword)
            if isinstance(anchor, str):
                self._anchors.setdefault((part.base, anchor), part)

    def target(self, part: SchemaPart) -> SchemaPart:
        """The target of the $ref of a part. EINVAL when it is not in this schema."""
        name = part.fields.get("$ref")
        if not isinstance(name, str):
            raise part_error(part, "$ref is not a string")
        base, _, fragment = name.partition("#")
        uri = _join(part.base, base) if base else part.base
        resource, wanted = self._resources.get(uri), unquote(fragment)
        found = None
        if resource is not None and wanted and not wanted.startswith("/"):
            found = self._anchors.get((uri, wanted))
        elif resource is not None:
            found = self._follow(resource, wanted)
        if found is None or not isinstance(found.value, (dict, bool)):
            hint = "refer to a schema in the same document, as #/$defs/NAME or #ANCHOR"
            raise part_error(part, f"$ref {name!r:.120} does not exist in it", hint)
        return found

    def _follow(self, part: SchemaPart, pointer: str) -> SchemaPart | None:
        for step in pointer.split("/")[1:]:
            key: str | int = step.replace("~1", "/").replace("~0", "~")
            if part.is_list and str(key).isdecimal():
                key = int(key)
            try:
                part = self.child(part, key)
            except (KeyError, IndexError, TypeError):
                return None
        return part


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _join(base: str, name: str) -> str:
    try:
        return urljoin(base, name)
    except ValueError:
        return name
