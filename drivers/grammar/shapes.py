"""Shapes: sets of values of one type, without references and combinations.

A goal is a tuple of schemas that one value must satisfy together; the empty goal allows any value.
The items and properties of a shape are goals. `place` is the part of the schema that an error
names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .document import SchemaPart
from .numbers import NumberRange

Goal = tuple[SchemaPart, ...]


@dataclass(frozen=True, slots=True)
class Const:
    """One value."""

    value: object


@dataclass(frozen=True, slots=True)
class Text:
    """A string."""

    place: SchemaPart
    min_length: int  # characters
    max_length: int | None
    patterns: Sequence[str]
    formats: Sequence[str]


@dataclass(frozen=True, slots=True)
class Array:
    """A list."""

    prefix_items: Sequence[Goal]  # one for each of the first items
    other_items: Goal  # the keyword `items`: of every item after these
    min_items: int
    max_items: int | None
    unique: SchemaPart | None  # the part with uniqueItems


@dataclass(frozen=True, slots=True)
class Object:
    """An object."""

    properties: dict[str, Goal]
    required: frozenset[str]
    patterns: dict[str, Goal]  # patternProperties, by the pattern
    property_names: Goal  # propertyNames: of every name
    # additionalProperties: of all other properties. None: the schema declares properties and lacks
    # this keyword; then none are generated, although any are valid.
    additional: Goal | None
    min_properties: int
    max_properties: int | None
    place: SchemaPart


Shape = Const | NumberRange | Text | Array | Object
