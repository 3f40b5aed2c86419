"""The Casbin evaluator: evaluates the rules for one subject. Only this file imports casbin.

Plain Casbin enforcement scans every rule (36 ms at 10,000). An index by subject, syscall and
pattern selects the applicable rules, and Casbin gets only these. Casbin has the effects allow and
deny; `ask` takes a second evaluation: the result is ask when reading every ask as deny gives no
allow, and reading every ask as allow gives one. Roles are resolved here, since Casbin's own role
manager keeps every name that it was ever asked about. A test compares the results with plain
pycasbin over all rules.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import casbin

from ..abi.values import Effect
from .rules import SLICE, Roles, Rule, patterns, under

Row = list[str]
_ASK_READ_AS = ({"ask": "deny"}, {"ask": "allow"})  # strict, lenient


@dataclass(frozen=True, slots=True)
class Evaluation:
    effect: Effect
    rule: Rule | None  # that decided; None: no rule matches
    role_path: tuple[Rule, ...] = ()  # the `g` rules from the subject to it


class Evaluator:
    """Immutable rules. `build` yields often, so that other tasks run meanwhile."""

    def __init__(self, model: str, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.roles = Roles()
        self._index: dict[tuple[str, str], dict[str, list[Rule]]] = defaultdict(dict)
        self._enforcer = enforcer(model)
        self._enforcer._get_expression = _parsed_once(self._enforcer._get_expression)
        self._enforcer.model["g"]["g"].rm = _RoleManager(self.roles)
        self._policy: Any = self._enforcer.model["p"]["p"]

    def build(self) -> Generator[None]:
        for number, rule in enumerate(self.rules):
            if rule.kind == "p":
                subject, action, pattern, _ = rule.fields
                self._index[subject, action].setdefault(pattern, []).append(rule)
            else:
                self.roles.add(rule)
            if number % SLICE == 0:
                yield

    def parts(self) -> list[Any]:
        """The objects that it consists of, for `release`."""
        return [*self.rules, *self._index, *self._index.values()]

    def evaluate(self, subject: str, action: str, object_: str) -> Evaluation:
        """Evaluate the rules for one subject. Raises what Casbin raises."""
        roles = self.roles.of(subject)
        applicable = [
            rule
            for member in roles
            for syscall in (action, "*")
            if (by_pattern := self._index.get((member, syscall))) is not None
            for pattern in patterns(object_)
            for rule in by_pattern.get(pattern, ())
        ]
        if not applicable:
            return Evaluation(Effect.DENY, None)
        strict, deciding = self._enforce(applicable, 0, subject, action, object_)
        if strict:
            return Evaluation(Effect.ALLOW, deciding, _role_path(roles, deciding))
        lenient = False
        if any(rule.effect is Effect.ASK for rule in applicable):
            lenient, _ = self._enforce(applicable, 1, subject, action, object_)
        effect = Effect.ASK if lenient else Effect.DENY
        deciding = next((rule for rule in applicable if rule.effect is effect), None)
        return Evaluation(effect, deciding, _role_path(roles, deciding))

    def may_abstain(self, subject: str) -> bool:
        """Whether the subject abstains when no rule matches: a process or an app without a role.

        Rules for such a subject can only restrict a caller. With a role it is evaluated like any
        other subject: only what its rules allow is allowed.
        """
        return subject.startswith(("pid:", "app:")) and not self.roles.has_role(subject)

    def _enforce(
        self, rules: list[Rule], reading: int, subject: str, action: str, object_: str
    ) -> tuple[bool, Rule | None]:
        """Whether Casbin allows the call, and the deciding rule. `reading`: of `ask`."""
        effects = _ASK_READ_AS[reading]
        rows = [[*rule.fields[:3], effects.get(rule.fields[3], rule.fields[3])] for rule in rules]
        self._policy.policy = rows
        allowed, row = self._enforcer.enforce_ex(subject, action, object_)
        deciding = next((rule for rule, one in zip(rules, rows, strict=True) if one is row), None)
        # A disabled Casbin enforcer returns True and no row.
        return allowed is True and deciding is not None, deciding


def _role_path(roles: dict[str, tuple[Rule, ...]], rule: Rule | None) -> tuple[Rule, ...]:
    return roles.get(rule.fields[0], ()) if rule is not None else ()


class _RoleManager:
    """The part of Casbin's role manager interface that enforcement calls."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles

    def has_link(self, member: str, role: str) -> bool:
        return role in self._roles.of(member)


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
    """Unmodified pycasbin over all rules: the reference of the tests and of the benchmark."""

    def __init__(self, model: str, rules: Sequence[Rule]) -> None:
        self._enforcers: list[Any] = []
        for effects in _ASK_READ_AS:
            one = enforcer(model)
            for rule in rules:
                row = list(rule.fields)
                if rule.kind == "p":
                    row[3] = effects.get(row[3], row[3])
                one.model[rule.kind][rule.kind].policy.append(row)
            one.build_role_links()
            self._enforcers.append(one)

    def evaluate(self, subject: str, action: str, object_: str) -> Effect:
        strict, lenient = (one.enforce(subject, action, object_) for one in self._enforcers)
        return Effect.ALLOW if strict else Effect.ASK if lenient else Effect.DENY
