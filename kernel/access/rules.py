"""Rules of the policy language, validated before Casbin gets them: it accepts invalid rules.

    p, subject, syscall, object, allow|ask|deny      subject: u:NAME, r:NAME, app:NAME or pid:NUMBER
    g, member, r:NAME                                the member has the role's rules too

In Casbin an effect spelled `Deny` is ignored, a wildcard inside a path matches the rest of it, a
user with the name of a role gets the role, and a chain of roles that is too long loses a deny at
its end. A line break that only some programs recognise turns part of a comment into a rule.
"""

import re
import shlex
from collections.abc import Collection, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..abi.errors import Errno, SyscallError
from ..abi.values import SUBJECT, Effect

_MEMBER = re.compile(SUBJECT)
_ROLE = re.compile(r"r:[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_OBJECT = re.compile(r"(/[A-Za-z0-9._:+-]+)+")
_PATTERN = re.compile(r"((/[A-Za-z0-9._:+-]+)+(/\*)?)|/\*")
_PROCESS = re.compile(r"(?:/proc/(?:own/)?|pid:)([0-9]+)(?:/|$)")
_WANT_MEMBER = "want u:NAME, r:NAME, app:NAME or pid:NUMBER in ASCII letters"
_OWN = ("/proc/own", "/journal/own")  # processes of the caller's application, and its events
ROLE_DEPTH = 8  # roles above a role; Casbin follows nine levels, then loses denies
_EFFECTS = frozenset(Effect)
SLICE = 32  # rules between two yields


@dataclass(frozen=True, slots=True)
class Rule:
    kind: str  # p or g
    fields: tuple[str, ...]
    file: str
    line: int

    @property
    def text(self) -> str:
        return f"{self.kind}, {', '.join(self.fields)}"

    @property
    def effect(self) -> Effect:
        return Effect(self.fields[3])

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Mistake:
    """A rule that cannot be loaded, and why."""

    file: str
    line: int  # 0: no certain one
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}" if self.line else f"{self.file}: {self.why}"


def canonical(object_: str) -> bool:
    """Whether a path is in canonical form: no `.`, `..`, `//` or final slash, only allowed
    characters."""
    valid = _OBJECT.fullmatch(object_) is not None
    return valid and {".", ".."}.isdisjoint(object_.split("/"))


def aliases(object_: str) -> tuple[str, ...]:
    """The path of the object, and for an own process also its path without `own`.

    /proc/own/7/mem is also /proc/7/mem, so that a rule about process 7, or about all processes,
    applies to the application that started it as to every other one.
    """
    for own in _OWN:
        if object_ == own or object_.startswith(f"{own}/"):
            return object_, own.removesuffix("/own") + object_.removeprefix(own)
    return (object_,)


def own_path(object_: str) -> str:
    """The path of a process for the application that started it."""
    if object_.startswith("/proc/") and not object_.startswith("/proc/own/"):
        return object_.replace("/proc/", "/proc/own/", 1)
    return object_


def pids_in(subjects: Iterable[str], object_: str) -> set[int]:
    """The pids that the subjects and the object name."""
    names = [object_, *subjects]
    return {int(found[1]) for name in names if (found := _PROCESS.match(name)) is not None}


@lru_cache(maxsize=1)  # each row of a decision needs it
def matching(object_: str) -> tuple[str, ...]:
    """All patterns that match the object, each once: its paths, and PATH/* for all above them."""
    found = list[str]()
    for name in aliases(object_):
        parts = name.split("/")
        found += [name, *("/".join([*parts[:end], "*"]) for end in range(1, len(parts)))]
    return tuple(dict.fromkeys(found))


def under(object_: str, patterns: Container[str]) -> bool:
    """Whether one of the patterns matches the object."""
    return any(pattern in patterns for pattern in matching(object_))


def parse(
    text: str, file: str, actions: Collection[str], mistakes: list[Mistake]
) -> Generator[None, None, list[Rule]]:
    """The rules of a file; mistakes are added to `mistakes`. Yields every SLICE lines."""
    found: list[Rule] = []
    for number, line in enumerate(split_lines(text), 1):
        if number % SLICE == 0:
            yield
        row = line.split("#", 1)[0].strip()
        kind, *fields = (field.strip() for field in row.split(","))
        rule = Rule(kind, tuple(fields), file, number)
        why = _unprintable(line.rstrip("\r\n")) or (_mistake(rule, actions) if row else "")
        if why:
            mistakes.append(Mistake(file, number, why))
        elif row:
            found.append(rule)
    return found


def split_lines(text: str) -> Iterator[str]:
    """The lines of a text. Only \\n ends one, and none is copied before its turn."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _unprintable(line: str) -> str:
    """The mistake of an unprintable character, or "". In comments too: it may be a line break."""
    without_tabs = line.replace("\t", " ")
    if without_tabs.isprintable():
        return ""
    unprintable = next(char for char in without_tabs if not char.isprintable())
    return f"the character {unprintable!a} is not printable"


def _mistake(rule: Rule, actions: Collection[str]) -> str:
    """The mistake in a rule, or ""."""
    checks: tuple[tuple[object, str], ...]
    match (rule.kind, rule.fields):
        case ("p", (subject, action, pattern, effect)):
            checks = (
                (_MEMBER.fullmatch(subject), f"subject {subject!r:.80}: {_WANT_MEMBER}"),
                (action == "*" or action in actions, f"no syscall {action!r:.80}"),
                (_is_pattern(pattern), f"object {pattern!r:.80}: want /a/path or /a/*, no other *"),
                (effect in _EFFECTS, f"effect {effect!r:.80}: want allow, ask or deny"),
            )
        case ("g", (member, role)):
            checks = (
                (_MEMBER.fullmatch(member), f"subject {member!r:.80}: {_WANT_MEMBER}"),
                (_ROLE.fullmatch(role), f"role {role!r:.80}: want r:NAME"),
            )
        case _:
            want = "want `p, subject, syscall, object, effect` or `g, subject, role`"
            checks = ((False, f"{rule.kind!r:.40} with {len(rule.fields)} fields: {want}"),)
    return next((why for valid, why in checks if not valid), "")


def _is_pattern(pattern: str) -> bool:
    return _PATTERN.fullmatch(pattern) is not None and {".", ".."}.isdisjoint(pattern.split("/"))


def refuse(mistakes: Sequence[Mistake], file: str = "") -> None:
    """Raise EINVAL with the first mistake and the number of the others, if there are any.

    `file`: the path of the rules; empty: the user rules.
    """
    if mistakes:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        lint = shlex.join(("llmasos", "policy", "lint", *([file] if file else ())))
        hint = f"correct the line; `{lint}` lists all mistakes"
        raise SyscallError(Errno.EINVAL, f"{mistakes[0]}{more}", hint)


class Roles:
    """The roles of each subject, direct and through other roles."""

    def __init__(self) -> None:
        self._direct: dict[str, list[Rule]] = {}  # `g` rules, by member
        self._resolved: dict[str, dict[str, tuple[Rule, ...]]] = {}

    def add(self, rule: Rule) -> None:
        """Add a `g` rule. Not allowed after the first `of`."""
        self._direct.setdefault(rule.fields[0], []).append(rule)

    def take_apart(self) -> list[object]:
        """The objects that it consists of, for `release`. Nobody has a role afterwards."""
        parts: list[object] = [*self._direct.values(), *self._resolved.values()]
        self._direct, self._resolved = {}, {}
        return parts

    def mistakes(self, found: list[Mistake]) -> Generator[None]:
        """Add cycles, and chains so long that Casbin would lose a deny at their end, to `found`.

        Only roles are checked: a user is nobody's role, so a change of users causes no mistake.
        """
        depths: dict[str, int] = {}
        for number, member in enumerate(self._direct, 1):
            if number % SLICE == 0:
                yield
            if member.startswith("r:") and member not in depths:
                yield from self._visit(member, depths, found)

    def _visit(self, first: str, depths: dict[str, int], found: list[Mistake]) -> Generator[None]:
        """Depth-first search without recursion: a chain may have thousands of roles."""
        path = {first}
        stack = [(first, self._rules(first))]
        while stack:
            member, rules = stack[-1]
            rule = next(rules, None)
            if rule is None:
                self._set_depth(member, depths, found)
                stack.pop()
                path.remove(member)
            elif rule.fields[1] in path:
                found.append(
                    Mistake(rule.file, rule.line, f"the role {rule.fields[1]} contains itself")
                )
            elif rule.fields[1] not in depths:
                path.add(rule.fields[1])
                stack.append((rule.fields[1], self._rules(rule.fields[1])))
            if len(depths) % SLICE == 0 or len(stack) % SLICE == 0:
                yield

    def _set_depth(self, member: str, depths: dict[str, int], found: list[Mistake]) -> None:
        """Set the depth of a member, once the depths of all its roles are set."""
        above = (depths.get(rule.fields[1], 0) for rule in self._rules(member))
        depths[member] = 1 + max(above, default=-1)
        if depths[member] == ROLE_DEPTH + 1:
            rule = self._direct[member][0]
            why = f"roles are nested deeper than {ROLE_DEPTH}"
            found.append(Mistake(rule.file, rule.line, why))

    def _rules(self, member: str) -> Iterator[Rule]:
        return iter(self._direct.get(member, ()))

    def has_role(self, subject: str) -> bool:
        return subject in self._direct

    def has_link(self, member: str, role: str) -> bool:
        """Whether a subject has a role, or is it. Casbin calls this: it is its role manager."""
        return role in self.of(member)

    def of(self, subject: str) -> dict[str, tuple[Rule, ...]]:
        """The subject and all its roles, each with the `g` rules that lead to it."""
        if subject not in self._direct:
            return {subject: ()}  # not cached: the number of processes is unbounded
        resolved: dict[str, tuple[Rule, ...]] | None = self._resolved.get(subject)
        if resolved is None:
            resolved = {subject: ()}
            queue = [subject]
            for member in queue:
                for rule in self._direct.get(member, ()):
                    if rule.fields[1] not in resolved:
                        resolved[rule.fields[1]] = (*resolved[member], rule)
                        queue.append(rule.fields[1])
            self._resolved[subject] = resolved
        return resolved
