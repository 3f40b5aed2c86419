"""Goals, opened: references followed, alternatives combined, and the shapes of which any will do.

What stands inside is a goal again, so a recursive schema has finitely many.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, product
from typing import cast

from llmasos.kernel import limits

from . import numbers
from .check import Check, Matches
from .document import Document, Part, refused
from .keywords import IMPLIED, TYPES, integer, vet
from .numbers import Bound, Number
from .overlap import Overlap
from .shapes import Array, Const, Goal, Object, Shape, Text

_Way = tuple[Part, ...]  # parts of which only their own keywords count


@dataclass(slots=True)
class Goals:
    """Of one schema."""

    document: Document
    matches: Matches
    problems: list[str] = field(default_factory=list[str])  # why shapes were left out
    _vetted: set[str] = field(default_factory=set[str])
    _known: dict[Goal, list[Shape]] = field(default_factory=dict[Goal, list[Shape]])

    def open(self, goal: Goal) -> list[Shape]:
        """EINVAL for what is not supported."""
        known = self._known.get(goal)
        if known is None:
            known = self._known[goal] = [
                shape for way in self.ways(goal) for shape in self.shapes(way)
            ]
            if len(self._known) > limits.SCHEMA_RULES:
                raise refused(self.document.root, "too many combinations", "make it simpler")
        return known

    # --- combinations ---------------------------------------------------------------------------
    def ways(self, goal: Goal, followed: frozenset[str] = frozenset()) -> list[_Way]:
        """The combinations of which any one will do."""
        found: list[_Way] = [()]
        for part in goal:
            found = self._joined(part, found, self._part_ways(part, followed))
        return found

    def _joined(self, part: Part, one: list[_Way], two: list[_Way]) -> list[_Way]:
        if len(one) * len(two) > limits.SCHEMA_WAYS:
            raise refused(part, "too many combinations of alternatives", "make it simpler")
        return [tuple(dict.fromkeys(a + b)) for a, b in product(one, two)]

    def _part_ways(self, part: Part, followed: frozenset[str]) -> list[_Way]:
        if isinstance(part.value, bool):
            return [()] if part.value else []
        if part.pointer not in self._vetted:
            vet(self.document, part)
            self._vetted.add(part.pointer)
        if part.pointer in followed:
            return []  # it needs itself, of the same value
        followed = followed | {part.pointer}
        found: list[_Way] = [(part,)]
        if "$ref" in part.fields:
            found = self._joined(part, found, self.ways((self.document.target(part),), followed))
        found = self._joined(part, found, self.ways(self._children(part, "allOf"), followed))
        for name in ("anyOf", "oneOf"):
            if name in part.fields:
                children = self._children(part, name)
                some = [self._part_ways(one, followed) for one in children]
                if name == "oneOf":
                    self._check_apart(part, some)
                found = self._joined(part, found, [way for ways in some for way in ways])
        return found

    def _children(self, part: Part, name: str) -> Goal:
        return tuple(self.document.children(part, name))

    def _check_apart(self, part: Part, alternatives: list[list[_Way]]) -> None:
        """EINVAL when a value of one alternative may be one of another, too."""
        for (a, one), (b, two) in combinations(enumerate(alternatives), 2):
            pairs = ((one, two), (two, one))
            if any(self._overlap(part, *pair) for pair in pairs):
                words = f"oneOf: alternatives {a} and {b} overlap"
                raise refused(part, words, "use anyOf, or a property with a const in each")

    def _overlap(self, part: Part, generated: list[_Way], other: list[_Way]) -> bool:
        overlap = Overlap(self.open, Check(self.document, self.matches))
        return any(
            overlap.either(self.shapes((part, *a)), self.shapes((part, *b)), (part, *b))
            for a, b in product(generated, other)
        )

    # --- shapes ---------------------------------------------------------------------------------
    def shapes(self, way: _Way) -> list[Shape]:
        values = self._values(way)
        if values is not None:
            return values
        allowed = types(way)
        if not allowed:
            self.problems.append(f"{way[-1].place}: no type satisfies all of its parts")
        return [shape for name in allowed for shape in self._of_type(name, way)]

    def _of_type(self, name: str, way: _Way) -> list[Shape]:
        match name:
            case "null":
                return [Const(None)]
            case "boolean":
                return [Const(False), Const(True)]
            case "number" | "integer":
                return self._number(way, name == "integer")
            case "string":
                return self._text(way)
            case "array":
                return self._array(way)
            case _:
                return self._object(way)

    def _values(self, way: _Way) -> list[Shape] | None:
        """What const and enum leave; None: there is none of them."""
        lists = [[part.fields["const"]] for part in way if "const" in part.fields]
        lists += [part.list("enum") for part in way if "enum" in part.fields]
        if not lists:
            return None
        check = Check(self.document, self.matches)
        found = {
            repr(value): value for value in lists[0]
            if all(not check.problem(value, part, own=True) for part in way)
        }  # fmt: skip
        if not found:
            self.problems.append(f"{way[0].place}: no value of enum or const satisfies the rest")
        return [Const(value) for value in found.values()]

    def _number(self, way: _Way, whole: bool) -> list[Shape]:
        low = high = None
        step: Fraction | None = None
        for part in way:
            low = numbers.tighter(low, _bound(part, "inimum"), high=False)
            high = numbers.tighter(high, _bound(part, "aximum"), high=True)
            if "multipleOf" in part.fields:
                value = Fraction(cast("Decimal", part.fields["multipleOf"]))
                step = numbers.common(step, value)
        if whole and step is not None:
            step = numbers.common(step, Fraction(1))
        number = Number(way[-1] if way else self.document.root, whole, low, high, step)
        if number.empty:
            self.problems.append(f"{way[-1].place}: {number.empty}")
            return []
        return [number]

    def _text(self, way: _Way) -> list[Shape]:
        least, most = _span(way, "Length")
        patterns = [str(part.fields["pattern"]) for part in way if "pattern" in part.fields]
        formats = [str(part.fields["format"]) for part in way if "format" in part.fields]
        if most is not None and least > most:
            self.problems.append(f"{way[-1].place}: minLength {least} is over maxLength {most}")
            return []
        place = next((part for part in way if "pattern" in part.fields), way[-1] if way else None)
        return [Text(place or self.document.root, least, most, patterns, formats)]

    def _array(self, way: _Way) -> list[Shape]:
        least, most = _span(way, "Items")
        found = [self.document.items(part) for part in way]
        firsts, rests = [first for first, _ in found], [rest for _, rest in found]
        size = max(map(len, firsts), default=0)
        rest_absent = not any(rests)
        first = [
            tuple(one for own, rest in found for one in (own[at : at + 1] or rest))
            for at in range(size)
        ]
        if rest_absent and first:
            most = min(len(first), len(first) if most is None else most)
        if most is not None and least > most:
            self.problems.append(f"{way[-1].place}: minItems {least} is over maxItems {most}")
            return []
        unique = next((part for part in way if part.fields.get("uniqueItems") is True), None)
        rest = tuple(one for some in rests for one in some)
        return [Array(first, rest, least, most, unique)]

    def _object(self, way: _Way) -> list[Shape]:
        check = Check(self.document, self.matches)
        declared = [self.document.named(part, "properties") for part in way]
        patterned = [self.document.named(part, "patternProperties") for part in way]
        required = [str(name) for part in way for name in part.list("required")]
        extras = [self.document.child_or_none(part, "additionalProperties") for part in way]
        names = dict.fromkeys(name for one in declared for name in one)
        properties = {
            name: tuple(found for part in way for found in check.property_schemas(part, name))
            for name in [*names, *(name for name in required if name not in names)]
        }
        spoken = any("additionalProperties" in part.fields for part in way)
        closed = not spoken and any(declared + patterned)
        least, most = _span(way, "Properties")
        if len(properties) > limits.SCHEMA_PROPERTIES:
            words = f"{len(properties)} properties of one object, {limits.SCHEMA_PROPERTIES} are"
            raise refused(way[-1], f"{words} supported", "make it simpler")
        return [
            Object(
                properties, frozenset(required),
                _patterns(patterned, extras),
                self._names(way),
                None if closed else tuple(found for extra in extras for found in extra),
                least, most, way[-1] if way else self.document.root,
            )
        ]  # fmt: skip

    def _names(self, way: _Way) -> Goal:
        """What the names of all properties have to be."""
        document = self.document
        return tuple(one for part in way for one in document.child_or_none(part, "propertyNames"))


def types(way: _Way) -> list[str]:
    """The types that all parts allow, in their order; those that keywords imply, else all."""
    allowed = [*TYPES]
    whole = said = False
    for part in way:
        value = part.fields.get("type")
        if value is None:
            continue
        said = True
        some = [str(one) for one in part.list("type")] or [str(value)]
        if part.fields.get("nullable") is True:
            some.append("null")
        whole = whole or ("integer" in some and "number" not in some)
        some = ["number" if one == "integer" else one for one in some]
        allowed = [one for one in dict.fromkeys(some) if one in allowed]
    implied = {IMPLIED[name] for part in way for name in part.fields if name in IMPLIED}
    if not said and implied:
        allowed = [one for one in TYPES if one in implied]
    return ["integer" if one == "number" and whole else one for one in allowed]


def _patterns(patterned: list[Mapping[str, Part]], extras: list[Goal]) -> dict[str, Goal]:
    names = dict.fromkeys(name for one in patterned for name in one)
    return {
        name: tuple(
            found
            for own, extra in zip(patterned, extras, strict=True)
            for found in ((own[name],) if name in own else extra)
        )
        for name in names
    }


def _bound(part: Part, name: str) -> Bound | None:
    """minimum or maximum, in the words of any draft."""
    value, excluded = part.fields.get(f"m{name}"), part.fields.get(f"exclusiveM{name}")
    found = None
    if value is not None:
        found = Bound(Decimal(cast("Decimal", value)), excluded is True)
    if excluded is not None and not isinstance(excluded, bool):
        other = Bound(Decimal(cast("Decimal", excluded)), True)
        found = numbers.tighter(found, other, high=name == "aximum")
    return found


def _span(way: _Way, what: str) -> tuple[int, int | None]:
    least = [integer(part.fields.get(f"min{what}")) or 0 for part in way]
    most = [integer(part.fields[f"max{what}"]) for part in way if f"max{what}" in part.fields]
    return max(least, default=0), min((one for one in most if one is not None), default=None)
