"""Shapes: sets of values of one type, without references and combinations.

A goal is a tuple of schemas that one value must satisfy together; the empty goal allows any value.
The items and properties of a shape are goals.
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
    least: int  # characters
    most: int | None
    patterns: Sequence[str]
    formats: Sequence[str]


@dataclass(frozen=True, slots=True)
class Array:
    """A list."""

    first: Sequence[Goal]  # of the first items
    rest: Goal  # of all other items
    least: int
    most: int | None
    unique: SchemaPart | None  # the part with uniqueItems


@dataclass(frozen=True, slots=True)
class Object:
    """An object."""

    properties: dict[str, Goal]
    required: frozenset[str]
    patterns: dict[str, Goal]  # by the pattern of their names
    names: Goal  # of every name
    extra: Goal | None  # of other properties; None: not allowed
    least: int
    most: int | None
    place: SchemaPart


Shape = Const | NumberRange | Text | Array | Object
