"""Translates a JSON schema to Lark, the grammar language of llguidance.

llguidance also accepts JSON schemas, but differs from what authors mean: its numbers and objects
are unbounded, its numbers are floats, and it supports only simple references. So every schema is
written as rules here; a goal (shapes.py) is a rule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmasos.kernel.abi import limits

from .check import Matches
from .document import SchemaDocument, part_error, schema_error
from .goals import Goals
from .numbers import NumberRange
from .rules import RuleAlternative, ending
from .shapes import Array, Const, Goal, Object, Shape, Text
from .terminals import SPACE, Probe, Terminals, quoted

HEAD = f'%llguidance {{"ignore_once": true}}\n%ignore /{SPACE}/\n'
_UNIQUE = 64  # distinct values of a list with uniqueItems: a rule parameter has 64 bits
_NONE = RuleAlternative('""')


@dataclass(frozen=True, slots=True)
class GrammarText:
    """A grammar, and one per part, with which the part that causes an error is found."""

    text: str
    probes: Sequence[Probe]


def write(document: SchemaDocument, matches: Matches) -> GrammarText:
    """The grammar of a schema. EINVAL with the position of an unsupported or unsatisfiable part."""
    return _Writer(Goals(document, matches)).write((document.root,))


class _Member(NamedTuple):
    """A property."""

    pair: RuleAlternative  # name and value
    required: bool


@dataclass(slots=True)
class _Writer:
    opened: Goals
    terminals: Terminals = field(default_factory=Terminals)
    rules: dict[str, list[RuleAlternative]] = field(
        default_factory=dict[str, list[RuleAlternative]]
    )
    counted: set[str] = field(default_factory=set[str])  # rules with a parameter
    goals: dict[Goal, str] = field(default_factory=dict[Goal, str])
    waiting: list[Goal] = field(default_factory=list[Goal])

    def write(self, goal: Goal) -> GrammarText:
        root = self._goal(goal)
        while self.waiting:
            found = self.waiting.pop()
            self.rules[self.goals[found]] = list(self._alternatives(self.opened.open(found)))
            if len(self.rules) > limits.SCHEMA_RULES:
                raise part_error(self.opened.document.root, "too many parts", "simplify the schema")
        good = ending(self.rules)
        if root not in good:
            raise self._unsatisfiable()
        lines = [
            f"{self._head(name)}: {_body(alternatives)}\n" for name, alternatives in good.items()
        ]
        text = f"{HEAD}start: {root}\n{''.join(lines)}{self.terminals.text}"
        return GrammarText(text, self.terminals.probes)

    def _unsatisfiable(self) -> Exception:
        if self.opened.problems:
            where, _, problem = self.opened.problems[0].partition(": ")
            problem = f"can never be satisfied: at {where}, {problem}"
            return schema_error(problem, "correct that part")
        problem = "can never be satisfied: a required value requires itself, without end"
        return schema_error(problem, "make the recursive value optional, or null with anyOf")

    # --- rules ----------------------------------------------------------------------------------
    def _goal(self, goal: Goal) -> str:
        known = self.goals.get(goal)
        if known is None:
            known = self.goals[goal] = f"g{len(self.goals)}"
            self.waiting.append(goal)
        return known

    def _rule(self, alternatives: list[RuleAlternative], *, counted: bool = False) -> str:
        name = f"r{len(self.rules)}"
        self.rules[name] = alternatives
        if counted:
            self.counted.add(name)
        return name

    def _head(self, name: str) -> str:
        return f"{name}::_" if name in self.counted else name

    def _alternatives(self, shapes: list[Shape]) -> Iterator[RuleAlternative]:
        """The alternatives of shapes. Constants that are no list or object are one terminal."""
        constants = [one for one in shapes if isinstance(one, Const)]
        simple = [one for one in constants if not isinstance(one.value, (list, dict))]
        if simple:
            yield RuleAlternative(self.terminals.scalars(simple))
        for shape in shapes:
            if not isinstance(shape, Const):
                yield from self._shape(shape)
            elif isinstance(shape.value, (list, dict)):
                yield RuleAlternative(self.terminals.constant(shape))

    def _shape(self, shape: NumberRange | Text | Array | Object) -> list[RuleAlternative]:
        match shape:
            case NumberRange():
                return [RuleAlternative(self.terminals.number(shape))]
            case Text():
                return [RuleAlternative(self.terminals.string(shape))]
            case Array():
                return self._array(shape)
            case Object():
                return self._object(shape)

    # --- arrays ---------------------------------------------------------------------------------
    def _array(self, shape: Array) -> list[RuleAlternative]:
        unique = self._unique(shape)
        if unique is not None:
            return unique
        size = len(shape.prefix_items)
        following = self._rest(shape, max(1, size))  # the rule after so many items
        for at in range(size - 1, 0, -1):
            item = self._goal(shape.prefix_items[at])
            alternatives = [
                RuleAlternative(f'"," {item} {following}', frozenset({item, following}))
            ]
            if shape.max_items is not None and at >= shape.max_items:
                alternatives = []
            following = self._rule(
                [*alternatives, _NONE] if at >= shape.min_items else alternatives
            )
        alternatives = [RuleAlternative('"[" "]"')] if not shape.min_items else []
        if shape.max_items == 0:
            return alternatives
        item = self._goal(shape.prefix_items[0] if shape.prefix_items else shape.other_items)
        return [
            *alternatives,
            RuleAlternative(f'"[" {item} {following} "]"', frozenset({item, following})),
        ]

    def _rest(self, shape: Array, before: int) -> str:
        """A rule for the items after the first `before`."""
        least = max(0, shape.min_items - before)
        most = None if shape.max_items is None else max(0, shape.max_items - before)
        alternatives = [] if least else [_NONE]
        if most != 0:
            item = self._goal(shape.other_items)
            one = self._rule([RuleAlternative(f'"," {item}', frozenset({item}))])
            times = f"{{{max(1, least)},{'' if most is None else most}}}"
            alternatives.append(RuleAlternative(f"{one}{times}", frozenset({one})))
        return self._rule(alternatives)

    def _unique(self, shape: Array) -> list[RuleAlternative] | None:
        """A list without repetitions, if its values can be enumerated; None: they cannot, and the
        complete answer is checked for repetitions."""
        if (
            shape.unique is None
            or shape.prefix_items
            or (shape.max_items is not None and shape.max_items < 2)
        ):
            return None
        values = self.opened.open(shape.other_items)
        constants = [one for one in values if isinstance(one, Const)]
        if len(constants) < len(values) or len(values) > _UNIQUE:
            return None
        if shape.min_items > len(values):
            problem = f"{shape.unique.place}: {len(values)} different items exist"
            self.opened.problems.append(problem)
            return []
        name = f"r{len(self.rules)}"
        most = len(values) if shape.max_items is None else shape.max_items
        alternatives = [RuleAlternative('""', condition=f"bit_count_ge(_, {shape.min_items})")]
        for bit, value in enumerate(constants):
            text = self.terminals.constant(value)
            rest = f"bit_clear({bit})", f"bit_count_lt(_, {most})"
            after = f"{name}::set_bit({bit})"
            alternatives.append(
                RuleAlternative(f"{text} {after}", condition=_all("eq(_, 0)", *rest))
            )
            alternatives.append(
                RuleAlternative(f'"," {text} {after}', condition=_all("gt(_, 0)", *rest))
            )
        self._rule(alternatives, counted=True)
        return [RuleAlternative(f'"[" {name}::0 "]"')]

    # --- objects --------------------------------------------------------------------------------
    def _object(self, shape: Object) -> list[RuleAlternative]:
        members, entries = self._members(shape)
        needed = sum(member.required for member in members)
        limited = shape.min_properties > needed or shape.max_properties is not None
        if not limited:
            first, _ = self._sequence(members, entries)
            return [RuleAlternative(f'"{{" {first} "}}"', frozenset({first}))]
        if shape.max_properties is not None and needed > shape.max_properties:
            problem = f"{needed} properties are required, maxProperties is {shape.max_properties}"
            self.opened.problems.append(f"{shape.place.place}: {problem}")
            return []
        first = self._counted(shape, members, entries)
        return [RuleAlternative(f'"{{" {first}::0 "}}"', frozenset({first}))]

    def _members(self, shape: Object) -> tuple[list[_Member], str]:
        """The declared properties, and a rule for one other; empty: others are not allowed."""
        opened, extra = self.opened.open, shape.additional
        properties = {
            name: goal for name, goal in shape.properties.items()
            if name in shape.required or opened(goal)
        }  # fmt: skip
        if extra is not None and not opened(extra):
            extra = None
        keys: list[tuple[str, Goal]] = []
        if shape.property_names:
            listed, texts = self._names(shape)
            properties = {name: goal for name, goal in properties.items() if name in listed} | {
                name: extra for name in listed if name not in properties and extra is not None
            }
            keys = [(self.terminals.string(text), extra) for text in texts if extra is not None]
        else:
            keys = list(self._keys(shape, extra))
        members = [
            self._member(self.terminals.literals([quoted(name)]), goal, name in shape.required)
            for name, goal in properties.items()
        ]
        missing = shape.required - properties.keys()
        if missing:  # a name that propertyNames forbids
            members.append(_Member(RuleAlternative("", frozenset({"nothing"})), True))
        alternatives = [self._member(key, goal, False).pair for key, goal in keys]
        return members, self._rule(alternatives) if alternatives else ""

    def _member(self, key: str, goal: Goal, required: bool) -> _Member:
        value = self._goal(goal)
        return _Member(RuleAlternative(f'{key} ":" {value}', frozenset({value})), required)

    def _names(self, shape: Object) -> tuple[list[str], list[Text]]:
        """The names that propertyNames enumerates, and its shapes of other names."""
        shapes = self.opened.open(shape.property_names)
        listed = [str(one.value) for one in shapes if isinstance(one, Const)
                  and isinstance(one.value, str)]  # fmt: skip
        texts = [one for one in shapes if isinstance(one, Text)]
        if texts and (shape.properties or shape.patterns):
            problem = "'propertyNames' is supported with an enum, or without other properties"
            raise part_error(shape.place, problem, "remove it and declare the properties")
        return listed, texts

    def _keys(self, shape: Object, extra: Goal | None) -> Iterator[tuple[str, Goal]]:
        """Terminals for names that are not declared, with the goals of these properties."""
        names, patterns = list(shape.properties), list(shape.patterns)
        for pattern, goal in shape.patterns.items():
            others = [one for one in patterns if one != pattern]
            yield self.terminals.key(shape.place, [pattern], others, names), goal
        if extra is None:
            return
        if names or patterns:
            yield self.terminals.key(shape.place, [], patterns, names), extra
        else:
            yield self.terminals.string(Text(shape.place, 0, None, (), ())), extra

    def _sequence(self, members: list[_Member], entries: str) -> tuple[str, str]:
        """Members in order: the rule without a comma before it, and the one with a comma."""
        first, after = self._rule([_NONE]), self._rule([_NONE])
        if entries:
            more = self._rule([RuleAlternative(f'"," {entries}', frozenset({entries}))])
            after = self._rule([_NONE, RuleAlternative(f"{more}{{1,}}", frozenset({more}))])
            first = self._rule([_NONE, RuleAlternative(f"{entries} {after}", frozenset({entries}))])
        for member in reversed(members):
            text, needs = member.pair.text, member.pair.needs
            starts = [RuleAlternative(f"{text} {after}", needs | {after})]
            follows = [RuleAlternative(f'"," {text} {after}', needs | {after})]
            if not member.required:
                starts.append(_pass(first))
                follows.append(_pass(after))
            first, after = self._rule(starts), self._rule(follows)
        return first, after

    def _counted(self, shape: Object, members: list[_Member], entries: str) -> str:
        """Members with a counter, which limits their number to least and most."""
        most, needed = shape.max_properties, 0
        name = self._entries(shape, entries)
        for left, member in enumerate(reversed(members)):
            text, needs = member.pair.text, member.pair.needs | {name}
            under = [] if member.required or most is None else [f"lt(_, {most - needed})"]
            alternatives = [
                RuleAlternative(f"{text} {name}::incr(_)", needs, _all("eq(_, 0)", *under)),
                RuleAlternative(f'"," {text} {name}::incr(_)', needs, _all("gt(_, 0)", *under)),
            ]
            if not member.required:
                over = "" if entries else f"ge(_, {max(0, shape.min_properties - left)})"
                alternatives.append(RuleAlternative(f"{name}::_", frozenset({name}), over))
            needed += member.required
            name = self._rule(alternatives, counted=True)
        return name

    def _entries(self, shape: Object, entries: str) -> str:
        """Other properties with a counter."""
        name = f"r{len(self.rules)}"
        alternatives = [RuleAlternative('""', condition=f"ge(_, {shape.min_properties})")]
        under = [] if shape.max_properties is None else [f"lt(_, {shape.max_properties})"]
        if entries:
            after, needs = f"{name}::incr(_)", frozenset({entries})
            alternatives.append(
                RuleAlternative(f"{entries} {after}", needs, _all("eq(_, 0)", *under))
            )
            alternatives.append(
                RuleAlternative(f'"," {entries} {after}', needs, _all("gt(_, 0)", *under))
            )
        return self._rule(alternatives, counted=True)


def _pass(name: str) -> RuleAlternative:
    return RuleAlternative(name, frozenset({name}))


def _all(*conditions: str) -> str:
    found, *rest = conditions
    for one in rest:
        found = f"and({found}, {one})"
    return found


def _body(alternatives: list[RuleAlternative]) -> str:
    return "\n  | ".join(
        f"{alternative.text} %if {alternative.condition}"
        if alternative.condition
        else alternative.text
        for alternative in alternatives
    )
