"""GBNF, llama.cpp's grammar language, read and told as what the grammar library understands.

The library reads words, and a word takes all that it can. Its own converter makes words of some
rules: of `[a-z]+ "x"` it leaves nothing for the x, and such an answer never ends. Here either the
whole grammar is one word, which is fast, or, when rules name themselves or the word is too
complex, every character is. Either means what it means in llama.cpp. Errors name line and column.
"""

import itertools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError

from .rules import settled

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
    """A part of a sequence, as Lark writes it."""

    word: str
    rule: str = ""  # that it names; empty: none
    needed: bool = True  # False: it may come no time at all


_Ways = list[list[_Item]]


@dataclass(slots=True)
class _Rule:
    """Alternatives of sequences."""

    at: int  # where it is defined; -1: not yet
    used: int  # where it is used first
    ways: _Ways = field(default_factory=list[list[_Item]])


def to_lark(text: str) -> list[str]:
    """The forms to be tried, in this order. EINVAL with the place of what is wrong."""
    return _Reader(text).read()


class _Reader:
    """One grammar. Rules and groups become r0, r1, ... and sets of characters T0, T1, ..."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0
        self._rules: dict[str, _Rule] = {}  # by Lark's name
        self._names: dict[str, str] = {}  # Lark's names of the grammar's rules
        self._sets: dict[str, str] = {}  # regular expression to Lark's name
        self._fresh = (f"r{number}" for number in itertools.count())

    def read(self) -> list[str]:
        self._skip(lines=True)
        while self._at < len(self._text):
            self._rule()
            self._skip(lines=True)
        self._check()
        sets = "".join(f"{name}: /{pattern}/\n" for pattern, name in self._sets.items())
        rules = "".join(f"{name}: {_written(rule.ways)}\n" for name, rule in self._rules.items())
        root = self._names[ROOT]
        by_character = f"start: {root}\n{rules}{sets}"
        # The library takes a name in capitals for a word.
        one_word = f"start: {root.upper()}\n{rules.upper()}{sets}"
        return [by_character] if self._recursive() else [one_word, by_character]

    # --- what a grammar is made of --------------------------------------------------------------
    def _rule(self) -> None:
        at = self._at
        name = self._named(self._name("a rule's name"), at)
        rule = self._rules[name]
        if rule.at >= 0:
            raise self._wrong(f"a rule is defined twice, first in {self._place(rule.at)}", at)
        rule.at = at
        self._skip()
        if not self._text.startswith("::=", self._at):
            raise self._wrong("::= is expected")
        self._at += 3
        self._skip(lines=True)
        rule.ways = self._ways(nested=False)
        if self._at < len(self._text) and self._here not in "\r\n":
            raise self._wrong(f"{self._here!r} is not expected")

    def _ways(self, *, nested: bool) -> _Ways:
        ways = [self._way(nested=nested)]
        while self._here == "|":
            self._at += 1
            self._skip(lines=True)
            ways.append(self._way(nested=nested))
        return ways

    def _way(self, *, nested: bool) -> list[_Item]:
        """A sequence. A repetition is of a whole text and not of its last character."""
        way: list[_Item] = []
        while found := self._items():
            self._skip(lines=nested)
            while (times := self._times()) is not None:
                found = [self._repeated(self._group([found]), *times)]
                self._skip(lines=nested)
            way += found
        return way

    def _items(self) -> list[_Item]:
        """The next part of a sequence; nothing when there is none."""
        match self._here:
            case '"':
                return self._literal() or [self._group([[]])]
            case "[":
                return [self._set()]
            case ".":
                self._at += 1
                return [_Item(self._word(r"[\u{0}-\u{10FFFF}]"))]
            case "(":
                return [self._parentheses()]
            case "<" | "!":
                raise self._wrong("tokens cannot be named: write their text")
            case char if char and _NAME.match(char):
                at = self._at
                name = self._named(self._name("a rule"), at)
                return [_Item(name, name)]
            case _:
                return []

    def _parentheses(self) -> _Item:
        at = self._at
        self._depth += 1
        if self._depth > limits.GRAMMAR_DEPTH:
            raise self._wrong(f"more than {limits.GRAMMAR_DEPTH} groups in each other")
        self._at += 1
        self._skip(lines=True)
        ways = self._ways(nested=True)
        if self._here != ")":
            raise self._wrong(f"no ) for the ( of {self._place(at)}")
        self._at += 1
        self._depth -= 1
        return self._group(ways)

    def _group(self, ways: _Ways) -> _Item:
        """A rule without a name: the library bounds how deep parentheses may go, rules not."""
        if [len(way) for way in ways] == [1]:
            return ways[0][0]
        name = next(self._fresh)
        self._rules[name] = _Rule(self._at, self._at, ways)
        return _Item(name, name)

    def _repeated(self, item: _Item, low: int, high: int | None) -> _Item:
        word, rule, _ = item
        if word[-1] == "}":  # Lark has no repetition of a repetition
            word = rule = next(self._fresh)
            self._rules[word] = _Rule(self._at, self._at, [[item]])
        return _Item(f"{word}{{{low},{'' if high is None else high}}}", rule, low > 0)

    def _times(self) -> tuple[int, int | None] | None:
        if self._here in _SIGNS:
            self._at += 1
            return _SIGNS[self._text[self._at - 1]]
        if self._here != "{":
            return None
        found = _TIMES.match(self._text, self._at)
        if found is None:
            raise self._wrong("{N}, {N,} or {N,M} is expected")
        low = int(found[1])
        high = low if not found[2] else int(found[3]) if found[3] else None
        if max(low, high or 0) > limits.GRAMMAR_REPEATS:
            raise self._wrong(f"{found[0]} is over {limits.GRAMMAR_REPEATS} times")
        if high is not None and high < low:
            raise self._wrong(f"{found[0]} has its numbers the wrong way round")
        self._at = found.end()
        return low, high

    # --- characters -----------------------------------------------------------------------------
    def _literal(self) -> list[_Item]:
        at = self._at
        self._at += 1
        found: list[_Item] = []
        while self._here != '"':
            if self._here in ("", "\n"):
                raise self._wrong("no end of the text that begins here", at)
            found.append(_Item(self._word(_code(self._char()))))
        self._at += 1
        return found

    def _set(self) -> _Item:
        at = self._at
        self._at += 1
        negated = self._here == "^"
        self._at += negated
        parts: list[str] = []
        while self._here != "]":
            if self._here in ("", "\n"):
                raise self._wrong("no ] for the [ here", at)
            place = self._at
            first = last = self._char()
            if self._here == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._char()
            if last < first:
                raise self._wrong("a range that ends before it begins", place)
            parts.append(f"{_code(first)}-{_code(last)}")
        self._at += 1
        if not parts:
            raise self._wrong("an empty set of characters", at)
        return _Item(self._word(f"[{'^' if negated else ''}{''.join(parts)}]"))

    def _char(self) -> str:
        """One character, or what an escape stands for."""
        at, char = self._at, self._here
        self._at += 1
        if char != "\\":
            return char
        kind = self._here
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = _HEX[kind].match(self._text, self._at) if kind in _HEX else None
        if digits is None:
            raise self._wrong(f"\\{kind} is no escape", at)
        self._at = digits.end()
        code = int(digits[0], 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise self._wrong(f"\\{kind}{digits[0]} is no character", at)
        return chr(code)

    def _word(self, pattern: str) -> str:
        return self._sets.setdefault(pattern, f"T{len(self._sets)}")

    # --- names and places -----------------------------------------------------------------------
    @property
    def _here(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, *, lines: bool = False) -> None:
        found = (_SPACE_AND_LINES if lines else _SPACE).match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _name(self, what: str) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._wrong(f"{what} is expected")
        self._at = found.end()
        return found[0]

    def _named(self, name: str, at: int) -> str:
        """Lark's name of a rule, which may be defined later."""
        known = self._names.get(name) or self._names.setdefault(name, next(self._fresh))
        self._rules.setdefault(known, _Rule(-1, at))
        return known

    def _place(self, at: int) -> str:
        line = self._text.count("\n", 0, at) + 1
        return f"line {line}, column {at - self._text.rfind(chr(10), 0, at)}"

    def _wrong(self, words: str, at: int | None = None) -> SyscallError:
        place = self._place(self._at if at is None else at)
        return SyscallError(Errno.EINVAL, f"grammar, {place}: {words}", _HINT)

    def _check(self) -> None:
        """All rules are there, and each can end."""
        if ROOT not in self._names:
            words = f"the grammar has no rule {ROOT!r}, with which it begins"
            raise SyscallError(Errno.EINVAL, words, f"name the whole answer {ROOT} ::= ...")
        told = {known: name for name, known in self._names.items()}
        for known, rule in self._rules.items():
            if rule.at < 0:
                raise self._wrong(f"rule {told[known]!r} is not defined", rule.used)
        needed = {
            (name, number): {item.rule for item in way if item.needed and item.rule}
            for name, rule in self._rules.items() for number, way in enumerate(rule.ways)
        }  # fmt: skip
        for known in self._rules.keys() & told.keys() - settled(needed):
            words = f"rule {told[known]!r} can never end: each way through it needs itself"
            raise self._wrong(words, self._rules[known].at)

    def _recursive(self) -> bool:
        """Some rule names itself, at once or by others."""
        named = {
            (name, 0): {item.rule for way in rule.ways for item in way if item.rule}
            for name, rule in self._rules.items()
        }
        return settled(named) != self._rules.keys()


def _written(ways: _Ways) -> str:
    return " | ".join(" ".join(item.word for item in way) or '""' for way in ways)


def _code(char: str) -> str:
    return f"\\u{{{ord(char):X}}}"
