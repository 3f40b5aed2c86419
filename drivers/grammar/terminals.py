"""Numbers, texts and constants as terminals of Lark.

A terminal is one word for the library's lexer, which is fast. What a text looks like in JSON
decides whether a pattern can be one: llguidance quotes the texts of a pattern by itself in `%json`,
which is a rule; a pattern that must not match, and names of properties, are words that need no
escape.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple, cast

from . import numbers, patterns
from .document import Part, refusal, refused
from .formats import FORMATS
from .numbers import Number
from .shapes import Const, Text

_PLAIN = r"[^\"\\\x00-\x1F\x7F]"  # needs no escape
_ESCAPED = r"\\(?:[\"\\bfnrt]|u00(?:[01][0-9a-fA-F]|7[fF]))"
_CHAR = f"(?:{_PLAIN}|{_ESCAPED})"
# A model may put a space or a new line between the parts of JSON, but not spaces without end.
SPACE = r"[ ]|\n[ ]{0,16}"


class Probe(NamedTuple):
    """A grammar of one part, which shows whether that part is refused."""

    place: str
    text: str
    doubtful: bool  # nothing may match it, and the library would not say so


@dataclass(slots=True)
class Terminals:
    """The words of one grammar. A name in capitals is a word."""

    words: dict[str, str] = field(default_factory=dict[str, str])  # Lark to name
    probes: list[Probe] = field(default_factory=list[Probe])

    @property
    def text(self) -> str:
        return "".join(f"{name}: {body}\n" for body, name in self.words.items())

    def word(self, body: str) -> str:
        return self.words.setdefault(body, f"T{len(self.words)}")

    def literals(self, texts: list[str]) -> str:
        """Exactly one of these."""
        return self.word(" | ".join(f"/{literal(text)}/" for text in texts))

    # --- numbers --------------------------------------------------------------------------------
    def number(self, number: Number) -> str:
        """A word, or a rule of llguidance's own."""
        try:
            schema = numbers.schema(number)
        except ValueError as error:
            raise refused(number.place, f"multipleOf: {error}") from error
        if schema is not None:
            return self._own(schema, number.place)
        return self.word(" & ".join(f"/{one}/" for one in numbers.patterns(number)))

    def _own(self, schema: dict[str, object], part: Part) -> str:
        schema["x-guidance"] = {"whitespace_pattern": SPACE}
        body = f"%json {json.dumps(schema)}"
        self.probes.append(Probe(part.place, f"start: {body}\n", False))
        return body

    # --- texts ----------------------------------------------------------------------------------
    def string(self, shape: Text) -> str:
        """A word, or a rule of llguidance's own."""
        formats = [FORMATS[name] for name in shape.formats if name in FORMATS]
        found = [patterns.read(pattern) for pattern in shape.patterns]
        required = [one for pattern in found for one in pattern.required]
        excluded = [one for pattern in found for one in pattern.excluded]
        if excluded:
            return self._plain(shape, formats, required, excluded)
        if required:
            return self._own(_string(shape, [*required, *(f"^(?:{one})$" for one in formats)]),
                             shape.place)  # fmt: skip
        if not formats:
            return self.word(f'/"{_CHAR}{_times(shape)}"/')
        return self._plain(shape, formats, [], [])

    def _plain(
        self, shape: Text, formats: list[str], required: list[str], excluded: list[str]
    ) -> str:
        """Without characters that need an escape."""
        try:
            bodies = [f"/{one}/" for one in formats]
            bodies += [f"/{patterns.whole(one)}/" for one in required]
            bodies += [f"~/{patterns.whole(one)}/" for one in excluded]
        except ValueError as error:
            raise refused(shape.place, f"pattern: {error}") from error
        if shape.least or shape.most is not None or not formats:
            bodies.append(f"/{_PLAIN}{_times(shape)}/")
        text = " & ".join(bodies)
        inner = self.word(text)
        doubtful = len(bodies) > 1
        self.probes.append(Probe(shape.place.place, f"start: T0\nT0: {text}\n", doubtful))
        return self.word(f'/"/ {inner} /"/')

    def key(self, part: Part, own: list[str], others: list[str], names: list[str]) -> str:
        """A name that matches one pattern, or any name, and none of the others or of `names`."""
        try:
            bodies = [f"/{patterns.whole(one)}/" for one in own]
            bodies += [f"~/{patterns.whole(one)}/" for one in others]
        except ValueError as error:
            raise refused(part, f"patternProperties: {error}") from error
        bodies += [f"~/{literal(name)}/" for name in names]
        inner = self.word(" & ".join([f"/{_PLAIN}*/", *bodies]))
        return self.word(f'/"/ {inner} /"/')

    # --- constants ------------------------------------------------------------------------------
    def constant(self, const: Const) -> str:
        """Text of a rule, with spaces where JSON allows them."""
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
        """One of them; none is a list or an object."""
        return self.literals([scalar(const.value) for const in constants])


def _joined(opener: str, parts: list[str]) -> str:
    closer = {"[": "]", "{": "}"}[opener]
    inner = ' "," '.join(parts)
    return f'"{opener}" {inner} "{closer}"'


def scalar(value: object) -> str:
    """JSON, exact."""
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        return numbers.literal(value)
    return quoted(value)


def quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def literal(text: str) -> str:
    """An expression for exactly this text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        words = f"is refused at /: a text has half of a surrogate pair, {text!r:.80}"
        raise refusal(words, "write whole characters") from error
    return "".join(
        char if char.isascii() and (char.isalnum() or char in " _:,") else f"\\u{{{ord(char):X}}}"
        for char in text
    )


def _times(shape: Text) -> str:
    if not shape.least and shape.most is None:
        return "*"
    return f"{{{shape.least},{'' if shape.most is None else shape.most}}}"


def _string(shape: Text, found: list[str]) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string", "minLength": shape.least}
    if shape.most is not None:
        schema["maxLength"] = shape.most
    return schema | {"allOf": [{"type": "string", "pattern": one} for one in found]}
