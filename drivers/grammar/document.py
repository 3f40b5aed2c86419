"""A JSON schema as it was sent: its parts, where they stand, and what its references name.

Numbers are exact: an integer is an int, everything else a Decimal. A part is one object a place,
so parts can be compared and remembered.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import cast
from urllib.parse import unquote, urljoin

from llmasos.kernel.errors import Errno, SyscallError

# Values of these are data, not schemas.
_DATA = frozenset({"const", "enum", "default", "examples", "example"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


class Part:
    """A value in a schema, and where it stands."""

    __slots__ = ("base", "pointer", "value")

    def __init__(self, pointer: str, value: object, base: str) -> None:
        self.pointer = pointer  # JSON pointer from the whole
        self.value = value
        self.base = base  # URI that references in it are relative to

    @property
    def fields(self) -> Mapping[str, object]:
        """Its keywords, when it is an object."""
        value = self.value
        return cast("dict[str, object]", value) if isinstance(value, dict) else {}

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    @property
    def place(self) -> str:
        return self.pointer or "/"

    def list(self, name: str) -> list[object]:
        value = self.fields.get(name)
        return cast("list[object]", value) if isinstance(value, list) else []


def refusal(words: str, hint: str) -> SyscallError:
    return SyscallError(Errno.EINVAL, f"the schema {words}", hint)


def refused(part: Part, words: str, hint: str = "change that part, or remove it") -> SyscallError:
    return refusal(f"is refused at {part.place}: {words}", hint)


def step_text(step: str | int) -> str:
    """A name or an index as a JSON pointer has it."""
    return str(step).replace("~", "~0").replace("/", "~1")


def loads(text: str) -> object:
    """JSON with exact numbers. ValueError: it is none; RecursionError: it is nested too deeply."""

    def constant(name: str) -> object:
        raise ValueError(f"{name} is not a JSON value")

    found: object = json.loads(
        text.removeprefix("\ufeff"), parse_float=Decimal, parse_constant=constant
    )
    return found


class Document:
    """A whole schema."""

    def __init__(self, text: str) -> None:
        """EINVAL when it is not JSON, or neither an object nor true."""
        try:
            value = loads(text)
        except RecursionError:
            raise refusal("is nested too deeply", "make it flatter") from None
        except ValueError as error:
            raise refusal(f"is not JSON: {error}", "give the schema as JSON text") from None
        if value is not True and not _is_object(value):
            hint = '{"type": "object"} allows any object, {} any value'
            raise refusal("is not a JSON object", hint)
        self._parts: dict[str, Part] = {}
        self._maps: dict[tuple[str, str], Mapping[str, Part]] = {}
        self._resources: dict[str, Part] = {}
        self._anchors: dict[tuple[str, str], Part] = {}
        self.root = self._part("", value, "")
        self._resources.setdefault("", self.root)
        self._register()

    # --- places ---------------------------------------------------------------------------------
    def child(self, part: Part, *steps: str | int) -> Part:
        """What stands in a part. KeyError, IndexError or TypeError: nothing does."""
        for step in steps:
            pointer = f"{part.pointer}/{step_text(step)}"
            known = self._parts.get(pointer)
            if known is None:
                value = cast("dict[str | int, object]", part.value)[step]
                known = self._part(pointer, value, part.base)
            part = known
        return part

    def children(self, part: Part, name: str) -> list[Part]:
        """The schemas in a list of them."""
        return [self.child(part, name, index) for index in range(len(part.list(name)))]

    def named(self, part: Part, name: str) -> Mapping[str, Part]:
        """The schemas in a map of them."""
        known = self._maps.get((part.pointer, name))
        if known is None:
            found = part.fields.get(name)
            names = cast("dict[str, object]", found) if isinstance(found, dict) else {}
            known = {key: self.child(part, name, key) for key in names}
            self._maps[part.pointer, name] = known
        return known

    def child_or_none(self, part: Part, name: str) -> tuple[Part, ...]:
        """The schema of a keyword, if it is there."""
        return (self.child(part, name),) if name in part.fields else ()

    def items(self, part: Part) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """The schemas of the first items, and the one of all others, in the words of any draft."""
        if isinstance(part.fields.get("items"), list):
            first, rest = "items", "additionalItems"
        else:
            first, rest = "prefixItems", "items"
        return tuple(self.children(part, first)), self.child_or_none(part, rest)

    def _part(self, pointer: str, value: object, base: str) -> Part:
        part = self._parts[pointer] = Part(pointer, value, base)
        name = part.fields.get("$id")
        if isinstance(name, str) and not name.startswith("#"):
            part.base = _join(base, name.removesuffix("#"))
        return part

    # --- references -----------------------------------------------------------------------------
    def _register(self) -> None:
        """Find every $id and $anchor."""
        open_parts = [(self.root, False)]
        while open_parts:
            part, named = open_parts.pop()
            if isinstance(part.value, dict) and not named:
                self._name(part)
            for step in self._steps(part, named):
                inside = self.child(part, step)
                open_parts.append((inside, not named and step in NAMED))

    def _steps(self, part: Part, named: bool) -> Iterator[str | int]:
        if part.is_list:
            yield from range(len(cast("list[object]", part.value)))
        for name, value in part.fields.items():
            if isinstance(value, (dict, list)) and (named or name not in _DATA):
                yield name

    def _name(self, part: Part) -> None:
        name = part.fields.get("$id")
        if isinstance(name, str):
            if name.startswith("#"):  # as drafts 6 and 7 write an anchor
                self._anchors.setdefault((part.base, name[1:]), part)
            else:
                self._resources.setdefault(part.base, part)
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = part.fields.get(keyword)
            if isinstance(anchor, str):
                self._anchors.setdefault((part.base, anchor), part)

    def target(self, part: Part) -> Part:
        """What the $ref of a part names. EINVAL: it is not in this schema."""
        name = part.fields.get("$ref")
        if not isinstance(name, str):
            raise refused(part, "$ref is not a text")
        base, _, fragment = name.partition("#")
        uri = _join(part.base, base) if base else part.base
        resource, wanted = self._resources.get(uri), unquote(fragment)
        found = None
        if resource is not None and wanted and not wanted.startswith("/"):
            found = self._anchors.get((uri, wanted))
        elif resource is not None:
            found = self._follow(resource, wanted)
        if found is None or not isinstance(found.value, (dict, bool)):
            hint = "a reference names a schema in the same text, as #/$defs/NAME or #ANCHOR"
            raise refused(part, f"$ref {name!r:.120} does not exist in it", hint)
        return found

    def _follow(self, part: Part, pointer: str) -> Part | None:
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
