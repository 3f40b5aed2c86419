"""Numbers, strings and constants as terminals of Lark.

A terminal is matched by the lexer of llguidance, which is fast. A pattern on a string that may need
escapes in JSON is no terminal but a `%json` rule, in which llguidance applies the escapes itself.
Patterns that must not match, and names of properties, are terminals without escapes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple, cast

from . import numbers, patterns
from .document import SchemaPart, part_error, schema_error
from .formats import FORMATS
from .numbers import NumberRange
from .shapes import Const, Text

_UNESCAPED = r"[^\"\\\x00-\x1F\x7F]"  # characters that need no escape
_ESCAPED = r"\\(?:[\"\\bfnrt]|u00(?:[01][0-9a-fA-F]|7[fF]))"
_CHAR = f"(?:{_UNESCAPED}|{_ESCAPED})"
# Between the elements of JSON a model may generate a space or a new line, but a limited number.
SPACE = r"[ ]|\n[ ]{0,16}"


class Probe(NamedTuple):
    """A grammar of one part of the schema, to find the part that llguidance refuses."""

    place: str
    text: str
    doubtful: bool  # it may match nothing, which llguidance reports only for it alone


@dataclass(slots=True)
class Terminals:
    """The terminals of one grammar."""

    names: dict[str, str] = field(default_factory=dict[str, str])  # by Lark expression
    probes: list[Probe] = field(default_factory=list[Probe])

    @property
    def text(self) -> str:
        return "".join(f"{name}: {body}\n" for body, name in self.names.items())

    def terminal(self, body: str) -> str:
        """The name of the terminal with this Lark expression."""
        return self.names.setdefault(body, f"T{len(self.names)}")

    def literals(self, texts: list[str]) -> str:
        """A terminal for exactly one of these texts."""
        return self.terminal(" | ".join(f"/{literal(text)}/" for text in texts))

    # --- numbers --------------------------------------------------------------------------------
    def number(self, number: NumberRange) -> str:
        """A terminal, or a `%json` rule."""
        try:
            schema = numbers.schema(number)
        except ValueError as error:
            raise part_error(number.place, f"multipleOf: {error}") from error
        if schema is not None:
            return self._json_rule(schema, number.place)
        return self.terminal(" & ".join(f"/{one}/" for one in numbers.patterns(number)))

    def _json_rule(self, schema: dict[str, object], part: SchemaPart) -> str:
        schema["x-guidance"] = {"whitespace_pattern": SPACE}
        body = f"%json {json.dumps(schema)}"
        self.probes.append(Probe(part.place, f"start: {body}\n", False))
        return body

    # --- texts ----------------------------------------------------------------------------------
    def string(self, shape: Text) -> str:
        """A terminal, or a `%json` rule."""
        formats = [FORMATS[name] for name in shape.formats if name in FORMATS]
        found = [patterns.read(pattern) for pattern in shape.patterns]
        required = [one for pattern in found for one in pattern.required]
        excluded = [one for pattern in found for one in pattern.excluded]
        if excluded:
            return self._unescaped(shape, formats, required, excluded)
        if required:
            anchored = (f"^(?:{one})$" for one in formats)
            return self._json_rule(_string_schema(shape, [*required, *anchored]), shape.place)
        if not formats:
            return self.terminal(f'/"{_CHAR}{_repetition(shape)}"/')
        return self._unescaped(shape, formats, [], [])

    def _unescaped(
        self, shape: Text, formats: list[str], required: list[str], excluded: list[str]
    ) -> str:
        """A terminal for strings without characters that need an escape."""
        try:
            bodies = [f"/{one}/" for one in formats]
            bodies += [f"/{patterns.whole(one)}/" for one in required]
            bodies += [f"~/{patterns.whole(one)}/" for one in excluded]
        except ValueError as error:
            raise part_error(shape.place, f"pattern: {error}") from error
        if shape.min_length or shape.max_length is not None or not formats:
            bodies.append(f"/{_UNESCAPED}{_repetition(shape)}/")
        text = " & ".join(bodies)
        inner = self.terminal(text)
        doubtful = len(bodies) > 1
        self.probes.append(Probe(shape.place.place, f"start: T0\nT0: {text}\n", doubtful))
        return self.terminal(f'/"/ {inner} /"/')

    def key(self, part: SchemaPart, own: list[str], others: list[str], names: list[str]) -> str:
        """A name that matches the patterns `own`, and none of `others` and of `names`."""
        try:
            bodies = [f"/{patterns.whole(one)}/" for one in own]
            bodies += [f"~/{patterns.whole(one)}/" for one in others]
        except ValueError as error:
            raise part_error(part, f"patternProperties: {error}") from error
        bodies += [f"~/{literal(name)}/" for name in names]
        inner = self.terminal(" & ".join([f"/{_UNESCAPED}*/", *bodies]))
        return self.terminal(f'/"/ {inner} /"/')

    # --- constants ------------------------------------------------------------------------------
    def constant(self, const: Const) -> str:
        """The body of a rule for one value, with the spaces that JSON allows."""
        value = const.value
        if isinstance(value, list):
            return _joined("[", [self.constant(Const(one)) for one in cast("list[object]", value)])
        if isinstance(value, dict):
            pairs = [
                f'{self.literals([quoted(name)])} ":" {self.constant(Const(one))}'
                for name, one in cast("dict[str, object]", value).items()
            ]
            return _joined("{", pairs)
        return self.literals([scalar(value)])

    def scalars(self, constants: Sequence[Const]) -> str:
        """A terminal for one of the constants, which are no lists or objects."""
        return self.literals([scalar(const.value) for const in constants])


def _joined(opener: str, parts: list[str]) -> str:
    closer = {"[": "]", "{": "}"}[opener]
    inner = ' "," '.join(parts)
    return f'"{opener}" {inner} "{closer}"'


def scalar(value: object) -> str:
    """A value that is no list or object, as exact JSON."""
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        return numbers.literal(value)
    return quoted(value)


def quoted(value: object) -> str:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def literal(text: str) -> str:
    """A regular expression that matches exactly this text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"is refused at /: a text has an unpaired surrogate, {text!r:.80}"
        raise schema_error(problem, "remove the surrogate") from error
    return "".join(
        char if char.isascii() and (char.isalnum() or char in " _:,") else f"\\u{{{ord(char):X}}}"
        for char in text
    )


def _repetition(shape: Text) -> str:
    """The allowed numbers of characters, as the end of a regular expression."""
    if not shape.min_length and shape.max_length is None:
        return "*"
    return f"{{{shape.min_length},{'' if shape.max_length is None else shape.max_length}}}"


def _string_schema(shape: Text, required: list[str]) -> dict[str, object]:
    """A JSON schema of strings that match all of the patterns."""
    schema: dict[str, object] = {"type": "string", "minLength": shape.min_length}
    if shape.max_length is not None:
        schema["maxLength"] = shape.max_length
    return schema | {"allOf": [{"type": "string", "pattern": one} for one in required]}
