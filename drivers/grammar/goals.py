"""Computes the shapes of a goal: resolves references and combines alternatives.

A value satisfies a goal if it has one of its shapes. The items and properties of a shape are goals
again, so a recursive schema has a finite number of goals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, product
from typing import cast

from llmasos.kernel.abi import limits

from . import numbers
from .check import Check, Matches
from .document import SchemaDocument, SchemaPart, part_error
from .keywords import IMPLIED, TYPES, check_keywords, integer
from .numbers import Bound, NumberRange
from .overlap import Overlap
from .shapes import Array, Const, Goal, Object, Shape, Text

# One combination of alternatives. Of its parts only their own keywords apply.
_Branch = tuple[SchemaPart, ...]


@dataclass(slots=True)
class Goals:
    """The goals of one schema."""

    document: SchemaDocument
    matches: Matches
    problems: list[str] = field(default_factory=list[str])  # why branches have no shapes
    _checked: set[str] = field(default_factory=set[str])
    _known: dict[Goal, list[Shape]] = field(default_factory=dict[Goal, list[Shape]])

    def open(self, goal: Goal) -> list[Shape]:
        """The shapes of a goal. Raises EINVAL for unsupported keywords."""
        known = self._known.get(goal)
        if known is None:
            known = self._known[goal] = [
                shape for branch in self.branches(goal) for shape in self.shapes(branch)
            ]
            if len(self._known) > limits.SCHEMA_RULES:
                raise part_error(self.document.root, "too many combinations", "simplify the schema")
        return known

    # --- combinations ---------------------------------------------------------------------------
    def branches(self, goal: Goal, followed: frozenset[str] = frozenset()) -> list[_Branch]:
        """The combinations of alternatives, of which a value must satisfy one."""
        found: list[_Branch] = [()]
        for part in goal:
            found = self._joined(part, found, self._part_branches(part, followed))
        return found

    def _joined(self, part: SchemaPart, one: list[_Branch], two: list[_Branch]) -> list[_Branch]:
        if len(one) * len(two) > limits.SCHEMA_WAYS:
            raise part_error(part, "too many combinations of alternatives", "simplify the schema")
        return [tuple(dict.fromkeys(a + b)) for a, b in product(one, two)]

    def _part_branches(self, part: SchemaPart, followed: frozenset[str]) -> list[_Branch]:
        if isinstance(part.value, bool):
            return [()] if part.value else []
        if part.pointer not in self._checked:
            check_keywords(self.document, part)
            self._checked.add(part.pointer)
        if part.pointer in followed:
            return []  # it requires itself for the same value
        followed = followed | {part.pointer}
        found: list[_Branch] = [(part,)]
        if "$ref" in part.fields:
            found = self._joined(
                part, found, self.branches((self.document.target(part),), followed)
            )
        found = self._joined(part, found, self.branches(self._children(part, "allOf"), followed))
        for name in ("anyOf", "oneOf"):
            if name in part.fields:
                children = self._children(part, name)
                some = [self._part_branches(one, followed) for one in children]
                if name == "oneOf":
                    self._check_disjoint(part, some)
                found = self._joined(
                    part, found, [branch for branches in some for branch in branches]
                )
        return found

    def _children(self, part: SchemaPart, name: str) -> Goal:
        return tuple(self.document.children(part, name))

    def _check_disjoint(self, part: SchemaPart, alternatives: list[list[_Branch]]) -> None:
        """Raises EINVAL when a value of one alternative may also satisfy another."""
        for (a, one), (b, two) in combinations(enumerate(alternatives), 2):
            pairs = ((one, two), (two, one))
            if any(self._overlap(part, *pair) for pair in pairs):
                problem = f"oneOf: alternatives {a} and {b} overlap"
                raise part_error(part, problem, "use anyOf, or a property with a const in each")

    def _overlap(self, part: SchemaPart, generated: list[_Branch], other: list[_Branch]) -> bool:
        overlap = Overlap(self.open, Check(self.document, self.matches))
        return any(
            overlap.either(self.shapes((part, *a)), self.shapes((part, *b)), (part, *b))
            for a, b in product(generated, other)
        )

    # --- shapes ---------------------------------------------------------------------------------
    def shapes(self, branch: _Branch) -> list[Shape]:
        """The shapes of one branch."""
        values = self._values(branch)
        if values is not None:
            return values
        allowed = types(branch)
        if not allowed:
            self.problems.append(f"{branch[-1].place}: no type satisfies all of its parts")
        return [shape for name in allowed for shape in self._of_type(name, branch)]

    def _of_type(self, name: str, branch: _Branch) -> list[Shape]:
        match name:
            case "null":
                return [Const(None)]
            case "boolean":
                return [Const(False), Const(True)]
            case "number" | "integer":
                return self._number(branch, name == "integer")
            case "string":
                return self._text(branch)
            case "array":
                return self._array(branch)
            case _:
                return self._object(branch)

    def _values(self, branch: _Branch) -> list[Shape] | None:
        """The values of const and enum that satisfy the branch; None: it has neither."""
        lists = [[part.fields["const"]] for part in branch if "const" in part.fields]
        lists += [part.list("enum") for part in branch if "enum" in part.fields]
        if not lists:
            return None
        check = Check(self.document, self.matches)
        found = {
            repr(value): value for value in lists[0]
            if all(not check.problem(value, part, resolved=True) for part in branch)
        }  # fmt: skip
        if not found:
            self.problems.append(f"{branch[0].place}: no value of enum or const satisfies the rest")
        return [Const(value) for value in found.values()]

    def _number(self, branch: _Branch, whole: bool) -> list[Shape]:
        low = high = None
        step: Fraction | None = None
        for part in branch:
            low = numbers.tighter(low, _bound(part, "inimum"), high=False)
            high = numbers.tighter(high, _bound(part, "aximum"), high=True)
            if "multipleOf" in part.fields:
                value = Fraction(cast("Decimal", part.fields["multipleOf"]))
                step = numbers.common(step, value)
        if whole and step is not None:
            step = numbers.common(step, Fraction(1))
        number = NumberRange(branch[-1] if branch else self.document.root, whole, low, high, step)
        if number.empty:
            self.problems.append(f"{branch[-1].place}: {number.empty}")
            return []
        return [number]

    def _text(self, branch: _Branch) -> list[Shape]:
        least, most = _span(branch, "Length")
        patterns = [str(part.fields["pattern"]) for part in branch if "pattern" in part.fields]
        formats = [str(part.fields["format"]) for part in branch if "format" in part.fields]
        if most is not None and least > most:
            self.problems.append(f"{branch[-1].place}: minLength {least} is over maxLength {most}")
            return []
        place = next(
            (part for part in branch if "pattern" in part.fields), branch[-1] if branch else None
        )
        return [Text(place or self.document.root, least, most, patterns, formats)]

    def _array(self, branch: _Branch) -> list[Shape]:
        least, most = _span(branch, "Items")
        found = [self.document.items(part) for part in branch]
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
            self.problems.append(f"{branch[-1].place}: minItems {least} is over maxItems {most}")
            return []
        unique = next((part for part in branch if part.fields.get("uniqueItems") is True), None)
        rest = tuple(one for some in rests for one in some)
        return [Array(first, rest, least, most, unique)]

    def _object(self, branch: _Branch) -> list[Shape]:
        check = Check(self.document, self.matches)
        declared = [self.document.named(part, "properties") for part in branch]
        patterned = [self.document.named(part, "patternProperties") for part in branch]
        required = [str(name) for part in branch for name in part.list("required")]
        extras = [self.document.child_or_none(part, "additionalProperties") for part in branch]
        names = dict.fromkeys(name for one in declared for name in one)
        properties = {
            name: tuple(found for part in branch for found in check.property_schemas(part, name))
            for name in [*names, *(name for name in required if name not in names)]
        }
        explicit = any("additionalProperties" in part.fields for part in branch)
        closed = not explicit and any(declared + patterned)
        least, most = _span(branch, "Properties")
        if len(properties) > limits.SCHEMA_PROPERTIES:
            most_properties = limits.SCHEMA_PROPERTIES
            problem = f"{len(properties)} properties of one object; the limit is {most_properties}"
            raise part_error(branch[-1], problem, "simplify the schema")
        return [
            Object(
                properties, frozenset(required),
                _patterns(patterned, extras),
                self._names(branch),
                None if closed else tuple(found for extra in extras for found in extra),
                least, most, branch[-1] if branch else self.document.root,
            )
        ]  # fmt: skip

    def _names(self, branch: _Branch) -> Goal:
        """The goal of the names of all properties."""
        document = self.document
        return tuple(
            one for part in branch for one in document.child_or_none(part, "propertyNames")
        )


def types(branch: _Branch) -> list[str]:
    """The types that all parts allow; without `type` those that keywords imply, else all."""
    allowed = [*TYPES]
    whole = typed = False
    for part in branch:
        value = part.fields.get("type")
        if value is None:
            continue
        typed = True
        some = [str(one) for one in part.list("type")] or [str(value)]
        if part.fields.get("nullable") is True:
            some.append("null")
        whole = whole or ("integer" in some and "number" not in some)
        some = ["number" if one == "integer" else one for one in some]
        allowed = [one for one in dict.fromkeys(some) if one in allowed]
    implied = {IMPLIED[name] for part in branch for name in part.fields if name in IMPLIED}
    if not typed and implied:
        allowed = [one for one in TYPES if one in implied]
    return ["integer" if one == "number" and whole else one for one in allowed]


def _patterns(patterned: list[Mapping[str, SchemaPart]], extras: list[Goal]) -> dict[str, Goal]:
    names = dict.fromkeys(name for one in patterned for name in one)
    return {
        name: tuple(
            found
            for own, extra in zip(patterned, extras, strict=True)
            for found in ((own[name],) if name in own else extra)
        )
        for name in names
    }


def _bound(part: SchemaPart, name: str) -> Bound | None:
    """minimum or maximum, in the syntax of any draft."""
    value, excluded = part.fields.get(f"m{name}"), part.fields.get(f"exclusiveM{name}")
    found = None
    if value is not None:
        found = Bound(Decimal(cast("Decimal", value)), excluded is True)
    if excluded is not None and not isinstance(excluded, bool):
        other = Bound(Decimal(cast("Decimal", excluded)), True)
        found = numbers.tighter(found, other, high=name == "aximum")
    return found


def _span(branch: _Branch, what: str) -> tuple[int, int | None]:
    least = [integer(part.fields.get(f"min{what}")) or 0 for part in branch]
    most = [integer(part.fields[f"max{what}"]) for part in branch if f"max{what}" in part.fields]
    return max(least, default=0), min((one for one in most if one is not None), default=None)
