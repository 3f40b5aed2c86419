"""The gate: may this subject do this to that object? Default deny. The only host of Casbin.

Rows are checked here before Casbin sees them, because it lets mistakes pass as permissions: an
effect spelled `Deny` is ignored, an inner wildcard swallows the rest of a path, a role that shares
a user's name grants itself. Objects are compared by our own matcher, never by a regex.

A decision depends on the rules alone, so it is cached until they change.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import casbin

from . import limits
from .errors import Denied, Errno, SyscallError

_SUBJECT = re.compile(r"(u|r|app|pid):[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_OBJECT = re.compile(r"(/[A-Za-z0-9._:+-]+)+")
_PATTERN = re.compile(r"((/[A-Za-z0-9._:+-]+)+(/\*)?)|/\*")
_ROLE_DEPTH = 8  # Casbin follows ten, then forgets denies


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    rule: str  # "default.csv:12: p, r:careful, ...", or "" when none matched


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    fields: tuple[str, ...]
    place: str  # file:line

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}, {', '.join(self.fields)}"


def under(object_: str, pattern: str) -> bool:
    """Equal, or below a pattern that ends in /*."""
    if pattern.endswith("/*"):
        return object_.startswith(pattern[:-1])
    return object_ == pattern


class Policy:
    """The rules in force. `epoch` counts how often they changed."""

    def __init__(self, actions: Collection[str], owner: str, own: Path | None = None) -> None:
        self.epoch = 0
        self._actions = actions
        self._owner = _Rule("g", (f"u:{owner}", "r:owner"), "socket")
        self._own = own
        self._cache: dict[tuple[tuple[str, ...], str, str], Decision] = {}
        self.load()

    def load(self) -> None:
        """Read the shipped rules and the owner's. EINVAL with file and line changes nothing."""
        shipped = files("llmasos.policies")
        rules = [self._owner, *self._parse((shipped / "default.csv").read_text(), "default.csv")]
        if self._own is not None and self._own.exists():
            rules += self._parse(self._own.read_text(encoding="utf-8"), self._own.name)
        _check_roles(rule for rule in rules if rule.kind == "g")
        model: Any = casbin.Model()
        model.load_model_from_text((shipped / "model.conf").read_text())
        for rule in rules:
            model.add_policy(rule.kind, rule.kind, list(rule.fields))
        enforcer: Any = casbin.Enforcer(model)
        enforcer.add_function("under", under)
        enforcer.build_role_links()
        self._rules: Mapping[tuple[str, ...], _Rule] = {
            rule.fields: rule for rule in rules if rule.kind == "p"
        }
        self._enforcer = enforcer
        self._cache.clear()
        self.epoch += 1

    def _parse(self, text: str, name: str) -> list[_Rule]:
        rules: list[_Rule] = []
        for number, line in enumerate(text.splitlines(), 1):
            row = line.split("#", 1)[0].strip()
            if row:
                kind, *fields = (field.strip() for field in row.split(","))
                rule = _Rule(kind, tuple(fields), f"{name}:{number}")
                self._check(rule)
                rules.append(rule)
        return rules

    def _check(self, rule: _Rule) -> None:
        wrong: tuple[tuple[bool, str], ...]
        match (rule.kind, rule.fields):
            case ("p", (subject, action, pattern, effect)):
                wrong = (
                    (
                        not _SUBJECT.fullmatch(subject),
                        f"subject {subject!r}: want u:NAME or r:NAME",
                    ),
                    (action != "*" and action not in self._actions, f"no syscall {action!r}"),
                    (not _PATTERN.fullmatch(pattern), f"object {pattern!r}: want /a/path or /a/*"),
                    (effect not in ("allow", "deny"), f"effect {effect!r}: want allow or deny"),
                )
            case ("g", (member, role)):
                wrong = (
                    (not _SUBJECT.fullmatch(member), f"subject {member!r}: want u:NAME or r:NAME"),
                    (not re.fullmatch(r"r:[A-Za-z0-9._+-]+", role), f"role {role!r}: want r:NAME"),
                )
            case _:
                want = "want `p, subject, syscall, object, effect` or `g, subject, role`"
                wrong = ((True, want),)
        for is_wrong, why in wrong:
            if is_wrong:
                raise SyscallError(
                    Errno.EINVAL, f"{rule.place}: {why}", "mend the line, then retry"
                )

    def check(self, subjects: tuple[str, ...], action: str, object_: str) -> Decision:
        """The decision for a caller who is all of `subjects`. Anything unclear is a deny."""
        key = (subjects, action, object_)
        decision = self._cache.get(key)
        if decision is None:
            decision = self._judge(subjects, action, object_)
            if len(self._cache) >= limits.DECISIONS:
                self._cache.clear()
            self._cache[key] = decision
        return decision

    def _judge(self, subjects: Sequence[str], action: str, object_: str) -> Decision:
        if not _OBJECT.fullmatch(object_) or not {".", ".."}.isdisjoint(object_.split("/")):
            return Decision(False, f"{object_!r:.100} is not a canonical path")
        allowed = Decision(False, "")
        for subject in subjects:
            try:
                verdict, fields = self._enforcer.enforce_ex(subject, action, object_)
            except Exception as error:  # the judge itself failed: a deny, whatever it is
                return Decision(False, f"the rules could not be judged: {error}")
            rule = self._rules.get(tuple(fields))
            if rule is not None and not verdict:
                return Decision(False, str(rule))
            if rule is not None:
                allowed = Decision(True, str(rule))
        return allowed

    def refusal(self, subjects: Sequence[str], action: str, object_: str, rule: str) -> Denied:
        """A refusal that names the rule and how to change it."""
        who = " as ".join(subjects)
        if rule:
            return Denied(
                f"{who} may not {action} {object_}: {rule}",
                "change that line, then `llmasos daemon stop` and start again",
            )
        line = f"p, {subjects[-1]}, {action}, {object_}, allow"
        return Denied(
            f"{who} may not {action} {object_}: no rule allows it",
            f"add `{line}` to {self._own or 'policy.csv'}, then restart the daemon",
        )


def _check_roles(rules: Iterable[_Rule]) -> None:
    """No cycles, and no chain so long that Casbin would lose a deny at its end."""
    above: dict[str, list[_Rule]] = {}
    for rule in rules:
        above.setdefault(rule.fields[0], []).append(rule)

    def climb(member: str, path: tuple[str, ...]) -> None:
        for rule in above.get(member, ()):
            role = rule.fields[1]
            if role in path:
                chain = " -> ".join((*path, role))
                raise SyscallError(Errno.EINVAL, f"{rule.place}: roles in a circle: {chain}")
            if len(path) > _ROLE_DEPTH:
                raise SyscallError(Errno.EINVAL, f"{rule.place}: roles deeper than {_ROLE_DEPTH}")
            climb(role, (*path, role))

    for member in above:
        climb(member, (member,))
