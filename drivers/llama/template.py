"""The model's own chat template, rendered in a sandbox.

The template comes out of a file that nobody has read, so it gets an immutable sandbox, a time
limit and a limit on what it may produce. A model without a template gets the plain one below.
Rendering belongs on the main thread: the alarm that ends it rings there.
"""

import contextlib
import signal
import types
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.values import Message

PLAIN = """\
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}assistant: """
_POWER_MAX = 64  # exponent of a ** in a template
# What a template's expressions can raise besides jinja2's own errors.
_FAULTS = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class _Refusal(Exception):
    """The template called raise_exception: it refuses these messages."""


class _Timeout(BaseException):
    """Not an Exception: nothing inside the template may catch it."""


class _Environment(ImmutableSandboxedEnvironment):
    """Also refuses the operators that make much of little before any limit is looked at."""

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
    raise _Refusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class Template:
    """A compiled template. EINVAL when the source is none."""

    __slots__ = ("_template", "_values")

    def __init__(self, source: str, values: Mapping[str, str]) -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        known = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source or PLAIN, globals=known)
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise _refused(f"the model's chat template does not compile: {error}") from error
        self._values = dict(values)

    def render(self, messages: Sequence[Message]) -> str:
        """EINVAL with the template's own words; ETIMEDOUT when it does not end."""
        plain = [{"role": str(m.role), "content": m.content} for m in messages]
        values: dict[str, object] = {
            **self._values,
            "messages": plain,
            "add_generation_prompt": True,
            "tools": None,
        }
        try:
            with _time_limit():
                return self._join(values)
        except _Timeout:
            words = f"the model's chat template did not end within {limits.TEMPLATE_S:g} s"
            raise SyscallError(Errno.ETIMEDOUT, words, "generate with raw=True") from None
        except _Refusal as error:
            raise _refused(f"the model's chat template refuses these messages: {error}") from None
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
    def ring(number: int, frame: types.FrameType | None) -> None:
        raise _Timeout

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limits.TEMPLATE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
