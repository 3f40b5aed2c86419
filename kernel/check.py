"""Frames to valid requests, from the table. Pydantic checks here and in config.py only.

One validator a syscall, built once from the request's dataclass: unknown fields are refused, types
are strict, `Span` and `Shape` become limits. What comes out is the plain dataclass of values.py.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from . import limits
from .abi import TABLE
from .complaint import wanted
from .errors import Errno, SyscallError, TooBig
from .values import Shape, Span

T = TypeVar("T")
_WANTED: dict[str, str] = {}  # what a pattern asks for, in words


def _annotation(hint: Any) -> Any:
    """A hint of values.py in pydantic's words."""
    if typing.get_origin(hint) is Annotated:
        base, *marks = typing.get_args(hint)
        return Annotated[(_annotation(base), *(_limit(base, mark) for mark in marks))]
    args = typing.get_args(hint)
    if args:
        inner = tuple(_annotation(a) for a in args)
        generic: Any = {list: list, dict: dict}.get(typing.get_origin(hint), typing.Union)
        return generic[inner]
    if dataclasses.is_dataclass(hint):
        return _checked(typing.cast("type", hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        # Strict mode wants the member itself; the wire brings its value.
        marked: Any = Annotated[hint, Field(strict=False)]
        return marked
    return typing.cast("Any", hint)


def _limit(base: Any, mark: object) -> Any:
    match mark:
        case Span(low, high) if base in (int, float):
            return (
                Field(ge=low, le=high, allow_inf_nan=False)
                if base is float
                else Field(ge=low, le=high)
            )
        case Span(low, high):
            return Field(min_length=int(low), max_length=int(high))
        case Shape(pattern, want):
            whole = f"^(?:{pattern})$"
            _WANTED[whole] = want
            return Field(pattern=whole)
        case _:
            raise TypeError(f"{mark!r} is not a check")


def _fields(kind: type) -> TypeAdapter[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = _annotation(hints[field.name])
        needed = field.default is dataclasses.MISSING and (
            field.default_factory is dataclasses.MISSING
        )
        fields[field.name] = hint if needed else typing.NotRequired[hint]
    form: Any = TypedDict  # with computed fields it is beyond static checkers
    made = form(kind.__name__, fields)
    made.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    return TypeAdapter(made)


def _checked(kind: type) -> Any:
    """A nested dataclass: check the map by its fields, then make it."""
    adapter = _fields(kind)

    def make(value: object) -> object:
        return kind(**adapter.validate_python(value))

    return Annotated[Any, BeforeValidator(make)]


def _validator(kind: type) -> Callable[[object], object]:
    adapter = _fields(kind)
    validate = adapter.validator.validate_python

    def check(values: object) -> object:
        return kind(**validate(values))

    return check


_VALIDATORS: Mapping[str, Callable[[object], object]] = {
    name: _validator(row.request) for name, row in TABLE.items()
}


def request(syscall: str, fields: object) -> object:
    """The request of a syscall. EINVAL names each wrong field; ENOSYS: no such syscall."""
    validator = _VALIDATORS.get(syscall)
    if validator is None:
        known = ", ".join(TABLE)
        raise SyscallError(Errno.ENOSYS, f"there is no syscall {syscall!r:.80}", f"known: {known}")
    try:
        return validator(fields)
    except ValidationError as error:
        if any(_over(dict(e)) for e in error.errors()):
            most = limits.MESSAGE_CHARS
            words = f"{syscall}: a text has more than the {most} characters that are allowed"
            hint = "send it in parts; `llmasos mem map PID FILE` takes a whole file"
            raise TooBig(words, hint) from error
        wrong = "; ".join(_complaint(dict(e)) for e in error.errors()[:5])
        raise SyscallError(Errno.EINVAL, f"{syscall}: {wrong}", call=syscall) from error


def _over(error: Mapping[str, Any]) -> bool:
    """Whether a message or a page is too long, which is no mistake of its form."""
    longest: object = error.get("ctx", {}).get("max_length")
    return error["type"] == "string_too_long" and bool(longest == limits.MESSAGE_CHARS)


def _complaint(error: Mapping[str, Any]) -> str:
    place = ".".join(f"{part:.60}" if isinstance(part, str) else str(part) for part in error["loc"])
    got = error.get("input")
    shown = f" (got {got!r:.60})" if isinstance(got, (str, int, float, bool)) else ""
    form = _WANTED.get(error.get("ctx", {}).get("pattern", ""))
    words = f"want {form}" if form else wanted(error)
    return f"{place or 'request'}: {words}{shown}"
