"""A JSON schema in Lark, the language of llguidance.

llguidance reads JSON schemas itself, and not as their authors mean them: its numbers and objects
have no end, its numbers are floats, and it knows only the simplest references. So every schema is
written as rules here; a goal (shapes.py) is a rule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmasos.kernel import limits

from .check import Matches
from .document import Document, refusal, refused
from .goals import Goals
from .numbers import Number
from .rules import Way, ending
from .shapes import Array, Const, Goal, Object, Shape, Text
from .terminals import SPACE, Probe, Terminals, quoted

HEAD = f'%llguidance {{"ignore_once": true}}\n%ignore /{SPACE}/\n'
_UNIQUE = 64  # values of a list without repetitions: a rule has so many bits
_NONE = Way('""')


@dataclass(frozen=True, slots=True)
class Written:
    """A grammar, and smaller ones that show which part of the schema a refusal is about."""

    text: str
    probes: Sequence[Probe]


def write(document: Document, matches: Matches) -> Written:
    """EINVAL with the place of what is not supported or can never be satisfied."""
    return _Writer(Goals(document, matches)).write((document.root,))


class _Member(NamedTuple):
    """A property."""

    way: Way
    required: bool


@dataclass(slots=True)
class _Writer:
    opened: Goals
    words: Terminals = field(default_factory=Terminals)
    rules: dict[str, list[Way]] = field(default_factory=dict[str, list[Way]])
    counted: set[str] = field(default_factory=set[str])  # rules with a parameter
    goals: dict[Goal, str] = field(default_factory=dict[Goal, str])
    waiting: list[Goal] = field(default_factory=list[Goal])

    def write(self, goal: Goal) -> Written:
        root = self._goal(goal)
        while self.waiting:
            found = self.waiting.pop()
            self.rules[self.goals[found]] = list(self._ways(self.opened.open(found)))
            if len(self.rules) > limits.SCHEMA_RULES:
                raise refused(self.opened.document.root, "too many parts", "make it simpler")
        good = ending(self.rules)
        if root not in good:
            raise self._unsatisfiable()
        lines = [f"{self._head(name)}: {_body(ways)}\n" for name, ways in good.items()]
        text = f"{HEAD}start: {root}\n{''.join(lines)}{self.words.text}"
        return Written(text, self.words.probes)

    def _unsatisfiable(self) -> Exception:
        if self.opened.problems:
            where, _, words = self.opened.problems[0].partition(": ")
            return refusal(f"can never be satisfied: at {where}, {words}", "correct that part")
        words = "can never be satisfied: what it requires requires itself, without end"
        return refusal(words, 'let the inner one be left out, or be null by "anyOf"')

    # --- rules ----------------------------------------------------------------------------------
    def _goal(self, goal: Goal) -> str:
        known = self.goals.get(goal)
        if known is None:
            known = self.goals[goal] = f"g{len(self.goals)}"
            self.waiting.append(goal)
        return known

    def _rule(self, ways: list[Way], *, counted: bool = False) -> str:
        name = f"r{len(self.rules)}"
        self.rules[name] = ways
        if counted:
            self.counted.add(name)
        return name

    def _head(self, name: str) -> str:
        return f"{name}::_" if name in self.counted else name

    def _ways(self, shapes: list[Shape]) -> Iterator[Way]:
        """Alternatives. Constants that are no list and no object are one word."""
        constants = [one for one in shapes if isinstance(one, Const)]
        simple = [one for one in constants if not isinstance(one.value, (list, dict))]
        if simple:
            yield Way(self.words.scalars(simple))
        for shape in shapes:
            if not isinstance(shape, Const):
                yield from self._shape(shape)
            elif isinstance(shape.value, (list, dict)):
                yield Way(self.words.constant(shape))

    def _shape(self, shape: Number | Text | Array | Object) -> list[Way]:
        match shape:
            case Number():
                return [Way(self.words.number(shape))]
            case Text():
                return [Way(self.words.string(shape))]
            case Array():
                return self._array(shape)
            case Object():
                return self._object(shape)

    # --- arrays ---------------------------------------------------------------------------------
    def _array(self, shape: Array) -> list[Way]:
        unique = self._unique(shape)
        if unique is not None:
            return unique
        size = len(shape.first)
        following = self._rest(shape, max(1, size))  # what comes after so many items
        for at in range(size - 1, 0, -1):
            item = self._goal(shape.first[at])
            ways = [Way(f'"," {item} {following}', frozenset({item, following}))]
            if shape.most is not None and at >= shape.most:
                ways = []
            following = self._rule([*ways, _NONE] if at >= shape.least else ways)
        ways = [Way('"[" "]"')] if not shape.least else []
        if shape.most == 0:
            return ways
        item = self._goal(shape.first[0] if shape.first else shape.rest)
        return [*ways, Way(f'"[" {item} {following} "]"', frozenset({item, following}))]

    def _rest(self, shape: Array, before: int) -> str:
        """Items after so many."""
        least = max(0, shape.least - before)
        most = None if shape.most is None else max(0, shape.most - before)
        ways = [] if least else [_NONE]
        if most != 0:
            item = self._goal(shape.rest)
            one = self._rule([Way(f'"," {item}', frozenset({item}))])
            times = f"{{{max(1, least)},{'' if most is None else most}}}"
            ways.append(Way(f"{one}{times}", frozenset({one})))
        return self._rule(ways)

    def _unique(self, shape: Array) -> list[Way] | None:
        """A list without repetitions, of values that can be listed. None: they cannot, and who has
        the complete answer looks for repetitions."""
        if shape.unique is None or shape.first or (shape.most is not None and shape.most < 2):
            return None
        values = self.opened.open(shape.rest)
        constants = [one for one in values if isinstance(one, Const)]
        if len(constants) < len(values) or len(values) > _UNIQUE:
            return None
        if shape.least > len(values):
            words = f"{shape.unique.place}: {len(values)} different items exist"
            self.opened.problems.append(words)
            return []
        name = f"r{len(self.rules)}"
        most = len(values) if shape.most is None else shape.most
        ways = [Way('""', condition=f"bit_count_ge(_, {shape.least})")]
        for bit, value in enumerate(constants):
            text = self.words.constant(value)
            rest = f"bit_clear({bit})", f"bit_count_lt(_, {most})"
            after = f"{name}::set_bit({bit})"
            ways.append(Way(f"{text} {after}", condition=_all("eq(_, 0)", *rest)))
            ways.append(Way(f'"," {text} {after}', condition=_all("gt(_, 0)", *rest)))
        self._rule(ways, counted=True)
        return [Way(f'"[" {name}::0 "]"')]

    # --- objects --------------------------------------------------------------------------------
    def _object(self, shape: Object) -> list[Way]:
        members, entries = self._members(shape)
        needed = sum(member.required for member in members)
        limited = shape.least > needed or shape.most is not None
        if not limited:
            first, _ = self._sequence(members, entries)
            return [Way(f'"{{" {first} "}}"', frozenset({first}))]
        if shape.most is not None and needed > shape.most:
            words = f"{needed} properties are required, maxProperties is {shape.most}"
            self.opened.problems.append(f"{shape.place.place}: {words}")
            return []
        first = self._counted(shape, members, entries)
        return [Way(f'"{{" {first}::0 "}}"', frozenset({first}))]

    def _members(self, shape: Object) -> tuple[list[_Member], str]:
        """Declared properties, and a rule for one other; empty: there are no others."""
        opened, extra = self.opened.open, shape.extra
        properties = {
            name: goal for name, goal in shape.properties.items()
            if name in shape.required or opened(goal)
        }  # fmt: skip
        if extra is not None and not opened(extra):
            extra = None
        keys: list[tuple[str, Goal]] = []
        if shape.names:
            listed, texts = self._names(shape)
            properties = {name: goal for name, goal in properties.items() if name in listed} | {
                name: extra for name in listed if name not in properties and extra is not None
            }
            keys = [(self.words.string(text), extra) for text in texts if extra is not None]
        else:
            keys = list(self._keys(shape, extra))
        members = [
            self._member(self.words.literals([quoted(name)]), goal, name in shape.required)
            for name, goal in properties.items()
        ]
        missing = shape.required - properties.keys()
        if missing:  # a name that propertyNames forbids
            members.append(_Member(Way("", frozenset({"nothing"})), True))
        ways = [self._member(key, goal, False).way for key, goal in keys]
        return members, self._rule(ways) if ways else ""

    def _member(self, key: str, goal: Goal, required: bool) -> _Member:
        value = self._goal(goal)
        return _Member(Way(f'{key} ":" {value}', frozenset({value})), required)

    def _names(self, shape: Object) -> tuple[list[str], list[Text]]:
        """Names that propertyNames lists, and what it says of any other."""
        shapes = self.opened.open(shape.names)
        listed = [str(one.value) for one in shapes if isinstance(one, Const)
                  and isinstance(one.value, str)]  # fmt: skip
        texts = [one for one in shapes if isinstance(one, Text)]
        if texts and (shape.properties or shape.patterns):
            words = "'propertyNames' is supported with an enum, or without other properties"
            raise refused(shape.place, words, "leave it out, and declare the properties")
        return listed, texts

    def _keys(self, shape: Object, extra: Goal | None) -> Iterator[tuple[str, Goal]]:
        """Words for names that are not declared, and what these properties have to be."""
        names, patterns = list(shape.properties), list(shape.patterns)
        for pattern, goal in shape.patterns.items():
            others = [one for one in patterns if one != pattern]
            yield self.words.key(shape.place, [pattern], others, names), goal
        if extra is None:
            return
        if names or patterns:
            yield self.words.key(shape.place, [], patterns, names), extra
        else:
            yield self.words.string(Text(shape.place, 0, None, (), ())), extra

    def _sequence(self, members: list[_Member], entries: str) -> tuple[str, str]:
        """Members in their order: the rule for the first, and the one after a comma."""
        first, after = self._rule([_NONE]), self._rule([_NONE])
        if entries:
            more = self._rule([Way(f'"," {entries}', frozenset({entries}))])
            after = self._rule([_NONE, Way(f"{more}{{1,}}", frozenset({more}))])
            first = self._rule([_NONE, Way(f"{entries} {after}", frozenset({entries}))])
        for member in reversed(members):
            text, needs = member.way.text, member.way.needs
            starts = [Way(f"{text} {after}", needs | {after})]
            follows = [Way(f'"," {text} {after}', needs | {after})]
            if not member.required:
                starts.append(_pass(first))
                follows.append(_pass(after))
            first, after = self._rule(starts), self._rule(follows)
        return first, after

    def _counted(self, shape: Object, members: list[_Member], entries: str) -> str:
        """Members with a count, so that no choice leads to too many or too few."""
        most, needed = shape.most, 0
        name = self._entries(shape, entries)
        for left, member in enumerate(reversed(members)):
            text, needs = member.way.text, member.way.needs | {name}
            under = [] if member.required or most is None else [f"lt(_, {most - needed})"]
            ways = [
                Way(f"{text} {name}::incr(_)", needs, _all("eq(_, 0)", *under)),
                Way(f'"," {text} {name}::incr(_)', needs, _all("gt(_, 0)", *under)),
            ]
            if not member.required:
                over = "" if entries else f"ge(_, {max(0, shape.least - left)})"
                ways.append(Way(f"{name}::_", frozenset({name}), over))
            needed += member.required
            name = self._rule(ways, counted=True)
        return name

    def _entries(self, shape: Object, entries: str) -> str:
        name = f"r{len(self.rules)}"
        ways = [Way('""', condition=f"ge(_, {shape.least})")]
        under = [] if shape.most is None else [f"lt(_, {shape.most})"]
        if entries:
            after, needs = f"{name}::incr(_)", frozenset({entries})
            ways.append(Way(f"{entries} {after}", needs, _all("eq(_, 0)", *under)))
            ways.append(Way(f'"," {entries} {after}', needs, _all("gt(_, 0)", *under)))
        return self._rule(ways, counted=True)


def _pass(name: str) -> Way:
    return Way(name, frozenset({name}))


def _all(*conditions: str) -> str:
    found, *rest = conditions
    for one in rest:
        found = f"and({found}, {one})"
    return found


def _body(ways: list[Way]) -> str:
    return "\n  | ".join(
        f"{way.text} %if {way.condition}" if way.condition else way.text for way in ways
    )
