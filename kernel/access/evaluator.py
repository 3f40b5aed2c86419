"""The Casbin evaluator: evaluates the rules for one subject. Only this file imports casbin.

Casbin matches: policies/model.conf says which rules apply to a call, and how their effects combine.
Plain Casbin tries every rule (36 ms at 10,000), so it gets less to try, in two ways. The rules of
one subject, syscall and effect are one row with all their patterns, and the function `under` looks
the object up among these. And the rows are stored by subject and syscall, so that Casbin gets only
those of the subject and its roles, for the syscall or *. The store decides nothing: with all rows
each result would be the same. Casbin's FastEnforcer cannot be the store: it finds rows by the exact
values of the call, so it knows no roles, no * and no patterns.

Casbin has the effects allow and deny; `ask` takes a second evaluation: the result is ask when
reading every ask as deny gives no allow, and reading every ask as allow gives one. Roles are
resolved here, since Casbin's own role manager keeps every name that it was ever asked about. A test
compares the results with plain pycasbin, one row for each rule.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import casbin

from ..abi.values import Effect
from .rules import SLICE, Roles, Rule, matching, under

_STRICT, _LENIENT = "deny", "allow"  # how an effect `ask` is read


@dataclass(frozen=True, slots=True)
class Evaluation:
    effect: Effect
    rule: Rule | None  # that decided; None: no rule matches
    role_path: tuple[Rule, ...] = ()  # the `g` rules from the subject to it


class Patterns:
    """The patterns of a row, each with its rule.

    Not a dict, since Casbin's interpreter of matchers visits all values of a dict.
    """

    __slots__ = ("_rules",)

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}

    def __contains__(self, pattern: object) -> bool:
        return pattern in self._rules

    def add(self, pattern: str, rule: Rule) -> None:
        self._rules.setdefault(pattern, rule)

    def rule(self, object_: str) -> Rule:
        """The first rule that matches an object, which one does."""
        return next(self._rules[one] for one in matching(object_) if one in self._rules)


class PolicyRow(NamedTuple):
    """A row of Casbin: the rules of one subject, syscall and effect."""

    subject: str
    syscall: str
    patterns: Patterns
    effect: str


class Evaluator:
    """Immutable rules. `build` yields often, so that other tasks run meanwhile."""

    def __init__(self, model: str, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.roles = Roles()
        self._rows: dict[tuple[str, str], list[PolicyRow]] = {}  # by subject and syscall
        self._enforcer = enforcer(model)
        self._enforcer._get_expression = _parsed_once(self._enforcer._get_expression)
        self._enforcer.model["g"]["g"].rm = self.roles
        self._policy: Any = self._enforcer.model["p"]["p"]

    def build(self) -> Generator[None]:
        for number, rule in enumerate(self.rules):
            if rule.kind == "p":
                self._add(rule)
            else:
                self.roles.add(rule)
            if number % SLICE == 0:
                yield

    def _add(self, rule: Rule) -> None:
        subject, syscall, pattern, effect = rule.fields
        rows = self._rows.setdefault((subject, syscall), [])
        row = next((row for row in rows if row.effect == effect), None)
        if row is None:
            row = PolicyRow(subject, syscall, Patterns(), effect)
            rows.append(row)
        row.patterns.add(pattern, rule)

    def take_apart(self) -> list[Any]:
        """The objects that it consists of, for `release`. Without rules it denies everything."""
        parts = [*self.rules, *self._rows, *self._rows.values(), *self.roles.take_apart()]
        self.rules, self._rows = (), {}
        return parts

    def evaluate(self, subject: str, action: str, object_: str) -> Evaluation:
        """Evaluate the rules for one subject. Raises what Casbin raises."""
        roles = self.roles.of(subject)
        rows = [
            row
            for member in roles
            for syscall in (action, "*")
            for row in self._rows.get((member, syscall), ())
        ]
        allowed, rule = self._enforce(rows, _STRICT, subject, action, object_)
        effect = Effect.ALLOW if allowed else Effect.DENY
        if rule is not None and rule.effect is Effect.ASK:
            allowed, other = self._enforce(rows, _LENIENT, subject, action, object_)
            effect, rule = (Effect.ASK, rule) if allowed else (Effect.DENY, other)
        role_path = roles.get(rule.fields[0], ()) if rule is not None else ()
        return Evaluation(effect, rule, role_path)

    def may_abstain(self, subject: str) -> bool:
        """Whether the subject abstains when no rule matches: a process or an app without a role.

        Rules for such a subject can only restrict a caller. With a role it is evaluated like any
        other subject: only what its rules allow is allowed.
        """
        return subject.startswith(("pid:", "app:")) and not self.roles.has_role(subject)

    def _enforce(
        self, rows: list[PolicyRow], ask: str, subject: str, action: str, object_: str
    ) -> tuple[bool, Rule | None]:
        """Whether Casbin allows the call, and the deciding rule; None: no row matches.

        `ask`: how this effect is read.
        """
        if not rows:  # Casbin evaluates its matcher for an empty policy, too
            return False, None
        self._policy.policy = [
            row._replace(effect=ask) if row.effect == Effect.ASK else row for row in rows
        ]
        allowed, row = self._enforcer.enforce_ex(subject, action, object_)
        # A disabled Casbin enforcer returns True and no row.
        return (allowed is True, row.patterns.rule(object_)) if row else (False, None)


def enforcer(model: str) -> Any:
    """A Casbin enforcer without rules."""
    parsed: Any = casbin.Model()
    parsed.load_model_from_text(model)
    enforcer_: Any = casbin.Enforcer(parsed)
    enforcer_.add_function("under", under)
    return enforcer_


def _parsed_once(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Casbin's parser of matchers, which parses each matcher once and not for each decision.

    A parsed matcher is a reference cycle: each would stay until a full garbage collection.
    """
    known: dict[str, Any] = {}

    def parsed(expression: str, functions: object = None) -> Any:
        found = known.get(expression)
        if found is None:
            found = known[expression] = parse(expression, functions)
        found.functions = functions
        return found

    return parsed


class PlainEvaluator:
    """Unmodified pycasbin, one row for each rule: the reference of tests and the benchmark."""

    def __init__(self, model: str, rules: Sequence[Rule]) -> None:
        self._enforcers: list[Any] = []
        for ask in (_STRICT, _LENIENT):
            one = enforcer(model)
            for rule in rules:
                row: Sequence[object] = rule.fields
                if rule.kind == "p":
                    subject, syscall, pattern, effect = rule.fields
                    row = subject, syscall, (pattern,), ask if effect == Effect.ASK else effect
                one.model[rule.kind][rule.kind].policy.append(row)
            one.build_role_links()
            self._enforcers.append(one)

    def evaluate(self, subject: str, action: str, object_: str) -> Effect:
        strict, lenient = (one.enforce(subject, action, object_) for one in self._enforcers)
        return Effect.ALLOW if strict else Effect.ASK if lenient else Effect.DENY
