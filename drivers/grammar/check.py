"""Checks whether a value satisfies a schema, as JSON Schema defines it.

Used for answers that were not generated under the schema: properties may be in any order, and
undeclared properties are allowed. `format` is an annotation. The first problem is returned, with
its position in the value as a JSON pointer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import cast

from llmasos.kernel.abi import limits

from .document import SchemaDocument, SchemaPart, step_text
from .keywords import integer, number

Matches = Callable[[str, str], bool]  # (pattern, text): whether the text contains a match
_TYPES: dict[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "number": number,
    "integer": lambda value: integer(value) is not None,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def same(one: object, two: object) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    if number(one) and number(two):
        return one == two
    if isinstance(one, list) and isinstance(two, list):
        first, second = cast("list[object]", one), cast("list[object]", two)
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(one, dict) and isinstance(two, dict):
        left, right = cast("dict[str, object]", one), cast("dict[str, object]", two)
        return left.keys() == right.keys() and all(
            same(value, right[name]) for name, value in left.items()
        )
    return one == two and isinstance(one, bool) == isinstance(two, bool)


def key(value: object) -> object:
    """A hashable key: equal for two values exactly if `same` is true for them."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, list):
        return list, tuple(map(key, cast("list[object]", value)))
    if isinstance(value, dict):
        members = cast("dict[str, object]", value).items()
        return dict, frozenset((name, key(one)) for name, one in members)
    return value


@dataclass(slots=True)
class Check:
    """Checks values against one schema."""

    document: SchemaDocument
    matches: Matches
    left: int = limits.SCHEMA_CHECKS  # steps before the check gives up

    def problem(
        self, value: object, part: SchemaPart, place: str = "", *, resolved: bool = False
    ) -> str:
        """The first problem; empty: none. `resolved`: references and combinations are ignored."""
        self.left -= 1
        if self.left < 0:
            return "the answer takes too long to check against its schema"
        if isinstance(part.value, bool):
            return "" if part.value else f"{place or '/'} is not allowed"
        problem = _typed(value, part.fields) or _number(value, part.fields)
        problem = problem or self._text(value, part.fields) or _size(value, part.fields)
        if problem:
            return f"{place or '/'} {problem}"
        found = next(filter(None, self._inside(value, part, place)), "")
        return found if found or resolved else self._combined(value, part, place)

    # --- combinations ---------------------------------------------------------------------------
    def _combined(self, value: object, part: SchemaPart, place: str) -> str:
        found = ""
        if "$ref" in part.fields:
            found = self.problem(value, self.document.target(part), place)
        for one in self.document.children(part, "allOf"):
            found = found or self.problem(value, one, place)
        for name in ("anyOf", "oneOf"):
            if name in part.fields and not found:
                found = self._alternatives(value, part, name, place)
        return found

    def _alternatives(self, value: object, part: SchemaPart, name: str, place: str) -> str:
        problems = [self.problem(value, one, place) for one in self.document.children(part, name)]
        fitting = problems.count("")
        if fitting == 0 and len(problems) == 1:
            return problems[0]
        if fitting == 0:
            return f"{place or '/'} satisfies none of the {len(problems)} alternatives of {name}"
        if name == "oneOf" and fitting > 1:
            return f"{place or '/'} satisfies {fitting} of the alternatives of oneOf"
        return ""

    # --- items and properties -------------------------------------------------------------------
    def _text(self, value: object, fields: Mapping[str, object]) -> str:
        pattern = fields.get("pattern")
        if not isinstance(value, str) or not isinstance(pattern, str):
            return ""
        return "" if self.matches(pattern, value) else f"does not match {pattern!r:.120}"

    def _inside(self, value: object, part: SchemaPart, place: str) -> Iterator[str]:
        if isinstance(value, list):
            yield from self._items(cast("list[object]", value), part, place)
        elif isinstance(value, dict):
            yield from self._properties(cast("dict[str, object]", value), part, place)

    def _items(self, items: Sequence[object], part: SchemaPart, place: str) -> Iterator[str]:
        first, rest = self.document.items(part)
        for index, item in enumerate(items):
            for schema in first[index : index + 1] or rest:
                yield self.problem(item, schema, f"{place}/{index}")
        unique = part.fields.get("uniqueItems") is True
        if unique and len({key(item) for item in items}) < len(items):
            yield f"{place or '/'} has the same item twice"

    def _properties(
        self, found: Mapping[str, object], part: SchemaPart, place: str
    ) -> Iterator[str]:
        for name in map(str, part.list("required")):
            if name not in found:
                yield f"{place or '/'} has no {name!r:.120}"
        for name, value in found.items():
            where = f"{place}/{step_text(name)}"
            for schema in self.document.child_or_none(part, "propertyNames"):
                if self.problem(name, schema):
                    yield f"{where} is not an allowed name"
            for schema in self.property_schemas(part, name):
                yield self.problem(value, schema, where)

    def property_schemas(self, part: SchemaPart, name: str) -> list[SchemaPart]:
        """The schemas that one part applies to a property."""
        own = self.document.named(part, "properties")
        found = [own[name]] if name in own else []
        for pattern, schema in self.document.named(part, "patternProperties").items():
            if self.matches(pattern, name):
                found.append(schema)
        return found or list(self.document.child_or_none(part, "additionalProperties"))


def _listed(value: object, values: Sequence[object]) -> bool:
    if isinstance(value, str):
        return value in values  # faster: lists of texts may be long
    return any(same(value, one) for one in values)


def _typed(value: object, fields: Mapping[str, object]) -> str:
    if "const" in fields and not same(value, fields["const"]):
        return f"is not {fields['const']!r:.80}"
    enum = fields.get("enum")
    if isinstance(enum, list) and not _listed(value, cast("list[object]", enum)):
        return "is not one of the values of enum"
    kinds = fields.get("type")
    if kinds is None or (fields.get("nullable") is True and value is None):
        return ""
    names = cast("list[str]", kinds) if isinstance(kinds, list) else [str(kinds)]
    if any(_TYPES[name](value) for name in names):
        return ""
    return f"is not of type {' or '.join(names)}"


def _number(value: object, fields: Mapping[str, object]) -> str:
    limited = any(name in fields for name in (*_BOUNDS, "multipleOf"))
    if not limited or not number(value):
        return ""
    found = Decimal(cast("int | Decimal", value))
    if abs(found.adjusted()) > 2 * limits.SCHEMA_DIGITS:
        return "has too many digits"
    for name in _BOUNDS:
        limit = fields.get(name)
        if number(limit) and _beyond(name, found, Decimal(cast("Decimal", limit)), fields):
            return f"is not within {name} {limit}"
    step = fields.get("multipleOf")
    if number(step) and (Fraction(found) / Fraction(cast("Decimal", step))).denominator != 1:
        return f"is not a multiple of {step}"
    return ""


def _beyond(name: str, value: Decimal, limit: Decimal, fields: Mapping[str, object]) -> bool:
    """Whether a number violates a bound.

    In draft 4, `exclusiveMinimum: true` makes `minimum` exclusive.
    """
    excluded = name.startswith("exclusive")
    excluded = excluded or fields.get(f"exclusive{name.capitalize()}") is True
    if name.lower().endswith("minimum"):
        return value <= limit if excluded else value < limit
    return value >= limit if excluded else value > limit


def _size(value: object, fields: Mapping[str, object]) -> str:
    """Check the size. Texts are counted in code points."""
    match value:
        case str():
            size, what, unit = len(value), "Length", "characters"
        case list():
            size, what, unit = len(cast("list[object]", value)), "Items", "items"
        case dict():
            size, what, unit = len(cast("dict[str, object]", value)), "Properties", "properties"
        case _:
            return ""
    least, most = integer(fields.get(f"min{what}")), integer(fields.get(f"max{what}"))
    if (least is None or size >= least) and (most is None or size <= most):
        return ""
    return f"has {size} {unit}, {'at least' if size < (least or 0) else 'at most'} " + str(
        least if size < (least or 0) else most
    )
