"""Regular expressions for numbers between exact bounds, with a limited number of digits.

Without a limit a model sometimes generates digits endlessly. An integer has at most
SCHEMA_INTEGER_DIGITS digits and a fraction SCHEMA_FRACTION_DIGITS, or one or two more than a bound
has.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from llmasos.kernel.abi import limits

from .document import SchemaPart

_DOUBLE = 2**53  # integers up to here are exact as floats
_STEPS = 10_000  # limit of multipleOf without its point: the number of states of the automaton
_SPAN = 10**15  # bounds of multiples if the schema has none


class Bound(NamedTuple):
    value: Decimal
    open: bool = False  # the value itself is not allowed


@dataclass(frozen=True, slots=True)
class NumberRange:
    """A set of numbers: type, bounds and step."""

    place: SchemaPart
    integer: bool
    low: Bound | None = None
    high: Bound | None = None
    step: Fraction | None = None  # multipleOf

    def __post_init__(self) -> None:
        if not self.integer and self.step is not None and self.step.denominator == 1:
            object.__setattr__(self, "integer", True)

    @property
    def empty(self) -> str:
        """Why no number satisfies it; empty: some number does."""
        if self.low is None or self.high is None:
            return ""
        low, high = self.low, self.high
        if low.value > high.value:
            return f"minimum {low.value} is over maximum {high.value}"
        if low.value == high.value and (low.open or high.open):
            return f"minimum and maximum are {low.value}, which is excluded"
        step = self.step or (Fraction(1) if self.integer else None)
        if step is not None and _first(low, step) > _last(high, step):
            return f"no multiple of {step} is from {low.value} to {high.value}"
        return ""


def tighter(one: Bound | None, two: Bound | None, *, high: bool) -> Bound | None:
    """The intersection of two bounds."""
    if one is None or two is None:
        return one or two
    if one.value == two.value:
        return Bound(one.value, one.open or two.open)
    return one if (one.value < two.value) == high else two


def common(one: Fraction | None, two: Fraction | None) -> Fraction | None:
    """The least common multiple."""
    if one is None or two is None:
        return one or two
    return Fraction(
        math.lcm(one.numerator, two.numerator), math.gcd(one.denominator, two.denominator)
    )


def _first(low: Bound, step: Fraction) -> int:
    """The least multiple within a bound, in steps."""
    count = Fraction(low.value) / step
    return math.floor(count) + 1 if low.open else math.ceil(count)


def _last(high: Bound, step: Fraction) -> int:
    """The largest multiple within a bound, in steps."""
    count = Fraction(high.value) / step
    return math.ceil(count) - 1 if high.open else math.floor(count)


def schema(number: NumberRange) -> dict[str, object] | None:
    """A JSON schema for llguidance, which supports multiples; None: use `patterns`.

    ValueError when it cannot be exact.
    """
    step = number.step
    if step is None or _decimals(number) is not None or _zeros(number) is not None:
        return None
    if step * 10 ** _digits(step) > _STEPS:
        raise ValueError(f"multiples of {step} are not supported: more than {_STEPS} steps")
    low, high = number.low or Bound(Decimal(-_SPAN)), number.high or Bound(Decimal(_SPAN))
    found: dict[str, object] = {
        "type": "integer" if number.integer else "number", "multipleOf": _float(step)
    }  # fmt: skip
    for bound, name in ((low, "Minimum"), (high, "Maximum")):
        key = f"exclusive{name}" if bound.open else name.lower()
        found[key] = _float(Fraction(bound.value))
    return found


def _float(value: Fraction) -> float | int:
    if value.denominator == 1 and abs(value.numerator) <= _DOUBLE:
        return value.numerator
    found = float(value) if abs(value) <= _DOUBLE else math.inf
    exact = math.isfinite(found) and Fraction(Decimal(repr(found))) == value
    if not exact:
        raise ValueError(f"a multiple with the number {value} cannot be exact")
    return found


def _decimals(number: NumberRange) -> int | None:
    """Digits of the fraction when the step is 0.1, 0.01 and so on."""
    step = number.step
    if number.integer or step is None or step.numerator != 1:
        return None
    digits = len(str(step.denominator)) - 1
    return digits if step.denominator == 10**digits else None


def _zeros(number: NumberRange) -> int | None:
    """Zeros at the end of an integer when the step is 1, 10, 100 and so on."""
    step = number.step
    if not number.integer or step is None or step.denominator != 1:
        return None
    zeros = len(str(step.numerator)) - 1
    return zeros if step.numerator == 10**zeros else None


def _digits(step: Fraction) -> int:
    """The number of digits of its fraction. ValueError for more than 9."""
    found = (digits for digits in range(10) if (step * 10**digits).denominator == 1)
    digits = next(found, None)
    if digits is None:
        raise ValueError(f"multiples of {step} are not supported")
    return digits


def patterns(number: NumberRange) -> list[str]:
    """Regular expressions that the number must all match. Only when `schema` is None."""
    if number.integer:
        low, high = number.low, number.high
        least = None if low is None else _first(low, Fraction(1))
        most = None if high is None else _last(high, Fraction(1))
        zeros = _zeros(number) or 0
        multiples = [f"0|-?[1-9][0-9]*0{{{zeros}}}"] if zeros else []
        return _integers(least, most) + multiples
    return _reals(number)


# --- integers: at least and at most, without a sign -------------------------------------------
def _integers(least: int | None, most: int | None) -> list[str]:
    known = [len(str(abs(bound))) + 1 for bound in (least, most) if bound is not None]
    digits = max([limits.SCHEMA_INTEGER_DIGITS, *known])
    found = [f"-?{_any_integer(digits)}"] if not known else []
    if least is not None:
        upper = f"{_at_least(max(least, 0), digits)}"
        found.append(upper if least >= 0 else f"{upper}|-{_at_most(-least)}")
    if most is not None:
        lower = f"-{_at_least(max(-most, 1), digits)}"
        found.append(lower if most < 0 else f"{_at_most(most)}|{lower}")
    # Excludes -0, which programs do not expect as an integer.
    return [f"(?:{one})" for one in found] + ["0|-?[1-9][0-9]*"]


def _any_integer(digits: int) -> str:
    return f"(?:0|[1-9][0-9]{{0,{digits - 1}}})"


def _at_least(value: int, digits: int) -> str:
    text = str(value)
    size = len(text)
    alternatives = [
        f"{text[:at]}[{int(digit) + 1}-9][0-9]{{{size - at - 1}}}"
        for at, digit in enumerate(text) if digit != "9"
    ]  # fmt: skip
    return f"(?:{'|'.join([text, *alternatives, f'[1-9][0-9]{{{size},{digits}}}'])})"


def _at_most(value: int) -> str:
    text = str(value)
    size = len(text)
    alternatives = [text]
    for at, digit in enumerate(text):
        least = 1 if at == 0 and size > 1 else 0
        if int(digit) > least:
            alternatives.append(f"{text[:at]}[{least}-{int(digit) - 1}][0-9]{{{size - at - 1}}}")
    if size > 1:
        alternatives.append(_any_integer(size - 1))
    return f"(?:{'|'.join(alternatives)})"


# --- reals ------------------------------------------------------------------------------------
class _Digits(NamedTuple):
    whole: int  # digits before the point, at most
    part: int  # digits after it, at most

    @property
    def fraction(self) -> str:
        return f"(?:\\.[0-9]{{1,{self.part}}})?" if self.part else ""


def _reals(number: NumberRange) -> list[str]:
    bounds = [bound for bound in (number.low, number.high) if bound is not None]
    sizes = [_size(bound.value) for bound in bounds]
    digits = _Digits(
        max([limits.SCHEMA_INTEGER_DIGITS, *(whole + 1 for whole, _ in sizes)]),
        max([limits.SCHEMA_FRACTION_DIGITS, *(part + 2 for _, part in sizes)]),
    )
    decimals = _decimals(number)
    number_text = f"-?{_any_integer(digits.whole)}"
    if decimals is not None:
        return [f"{number_text}{_Digits(0, decimals).fraction}", *_between(number, digits)]
    if not bounds:
        exponent = f"(?:[eE][+-]?[0-9]{{1,{limits.SCHEMA_EXPONENT_DIGITS}}})?"
        return [f"{number_text}{digits.fraction}{exponent}"]
    return _between(number, digits)


def _between(number: NumberRange, digits: _Digits) -> list[str]:
    found: list[str] = []
    if number.low is not None:
        value, excluded = number.low
        if value < 0:
            all_over = f"{_any_integer(digits.whole)}{digits.fraction}"
            found.append(
                f"{all_over}|-{_real_at_most(Bound(value.copy_negate(), excluded), digits)}"
            )
        else:
            found.append(_real_at_least(number.low, digits))
    if number.high is not None:
        value, excluded = number.high
        if value < 0:
            found.append(f"-{_real_at_least(Bound(value.copy_negate(), excluded), digits)}")
        else:
            under = f"-{_any_integer(digits.whole)}{digits.fraction}"
            under = f"-{_real_at_least(Bound(Decimal(0), True), digits)}" if not value else under
            found.append("|".join([under, *_real_at_most_alternatives(number.high, digits)]))
    return [f"(?:{one})" for one in found]


def _size(value: Decimal) -> tuple[int, int]:
    whole, part = _split(value.copy_abs())
    return len(str(whole)), len(part)


def _split(value: Decimal) -> tuple[int, str]:
    whole, _, part = format(value, "f").partition(".")
    return int(whole), part.rstrip("0")


def _real_at_least(bound: Bound, digits: _Digits) -> str:
    whole, part = _split(bound.value)
    size = len(part)
    alternatives = [f"{_at_least(whole + 1, digits.whole)}{digits.fraction}"]
    for at, digit in enumerate(part):
        if digit != "9":
            rest = f"[0-9]{{0,{digits.part - at - 1}}}"
            alternatives.append(f"{whole}\\.{part[:at]}[{int(digit) + 1}-9]{rest}")
    if bound.open:
        alternatives.append(f"{whole}\\.{part}[0-9]{{0,{digits.part - size - 1}}}[1-9]")
    elif part:
        alternatives.append(f"{whole}\\.{part}[0-9]{{0,{digits.part - size}}}")
    else:
        alternatives.append(f"{whole}{digits.fraction}")
    return f"(?:{'|'.join(alternatives)})"


def _real_at_most(bound: Bound, digits: _Digits) -> str:
    return f"(?:{'|'.join(_real_at_most_alternatives(bound, digits))})"


def _real_at_most_alternatives(bound: Bound, digits: _Digits) -> list[str]:
    """Alternatives for 0 to the bound; empty if it excludes 0."""
    whole, part = _split(bound.value)
    size = len(part)
    alternatives = [f"{_at_most(whole - 1)}{digits.fraction}"] if whole else []
    for at, digit in enumerate(part):
        if digit != "0":
            rest = f"[0-9]{{0,{digits.part - at - 1}}}"
            alternatives.append(f"{whole}\\.{part[:at]}[0-{int(digit) - 1}]{rest}")
        alternatives.append(f"{whole}\\.{part[:at]}" if at else str(whole))
    if not bound.open:
        zeros = f"0{{0,{digits.part - size}}}"
        alternatives.append(
            f"{whole}\\.{part}{zeros}" if part else f"{whole}(?:\\.0{{1,{digits.part}}})?"
        )
    return alternatives


def literal(value: int | Decimal) -> str:
    """A number as exact JSON, in plain notation where it is short."""
    if isinstance(value, Decimal) and -30 < value.adjusted() < 30:
        return format(value, "f")
    return str(value)
