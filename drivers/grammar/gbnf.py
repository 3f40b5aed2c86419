"""Translates GBNF, llama.cpp's grammar language, to Lark for llguidance.

llguidance has a lexer, and a terminal matches greedily. Its own converter makes terminals of some
rules: in `[a-z]+ "x"` nothing is left for the x, and such an answer never ends. Here either the
whole grammar is one terminal, which is fast, or each character is a terminal, if rules are
recursive or the one terminal is too complex. Both have the meaning of llama.cpp. Errors have the
line and column.
"""

import itertools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError

from .rules import resolvable

ROOT = "root"
_HINT = "GBNF is described in llama.cpp's grammars/README.md"
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TIMES = re.compile(r"\{\s*(\d{1,9})\s*(?:(,)\s*(\d{1,9})?\s*)?\}")
_SIGNS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", **{one: one for one in '"\\[]'}}
_HEX = {"x": re.compile(r"[0-9A-Fa-f]{2}"), "u": re.compile(r"[0-9A-Fa-f]{4}"),
        "U": re.compile(r"[0-9A-Fa-f]{8}")}  # fmt: skip


class _Item(NamedTuple):
    """An element of a sequence, in Lark."""

    symbol: str
    rule: str = ""  # that it refers to; empty: none
    needed: bool = True  # False: it may occur 0 times


_Alternatives = list[list[_Item]]


@dataclass(slots=True)
class _Rule:
    """A rule: alternatives, each a sequence."""

    at: int  # offset of its definition; -1: not defined yet
    used: int  # offset of its first use
    alternatives: _Alternatives = field(default_factory=list[list[_Item]])


def to_lark(text: str) -> list[str]:
    """Lark grammars to try in this order. EINVAL with the position of the error."""
    return _Reader(text).read()


class _Reader:
    """Parses one grammar. Rules and groups become r0, r1, ... and character sets T0, T1, ..."""

    def __init__(self, text: str) -> None:
        self._text, self._pos, self._depth = text, 0, 0
        self._rules: dict[str, _Rule] = {}  # by Lark's name
        self._names: dict[str, str] = {}  # Lark's names of the grammar's rules
        self._sets: dict[str, str] = {}  # regular expression to Lark's name
        self._new_names = (f"r{number}" for number in itertools.count())

    def read(self) -> list[str]:
        self._skip(lines=True)
        while self._pos < len(self._text):
            self._rule()
            self._skip(lines=True)
        self._check()
        sets = "".join(f"{name}: /{pattern}/\n" for pattern, name in self._sets.items())
        rules = "".join(
            f"{name}: {_written(rule.alternatives)}\n" for name, rule in self._rules.items()
        )
        root = self._names[ROOT]
        by_character = f"start: {root}\n{rules}{sets}"
        # In Lark, a name in capitals is a terminal.
        one_terminal = f"start: {root.upper()}\n{rules.upper()}{sets}"
        return [by_character] if self._recursive() else [one_terminal, by_character]

    # --- rules ----------------------------------------------------------------------------------
    def _rule(self) -> None:
        at = self._pos
        name = self._named(self._name("a rule's name"), at)
        rule = self._rules[name]
        if rule.at >= 0:
            raise self._error(f"a rule is defined twice, first in {self._place(rule.at)}", at)
        rule.at = at
        self._skip()
        if not self._text.startswith("::=", self._pos):
            raise self._error("::= is expected")
        self._pos += 3
        self._skip(lines=True)
        rule.alternatives = self._alternatives(nested=False)
        if self._pos < len(self._text) and self._next_char not in "\r\n":
            raise self._error(f"unexpected {self._next_char!r}")

    def _alternatives(self, *, nested: bool) -> _Alternatives:
        alternatives = [self._sequence(nested=nested)]
        while self._next_char == "|":
            self._pos += 1
            self._skip(lines=True)
            alternatives.append(self._sequence(nested=nested))
        return alternatives

    def _sequence(self, *, nested: bool) -> list[_Item]:
        """A sequence. A repetition applies to a whole literal, not to its last character."""
        sequence: list[_Item] = []
        while found := self._items():
            self._skip(lines=nested)
            while (times := self._times()) is not None:
                found = [self._repeated(self._group([found]), *times)]
                self._skip(lines=nested)
            sequence += found
        return sequence

    def _items(self) -> list[_Item]:
        """The next elements of a sequence; empty at its end."""
        match self._next_char:
            case '"':
                return self._literal() or [self._group([[]])]
            case "[":
                return [self._set()]
            case ".":
                self._pos += 1
                return [_Item(self._terminal(r"[\u{0}-\u{10FFFF}]"))]
            case "(":
                return [self._parentheses()]
            case "<" | "!":
                raise self._error("token references are not supported; write the text of the token")
            case char if char and _NAME.match(char):
                at = self._pos
                name = self._named(self._name("a rule"), at)
                return [_Item(name, name)]
            case _:
                return []

    def _parentheses(self) -> _Item:
        at = self._pos
        self._depth += 1
        if self._depth > limits.GRAMMAR_DEPTH:
            raise self._error(f"more than {limits.GRAMMAR_DEPTH} nested groups")
        self._pos += 1
        self._skip(lines=True)
        alternatives = self._alternatives(nested=True)
        if self._next_char != ")":
            raise self._error(f"no ) for the ( at {self._place(at)}")
        self._pos += 1
        self._depth -= 1
        return self._group(alternatives)

    def _group(self, alternatives: _Alternatives) -> _Item:
        """A group as a rule: llguidance limits the depth of parentheses, not of rules."""
        if [len(sequence) for sequence in alternatives] == [1]:
            return alternatives[0][0]
        name = next(self._new_names)
        self._rules[name] = _Rule(self._pos, self._pos, alternatives)
        return _Item(name, name)

    def _repeated(self, item: _Item, low: int, high: int | None) -> _Item:
        symbol, rule, _ = item
        if symbol[-1] == "}":  # Lark has no nested repetition
            symbol = rule = next(self._new_names)
            self._rules[symbol] = _Rule(self._pos, self._pos, [[item]])
        return _Item(f"{symbol}{{{low},{'' if high is None else high}}}", rule, low > 0)

    def _times(self) -> tuple[int, int | None] | None:
        if self._next_char in _SIGNS:
            self._pos += 1
            return _SIGNS[self._text[self._pos - 1]]
        if self._next_char != "{":
            return None
        found = _TIMES.match(self._text, self._pos)
        if found is None:
            raise self._error("{N}, {N,} or {N,M} is expected")
        low = int(found[1])
        high = low if not found[2] else int(found[3]) if found[3] else None
        if max(low, high or 0) > limits.GRAMMAR_REPEATS:
            raise self._error(f"{found[0]} is more than {limits.GRAMMAR_REPEATS} times")
        if high is not None and high < low:
            raise self._error(f"{found[0]} has its minimum after its maximum")
        self._pos = found.end()
        return low, high

    # --- characters -----------------------------------------------------------------------------
    def _literal(self) -> list[_Item]:
        at = self._pos
        self._pos += 1
        found: list[_Item] = []
        while self._next_char != '"':
            if self._next_char in ("", "\n"):
                raise self._error("the string that begins here has no end", at)
            found.append(_Item(self._terminal(_code(self._char()))))
        self._pos += 1
        return found

    def _set(self) -> _Item:
        at = self._pos
        self._pos += 1
        negated = self._next_char == "^"
        self._pos += negated
        parts: list[str] = []
        while self._next_char != "]":
            if self._next_char in ("", "\n"):
                raise self._error("no ] for the [ here", at)
            place = self._pos
            first = last = self._char()
            if self._next_char == "-" and self._text[self._pos + 1 : self._pos + 2] != "]":
                self._pos += 1
                last = self._char()
            if last < first:
                raise self._error("the range ends before it begins", place)
            parts.append(f"{_code(first)}-{_code(last)}")
        self._pos += 1
        if not parts:
            raise self._error("empty character set", at)
        return _Item(self._terminal(f"[{'^' if negated else ''}{''.join(parts)}]"))

    def _char(self) -> str:
        """One character or escape sequence."""
        at, char = self._pos, self._next_char
        self._pos += 1
        if char != "\\":
            return char
        kind = self._next_char
        self._pos += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = _HEX[kind].match(self._text, self._pos) if kind in _HEX else None
        if digits is None:
            raise self._error(f"\\{kind} is not a valid escape", at)
        self._pos = digits.end()
        code = int(digits[0], 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise self._error(f"\\{kind}{digits[0]} is not a valid character", at)
        return chr(code)

    def _terminal(self, pattern: str) -> str:
        return self._sets.setdefault(pattern, f"T{len(self._sets)}")

    # --- names and positions --------------------------------------------------------------------
    @property
    def _next_char(self) -> str:
        return self._text[self._pos : self._pos + 1]

    def _skip(self, *, lines: bool = False) -> None:
        found = (_SPACE_AND_LINES if lines else _SPACE).match(self._text, self._pos)
        self._pos = found.end() if found else self._pos

    def _name(self, what: str) -> str:
        found = _NAME.match(self._text, self._pos)
        if found is None:
            raise self._error(f"{what} is expected")
        self._pos = found.end()
        return found[0]

    def _named(self, name: str, at: int) -> str:
        """The Lark name of a rule, which may be defined later."""
        known = self._names.get(name) or self._names.setdefault(name, next(self._new_names))
        self._rules.setdefault(known, _Rule(-1, at))
        return known

    def _place(self, at: int) -> str:
        line = self._text.count("\n", 0, at) + 1
        return f"line {line}, column {at - self._text.rfind(chr(10), 0, at)}"

    def _error(self, problem: str, at: int | None = None) -> SyscallError:
        place = self._place(self._pos if at is None else at)
        return SyscallError(Errno.EINVAL, f"grammar, {place}: {problem}", _HINT)

    def _check(self) -> None:
        """Check that all rules are defined and that each can end."""
        if ROOT not in self._names:
            message = f"the grammar has no rule {ROOT!r}, the start rule"
            raise SyscallError(Errno.EINVAL, message, f"define the whole answer as {ROOT} ::= ...")
        sources = {known: name for name, known in self._names.items()}
        for known, rule in self._rules.items():
            if rule.at < 0:
                raise self._error(f"rule {sources[known]!r} is not defined", rule.used)
        needed = {
            (name, number): {item.rule for item in sequence if item.needed and item.rule}
            for name, rule in self._rules.items()
            for number, sequence in enumerate(rule.alternatives)
        }  # fmt: skip
        for known in self._rules.keys() & sources.keys() - resolvable(needed):
            problem = f"rule {sources[known]!r} can never end: each alternative needs itself"
            raise self._error(problem, self._rules[known].at)

    def _recursive(self) -> bool:
        """Whether a rule refers to itself, directly or through others."""
        named = {
            (name, 0): {
                item.rule for sequence in rule.alternatives for item in sequence if item.rule
            }
            for name, rule in self._rules.items()
        }
        return resolvable(named) != self._rules.keys()


def _written(alternatives: _Alternatives) -> str:
    return " | ".join(
        " ".join(item.symbol for item in sequence) or '""' for sequence in alternatives
    )


def _code(char: str) -> str:
    return f"\\u{{{ord(char):X}}}"
