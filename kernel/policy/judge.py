"""Casbin, the judge: its only host. It sees the few rows that can matter, and decides.

Plain enforcement looks at every row (36 ms at 10,000); an index by subject, syscall and pattern
hands it those that match. Casbin knows allow and deny; `ask` is told by a second hearing: with
every ask read as a deny there is no allow, with every ask read as an allow there is one.
Who has which roles it asks us: its own manager keeps every name that it was ever asked about.
A test compares this with plain pycasbin over all rows.
"""

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import casbin

from ..values import Effect
from .rules import SLICE, Roles, Rule, patterns, under

Row = list[str]
_READINGS = ({"ask": "deny"}, {"ask": "allow"})


@dataclass(frozen=True, slots=True)
class Ruling:
    effect: Effect
    rule: Rule | None  # that decided; None: no rule matches
    way: tuple[Rule, ...] = ()  # the roles that lead from the subject to it


class Judge:
    """Immutable rules; built in slices, so that the machine goes on meanwhile."""

    def __init__(self, model: str, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.roles = Roles()
        self._index: dict[tuple[str, str], dict[str, list[Rule]]] = defaultdict(dict)
        self._enforcer = enforcer(model)
        self._enforcer.model["g"]["g"].rm = _Links(self.roles)
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
        """All that it is made of, one by one: see `release`."""
        return [*self.rules, *self._index, *self._index.values()]

    def rule(self, subject: str, action: str, object_: str) -> Ruling:
        """What the rules say of one subject. Raises what Casbin raises."""
        roles = self.roles.of(subject)
        found = [
            rule
            for member in roles
            for word in (action, "*")
            if (by_pattern := self._index.get((member, word))) is not None
            for pattern in patterns(object_)
            for rule in by_pattern.get(pattern, ())
        ]
        if not found:
            return Ruling(Effect.DENY, None)
        strict, deciding = self._hear(found, 0, subject, action, object_)
        if strict:
            return Ruling(Effect.ALLOW, deciding, _way(roles, deciding))
        lenient = False
        if any(rule.effect is Effect.ASK for rule in found):
            lenient, _ = self._hear(found, 1, subject, action, object_)
        effect = Effect.ASK if lenient else Effect.DENY
        deciding = next((rule for rule in found if rule.effect is effect), None)
        return Ruling(effect, deciding, _way(roles, deciding))

    def silent(self, subject: str) -> bool:
        """A process or an app that has no role: rules of its own only take away from it.

        A role makes it a subject like any other, that may what the role may and nothing else.
        """
        return subject.startswith(("pid:", "app:")) and not self.roles.bind(subject)

    def _hear(
        self, found: list[Rule], reading: int, subject: str, action: str, object_: str
    ) -> tuple[bool, Rule | None]:
        words = _READINGS[reading]
        rows = [[*rule.fields[:3], words.get(rule.fields[3], rule.fields[3])] for rule in found]
        self._policy.policy = rows
        verdict, row = self._enforcer.enforce_ex(subject, action, object_)
        deciding = next((rule for rule, own in zip(found, rows, strict=True) if own is row), None)
        # Casbin that is switched off says True and names no row.
        return verdict is True and deciding is not None, deciding


def _way(roles: dict[str, tuple[Rule, ...]], rule: Rule | None) -> tuple[Rule, ...]:
    return roles.get(rule.fields[0], ()) if rule is not None else ()


class _Links:
    """What Casbin calls a role manager, as far as it asks."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles

    def has_link(self, member: str, role: str) -> bool:
        return role in self._roles.of(member)


def enforcer(model: str) -> Any:
    """An enforcer without rows."""
    parsed: Any = casbin.Model()
    parsed.load_model_from_text(model)
    made: Any = casbin.Enforcer(parsed)
    made.add_function("under", under)
    return made


class Plain:
    """Pycasbin over all rows, as it comes: what the index is tested against and measured beside."""

    def __init__(self, model: str, rules: Sequence[Rule]) -> None:
        self._enforcers: list[Any] = []
        for words in _READINGS:
            one = enforcer(model)
            for rule in rules:
                row = list(rule.fields)
                if rule.kind == "p":
                    row[3] = words.get(row[3], row[3])
                one.model[rule.kind][rule.kind].policy.append(row)
            one.build_role_links()
            self._enforcers.append(one)

    def rule(self, subject: str, action: str, object_: str) -> Effect:
        strict, lenient = (one.enforce(subject, action, object_) for one in self._enforcers)
        return Effect.ALLOW if strict else Effect.ASK if lenient else Effect.DENY
