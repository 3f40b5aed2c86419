"""Renders the model's chat template in a sandbox.

The template is part of an untrusted file, so it runs in an immutable sandbox with a time limit and
a limit on its output. A model without a template gets DEFAULT. Rendering must run on the main
thread, where SIGALRM ends it.
"""

import contextlib
import signal
import types
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Message

DEFAULT = """\
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}assistant: """
_POWER_MAX = 64  # exponent of a ** in a template
# What the expressions of a template can raise besides the errors of jinja2.
_FAULTS = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class _Rejected(Exception):
    """The template called raise_exception: it rejects these messages."""


class _Timeout(BaseException):
    """A BaseException, so that nothing inside the template catches it."""


class _Environment(ImmutableSandboxedEnvironment):
    """Restricts `*` and `**`, which create large values before the output limit applies."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(
        self, context: object, operator: str, left: object, right: object
    ) -> int | float | str:
        if operator == "**" and isinstance(right, (int, float)) and abs(right) <= _POWER_MAX:
            return _power(left, right)
        if operator == "*":
            return _product(left, right)
        raise jinja2.TemplateRuntimeError(f"{operator} is not allowed with these values")


def _power(left: object, right: float) -> float:
    if isinstance(left, (int, float)) and abs(left) < 2**64:
        value: float = left**right
        return value
    raise jinja2.TemplateRuntimeError("** is allowed for numbers only")


def _product(left: object, right: object) -> int | float | str:
    if isinstance(left, int) and isinstance(right, str):
        left, right = right, left
    if isinstance(left, str) and isinstance(right, int):
        if len(left) * right > limits.TEMPLATE_CHARS:
            raise jinja2.TemplateRuntimeError(f"a text of {len(left) * right} characters")
        return left * right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left * right
    raise jinja2.TemplateRuntimeError("* is allowed for numbers and texts only")


def _raise_exception(message: object) -> NoReturn:
    raise _Rejected(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class Template:
    """A compiled template. EINVAL when the source does not compile."""

    __slots__ = ("_template", "_values")

    def __init__(self, source: str, values: Mapping[str, str]) -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        known = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source or DEFAULT, globals=known)
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise _refused(f"the model's chat template does not compile: {error}") from error
        self._values = dict(values)

    def render(self, messages: Sequence[Message]) -> str:
        """The rendered prompt. EINVAL with the template's message; ETIMEDOUT after TEMPLATE_S."""
        fields = [{"role": str(m.role), "content": m.content} for m in messages]
        values: dict[str, object] = {
            **self._values,
            "messages": fields,
            "add_generation_prompt": True,
            "tools": None,
        }
        try:
            with _time_limit():
                return self._join(values)
        except _Timeout:
            message = f"the model's chat template did not end within {limits.TEMPLATE_S:g} s"
            raise SyscallError(Errno.ETIMEDOUT, message, "use raw=True") from None
        except _Rejected as error:
            raise _refused(f"the model's chat template rejects these messages: {error}") from None
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise _refused(f"the model's chat template failed: {error}") from error

    def _join(self, values: dict[str, object]) -> str:
        parts: list[str] = []
        size = 0
        for part in self._template.generate(values):
            size += len(part)
            if size > limits.TEMPLATE_CHARS:
                most = limits.TEMPLATE_CHARS
                raise jinja2.TemplateRuntimeError(f"it wrote more than {most} characters")
            parts.append(part)
        return "".join(parts)


def _refused(message: str) -> SyscallError:
    return SyscallError(Errno.EINVAL, message[:500], "change the messages, or use raw=True")


@contextlib.contextmanager
def _time_limit() -> Generator[None]:
    def expire(number: int, frame: types.FrameType | None) -> None:
        raise _Timeout

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, limits.TEMPLATE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
