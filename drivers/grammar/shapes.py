"""Shapes: what values may look like, without references and combinations.

A goal is the schemas that one value has to satisfy together; the empty goal is any value. What
stands inside a shape is a goal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .document import Part
from .numbers import Number

Goal = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Const:
    value: object


@dataclass(frozen=True, slots=True)
class Text:
    place: Part
    least: int  # characters
    most: int | None
    patterns: Sequence[str]
    formats: Sequence[str]


@dataclass(frozen=True, slots=True)
class Array:
    first: Sequence[Goal]
    rest: Goal  # of further items
    least: int
    most: int | None
    unique: Part | None  # that says so


@dataclass(frozen=True, slots=True)
class Object:
    properties: dict[str, Goal]
    required: frozenset[str]
    patterns: dict[str, Goal]  # by the pattern of the names
    names: Goal  # what every name has to be
    extra: Goal | None  # what other properties have to be; None: there are none
    least: int
    most: int | None
    place: Part


Shape = Const | Number | Text | Array | Object
