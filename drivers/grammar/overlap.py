"""Whether a value generated for one alternative of a oneOf may satisfy another one.

Conservative: if undecided, it may. A generated object has declared properties only, while an object
that is only checked may have any properties that its schema does not exclude.
"""

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

    open: Callable[[Goal], list[Shape]]
    check: Check

    def either(
        self, made: Sequence[Shape], others: Sequence[Shape], goal: Goal, depth: int = 0
    ) -> bool:
        """Whether a value of the shapes `made` may have one of the shapes `others` of `goal`."""
        return depth > _DEPTH or any(
            self._pair(one, other, goal, depth) for one in made for other in others
        )

    def _goals(self, made: Goal, other: Goal, depth: int) -> bool:
        return self.either(self.open(made), self.open(other), other, depth + 1)

    def _pair(self, made: Shape, other: Shape, goal: Goal, depth: int) -> bool:
        match made, other:
            case Const(), Const():
                return same(made.value, other.value)
            case Const(), _:
                own = depth == 0
                return not any(self.check.problem(made.value, one, own=own) for one in goal)
            case _, Const():
                return isinstance(made, _kind(other.value))
            case NumberRange(), NumberRange():
                return _numbers(made, other)
            case Text(), Text():
                return _texts(made, other)
            case Array(), Array():
                return self._arrays(made, other, depth)
            case Object(), Object():
                return self._objects(made, other, depth)
            case _:
                return False

    def _arrays(self, made: Array, other: Array, depth: int) -> bool:
        most = min(made.most or 2**32, other.most or 2**32)
        if max(made.least, other.least) > most:
            return False
        pairs = ((_item(made, at), _item(other, at)) for at in range(min(made.least, _DEPTH)))
        return all(self._goals(one, two, depth) for one, two in pairs)

    def _objects(self, made: Object, other: Object, depth: int) -> bool:
        known = made.properties
        if made.extra is None and not made.patterns and other.required - known.keys():
            return False
        for name in made.required | (other.required & known.keys()):
            allowed = other.properties.get(name, other.extra)
            if allowed is not None and not self._goals(known.get(name, ()), allowed, depth):
                return False
        return True


def _item(shape: Array, at: int) -> Goal:
    return shape.first[at] if at < len(shape.first) else shape.rest


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
    longest = min(one.most if one.most is not None else 2**32,
                  two.most if two.most is not None else 2**32)  # fmt: skip
    return max(one.least, two.least) <= longest
