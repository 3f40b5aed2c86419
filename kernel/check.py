"""Validation of requests. Pydantic is used here and in config.py only.

One validator for each syscall, built at its first call from the request's dataclass: unknown fields
are rejected, types are strict, `Span` and `Shape` become constraints. The result is an instance of
the dataclass.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from .abi import limits
from .abi.errors import Errno, SyscallError, TooBig
from .abi.table import TABLE
from .abi.values import Shape, Span
from .validation_message import expected

T = TypeVar("T")
_DESCRIPTIONS: dict[str, str] = {}  # of the `Shape` patterns


def _annotation(hint: Any) -> Any:
    """A type hint of the request dataclasses as pydantic takes it."""
    if typing.get_origin(hint) is Annotated:
        base, *marks = typing.get_args(hint)
        return Annotated[(_annotation(base), *(_constraint(base, mark) for mark in marks))]
    args = typing.get_args(hint)
    if args:
        inner = tuple(_annotation(a) for a in args)
        generic: Any = {list: list, dict: dict}.get(typing.get_origin(hint), typing.Union)
        return generic[inner]
    if dataclasses.is_dataclass(hint):
        return _nested(typing.cast("type", hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        # Strict mode accepts only a member; the wire format has its value.
        lenient: Any = Annotated[hint, Field(strict=False)]
        return lenient
    return typing.cast("Any", hint)


def _constraint(base: Any, mark: object) -> Any:
    match mark:
        case Span(low, high) if base in (int, float):
            return (
                Field(ge=low, le=high, allow_inf_nan=False)
                if base is float
                else Field(ge=low, le=high)
            )
        case Span(low, high):
            return Field(min_length=int(low), max_length=int(high))
        case Shape(pattern, description):
            whole = f"^(?:{pattern})$"
            _DESCRIPTIONS[whole] = description
            return Field(pattern=whole)
        case _:
            raise TypeError(f"{mark!r} is not a constraint")


def _adapter(kind: type) -> TypeAdapter[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = _annotation(hints[field.name])
        required = field.default is dataclasses.MISSING and (
            field.default_factory is dataclasses.MISSING
        )
        fields[field.name] = hint if required else typing.NotRequired[hint]
    typed_dict: Any = TypedDict  # static checkers reject computed fields
    schema = typed_dict(kind.__name__, fields)
    schema.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    return TypeAdapter(schema)


def _nested(kind: type) -> Any:
    """A nested dataclass: validate the map, then create the instance."""
    adapter = _adapter(kind)

    def create(value: object) -> object:
        return kind(**adapter.validate_python(value))

    return Annotated[Any, BeforeValidator(create)]


@functools.cache  # all of them would take a sixth of the daemon's start
def _validator(kind: type) -> Callable[[object], object]:
    validate = _adapter(kind).validator.validate_python

    def check(values: object) -> object:
        return kind(**validate(values))

    return check


def request(syscall: str, fields: object) -> object:
    """The request of a syscall. EINVAL names the first wrong fields; ENOSYS: no such syscall."""
    row = TABLE.get(syscall)
    if row is None:
        names = ", ".join(TABLE)
        raise SyscallError(Errno.ENOSYS, f"no syscall {syscall!r:.80}", f"syscalls: {names}")
    try:
        return _validator(row.request)(fields)
    except ValidationError as error:
        if any(_is_too_long(dict(e)) for e in error.errors()):
            most = limits.MESSAGE_CHARS
            message = f"{syscall}: a text has more than {most} characters"
            hint = "send it in parts; `llmasos mem map PID FILE` takes a whole file"
            raise TooBig(message, hint) from error
        message = "; ".join(_message(dict(e)) for e in error.errors()[:5])
        raise SyscallError(Errno.EINVAL, f"{syscall}: {message}", call=syscall) from error


def _is_too_long(error: Mapping[str, Any]) -> bool:
    """Whether a message or a page is too long: E2BIG instead of EINVAL."""
    longest: object = error.get("ctx", {}).get("max_length")
    return error["type"] == "string_too_long" and bool(longest == limits.MESSAGE_CHARS)


def _message(error: Mapping[str, Any]) -> str:
    field = ".".join(f"{part:.60}" if isinstance(part, str) else str(part) for part in error["loc"])
    got = error.get("input")
    shown = f" (got {got!r:.60})" if isinstance(got, (str, int, float, bool)) else ""
    description = _DESCRIPTIONS.get(error.get("ctx", {}).get("pattern", ""))
    want = f"want {description}" if description else expected(error)
    return f"{field or 'request'}: {want}{shown}"
