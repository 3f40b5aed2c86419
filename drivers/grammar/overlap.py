"""Whether a value generated for one alternative of a oneOf may satisfy another one.

Conservative: if undecided, it may. A generated object has declared properties only, while an object
that is only checked may have any properties that its schema does not exclude. So the comparison has
a direction: `generated` is the alternative of the generated value, `other` the one it may satisfy.
A goal is a tuple of schemas that one value must satisfy together (shapes.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import numbers
from .check import Check, same
from .numbers import NumberRange
from .shapes import Array, Const, Goal, Object, Shape, Text

_DEPTH = 8  # nested values are compared to this depth


@dataclass(frozen=True, slots=True)
class Overlap:
    """Compares the shapes of one schema."""

    open: Callable[[Goal], list[Shape]]  # the shapes of a goal
    check: Check

    def either(
        self, generated: Sequence[Shape], others: Sequence[Shape], goal: Goal, depth: int = 0
    ) -> bool:
        """Whether a value of a shape in `generated` may have a shape in `others` (of `goal`)."""
        return depth > _DEPTH or any(
            self._pair(one, other, goal, depth) for one in generated for other in others
        )

    def _goals(self, generated: Goal, other: Goal, depth: int) -> bool:
        return self.either(self.open(generated), self.open(other), other, depth + 1)

    def _pair(self, generated: Shape, other: Shape, goal: Goal, depth: int) -> bool:
        match generated, other:
            case Const(), Const():
                return same(generated.value, other.value)
            case Const(), _:
                # The outermost goal is one combination whose references are resolved already.
                resolved = depth == 0
                value = generated.value
                return not any(self.check.problem(value, one, resolved=resolved) for one in goal)
            case _, Const():
                return isinstance(generated, _kind(other.value))
            case NumberRange(), NumberRange():
                return _numbers(generated, other)
            case Text(), Text():
                return _texts(generated, other)
            case Array(), Array():
                return self._arrays(generated, other, depth)
            case Object(), Object():
                return self._objects(generated, other, depth)
            case _:
                return False

    def _arrays(self, generated: Array, other: Array, depth: int) -> bool:
        longest = _smaller(generated.max_items, other.max_items)
        if max(generated.min_items, other.min_items) > longest:
            return False
        # Items that every generated list has; those after _DEPTH are assumed to be allowed.
        compared = range(min(generated.min_items, _DEPTH))
        pairs = ((_item(generated, at), _item(other, at)) for at in compared)
        return all(self._goals(one, two, depth) for one, two in pairs)

    def _objects(self, generated: Object, other: Object, depth: int) -> bool:
        known = generated.properties
        only_known = generated.additional is None and not generated.patterns
        if only_known and other.required - known.keys():
            return False
        for name in generated.required | (other.required & known.keys()):
            allowed = other.properties.get(name, other.additional)  # None: any value
            if allowed is not None and not self._goals(known.get(name, ()), allowed, depth):
                return False
        return True


def _item(shape: Array, at: int) -> Goal:
    return shape.prefix_items[at] if at < len(shape.prefix_items) else shape.other_items


def _kind(value: object) -> type:
    """The type of the shapes that contain such a value."""
    if isinstance(value, dict):
        return Object
    if isinstance(value, list):
        return Array
    if isinstance(value, str):
        return Text
    return Const if isinstance(value, bool) or value is None else NumberRange


def _numbers(one: NumberRange, two: NumberRange) -> bool:
    both = NumberRange(
        one.place,
        one.integer or two.integer,
        numbers.tighter(one.low, two.low, high=False),
        numbers.tighter(one.high, two.high, high=True),
        numbers.common(one.step, two.step),
    )
    return not both.empty


def _texts(one: Text, two: Text) -> bool:
    """Whether two strings may be equal. Strings of different formats are assumed different."""
    if one.formats and two.formats and set(one.formats) != set(two.formats):
        return False
    return max(one.min_length, two.min_length) <= _smaller(one.max_length, two.max_length)


def _smaller(one: int | None, two: int | None) -> float:
    """The smaller of two maxima; None: there is no maximum."""
    return min((most for most in (one, two) if most is not None), default=math.inf)
